package datapath

import (
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
)

// ReadyOptions are what attachments are to have.
type ReadyOptions struct {
	Mode  Mode
	Peers uint32
	// Redirect: their packets are to go directly where they can.
	Redirect bool
	// BigTCP: they are to have it; only BigTCPOn asks for more than there may be.
	BigTCP BigTCP
	// Programs that pods are to run; optional ones do not matter.
	Programs []Program
}

// Ready returns nil if Attach could succeed, else what is in its way: the kernel, the privileges,
// bpffs, another network namespace, another release's layout, missing pins, or ErrFull. It changes nothing and takes a few
// milliseconds. Whether the kernel has clsact, where it has no tcx, is seen only by Attach.
func (d *Datapath) Ready(opts ReadyOptions) error {
	if err := CheckKernel(); err != nil {
		return err
	}
	if opts.Mode != ModeTCX {
		if err := CheckXDPLinks(); err != nil {
			return err
		}
	}
	if opts.Peers > 0 {
		if err := features.HaveMapType(ebpf.LRUCPUHash); err != nil {
			return fmt.Errorf("%w: per-peer counters: %w", ErrUnsupported, err)
		}
	}
	if opts.BigTCP == BigTCPOn {
		if err := hasBigTCP(opts.Mode); err != nil {
			return err
		}
	}
	required := slices.DeleteFunc(slices.Clone(opts.Programs), func(p Program) bool { return p.Optional })
	if _, err := d.pickPrograms(required, opts.Mode); err != nil {
		return err
	}
	mounted, err := d.Root.Mounted()
	if err != nil {
		return err
	}
	if !mounted {
		return d.Root.Mountable()
	}
	return d.withNode(func(n *node) error {
		if err := d.hasRoom(n); err != nil || !opts.Redirect {
			return err
		}
		return n.roomForEndpoints()
	})
}

// hasRoom returns nil if the node serves the caller's network namespace, or would if asked to, and has
// a free slot.
func (d *Datapath) hasRoom(n *node) error {
	meta, err := n.meta()
	if err != nil {
		return err
	}
	netns, err := netnsInode()
	if err != nil {
		return err
	}
	if meta.Netns != netns {
		// ADD takes over if that namespace is gone
		return d.checkAbandoned(meta.Netns)
	}
	if _, err := d.fits(n, meta); err != nil {
		return err
	}
	taken, err := n.takenSlots()
	if err != nil {
		return err
	}
	if len(taken) >= int(n.slots.MaxEntries()) {
		return fmt.Errorf("%w: all %d slots are taken", ErrFull, len(taken))
	}
	return nil
}
