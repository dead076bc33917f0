package datapath_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

// TestForeignXDPStays attaches where somebody else's XDP program is, by link and by netlink.
func TestForeignXDPStays(t *testing.T) {
	for _, by := range []string{"link", "netlink"} {
		for _, theirs := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeNative} {
			for _, mode := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeNative, datapath.ModeTCX} {
				t.Run(fmt.Sprintf("%s %s then %s", by, theirs, mode), func(t *testing.T) {
					r := newRig(t, mode, vethDefault)
					prog := bareXDP(t)
					attachForeign(t, r, prog, by, theirs)
					before := r.world()
					err := r.attach(r.opts)
					if mode == datapath.ModeTCX {
						// the tc hooks are nobody's alone
						if err != nil {
							t.Errorf("attach: %v", err)
						}
						r.mustDetach(r.opts)
					} else if !errors.Is(err, datapath.ErrForeignProgram) || !strings.Contains(err.Error(), "foreign") {
						t.Errorf("attach: %v, want ErrForeignProgram that names it", err)
					}
					r.expectUnchanged(before)
					if got := xdpProgram(t, r); got != programID(t, prog) {
						t.Errorf("the interface runs program %d, want the foreign one", got)
					}
				})
			}
		}
	}
}

func attachForeign(t *testing.T, r *rig, prog *ebpf.Program, by string, mode datapath.Mode) {
	t.Helper()
	err := r.node.Do(func() error {
		host, err := netlink.LinkByIndex(r.veth.HostIndex)
		if err != nil {
			return err
		}
		flags := link.XDPGenericMode
		if mode == datapath.ModeNative {
			flags = link.XDPDriverMode
		}
		if by == "netlink" {
			return netlink.LinkSetXdpFdWithFlags(host, prog.FD(), int(flags))
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: r.veth.HostIndex, Flags: flags})
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func xdpProgram(t *testing.T, r *rig) ebpf.ProgramID {
	t.Helper()
	var id ebpf.ProgramID
	err := r.node.Do(func() error {
		host, err := netlink.LinkByIndex(r.veth.HostIndex)
		if err == nil && host.Attrs().Xdp != nil {
			id = ebpf.ProgramID(host.Attrs().Xdp.ProgId)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func programID(t *testing.T, prog *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	info, err := prog.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return id
}

// TestForeignTCStays: other programs at the tc hooks stay where they are, ours is before them on
// the way from the pod and behind them on the way to it.
func TestForeignTCStays(t *testing.T) {
	priv.Root(t)
	if !kernel().TCX {
		foreignFilterStays(t, nil) // which is what mode tcx does on this kernel, unasked
		return
	}
	r := newRig(t, datapath.ModeTCX, vethDefault)
	theirs := bareTC(t)
	for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		err := r.node.Do(func() error {
			l, err := link.AttachTCX(link.TCXOptions{Interface: r.veth.HostIndex, Program: theirs, Attach: hook})
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	before := r.world()
	r.mustAttach(r.opts)
	err := r.node.Do(func() error {
		ingress := tcxPrograms(t, r.veth.HostIndex, ebpf.AttachTCXIngress)
		egress := tcxPrograms(t, r.veth.HostIndex, ebpf.AttachTCXEgress)
		foreign := programID(t, theirs)
		if len(ingress) != 2 || ingress[1].ID != foreign || len(egress) != 2 || egress[0].ID != foreign {
			t.Errorf("tc ingress runs %v, tc egress %v; the foreign program is %d", ingress, egress, foreign)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r.mustDetach(r.opts)
	r.expectUnchanged(before)
}

// TestForeignFilterStays: a clsact qdisc and a filter of others stay.
func TestForeignFilterStays(t *testing.T) { foreignFilterStays(t, &datapath.Features{}) }

func foreignFilterStays(t *testing.T, kernel *datapath.Features) {
	t.Helper()
	r := newRig(t, datapath.ModeTCX, vethDefault)
	r.features = kernel
	err := r.node.Do(func() error {
		attrs := netlink.QdiscAttrs{LinkIndex: r.veth.HostIndex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
		if err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: attrs}); err != nil {
			return err
		}
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: r.veth.HostIndex, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL,
			},
			Fd: bareTC(t).FD(), Name: "foreign", DirectAction: true,
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	before := r.world()
	r.mustAttach(r.opts)
	r.mustDetach(r.opts)
	r.expectUnchanged(before)
	err = r.node.Do(func() error {
		host, err := netlink.LinkByIndex(r.veth.HostIndex)
		if err != nil {
			return err
		}
		filters, err := netlink.FilterList(host, netlink.HANDLE_MIN_INGRESS)
		if err != nil || len(filters) != 1 {
			t.Errorf("filters: %v, %v; want the foreign one", filters, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestIngressQdisc: where clsact is needed, an ingress qdisc such as bandwidth adds is in the way.
func TestIngressQdisc(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	err := r.node.Do(func() error {
		return netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: r.veth.HostIndex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
		}})
	})
	if err != nil {
		t.Fatal(err)
	}
	before := r.world()
	r.features = &datapath.Features{XDPFrags: true}
	if err := r.attach(r.opts); !errors.Is(err, datapath.ErrUnsupported) || !strings.Contains(err.Error(), "bandwidth") {
		t.Errorf("attach by clsact: %v", err)
	}
	r.expectUnchanged(before)
	if !kernel().TCX {
		return
	}
	r.features = nil
	r.mustAttach(r.opts)
	// tcx goes with it, and takes the place of generic XDP, which would see packets twice
	if host := r.hostState(r.veth.HostName); host.xdp || host.tcx != 2 {
		t.Errorf("the host end is %+v, want two programs at tc", host)
	}
	if err := r.check(r.opts); err != nil {
		t.Errorf("check: %v", err)
	}
	r.mustDetach(r.opts)
	r.expectUnchanged(before)
}

// TestSeenTwice: an ingress qdisc that comes after the attachment is noticed.
func TestSeenTwice(t *testing.T) {
	for _, mode := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeTCX} {
		r := newRig(t, mode, vethDefault)
		r.mustAttach(r.opts)
		seen := func() (twice bool) {
			err := r.do(func(d *datapath.Datapath) error {
				list, err := d.List()
				if err != nil || len(list) != 1 {
					t.Fatalf("list: %v, %v", list, err)
				}
				twice, err = d.SeenTwice(list[0])
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return twice
		}
		if seen() {
			t.Errorf("mode %s: seen twice without a qdisc", mode)
		}
		err := r.node.Do(func() error {
			return netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
				LinkIndex: r.veth.HostIndex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
			}})
		})
		if !r.tcx() {
			// our clsact qdisc excludes it
			if !errors.Is(err, unix.EEXIST) {
				t.Errorf("mode %s: adding an ingress qdisc: %v", mode, err)
			}
			r.mustDetach(r.opts)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := seen(); got != (mode == datapath.ModeGeneric) {
			t.Errorf("mode %s with an ingress qdisc: seen twice %v", mode, got)
		}
		r.mustDetach(r.opts)
	}
}
