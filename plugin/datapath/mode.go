package datapath

import (
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// Mode is how a pod's egress is hooked.
type Mode uint32

// The modes of design: XDP on socket buffers, XDP in the veth driver, the tc hook.
const (
	ModeGeneric = Mode(bpf.DatapathPodModePOD_MODE_GENERIC)
	ModeNative  = Mode(bpf.DatapathPodModePOD_MODE_NATIVE)
	ModeTCX     = Mode(bpf.DatapathPodModePOD_MODE_TCX)
)

// String returns the mode as configurations write it.
func (m Mode) String() string {
	switch m {
	case ModeGeneric:
		return "generic"
	case ModeNative:
		return "native"
	case ModeTCX:
		return "tcx"
	}
	return fmt.Sprintf("mode %d", uint32(m))
}

// AutoMode returns the best mode for pods with ordinary sockets: tcx where the kernel has it,
// which costs them least, else generic.
func AutoMode(features Features) Mode {
	if features.TCX {
		return ModeTCX
	}
	return ModeGeneric
}

// AutoMode returns what AutoMode does for this node's kernel.
func (d *Datapath) AutoMode() (Mode, error) {
	tcx, err := d.hasTCX()
	return AutoMode(Features{TCX: tcx}), err
}

// effectiveMode returns the mode that does what is asked for: tcx in place of generic where the
// host end has an ingress qdisc. Such a qdisc is there to redirect what comes in, as the bandwidth
// plugin does to an ifb for a limit on egress, and what comes back from there meets generic XDP
// once more (ifb_ri_tasklet() in drivers/net/ifb.c resets the mark that would prevent it): each
// packet would be counted twice. At the tc hook it is seen once.
func effectiveMode(asked Mode, tcx bool, host netlink.Link) (Mode, error) {
	if asked != ModeGeneric || !tcx {
		return asked, nil
	}
	kind, err := ingressQdisc(host)
	if err != nil {
		return asked, fmt.Errorf("reading the qdiscs of %s: %w", host.Attrs().Name, err)
	}
	if kind == "ingress" {
		return ModeTCX, nil
	}
	return asked, nil
}

// SeenTwice tells whether the attachment's packets from the pod are counted twice: in generic
// mode, with an ingress qdisc that came after the attachment (see effectiveMode). An interface
// that is gone has none.
func (d *Datapath) SeenTwice(a Attachment) (bool, error) {
	if a.Meta.Mode != ModeGeneric {
		return false, nil
	}
	host, err := hostOf(a.Meta)
	if host == nil {
		return false, err
	}
	kind, err := ingressQdisc(host)
	if err != nil {
		return false, fmt.Errorf("reading the qdiscs of %s: %w", a.Meta.HostName, err)
	}
	return kind == "ingress", nil
}
