package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// slotOf returns the slot that the programs find for an interface.
func (n *node) slotOf(ifindex int) (number uint32, found bool, err error) {
	number = uint32(ifindex) & (n.slots.MaxEntries() - 1)
	if found, err = n.ownsSlot(number, ifindex); found || err != nil {
		return number, found, err
	}
	err = n.overflow.Lookup(uint32(ifindex), &number)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("looking up the slot of interface %d: %w", ifindex, err)
	}
	found, err = n.ownsSlot(number, ifindex)
	return number, found, err
}

func (n *node) ownsSlot(number uint32, ifindex int) (bool, error) {
	var have bpf.DatapathSlot
	if err := n.slots.Lookup(number, &have); err != nil {
		return false, fmt.Errorf("reading slot %d: %w", number, err)
	}
	return have.Ifindex == uint32(ifindex), nil
}

// takeSlot enters an interface, which has none, in a free slot and returns its number: the one
// that the programs look in first if it is free, else any, with a note in the overflow map. The
// caller holds the node's lock. ErrFull if there is none.
func (n *node) takeSlot(ifindex int, flags bpf.DatapathSlotFlag) (uint32, error) {
	entry := bpf.DatapathSlot{Ifindex: uint32(ifindex), Flags: uint32(flags)}
	first := entry.Ifindex & (n.slots.MaxEntries() - 1)
	for i := range n.slots.MaxEntries() {
		number := (first + i) & (n.slots.MaxEntries() - 1)
		free, err := n.ownsSlot(number, 0)
		if err != nil {
			return 0, err
		}
		if !free {
			continue
		}
		// the note first: a slot that nothing leads to could never be freed
		if number != first {
			if err := n.overflow.Put(entry.Ifindex, number); err != nil {
				return 0, fmt.Errorf("entering slot %d: %w", number, err)
			}
		}
		if err := n.slots.Put(number, entry); err != nil {
			return 0, fmt.Errorf("entering slot %d: %w", number, err)
		}
		return number, nil
	}
	return 0, fmt.Errorf("%w: all %d slots are taken", ErrFull, n.slots.MaxEntries())
}

// freeSlot undoes takeSlot, whole or half done; an interface without a slot is no error.
func (n *node) freeSlot(ifindex int) error {
	number, found, err := n.slotOf(ifindex)
	if err != nil {
		return err
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

// takenSlots returns the interfaces that have a slot.
func (n *node) takenSlots() ([]int, error) {
	var (
		number uint32
		entry  bpf.DatapathSlot
		taken  []int
	)
	entries := n.slots.Iterate()
	for entries.Next(&number, &entry) {
		if entry.Ifindex != 0 {
			taken = append(taken, int(entry.Ifindex))
		}
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("reading the slots: %w", err)
	}
	return taken, nil
}
