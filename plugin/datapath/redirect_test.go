package datapath_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// TestEndpointIsEntered: a pod with redirect is found at each of its addresses, once it is attached.
func TestEndpointIsEntered(t *testing.T) {
	eachRedirectMode(t, func(t *testing.T, r *rig) {
		_, plainVeth, plain := r.newPod("plain", r.opts.Mode, vethDefault)
		plain.Redirect = nil
		r.mustAttach(plain)
		if left := r.directEntries(); len(left) > 0 || r.directMap("endpoints") != nil {
			t.Errorf("without redirect there is %v", left)
		}
		r.mustAttach(r.opts)
		slot := r.slotOf(r.opts)
		want := bpf.DatapathEndpoint{
			Owner: slot.Owner, Network: slot.Self.Network, Ifindex: uint32(r.veth.HostIndex), Slot: uint32(r.veth.HostIndex), Mtu: 1500,
			Mac: [6]uint8(r.veth.PodMAC), RouterMac: [6]uint8(r.veth.HostMAC), Mode: uint8(r.opts.Mode),
		}
		if r.opts.Mode == datapath.ModeNative {
			want.Flags = uint8(bpf.DatapathEndpointFlagENDPOINT_TAKES_FRAMES)
		}
		if want.Network == 0 || want.Owner == 0 {
			t.Errorf("the network is %d, the owner %d", want.Network, want.Owner)
		}
		expectSame(t, "the slot's endpoint", want, slot.Self)
		wanted := map[bpf.DatapathEndpointKey]bpf.DatapathEndpoint{}
		for _, address := range r.opts.Addresses {
			wanted[bpf.DatapathEndpointKey{Network: want.Network, Address: address.Addr().As16()}] = want
		}
		expectSame(t, "the endpoints", wanted, r.endpoints())
		for _, pin := range txPorts {
			ports := entries[uint32, uint32](r, pin)
			expectSame(t, pin, map[uint32]uint32{uint32(r.veth.HostIndex): uint32(r.veth.HostIndex)}, ports)
		}
		if !r.redirects(r.opts) || r.redirects(plain) {
			t.Errorf("redirect is in force for the pod: %v, for the one without: %v", r.redirects(r.opts), r.redirects(plain))
		}
		r.mustDetach(r.opts)
		if left := r.directEntries(); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		if err := r.check(plain); err != nil {
			t.Error(err)
		}
		if host := r.hostState(plainVeth.HostName); host.tcx == 0 && !slices.Contains(host.qdiscs, "clsact") {
			t.Errorf("the pod without redirect has lost its programs: %+v", host)
		}
		r.mustDetach(plain)
	})
}

// TestCapacities: the first pod with redirect decides them, whatever those after it say; once all have gone the next does.
func TestCapacities(t *testing.T) {
	r := newRedirectRig(t, datapath.ModeTCX, &datapath.Redirect{MaxEndpoints: 5, MaxFlows: 32})
	_, _, other := r.newPod("other", datapath.ModeTCX, vethDefault)
	other.Redirect = &datapath.Redirect{MaxEndpoints: 50, MaxFlows: 320}
	expectCapacities := func(endpoints, flows uint32) {
		t.Helper()
		for pin, want := range map[string]uint32{"endpoints": endpoints, "direct_flows": flows} {
			r.withNodeMap(pin, func(m *ebpf.Map) error {
				if m.MaxEntries() != want {
					t.Errorf("%s has %d entries, want %d", pin, m.MaxEntries(), want)
				}
				return nil
			})
		}
	}
	r.mustAttach(r.opts)
	expectCapacities(5, 32)
	r.mustAttach(other)
	r.mustDetach(r.opts)
	expectCapacities(5, 32)
	r.mustDetach(other)
	r.mustAttach(other)
	expectCapacities(50, 320)
	r.mustDetach(other)
}

// TestEndpointsFull: a pod of which not all addresses find room is not attached at all, and is told which number to raise.
func TestEndpointsFull(t *testing.T) {
	for _, mode := range []datapath.Mode{datapath.ModeNative, datapath.ModeTCX} {
		for _, room := range []uint32{2, 3} {
			t.Run(fmt.Sprintf("%s, %d", mode, room), func(t *testing.T) {
				r := newRedirectRig(t, mode, &datapath.Redirect{MaxEndpoints: room, MaxFlows: 16})
				_, _, first := r.newPod("first", mode, vethDefault)
				r.mustAttach(first)
				if err := r.ready(); errors.Is(err, datapath.ErrFull) != (room == 2) {
					t.Errorf("ready with %d places, 2 of them taken: %v", room, err)
				}
				before := r.world()
				err := r.attach(r.opts)
				if !errors.Is(err, datapath.ErrFull) || !strings.Contains(err.Error(), "maxEndpoints") || !strings.Contains(err.Error(), fmt.Sprintf("all %d places", room)) {
					t.Errorf("attach: %v, want ErrFull that names maxEndpoints", err)
				}
				r.expectUnchanged(before)
				if err := r.check(first); err != nil {
					t.Error(err)
				}
				// one without redirect needs no room
				plain := r.opts
				plain.Redirect = nil
				r.mustAttach(plain)
				r.mustDetach(plain)
				r.mustDetach(first)
				r.mustAttach(r.opts)
				r.mustDetach(r.opts)
			})
		}
	}
}

