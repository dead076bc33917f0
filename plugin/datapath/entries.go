package datapath

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/cilium/ebpf"
)

// entry is what a map of maps is to hold at an index; without an inner map, nothing.
type entry struct {
	outer *ebpf.Map
	index uint32
	inner *ebpf.Map
}

// change is entries on their way into maps of maps. The kernel shows them to programs at once, and then lets
// the system call wait for an RCU grace period, until no program can be using what was there before
// (maybe_wait_bpf_programs() in kernel/bpf/syscall.c): 8 ms or so at 250 Hz, in which others can wait too.
type change struct {
	entries  []entry
	finished chan struct{}
	err      error // once finished is closed
}

// begin makes entries. What they hold must stay open until done has returned.
func begin(entries []entry) *change {
	c := &change{finished: make(chan struct{})}
	groups := map[*ebpf.Map][]entry{}
	for _, e := range entries {
		// to delete waits for a grace period also where there is nothing
		if e.inner == nil && !e.isThere() {
			continue
		}
		c.entries = append(c.entries, e)
		groups[e.outer] = append(groups[e.outer], e)
	}
	var (
		wait sync.WaitGroup
		mu   sync.Mutex
	)
	try := func(set func() error) {
		wait.Go(func() {
			if err := set(); err != nil {
				mu.Lock()
				defer mu.Unlock()
				c.err = errors.Join(c.err, err)
			}
		})
	}
	for outer, group := range groups {
		if len(group) > 1 && group[0].inner != nil {
			try(func() error { return setMany(outer, group) })
			continue
		}
		for _, e := range group {
			try(e.set)
		}
	}
	go func() {
		wait.Wait()
		close(c.finished)
	}()
	return c
}

// done waits for the grace periods.
func (c *change) done() error {
	<-c.finished
	return c.err
}

// visible returns once programs see the entries, which is long before done does.
func (c *change) visible() error {
	left := c.entries
	for wait := 20 * time.Microsecond; ; wait = min(2*wait, time.Millisecond) {
		for len(left) > 0 {
			seen, err := left[0].isSet()
			if err != nil {
				return errors.Join(err, c.done())
			}
			if !seen {
				break
			}
			left = left[1:]
		}
		if len(left) == 0 {
			return nil
		}
		select {
		case <-c.finished:
			return c.err
		case <-time.After(wait):
		}
	}
}

// apply makes entries and waits until nothing uses what was there before.
func apply(entries []entry) error { return begin(entries).done() }

func (e entry) set() error {
	var err error
	if e.inner != nil {
		err = e.outer.Put(e.index, e.inner)
	} else if err = e.outer.Delete(e.index); errors.Is(err, ebpf.ErrKeyNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("setting entry %d of %s: %w", e.index, e.outer, err)
	}
	return nil
}

// setMany sets entries of one map of maps, none of them to nothing, in one grace period.
func setMany(outer *ebpf.Map, entries []entry) error {
	keys := make([]uint32, len(entries))
	fds := make([]uint32, len(entries))
	for i, e := range entries {
		keys[i], fds[i] = e.index, uint32(e.inner.FD())
	}
	_, err := outer.BatchUpdate(keys, fds, nil)
	if !errors.Is(err, ebpf.ErrNotSupported) {
		if err != nil {
			return fmt.Errorf("setting %d entries of %s: %w", len(entries), outer, err)
		}
		return nil
	}
	// maps of maps have batches from 5.19 on
	var wait sync.WaitGroup
	errs := make([]error, len(entries))
	for i, e := range entries {
		wait.Go(func() { errs[i] = e.set() })
	}
	wait.Wait()
	return errors.Join(errs...)
}

// id returns the ID of what the map of maps holds there, 0 for nothing.
func (e entry) id() (ebpf.MapID, error) {
	var id ebpf.MapID
	err := e.outer.Lookup(e.index, &id)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading entry %d of %s: %w", e.index, e.outer, err)
	}
	return id, nil
}

func (e entry) isThere() bool {
	id, err := e.id()
	return err != nil || id != 0
}

// isSet tells whether the map of maps holds what it should.
func (e entry) isSet() (bool, error) {
	var want ebpf.MapID
	if e.inner != nil {
		var err error
		if want, err = mapID(e.inner); err != nil {
			return false, err
		}
	}
	have, err := e.id()
	return have == want, err
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("reading the ID of %s: %w", m, err)
	}
	id, _ := info.ID()
	return id, nil
}

// checkEntry compares an entry of a map of maps with a pin.
func checkEntry(outer *ebpf.Map, index uint32, dir, pin string) error {
	pinned, err := ebpf.LoadPinnedMap(filepath.Join(dir, pin), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("%w: pin %s: %w", ErrCheck, pin, err)
	}
	defer pinned.Close()
	want, err := mapID(pinned)
	if err != nil {
		return err
	}
	have, err := entry{outer: outer, index: index}.id()
	if err != nil {
		return err
	}
	switch have {
	case want:
		return nil
	case 0:
		return fmt.Errorf("%w: the programs do not know map %s", ErrCheck, pin)
	default:
		return fmt.Errorf("%w: the programs use map %d, pinned as %s is map %d", ErrCheck, have, pin, want)
	}
}
