package datapath_test

import (
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

// TestLRUFills: what the probe says is what becomes of a map with room for 128 entries for each CPU, where each CPU
// makes one and then the first makes 160 more. None is forgotten, or 128 while each of the others keeps 127 free ones.
func TestLRUFills(t *testing.T) {
	priv.Root(t)
	var cpus []int
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		t.Fatal(err)
	}
	for cpu := range ebpf.MustPossibleCPU() {
		if allowed.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	fills, err := datapath.ProbeLRUFills()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the kernel fills LRU maps: %v", fills)
	if len(cpus) < 2 {
		return // one that has all entries keeps none from another
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 4, ValueSize: 4, MaxEntries: uint32(128 * len(cpus))})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	put := func(cpu int, first, n uint32) {
		t.Helper()
		failed := make(chan error)
		go func() {
			runtime.LockOSThread() // and never unlocked
			var one unix.CPUSet
			one.Set(cpu)
			err := unix.SchedSetaffinity(0, &one)
			for key := first; key < first+n && err == nil; key++ {
				err = m.Put(key, key)
			}
			failed <- err
		}()
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
	}
	for i, cpu := range cpus {
		put(cpu, uint32(i), 1)
	}
	made := uint32(len(cpus)) + 160
	put(cpus[0], uint32(len(cpus)), 160)
	known := uint32(0)
	for key := range made {
		var value uint32
		if m.Lookup(key, &value) == nil {
			known++
		}
	}
	if (known == made) != fills {
		t.Errorf("%d of %d entries are known, in a map for %d; the probe says %v", known, made, m.MaxEntries(), fills)
	}
}

// TestMapCapacities: they are those of the maps.
func TestMapCapacities(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, tests.VethOptions{})
	for _, want := range []datapath.Capacities{{}, {Peers: 64}, {Flows: 256, Peers: 64}} {
		r.opts.Peers = want.Peers
		if want.Flows > 0 {
			r.opts.Policy = mustPolicy(t, someFilter)
		}
		r.mustAttach(r.opts)
		err := r.do(func(d *datapath.Datapath) error {
			have, err := d.Capacities(r.attachment())
			if err == nil && have != want {
				t.Errorf("capacities are %+v, want %+v", have, want)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		r.mustDetach(r.opts)
	}
}