// TestSameAddress: of two pods with one address the later is found, and stays when the earlier goes.
func TestSameAddress(t *testing.T) {
	eachRedirectMode(t, func(t *testing.T, r *rig) {
		before := r.world()
		_, _, second := r.newPod("second", r.opts.Mode, vethDefault)
		second.Addresses = r.opts.Addresses
		r.mustAttach(r.opts)
		r.mustAttach(second)
		expectSecond := func() {
			t.Helper()
			for _, address := range second.Addresses {
				if found, e := r.endpoint(address.Addr()); !found || e.Ifindex != uint32(second.HostIndex) {
					t.Errorf("at %s is %v %+v, want the second pod (%d)", address, found, e, second.HostIndex)
				}
			}
			if err := r.check(second); err != nil {
				t.Error(err)
			}
		}
		expectSecond()
		if err := r.check(r.opts); !errors.Is(err, datapath.ErrCheck) {
			t.Errorf("check of the first, which is not found any more: %v", err)
		}
		r.mustDetach(r.opts)
		expectSecond()
		// the other way round: the later goes first
		r.mustAttach(r.opts)
		r.mustDetach(r.opts)
		if found, e := r.endpoint(second.Addresses[0].Addr()); found {
			t.Errorf("at the address of both is %+v, which has gone", e)
		}
		r.mustAttach(second)
		expectSecond()
		r.mustDetach(second)
		r.expectUnchanged(before)
	})
}

// TestCollectEndpoints: nobody is to find a pod whose pins somebody removed by hand once GC was there.
func TestCollectEndpoints(t *testing.T) {
	eachRedirectMode(t, func(t *testing.T, r *rig) {
		_, _, other := r.newPod("other", r.opts.Mode, vethDefault)
		r.mustAttach(other)
		before := slices.DeleteFunc(r.directEntries(), func(entry string) bool { return strings.HasPrefix(entry, "tx_ports") })
		r.mustAttach(r.opts)
		if err := os.RemoveAll(r.podDir()); err != nil {
			t.Fatal(err)
		}
		r.collect(datapath.CollectOptions{})
		// where nobody redirects to is no harm, and goes with the interface
		after := slices.DeleteFunc(r.directEntries(), func(entry string) bool { return strings.HasPrefix(entry, "tx_ports") })
		expectSame(t, "the endpoints", before, after)
		if r.redirects(r.opts) {
			t.Error("redirect is in force still")
		}
		if err := r.check(other); err != nil {
			t.Errorf("the other pod: %v", err)
		}
		r.mustAttach(r.opts) // again
		if err := r.check(r.opts); err != nil {
			t.Error(err)
		}
		r.mustDetach(r.opts)
		r.mustDetach(other)
	})
}

// TestPortsGoWithTheInterface: the kernel itself takes an interface that goes out of what can be redirected to, and
// GC the rest.
func TestPortsGoWithTheInterface(t *testing.T) {
	eachRedirectMode(t, func(t *testing.T, r *rig) {
		_, _, other := r.newPod("other", r.opts.Mode, vethDefault)
		r.mustAttach(other)
		before := r.directEntries()
		r.mustAttach(r.opts)
		r.deleteVeth(r.veth.HostName)
		for _, pin := range txPorts {
			if ports := entries[uint32, uint32](r, pin); len(ports) != 1 {
				t.Errorf("%s: %v, want one", pin, ports)
			}
		}
		if got := r.collect(datapath.CollectOptions{}); !slices.Equal(got, []string{"pod"}) {
			t.Errorf("collected %v", got)
		}
		expectSame(t, "the entries", before, r.directEntries())
		r.mustDetach(other)
	})
}

// TestShapes: a pod whose host end is a port of a bridge is on its segment, and spoken to by its router's MAC.
func TestShapes(t *testing.T) {
	r := newRedirectRig(t, datapath.ModeTCX, someRedirect)
	var bridge netlink.Link
	err := r.node.Do(func() (err error) {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{
			Name: "br0", HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0xb, 1}, // else it is that of a port
		}}); err != nil {
			return err
		}
		if bridge, err = netlink.LinkByName("br0"); err != nil {
			return err
		}
		host, err := netlink.LinkByIndex(r.veth.HostIndex)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(host, bridge)
	})
	if err != nil {
		t.Fatal(err)
	}
	_, routedVeth, routed := r.newPod("routed", datapath.ModeTCX, vethDefault)
	r.mustAttach(r.opts)
	r.mustAttach(routed)
	self := r.slotOf(r.opts).Self
	if self.Segment != uint32(bridge.Attrs().Index) || self.RouterMac != [6]uint8(bridge.Attrs().HardwareAddr) {
		t.Errorf("the pod on the bridge %d, %s is %+v", bridge.Attrs().Index, bridge.Attrs().HardwareAddr, self)
	}
	self = r.slotOf(routed).Self
	if self.Segment != 0 || self.RouterMac != [6]uint8(routedVeth.HostMAC) {
		t.Errorf("the routed pod at %s is %+v", routedVeth.HostMAC, self)
	}
	// the network says who may know whom
	_, _, across := r.newPod("across", datapath.ModeTCX, vethDefault)
	across.Redirect = &datapath.Redirect{AcrossNetworks: true, MaxEndpoints: 16, MaxFlows: 64}
	_, _, elsewhere := r.newPod("elsewhere", datapath.ModeTCX, vethDefault)
	elsewhere.Network = "other"
	r.mustAttach(across)
	r.mustAttach(elsewhere)
	networks := []uint64{r.slotOf(r.opts).Self.Network, r.slotOf(routed).Self.Network, r.slotOf(across).Self.Network, r.slotOf(elsewhere).Self.Network}
	if networks[0] != networks[1] || networks[2] != 0 || networks[3] == networks[0] || networks[3] == 0 {
		t.Errorf("the networks are %x", networks)
	}
	for _, opts := range []datapath.AttachOptions{r.opts, routed, across, elsewhere} {
		if err := r.check(opts); err != nil {
			t.Error(err)
		}
		r.mustDetach(opts)
	}
}
