package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// hook is one of the two places at a host end where a program of ours runs.
type hook struct {
	direction bpf.DatapathDirection
	mode      Mode   // for egress; ingress is at tc in every mode
	pin       string // of the link, if there is one
	clsact    bpf.DatapathPodFlag
}

func hooks(mode Mode) []hook {
	return []hook{
		{bpf.DatapathDirectionDIRECTION_EGRESS, mode, pinEgressLink, bpf.DatapathPodFlagPOD_EGRESS_CLSACT},
		{bpf.DatapathDirectionDIRECTION_INGRESS, mode, pinIngressLink, bpf.DatapathPodFlagPOD_INGRESS_CLSACT},
	}
}

func (h hook) isEgress() bool { return h.direction == bpf.DatapathDirectionDIRECTION_EGRESS }

// isXDP: else it is at tc.
func (h hook) isXDP() bool { return h.isEgress() && h.mode != ModeTCX }

func (h hook) String() string {
	switch {
	case !h.isEgress():
		return "ingress (tc egress hook)"
	case h.mode == ModeTCX:
		return "egress (tc ingress hook)"
	default:
		return fmt.Sprintf("egress (%s XDP hook)", h.mode)
	}
}

// programID is what the attachment noted of the hook's program.
func (h hook) programID(m *Meta) ebpf.ProgramID {
	if h.isEgress() {
		return m.egressProgram
	}
	return m.ingressProgram
}

// isOurs tells whether a program at the hook is the one that the attachment noted, or by what it says of itself
// another release's: an upgrade notes what it attached only then.
func (h hook) isOurs(id ebpf.ProgramID, m *Meta) (bool, error) {
	if id == h.programID(m) {
		return true, nil
	}
	function := h.bare(false).function
	if h.isXDP() && m.has(bpf.DatapathPodFlagPOD_PROGRAMS) {
		function = bpf.DatapathProgXdpEgressPrograms
	}
	return isFunction(id, function)
}

// isFunction tells whether a program is this function of ours by what it says of itself, of any release.
func isFunction(id ebpf.ProgramID, function string) (bool, error) {
	prog, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("opening program %d: %w", id, err)
	}
	defer prog.Close()
	notes, err := readNotes(prog)
	if err != nil {
		return false, err
	}
	info, err := prog.Info()
	if err != nil {
		return false, fmt.Errorf("reading program %d: %w", id, err)
	}
	// of a longer name the kernel keeps the beginning, and cilium/ebpf finds the rest in BTF where it may read that
	kept := function[:min(len(function), maxObjectName)]
	return notes.digest != "" && (info.Name == function || info.Name == kept), nil
}

// attachLink attaches the program by a link, which lives as long as it is open or pinned.
func (h hook) attachLink(prog *ebpf.Program, ifindex int) (link.Link, error) {
	if h.isXDP() {
		flags := link.XDPGenericMode
		if h.mode == ModeNative {
			flags = link.XDPDriverMode
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: ifindex, Flags: flags})
		return l, explainXDP(err, h.mode)
	}
	opts := link.TCXOptions{Program: prog, Interface: ifindex}
	if h.isEgress() {
		// before all others: what they drop or redirect was sent by the pod too
		opts.Attach, opts.Anchor = ebpf.AttachTCXIngress, link.Head()
	} else {
		// after all others: what they drop does not get to the pod
		opts.Attach, opts.Anchor = ebpf.AttachTCXEgress, link.Tail()
	}
	return link.AttachTCX(opts)
}

// explainXDP says in words what an XDP attach error means. Sources: veth_xdp_set() in
// drivers/net/veth.c, dev_xdp_attach() and bpf_xdp_link_attach() in net/core/dev.c.
func explainXDP(err error, mode Mode) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%w, which is left as it is: %w", ErrForeignProgram, err)
	case errors.Is(err, unix.ERANGE):
		return fmt.Errorf("%w: the MTU of the pod's interface is too large for native XDP without "+
			"multi-buffer support (kernel 5.18): at most about 3500 bytes; lower it or use mode generic: %w", ErrUnsupported, err)
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("%w: the host end has fewer RX queues than the pod's interface has TX queues, and native XDP "+
			"on veth needs as many; make the veth with equal numbers or use mode generic: %w", ErrUnsupported, err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: the kernel or the interface's driver refuses %s XDP: %w", ErrUnsupported, mode, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: %w", ErrPrivileges, err)
	}
	return err
}

// foreignXDP returns ErrForeignProgram, naming it, if the interface carries an XDP program. Ours
// never does at that point.
func foreignXDP(host netlink.Link) error {
	xdp := host.Attrs().Xdp
	if xdp == nil || !xdp.Attached {
		return nil
	}
	name := "of unknown name"
	if prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(xdp.ProgId)); err == nil {
		if info, err := prog.Info(); err == nil && info.Name != "" {
			name = info.Name
		}
		_ = prog.Close()
	}
	return fmt.Errorf("%w: program %d (%s), which is left as it is", ErrForeignProgram, xdp.ProgId, name)
}

// detach takes the hook down, its link or its filter, and its pin; what is already gone is no
// error. It returns when the program no longer runs on the interface.
func (h hook) detach(dir string, m *Meta) error {
	if m != nil && m.has(h.clsact) {
		return detachFilter(h, m)
	}
	pin := filepath.Join(dir, h.pin)
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening link %s: %w", pin, err)
	}
	defer l.Close()
	return detachLink(l, pin, h.String())
}

// detachLink detaches a pinned link and removes its pin.
func detachLink(l link.Link, pin, what string) error {
	// removing the pin detaches later, by a worker: only this waits. ENOLINK: the veth is gone
	if err := l.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) {
		return fmt.Errorf("detaching %s: %w", what, err)
	}
	if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpinning link %s: %w", pin, err)
	}
	return nil
}

// linkState is what a pinned link says of itself.
type linkState struct {
	ifindex int // 0: the interface is gone
	program ebpf.ProgramID
	id      link.ID
}

func readLink(pin string) (*linkState, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return nil, fmt.Errorf("opening link %s: %w", pin, err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return nil, fmt.Errorf("reading link %s: %w", pin, err)
	}
	state := &linkState{program: info.Program, id: info.ID}
	if xdp := info.XDP(); xdp != nil {
		state.ifindex = int(xdp.Ifindex)
	}
	if tcx := info.TCX(); tcx != nil {
		state.ifindex = int(tcx.Ifindex)
	}
	return state, nil
}
