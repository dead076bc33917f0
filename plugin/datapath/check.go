package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/ethtool"
	"github.com/xdp-cni/xdp-cni/internal/pins"
)

// Check returns nil if the attachment is as Attach made it for these options, else ErrNotFound,
// or ErrCheck with what is wrong.
//
// Where packets go directly and no longer can, or can again, that is put right.
func (d *Datapath) Check(ctx context.Context, opts AttachOptions) error {
	dir := d.Root.Pod(pins.ID(opts.ContainerID, opts.IfName))
	m, err := readMeta(dir)
	if err != nil {
		return err
	}
	if err := compareMeta(m, opts); err != nil {
		return err
	}
	programs, err := readPrograms(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCheck, err)
	}
	if err := comparePrograms(programs, opts.Programs); err != nil {
		return err
	}
	if m.has(bpf.DatapathPodFlagPOD_REDIRECT) {
		ctx, cancel := d.limited(ctx)
		defer cancel()
		if err := d.refit(ctx, Attachment{Meta: m, dir: dir}); err != nil {
			return err
		}
	}
	return d.checkIntact(dir, m, programs, opts.Peers > 0, opts.Policy != nil)
}

func compareMeta(m *Meta, opts AttachOptions) error {
	asked := m.Mode
	if m.has(bpf.DatapathPodFlagPOD_FOR_GENERIC) {
		asked = ModeGeneric
	}
	for _, field := range []struct {
		name       string
		have, want any
	}{
		{"container ID", m.ContainerID, opts.ContainerID},
		{"interface", m.IfName, opts.IfName},
		{"network", m.Network, opts.Network},
		{"mode", asked, opts.Mode},
		{"redirect", m.has(bpf.DatapathPodFlagPOD_REDIRECT), opts.Redirect != nil},
		{"host interface index", m.HostIndex, opts.HostIndex},
		{"host interface", m.HostName, opts.HostName},
		{"pod interface index", m.PodIndex, opts.PodIndex},
		// which antiSpoof goes by
		{"addresses", fmt.Sprint(m.Addresses), fmt.Sprint(opts.Addresses[:min(len(opts.Addresses), MaxAddresses)])},
	} {
		if field.have != field.want {
			return fmt.Errorf("%w: it was made with %s %v, but that is now %v", ErrCheck, field.name, field.have, field.want)
		}
	}
	return nil
}

// checkIntact checks the pins, the node's entries and the hooks of an attachment with these user programs. One that need
// not have a filter may have got one later.
func (d *Datapath) checkIntact(dir string, m *Meta, programs []PodProgram, peers, filter bool) error {
	n, err := openNode(d.Root.Node())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCheck, err)
	}
	defer n.close()
	slot, entry, found, err := n.slotOf(m.HostIndex)
	if err != nil {
		return err
	}
	if !found || entry.Owner != m.owner {
		return fmt.Errorf("%w: the programs do not know interface %s", ErrCheck, m.HostName)
	}
	for _, t := range tables {
		if t.ofFilter() {
			continue
		}
		if err := checkEntry(n.tables, n.tableIndex(t, slot), dir, t.pin); err != nil {
			return err
		}
	}
	if counts := entry.Flags&uint32(bpf.DatapathSlotFlagSLOT_PEERS) != 0; counts != peers {
		return fmt.Errorf("%w: the programs count by peer: %v, which should be %v", ErrCheck, counts, peers)
	}
	if peers {
		if err := checkEntry(n.peers, slot, dir, pinPeers); err != nil {
			return err
		}
	}
	if err := n.checkFilter(dir, m, filter); err != nil {
		return err
	}
	host, err := checkHost(m)
	if err != nil {
		return err
	}
	if err := n.checkPrograms(dir, m, programs, slot, entry); err != nil {
		return err
	}
	if err := d.checkRedirect(n, dir, m, slot, entry); err != nil {
		return err
	}
	if m.Mode == ModeNative {
		on, err := ethtool.GRO(host.Attrs().Name)
		if err != nil {
			return fmt.Errorf("reading GRO of %s: %w", host.Attrs().Name, err)
		}
		if !on {
			return fmt.Errorf("%w: GRO is off at %s", ErrCheck, host.Attrs().Name)
		}
	}
	for _, h := range hooks(m.Mode) {
		if err := h.check(dir, n, m); err != nil {
			return fmt.Errorf("%s: %w", h, err)
		}
	}
	return nil
}

