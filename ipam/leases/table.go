package leases

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/ipam/addrs"
)

// table is a pinned hash map, which grows.
type table struct {
	name string
	*ebpf.Map
}

// growth is how many times as large a map is that takes the place of a full one.
const growth = 4

// specs of the maps. Memory for entries is taken as they come (BPF_F_NO_PREALLOC): only the
// bucket heads, 16 bytes for each entry that there may be, are there from the start.
func (s *Store) spec(name string, entries uint32) *ebpf.MapSpec {
	spec := &ebpf.MapSpec{Name: "ipam_" + name, Type: ebpf.Hash, MaxEntries: entries, Flags: unix.BPF_F_NO_PREALLOC}
	switch name {
	case pinLeases:
		spec.KeySize, spec.ValueSize = sizeOf[key](), sizeOf[lease]()
	case pinOwners:
		spec.KeySize, spec.ValueSize = sizeOf[owner](), sizeOf[holding]()
	case pinTaken:
		spec.KeySize, spec.ValueSize = sizeOf[key](), sizeOf[addrs.Block]()
	case pinState:
		spec.Type, spec.Flags, spec.MaxEntries = ebpf.Array, 0, 1
		spec.KeySize, spec.ValueSize = sizeOf[uint32](), sizeOf[state]()
	}
	return spec
}

func (s *Store) newMap(name string, entries uint32) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(s.spec(name, entries))
	if errors.Is(err, unix.EPERM) {
		// Before 5.11 memory of maps counts against RLIMIT_MEMLOCK. cilium/ebpf's rlimit package
		// finds that out by making a map whenever a process starts, which costs every ADD.
		limit := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
		if unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit) == nil {
			m, err = ebpf.NewMap(s.spec(name, entries))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("making the map %s for %d entries: %w", name, entries, err)
	}
	return m, nil
}

func (s *Store) load(name string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(s.pin(name), nil)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", s.pin(name), err)
	}
	if want := s.spec(name, 0); m.Type() != want.Type || m.KeySize() != want.KeySize || m.ValueSize() != want.ValueSize {
		_ = m.Close()
		return nil, fmt.Errorf("opening %s: %w: keys of %d and values of %d bytes", s.pin(name), ErrLayout, m.KeySize(), m.ValueSize())
	}
	return m, nil
}

// publish pins m as name, in place of what is pinned there, in one step.
func (s *Store) publish(m *ebpf.Map, name string) error {
	next := s.pin(name + "_next")
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing what a killed process left: %w", err)
	}
	s.step("pin " + name)
	if err := m.Pin(next); err != nil {
		return fmt.Errorf("pinning %s: %w", next, err)
	}
	s.step("publish " + name)
	if err := os.Rename(next, s.pin(name)); err != nil {
		return fmt.Errorf("pinning %s: %w", s.pin(name), err)
	}
	return nil
}

// put changes an entry. A map that is full, or that was left half grown, grows.
func (s *Store) put(t *table, k, v any, flags ebpf.MapUpdateFlags) error {
	return s.change(t, func(m *ebpf.Map) error { return m.Update(k, v, flags) })
}

// remove removes an entry; none is no error.
func (s *Store) remove(t *table, k any) error {
	err := s.change(t, func(m *ebpf.Map) error { return m.Delete(k) })
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// retries: the kernel takes entries from a reserve that it fills again by and by, and refuses for
// a moment while that is empty or a bucket is looked through.
const retries = 100

func retried(do func() error) error {
	for attempt := 0; ; attempt++ {
		err := do()
		if attempt == retries || !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(time.Millisecond / 10)
	}
}

func (s *Store) change(t *table, do func(*ebpf.Map) error) error {
	for {
		s.step("change " + t.name)
		err := retried(func() error { return do(t.Map) })
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.E2BIG), errors.Is(err, unix.EPERM):
			if err := s.grow(t, err); err != nil {
				return err
			}
		default:
			return fmt.Errorf("changing the map %s of network %s: %w", t.name, s.Network, err)
		}
	}
}

// grow puts a larger copy of a map in its place. The old one is frozen first, so that nobody who
// still has it open can take an address in it that the copy does not know. If the process is
// killed before the copy is in place, the next change finds the map frozen (EPERM) and comes here.
// It takes the node's lock, so that even who got here without the network's lock waits for others.
func (s *Store) grow(t *table, reason error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("growing the map %s of network %s: %w", t.name, s.Network, err)
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), s.LockTimeout)
	defer cancel()
	lock, err := s.Root.Lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	if adopted, err := s.adopt(t); adopted || err != nil {
		return err
	}
	if errors.Is(reason, unix.E2BIG) {
		if t.MaxEntries() >= s.Most {
			return fmt.Errorf("it has %d entries: %w", t.MaxEntries(), ErrFull)
		}
		s.step("freeze " + t.name)
		// EBUSY: it is frozen already, or at this moment written to without our lock
		if err := t.Freeze(); err != nil && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	info, err := t.Info()
	if err != nil {
		return err
	}
	if !info.Frozen() {
		if errors.Is(reason, unix.E2BIG) {
			return nil // try again
		}
		return reason
	}
	next, err := s.newMap(t.name, max(min(t.MaxEntries()*growth, s.Most), t.MaxEntries()))
	if err != nil {
		return err
	}
	if err := copyEntries(next, t.Map); err != nil {
		_ = next.Close()
		return err
	}
	if err := s.publish(next, t.name); err != nil {
		_ = next.Close()
		return err
	}
	s.Log.Info("the map has grown", "map", t.name, "entries", next.MaxEntries())
	_ = t.Close()
	t.Map = next
	return nil
}

// adopt takes the map that is pinned if it is not the one that is open, and tells whether it did:
// somebody else was here before.
func (s *Store) adopt(t *table) (bool, error) {
	pinned, err := s.load(t.name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("%w: %w", ErrRemoved, err)
	}
	if err != nil {
		return false, err
	}
	have, err := mapID(t.Map)
	if err != nil {
		_ = pinned.Close()
		return false, err
	}
	there, err := mapID(pinned)
	if err != nil || there == have {
		_ = pinned.Close()
		return false, err
	}
	_ = t.Close()
	t.Map = pinned
	return true, nil
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("asking for a map's ID: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

func copyEntries(to, from *ebpf.Map) error {
	var k, v []byte
	all := from.Iterate()
	for all.Next(&k, &v) {
		if err := retried(func() error { return to.Put(k, v) }); err != nil {
			return err
		}
	}
	return all.Err()
}

// batch is how many entries are read at once: a few hundred kilobytes, and never fewer than there
// are in a bucket.
const batch = 1024

// each calls f with all entries of a map. Those that come and go meanwhile may be missing.
func each[K, V any](m *ebpf.Map, f func(K, V) error) error {
	var (
		cursor ebpf.MapBatchCursor
		keys   = make([]K, batch)
		values = make([]V, batch)
	)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("reading a map: %w", err)
		}
		for i := range n {
			if err := f(keys[i], values[i]); err != nil {
				return err
			}
		}
		if err != nil {
			return nil
		}
	}
}

func sizeOf[T any]() uint32 {
	var v T
	return uint32(binarySize(v))
}
