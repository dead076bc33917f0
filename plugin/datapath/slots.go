package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// slotOf returns the slot that the programs find for an interface, and what it holds.
func (n *node) slotOf(ifindex int) (number uint32, entry bpf.DatapathSlot, found bool, err error) {
	number = n.firstSlot(ifindex)
	entry, err = n.slot(number)
	if err != nil || entry.Ifindex == uint32(ifindex) {
		return number, entry, err == nil, err
	}
	err = n.overflow.Lookup(uint32(ifindex), &number)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, bpf.DatapathSlot{}, false, nil
	}
	if err != nil {
		return 0, bpf.DatapathSlot{}, false, fmt.Errorf("looking up the slot of interface %d: %w", ifindex, err)
	}
	entry, err = n.slot(number)
	return number, entry, err == nil && entry.Ifindex == uint32(ifindex), err
}

// firstSlot is where the programs look first.
func (n *node) firstSlot(ifindex int) uint32 { return uint32(ifindex) & (n.slots.MaxEntries() - 1) }

func (n *node) slot(number uint32) (bpf.DatapathSlot, error) {
	var entry bpf.DatapathSlot
	if err := n.slots.Lookup(number, &entry); err != nil {
		return entry, fmt.Errorf("reading slot %d: %w", number, err)
	}
	return entry, nil
}

// takeSlot enters an attachment's interface in a slot and returns its number: the one that the
// interface index has already, if somebody left it so; else the one that the programs look in
// first, if it is free; else any, with a note in the overflow map. The caller holds the node's
// lock, and knows that nobody alive has that index. ErrFull if there is none.
func (n *node) takeSlot(m *Meta, flags bpf.DatapathSlotFlag) (uint32, error) {
	entry := bpf.DatapathSlot{Ifindex: uint32(m.HostIndex), Flags: uint32(flags), Owner: m.owner}
	number, _, found, err := n.slotOf(m.HostIndex)
	if err != nil {
		return 0, err
	}
	if !found {
		if number, err = n.freeSlotFor(m.HostIndex); err != nil {
			return 0, err
		}
		// the note first: a slot that nothing leads to could never be freed
		if number != n.firstSlot(m.HostIndex) {
			if err := n.overflow.Put(entry.Ifindex, number); err != nil {
				return 0, fmt.Errorf("entering slot %d: %w", number, err)
			}
		}
	}
	if err := n.slots.Put(number, entry); err != nil {
		return 0, fmt.Errorf("entering slot %d: %w", number, err)
	}
	return number, nil
}

func (n *node) freeSlotFor(ifindex int) (uint32, error) {
	first := n.firstSlot(ifindex)
	for i := range n.slots.MaxEntries() {
		number := (first + i) & (n.slots.MaxEntries() - 1)
		entry, err := n.slot(number)
		if err != nil {
			return 0, err
		}
		if entry.Ifindex == 0 {
			return number, nil
		}
	}
	return 0, fmt.Errorf("%w: all %d slots are taken", ErrFull, n.slots.MaxEntries())
}

// freeSlot undoes takeSlot, whole or half done. A slot that another attachment has, because the
// interface index was used again, stays. The caller holds the node's lock.
func (n *node) freeSlot(ifindex int, owner uint64) error {
	number, entry, found, err := n.slotOf(ifindex)
	if err != nil {
		return err
	}
	if found && entry.Owner != owner {
		return nil
	}
	if found {
		if err := n.slots.Put(number, bpf.DatapathSlot{}); err != nil {
			return fmt.Errorf("freeing slot %d: %w", number, err)
		}
	}
	err = n.overflow.Delete(uint32(ifindex))
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("freeing slot %d: %w", number, err)
	}
	return nil
}

// takenSlots returns the slots that are taken.
func (n *node) takenSlots() ([]bpf.DatapathSlot, error) {
	var (
		cursor  ebpf.MapBatchCursor
		numbers = make([]uint32, n.slots.MaxEntries())
		entries = make([]bpf.DatapathSlot, n.slots.MaxEntries())
		taken   []bpf.DatapathSlot
	)
	count, err := n.slots.BatchLookup(&cursor, numbers, entries, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // which says that this was all
		return nil, fmt.Errorf("reading the slots: %w", err)
	}
	for _, entry := range entries[:count] {
		if entry.Ifindex != 0 {
			taken = append(taken, entry)
		}
	}
	return taken, nil
}
