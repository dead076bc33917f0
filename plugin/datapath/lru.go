package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// LRUEntriesPerCPU is how many entries for each CPU an LRU map needs where [ProbeLRUFills] says no: of these, half may
// lie free at the CPUs, 128 at each (LOCAL_FREE_TARGET in kernel/bpf/bpf_lru_list.c). For maps of as many and more the
// kernels of either kind do the same.
const LRUEntriesPerCPU = 256

// ProbeLRUFills tells whether the kernel fills LRU maps, also small ones, before it evicts what is in use. Without
// commit d4adf1c9ee77 ("bpf: Adjust free target to avoid global starvation of LRU map", 6.17 and stable releases that
// have it too) each CPU takes 128 entries at once, also of a map that has no more than that for all.
func ProbeLRUFills() (fills bool, err error) {
	const entries = LRUEntriesPerCPU / 2
	if err := liftMemlock(); err != nil {
		return false, err
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 4, ValueSize: 4, MaxEntries: entries})
	if err != nil {
		return false, fmt.Errorf("probing LRU maps: %w", err)
	}
	defer m.Close()
	// One CPU has all entries in use, and needs one more: the least recently used go, 128 or fewer.
	if err := onOneCPU(func() error {
		for key := range uint32(entries + 1) {
			if err := m.Put(key, key); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return false, fmt.Errorf("probing LRU maps: %w", err)
	}
	var key, value uint32
	left, list := 0, m.Iterate()
	for list.Next(&key, &value) {
		left++
	}
	if err := list.Err(); err != nil {
		return false, fmt.Errorf("probing LRU maps: %w", err)
	}
	return left > entries/4, nil // one is left, or half of them and more
}

// onOneCPU runs fn on one of the CPUs that the caller may run on.
func onOneCPU(fn func() error) (err error) {
	runtime.LockOSThread()
	defer func() {
		if err == nil {
			runtime.UnlockOSThread() // else the thread is not used again
		}
	}()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	cpu := 0
	for !before.IsSet(cpu) {
		cpu++
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	return errors.Join(fn(), unix.SchedSetaffinity(0, &before))
}

// Capacities are how many entries an attachment's LRU maps have: 0 for a map that it has not.
type Capacities struct {
	Flows, Peers uint32
}

// Capacities reads them.
func (d *Datapath) Capacities(a Attachment) (c Capacities, err error) {
	for _, m := range []struct {
		pin  string
		into *uint32
	}{{pinFlows, &c.Flows}, {pinPeers, &c.Peers}} {
		pinned, err := ebpf.LoadPinnedMap(filepath.Join(a.dir, m.pin), &ebpf.LoadPinOptions{ReadOnly: true})
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return c, fmt.Errorf("opening map %s: %w", filepath.Join(a.dir, m.pin), err)
		}
		*m.into = pinned.MaxEntries()
		pinned.Close()
	}
	return c, nil
}
