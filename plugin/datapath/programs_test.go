package datapath_test

import (
	"cmp"
	"fmt"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// programsAt are the pins of the node whose programs a host end runs.
func (r *rig) programsAt(ifindex int) (names []string) {
	r.t.Helper()
	err := r.do(func(d *datapath.Datapath) error {
		info, err := d.NodeInfo()
		if err != nil {
			return err
		}
		byID := map[ebpf.ProgramID]string{}
		for _, p := range info.Programs {
			byID[p.ID] = p.Name
		}
		host, err := netlink.LinkByIndex(ifindex)
		if err != nil {
			return err
		}
		if xdp := host.Attrs().Xdp; xdp != nil && xdp.Attached {
			names = append(names, byID[ebpf.ProgramID(xdp.ProgId)])
		}
		for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			for _, p := range tcxPrograms(r.t, ifindex, hook) {
				names = append(names, byID[p.ID])
			}
		}
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			filters, err := netlink.FilterList(host, parent)
			if err != nil {
				return err
			}
			for _, f := range filters {
				if f, ok := f.(*netlink.BpfFilter); ok {
					names = append(names, byID[ebpf.ProgramID(f.Id)])
				}
			}
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return names
}

// TestMixedNode: pods of all modes, with redirect and without, run each its own programs, whatever comes and goes beside.
func TestMixedNode(t *testing.T) {
	r := newRedirectRig(t, datapath.ModeGeneric, someRedirect)
	native := "xdp_egress"
	if kernel().XDPFrags {
		native = "xdp_egress_frags"
	}
	want := map[datapath.Mode]map[bool][]string{
		datapath.ModeGeneric: {false: {"xdp_egress", "tc_ingress"}, true: {"xdp_egress_redirect", "tc_ingress_redirect"}},
		datapath.ModeNative:  {false: {native, "tc_ingress"}, true: {native + "_redirect", "tc_ingress_redirect"}},
		datapath.ModeTCX:     {false: {"tc_egress", "tc_ingress"}, true: {"tc_egress_redirect", "tc_ingress_redirect"}},
	}
	var all []datapath.AttachOptions
	for mode := range want {
		for _, redirect := range []*datapath.Redirect{nil, someRedirect} {
			_, _, opts := r.newPod(fmt.Sprintf("%s-%v", mode, redirect != nil), mode, vethDefault)
			opts.Redirect = redirect
			all = append(all, opts)
		}
	}
	expectAll := func() {
		t.Helper()
		for _, opts := range all {
			expectSame(t, "the programs of "+opts.PodName, want[opts.Mode][opts.Redirect != nil], r.programsAt(opts.HostIndex))
			if err := r.check(opts); err != nil {
				t.Errorf("%s: %v", opts.PodName, err)
			}
		}
	}
	slices.SortFunc(all, func(a, b datapath.AttachOptions) int { return cmp.Compare(a.PodName, b.PodName) })
	for _, opts := range all {
		r.mustAttach(opts)
	}
	expectAll()
	// the same pods with and without redirect the other way round
	for i := range all {
		if all[i].Redirect == nil {
			all[i].Redirect = someRedirect
		} else {
			all[i].Redirect = nil
		}
		r.mustAttach(all[i])
		expectAll2 := all[:i+1]
		for _, opts := range expectAll2 {
			expectSame(t, "the programs of "+opts.PodName, want[opts.Mode][opts.Redirect != nil], r.programsAt(opts.HostIndex))
		}
	}
	expectAll()
	for _, opts := range all {
		r.mustDetach(opts)
	}
	if left := r.node.Tree(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