// checkHost looks up the host end: ErrCheck if it is gone.
func checkHost(m *Meta) (netlink.Link, error) {
	host, err := netlink.LinkByIndex(m.HostIndex)
	if err != nil {
		return nil, fmt.Errorf("%w: host interface %s: %w", ErrCheck, m.HostName, err)
	}
	return host, nil
}

// check returns ErrCheck if the hook is not the node's pinned program, or that of another release whose
// upgrade has not got here yet, on the attachment's interface, in its mode.
func (h hook) check(dir string, n *node, m *Meta) error {
	shared, err := n.meta()
	if err != nil {
		return err
	}
	prog, err := ebpf.LoadPinnedProgram(filepath.Join(n.dir, h.composition(shared, m).pin()), nil)
	if err != nil {
		return fmt.Errorf("%w: pinned program: %w", ErrCheck, err)
	}
	defer prog.Close()
	pinned, err := programID(prog)
	if err != nil {
		return err
	}
	if m.has(h.clsact) {
		host, err := checkHost(m)
		if err != nil {
			return err
		}
		ours, err := h.filters(host, m)
		if err != nil {
			return err
		}
		if len(ours) != 1 {
			return fmt.Errorf("%w: %d filters of ours on %s run the pinned program %d", ErrCheck, len(ours), m.HostName, pinned)
		}
		return nil
	}
	state, err := readLink(filepath.Join(dir, h.pin))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: pin %s is missing", ErrCheck, h.pin)
	}
	if err != nil {
		return err
	}
	switch {
	case state.ifindex == 0:
		return fmt.Errorf("%w: its link is detached", ErrCheck)
	case state.ifindex != m.HostIndex:
		return fmt.Errorf("%w: its link is on interface %d, not on %s (%d)", ErrCheck, state.ifindex, m.HostName, m.HostIndex)
	}
	if state.program != pinned {
		ours, err := h.isOurs(state.program, m)
		if err != nil {
			return err
		}
		switch {
		case ours:
		case h.swappedSince(dir, state):
			return h.check(dir, n, m)
		default:
			return fmt.Errorf("%w: its link runs program %d, pinned is program %d", ErrCheck, state.program, pinned)
		}
	}
	host, err := checkHost(m)
	if err != nil {
		return err
	}
	if !h.isXDP() {
		return h.checkTCX(host, state.id)
	}
	err = h.checkXDP(host, state.program)
	if err != nil && h.swappedSince(dir, state) {
		return h.check(dir, n, m)
	}
	return err
}

// swappedSince tells whether the link runs another program than when it was read: an upgrade came between that and what
// was looked at behind it.
func (h hook) swappedSince(dir string, read *linkState) bool {
	now, err := readLink(filepath.Join(dir, h.pin))
	return err == nil && now.program != read.program
}

// checkXDP checks what the interface itself says of its XDP program.
func (h hook) checkXDP(host netlink.Link, program ebpf.ProgramID) error {
	want := uint32(nl.XDP_ATTACHED_SKB)
	if h.mode == ModeNative {
		want = nl.XDP_ATTACHED_DRV
	}
	xdp := host.Attrs().Xdp
	switch {
	case xdp == nil || !xdp.Attached:
		return fmt.Errorf("%w: %s runs no XDP program", ErrCheck, host.Attrs().Name)
	case xdp.AttachMode != want:
		return fmt.Errorf("%w: %s runs XDP in another mode than %s", ErrCheck, host.Attrs().Name, h.mode)
	case ebpf.ProgramID(xdp.ProgId) != program:
		return fmt.Errorf("%w: %s runs XDP program %d, its link program %d", ErrCheck, host.Attrs().Name, xdp.ProgId, program)
	}
	return nil
}

// checkTCX checks that the interface runs the link.
func (h hook) checkTCX(host netlink.Link, id link.ID) error {
	attach := ebpf.AttachTCXEgress
	if h.isEgress() {
		attach = ebpf.AttachTCXIngress
	}
	result, err := link.QueryPrograms(link.QueryOptions{Target: host.Attrs().Index, Attach: attach})
	if err != nil {
		return fmt.Errorf("reading the programs of %s: %w", host.Attrs().Name, err)
	}
	for _, prog := range result.Programs {
		if have, ok := prog.LinkID(); ok && have == id {
			return nil
		}
	}
	return fmt.Errorf("%w: %s does not run link %d", ErrCheck, host.Attrs().Name, id)
}
