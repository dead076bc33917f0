package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/podend"
)

// unfit says in words why the packets of a pod with redirect, and those for it, cannot go directly as things
// are now; nothing if they can. dir is the attachment's.
func (d *Datapath) unfit(dir string, m *Meta) ([]string, error) {
	host, err := hostOf(m)
	if err != nil {
		return nil, err
	}
	if host == nil {
		// the kernel takes it out of the DEVMAPs, but bpf_redirect_peer() drops what is for it
		return []string{m.HostName + " is gone"}, nil
	}
	tcx, err := d.hasTCX()
	if err != nil {
		return nil, err
	}
	// links stay the same when an upgrade replaces programs
	own := own{programs: []ebpf.ProgramID{m.egressProgram, m.ingressProgram}}
	for _, h := range hooks(m.Mode) {
		state, err := readLink(filepath.Join(dir, h.pin))
		if err == nil {
			own.links = append(own.links, state.id)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	// behind a program after the policy nothing goes directly anyway (redirect_way() in bpf/lib/redirect.h)
	programs, err := programLinks(dir)
	if err != nil {
		return nil, err
	}
	own.links = append(own.links, programs...)
	found, err := obstacles(host, own, tcx)
	if err != nil {
		return found, err
	}
	end, err := m.podEnd()
	if errors.Is(err, podend.ErrGone) {
		if m.Mode == ModeNative {
			found = append(found, err.Error())
		}
		return found, nil // else it is what it was, as far as can be seen
	}
	if err != nil {
		return nil, err
	}
	defer end.Close()
	if m.Mode != ModeNative {
		runs, err := end.RunsXDP()
		if runs {
			// it puts socket buffers behind the driver (skb_do_redirect() in net/core/filter.c); pods in mode
			// tcx send so to generic ones too
			found = append(found, m.IfName+" runs an XDP program, which bpf_redirect_peer() passes by: mode native does not")
		}
		return found, err
	}
	err = end.CheckNative()
	if errors.Is(err, podend.ErrNotPrepared) {
		return append(found, err.Error()), nil
	}
	return found, err
}

// Refit looks at the pods with redirect whether their packets can go directly still, or again, and lets those for
// which that changed go by the stack, or directly. What can change is in others' hands: GRO at the pod's end, a
// queueing discipline at the host's. It goes on past errors and returns them joined.
func (d *Datapath) Refit(ctx context.Context) error {
	ctx, cancel := d.limited(ctx)
	defer cancel()
	here, _, errs := d.servesUs()
	if !here {
		return errs
	}
	attachments, err := d.List()
	errs = errors.Join(errs, err)
	for _, a := range attachments {
		if a.Meta.has(bpf.DatapathPodFlagPOD_REDIRECT) {
			errs = errors.Join(errs, d.refit(ctx, a))
		}
	}
	return errs
}

// refit is Refit for one attachment that has redirect.
func (d *Datapath) refit(ctx context.Context, a Attachment) error {
	unfit, err := d.unfit(a.dir, a.Meta)
	if err != nil {
		return fmt.Errorf("looking at container %s, interface %s: %w", a.Meta.ContainerID, a.Meta.IfName, err)
	}
	return d.withNode(func(n *node) error {
		inForce, found, err := n.redirects(a.Meta)
		if err != nil || !found || inForce == (len(unfit) == 0) {
			return err
		}
		d.Log.Warn("redirect changes", "container", a.Meta.ContainerID, "ifname", a.Meta.IfName, "on", !inForce, "unfit", unfit)
		return d.locked(ctx, func() error {
			number, entry, found, err := n.slotOf(a.Meta.HostIndex)
			if err != nil || !found || entry.Owner != a.Meta.owner || entry.Self.Owner != a.Meta.owner {
				return err // gone meanwhile, or not entered yet
			}
			if _, err := readMeta(d.Root.Pod(pins.ID(a.Meta.ContainerID, a.Meta.IfName))); errors.Is(err, ErrNotFound) {
				return nil // DEL has begun
			}
			if !inForce {
				// what came meanwhile was not noted
				if err := n.forgetFlows(a.Meta.owner); err != nil {
					return err
				}
			}
			return n.setRedirect(number, !inForce)
		})
	})
}

// forgetFlows removes what is known of the flows of an attachment.
func (n *node) forgetFlows(owner uint64) error {
	flows, err := n.open(pinDirectFlows)
	if err != nil {
		return err
	}
	defer flows.Close()
	keys, values, err := readAll[bpf.DatapathDirectKey, bpf.DatapathDirectFlow](flows, pinDirectFlows)
	if err != nil {
		return err
	}
	for i, key := range keys {
		if !slices.Contains(values[i].Owner[:], owner) {
			continue
		}
		if err := flows.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("removing a flow from the node's map %s: %w", pinDirectFlows, err)
		}
	}
	return nil
}

// redirects tells whether the attachment's packets go directly; found is false if it has no slot.
func (n *node) redirects(m *Meta) (inForce, found bool, err error) {
	_, entry, found, err := n.slotOf(m.HostIndex)
	if err != nil || !found || entry.Owner != m.owner {
		return false, false, err
	}
	return entry.Flags&uint32(bpf.DatapathSlotFlagSLOT_REDIRECT) != 0, true, nil
}

// checkRedirect checks that the attachment with redirect is entered as its slot says, and that its packets can
// go directly, if they could when it was made.
func (d *Datapath) checkRedirect(n *node, dir string, m *Meta, number uint32, entry bpf.DatapathSlot) error {
	if !m.has(bpf.DatapathPodFlagPOD_REDIRECT) {
		return nil
	}
	if err := n.checkEndpoint(m, number, entry.Self); err != nil {
		return err
	}
	unfit, err := d.unfit(dir, m)
	if err != nil {
		return err
	}
	inForce := entry.Flags&uint32(bpf.DatapathSlotFlagSLOT_REDIRECT) != 0
	switch {
	case len(unfit) > 0 && !m.has(bpf.DatapathPodFlagPOD_UNFIT):
		return fmt.Errorf("%w: its packets no longer can go directly: %s", ErrCheck, strings.Join(unfit, "; "))
	case len(unfit) == 0 && !inForce:
		return fmt.Errorf("%w: its packets can go directly, but do not", ErrCheck)
	}
	return nil
}

// checkEndpoint checks that others find the pod in the slot, and XDP programs its host end.
func (n *node) checkEndpoint(m *Meta, number uint32, self bpf.DatapathEndpoint) error {
	if self.Owner != m.owner || self.Slot != number || self.Ifindex != uint32(m.HostIndex) {
		return fmt.Errorf("%w: its slot does not say where it is", ErrCheck)
	}
	maps, err := n.openRedirect()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCheck, err)
	}
	defer maps.close()
	for _, address := range m.Addresses {
		var e bpf.DatapathEndpoint
		err := maps.endpoints.Lookup(endpointKey(m.networkID, address.Addr()), &e)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("reading the node's map %s: %w", pinEndpoints, err)
		}
		if err != nil || e != self {
			return fmt.Errorf("%w: others do not find it at %s", ErrCheck, address.Addr())
		}
	}
	for _, ports := range maps.ports {
		var ifindex uint32
		err := ports.Lookup(self.Ifindex, &ifindex)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("reading the node's map %s: %w", pinTxPorts, err)
		}
		if err != nil || ifindex != self.Ifindex {
			return fmt.Errorf("%w: nothing can be redirected to %s", ErrCheck, m.HostName)
		}
	}
	return nil
}
