package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// composition is one way to load a program; all attachments that want the same share it.
type composition struct {
	function string // in the object
	frags    bool   // for XDP: takes multi-buffer packets
}

// The compositions that hooks ask for. XDP is multi-buffer in the driver only. A multi-buffer
// program on socket buffers makes the kernel copy them without skb->mac_len (skb_pp_cow_data() in
// net/core/skbuff.c, seen on 6.18): what comes behind at tc ingress, such as the redirect of the
// bandwidth plugin to its ifb, then takes the Ethernet header for the IP header. A program for
// linear buffers does not have that, sees all bytes too, and costs TCP as much.
var (
	xdpFrags  = composition{bpf.DatapathProgXdpEgress, true}
	xdpLinear = composition{bpf.DatapathProgXdpEgress, false}
	tcEgress  = composition{bpf.DatapathProgTcEgress, false}
	tcIngress = composition{bpf.DatapathProgTcIngress, false}
)

var compositions = []composition{xdpFrags, xdpLinear, tcEgress, tcIngress}

// pin is the composition's name among the node's pins.
func (c composition) pin() string {
	if c.frags {
		return c.function + "_frags"
	}
	return c.function
}

// composition is what runs at the hook; frags tells whether the kernel has multi-buffer XDP.
func (h hook) composition(frags bool) composition {
	switch {
	case !h.isEgress():
		return tcIngress
	case h.mode == ModeTCX:
		return tcEgress
	case h.mode == ModeNative && frags:
		return xdpFrags
	default:
		return xdpLinear
	}
}

// program opens the node's program of that composition, or loads it from the spec and pins it. The
// caller holds the node's lock.
func (n *node) program(spec *ebpf.CollectionSpec, c composition) (*ebpf.Program, error) {
	pin := filepath.Join(n.dir, c.pin())
	prog, err := ebpf.LoadPinnedProgram(pin, nil)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return prog, err
	}
	spec = spec.Copy()
	if err := c.reduce(spec); err != nil {
		return nil, err
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		MapReplacements: map[string]*ebpf.Map{
			bpf.DatapathMapSlots:        n.slots,
			bpf.DatapathMapSlotOverflow: n.overflow,
			bpf.DatapathMapPodTables:    n.tables,
			bpf.DatapathMapPodPeers:     n.peers,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("loading program %s: %w", c.function, err)
	}
	defer collection.Close()
	prog = collection.DetachProgram(c.function)
	if err := prog.Pin(pin); err != nil {
		_ = prog.Close()
		return nil, fmt.Errorf("pinning program %s: %w", c.pin(), err)
	}
	return prog, nil
}

// reduce leaves the composition's program in the spec, with what it refers to, and configures it.
func (c composition) reduce(spec *ebpf.CollectionSpec) error {
	prog := spec.Programs[c.function]
	if prog == nil {
		return fmt.Errorf("the object holds no program %s", c.function)
	}
	spec.Programs = map[string]*ebpf.ProgramSpec{c.function: prog}
	if prog.Type == ebpf.XDP && !c.frags {
		prog.Flags &^= unix.BPF_F_XDP_HAS_FRAGS
		if err := spec.Variables[bpf.DatapathVarConfigXdpFrags].Set(uint8(0)); err != nil {
			return fmt.Errorf("configuring program %s: %w", c.function, err)
		}
	}
	used := map[string]bool{}
	for i := range prog.Instructions {
		if ref := prog.Instructions[i].Reference(); ref != "" {
			used[ref] = true
		}
	}
	for name := range spec.Maps {
		if !used[name] {
			delete(spec.Maps, name)
		}
	}
	for name, variable := range spec.Variables {
		if !used[variable.SectionName] {
			delete(spec.Variables, name)
		}
	}
	return nil
}
