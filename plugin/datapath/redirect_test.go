package datapath_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/ethtool"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/podend"
	"github.com/xdp-cni/xdp-cni/tests"
)

// someRedirect has room for a few pods.
var someRedirect = &datapath.Redirect{MaxEndpoints: 16, MaxFlows: 64}

// txPorts are the pins of the node's DEVMAPs.
var txPorts = []string{"tx_ports", "tx_ports_frags"}

func expectSame[T any](t *testing.T, what string, before, after T) {
	t.Helper()
	if !reflect.DeepEqual(before, after) {
		t.Errorf("%s: was\n  %+v\nand is\n  %+v", what, before, after)
	}
}

// podState is what native redirect changes at a pod end.
type podState struct {
	txChecksum, gro bool
	root            string
}

// podState returns that of the rig's pod: nothing if its interface is gone.
func (r *rig) podState() (s podState) {
	r.t.Helper()
	err := r.pod.Do(func() error {
		pod, err := netlink.LinkByName(r.pod.IfName)
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			return nil
		}
		if err != nil {
			return err
		}
		if s.txChecksum, err = ethtool.TxChecksum(r.pod.IfName); err != nil {
			return err
		}
		if s.gro, err = ethtool.GRO(r.pod.IfName); err != nil {
			return err
		}
		qdiscs, err := netlink.QdiscList(pod)
		for _, q := range qdiscs {
			if q.Attrs().Parent == netlink.HANDLE_ROOT {
				s.root = fmt.Sprintf("%s %x", q.Type(), q.Attrs().Handle)
			}
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// directMap opens a pinned map of the node; nil if it is not there.
func (r *rig) directMap(pin string) *ebpf.Map {
	r.t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(pins.NewRoot(r.node.BPFFS).Node(), pin), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

// withNodeMap runs f with a pinned map of the node.
func (r *rig) withNodeMap(pin string, f func(m *ebpf.Map) error) {
	r.t.Helper()
	m := r.directMap(pin)
	if m == nil {
		r.t.Fatalf("the node has no %s", pin)
	}
	defer m.Close()
	if err := f(m); err != nil {
		r.t.Fatalf("%s: %v", pin, err)
	}
}

// entries reads a pinned map of the node; nothing if there is none.
func entries[K comparable, V any](r *rig, pin string) map[K]V {
	r.t.Helper()
	m := r.directMap(pin)
	if m == nil {
		return nil
	}
	defer m.Close()
	all := map[K]V{}
	var (
		key   K
		value V
	)
	iterator := m.Iterate()
	for iterator.Next(&key, &value) {
		all[key] = value
	}
	if err := iterator.Err(); err != nil {
		r.t.Fatalf("%s: %v", pin, err)
	}
	return all
}

func (r *rig) endpoints() map[bpf.DatapathEndpointKey]bpf.DatapathEndpoint {
	r.t.Helper()
	return entries[bpf.DatapathEndpointKey, bpf.DatapathEndpoint](r, "endpoints")
}

// endpoint returns what is entered for an address in the network that all pods here are of.
func (r *rig) endpoint(address netip.Addr) (found bool, e bpf.DatapathEndpoint) {
	r.t.Helper()
	for key, e := range r.endpoints() {
		if key.Address == address.As16() {
			return true, e
		}
	}
	return false, e
}

// directEntries are all entries of the node's maps for redirect, in words.
func (r *rig) directEntries() (all []string) {
	r.t.Helper()
	for key, e := range r.endpoints() {
		all = append(all, fmt.Sprintf("endpoints %x %s: %+v", key.Network, netip.AddrFrom16(key.Address).Unmap(), e))
	}
	for _, pin := range txPorts {
		for ifindex := range entries[uint32, uint32](r, pin) {
			all = append(all, fmt.Sprintf("%s: %d", pin, ifindex))
		}
	}
	for key := range entries[bpf.DatapathDirectKey, bpf.DatapathDirectFlow](r, "direct_flows") {
		all = append(all, fmt.Sprintf("direct_flows %+v", key))
	}
	slices.Sort(all)
	return all
}

// slotOf returns the slot of a pod whose index is the slot's number, as those here have.
func (r *rig) slotOf(opts datapath.AttachOptions) (slot bpf.DatapathSlot) {
	r.t.Helper()
	r.withNodeMap("slots", func(m *ebpf.Map) error {
		return m.Lookup(uint32(opts.HostIndex)&(m.MaxEntries()-1), &slot)
	})
	return slot
}

// redirects tells whether the packets of a pod, and those for it, go directly.
func (r *rig) redirects(opts datapath.AttachOptions) bool {
	r.t.Helper()
	return r.slotOf(opts).Flags&uint32(bpf.DatapathSlotFlagSLOT_REDIRECT) != 0
}

func newRedirectRig(t *testing.T, mode datapath.Mode, redirect *datapath.Redirect) *rig {
	t.Helper()
	r := newRig(t, mode, vethDefault)
	r.withRedirect(redirect)
	return r
}

// withRedirect gives redirect to the pod that there is, and to those to come.
func (r *rig) withRedirect(redirect *datapath.Redirect) {
	r.t.Helper()
	r.redirect, r.opts.Redirect = redirect, redirect
	r.makeFit(r.pod, r.opts.Mode)
}

// groPolls tells whether GRO, which the plugin turns on, makes a pod's end take frames that are redirected to it. If not
// (below kernel 5.13), only an XDP program of the pod does.
var groPolls = sync.OnceValue(func() bool {
	polls, err := podend.GROPolls()
	if err != nil {
		panic(err)
	}
	return polls
})

// makeFit does what is the pod's own affair, that native redirect can be in force for it.
func (r *rig) makeFit(pod *tests.Pod, mode datapath.Mode) {
	r.t.Helper()
	if mode == datapath.ModeNative && !groPolls() {
		r.runXDP(pod, true)
	}
}

// runXDP makes a pod run an XDP program that passes all, or no longer. The program is there before the first needs it.
func (r *rig) runXDP(pod *tests.Pod, on bool) {
	r.t.Helper()
	if r.passAll == nil {
		r.passAll = bareXDP(r.t)
	}
	fd := -1
	if on {
		fd = r.passAll.FD()
	}
	err := pod.Do(func() error {
		end, err := netlink.LinkByName(pod.IfName)
		if err != nil {
			return err
		}
		return netlink.LinkSetXdpFdWithFlags(end, fd, int(link.XDPDriverMode))
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// setTakesFrames makes the pod's end take redirected frames, or no longer.
func (r *rig) setTakesFrames(on bool) {
	r.t.Helper()
	if groPolls() {
		r.setPod(ethtool.SetGRO, on)
	} else {
		r.runXDP(r.pod, on)
	}
}

// eachRedirectMode runs test in each mode, with redirect.
func eachRedirectMode(t *testing.T, test func(t *testing.T, r *rig)) {
	for _, mode := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeNative, datapath.ModeTCX} {
		t.Run(mode.String(), func(t *testing.T) { test(t, newRedirectRig(t, mode, someRedirect)) })
	}
}

// ready asks whether another pod with redirect could be attached.
func (r *rig) ready() error {
	r.t.Helper()
	return r.do(func(d *datapath.Datapath) error {
		return d.Ready(datapath.ReadyOptions{Mode: r.opts.Mode, Redirect: true})
	})
}

func (r *rig) refit() {
	r.t.Helper()
	if err := r.do(func(d *datapath.Datapath) error { return d.Refit(context.Background()) }); err != nil {
		r.t.Errorf("refit: %v", err)
	}
}

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

// setPod changes an offload at the pod's end.
func (r *rig) setPod(set func(name string, on bool) error, on bool) {
	r.t.Helper()
	if err := r.pod.Do(func() error { return set(r.pod.IfName, on) }); err != nil {
		r.t.Fatal(err)
	}
}

// deletePodQueue removes the root qdisc of the pod's end.
func (r *rig) deletePodQueue() {
	r.t.Helper()
	err := r.pod.Do(func() error {
		pod, err := netlink.LinkByName(r.pod.IfName)
		if err != nil {
			return err
		}
		qdiscs, err := netlink.QdiscList(pod)
		if err != nil || len(qdiscs) != 1 {
			return fmt.Errorf("qdiscs %v: %w", qdiscs, err)
		}
		return netlink.QdiscDel(qdiscs[0])
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// TestCheckRedirect makes each thing of redirect wrong in turn, and expects CHECK to say which.
func TestCheckRedirect(t *testing.T) {
	all := []datapath.Mode{datapath.ModeGeneric, datapath.ModeNative, datapath.ModeTCX}
	native := []datapath.Mode{datapath.ModeNative}
	changeSlot := func(r *rig, change func(slot *bpf.DatapathSlot)) {
		slot := r.slotOf(r.opts)
		change(&slot)
		r.withNodeMap("slots", func(m *ebpf.Map) error { return m.Put(slot.Self.Slot, slot) })
	}
	faults := []struct {
		name   string
		modes  []datapath.Mode
		break_ func(r *rig)
		want   string // a regular expression
		stays  bool   // another CHECK finds it still
	}{
		{"IPv4 endpoint gone", all, func(r *rig) {
			r.withNodeMap("endpoints", func(m *ebpf.Map) error {
				return m.Delete(bpf.DatapathEndpointKey{Network: r.slotOf(r.opts).Self.Network, Address: r.opts.Addresses[0].Addr().As16()})
			})
		}, `do not find it at 10\.0\.0\.2`, true},
		{"IPv6 endpoint gone", all, func(r *rig) {
			r.withNodeMap("endpoints", func(m *ebpf.Map) error {
				return m.Delete(bpf.DatapathEndpointKey{Network: r.slotOf(r.opts).Self.Network, Address: r.opts.Addresses[1].Addr().As16()})
			})
		}, "do not find it at fd00::2", true},
		{"endpoint changed", all, func(r *rig) {
			r.withNodeMap("endpoints", func(m *ebpf.Map) error {
				self := r.slotOf(r.opts).Self
				key := bpf.DatapathEndpointKey{Network: self.Network, Address: r.opts.Addresses[0].Addr().As16()}
				self.Mac[5]++
				return m.Put(key, self)
			})
		}, `do not find it at 10\.0\.0\.2`, true},
		{"a map of the node gone", all, func(r *rig) {
			if err := os.Remove(filepath.Join(pins.NewRoot(r.node.BPFFS).Node(), "endpoints")); err != nil {
				t.Fatal(err)
			}
		}, "endpoints", true},
		{"port gone", all, func(r *rig) {
			r.withNodeMap("tx_ports", func(m *ebpf.Map) error { return m.Delete(uint32(r.opts.HostIndex)) })
		}, "nothing can be redirected", true},
		{"port of multi-buffer programs gone", all, func(r *rig) {
			r.withNodeMap("tx_ports_frags", func(m *ebpf.Map) error { return m.Delete(uint32(r.opts.HostIndex)) })
		}, "nothing can be redirected", true},
		{"the slot knows another endpoint", all, func(r *rig) {
			changeSlot(r, func(slot *bpf.DatapathSlot) { slot.Self.Owner++ })
		}, "does not say where", true},
		// what can be put right, CHECK puts right
		{"not in force", all, func(r *rig) {
			changeSlot(r, func(slot *bpf.DatapathSlot) { slot.Flags &^= uint32(bpf.DatapathSlotFlagSLOT_REDIRECT) })
		}, "", false},
		{"takes no frames", native, func(r *rig) { r.setTakesFrames(false) }, "no longer.*no XDP program is attached", true},
		{"tx checksum on", native, func(r *rig) { r.setPod(ethtool.SetTxChecksum, true) }, "no longer.*tx checksum offload is on", true},
		{"no qdisc", native, func(r *rig) { r.deletePodQueue() }, "no longer.*no queueing discipline", true},
		{"asked without redirect", all, func(r *rig) { r.opts.Redirect = nil }, "redirect true", true},
	}
	for _, test := range faults {
		for _, mode := range test.modes {
			t.Run(test.name+" "+mode.String(), func(t *testing.T) {
				r := newRedirectRig(t, mode, someRedirect)
				r.mustAttach(r.opts)
				if err := r.check(r.opts); err != nil {
					t.Fatalf("check before: %v", err)
				}
				test.break_(r)
				for range 2 {
					err := r.check(r.opts)
					if test.want == "" {
						if err != nil || !r.redirects(r.opts) {
							t.Errorf("check: %v, redirect is in force: %v", err, r.redirects(r.opts))
						}
					} else if !errors.Is(err, datapath.ErrCheck) || !regexp.MustCompile(test.want).MatchString(err.Error()) {
						t.Errorf("check: %v, want ErrCheck with %q", err, test.want)
					}
				}
				r.mustDetach(r.opts)
			})
		}
	}
}

// TestPodsGoOn: what takes down attachments of pods that go on leaves the queueing discipline at their ends, of which a
// change loses packets, and puts back all else. With one there already an attachment made anew has nothing to add.
func TestPodsGoOn(t *testing.T) {
	r := newRedirectRig(t, datapath.ModeNative, someRedirect)
	before := r.podState()
	for range 2 {
		r.mustAttach(r.opts)
		attached := r.podState()
		// below 5.13 GRO is on before
		if !strings.HasPrefix(attached.root, "pfifo ") || !attached.gro || before.gro == groPolls() || attached.txChecksum == before.txChecksum {
			t.Fatalf("attaching has changed %+v to %+v", before, attached)
		}
		detach := func(d *datapath.Datapath) error { return d.Detach(t.Context(), r.opts.ContainerID, r.opts.IfName) }
		if err := r.do(detach, func(o *datapath.Options) { o.PodsGoOn = true }); err != nil {
			t.Fatal(err)
		}
		want := before
		want.root = attached.root
		expectSame(t, "the pod's end", want, r.podState())
		before.root = attached.root
	}
}

// TestRefit turns off what a pod's end needs and on again, as its owner may: its packets go directly only while they can.
func TestRefit(t *testing.T) {
	for _, test := range []struct {
		name string
		off  func(r *rig)
		on   func(r *rig)
	}{
		{"takes frames", func(r *rig) { r.setTakesFrames(false) }, func(r *rig) { r.setTakesFrames(true) }},
		{"tx checksum", func(r *rig) { r.setPod(ethtool.SetTxChecksum, true) }, func(r *rig) { r.setPod(ethtool.SetTxChecksum, false) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRedirectRig(t, datapath.ModeNative, someRedirect)
			before := r.world()
			_, _, other := r.newPod("other", datapath.ModeNative, vethDefault)
			_, _, plain := r.newPod("plain", datapath.ModeNative, vethDefault)
			plain.Redirect = nil
			for _, opts := range []datapath.AttachOptions{r.opts, other, plain} {
				r.mustAttach(opts)
			}
			entered := r.directEntries()
			expectForce := func(when string, want bool) {
				t.Helper()
				r.refit()
				if got := r.redirects(r.opts); got != want {
					t.Errorf("%s: redirect is in force: %v", when, got)
				}
				if !r.redirects(other) || r.redirects(plain) {
					t.Errorf("%s: redirect of the others is in force: %v, %v", when, r.redirects(other), r.redirects(plain))
				}
				expectSame(t, when+": the entries", entered, r.directEntries())
			}
			expectForce("at first", true)
			for range 2 {
				test.off(r)
				expectForce("off", false)
				expectForce("off still", false)
				test.on(r)
				expectForce("on again", true)
			}
			// what its owner turned off is not ours to turn on
			test.off(r)
			expectForce("off at last", false)
			for _, opts := range []datapath.AttachOptions{r.opts, other, plain} {
				r.mustDetach(opts)
			}
			r.expectUnchanged(before)
		})
	}
	t.Run("pod end gone", func(t *testing.T) {
		r := newRedirectRig(t, datapath.ModeNative, someRedirect)
		_, _, other := r.newPod("other", datapath.ModeNative, vethDefault)
		r.mustAttach(r.opts)
		r.mustAttach(other)
		r.deleteVeth(r.veth.HostName)
		r.refit()
		if r.redirects(r.opts) || !r.redirects(other) {
			t.Errorf("redirect is in force: %v, for the other: %v", r.redirects(r.opts), r.redirects(other))
		}
		r.mustDetach(r.opts)
		r.mustDetach(other)
	})
}

// TestUnfitFromTheStart: a pod end that cannot be made fit is no reason to refuse the pod.
func TestUnfitFromTheStart(t *testing.T) {
	r := newRedirectRig(t, datapath.ModeNative, someRedirect)
	before := r.world()
	// between the preparation and the last look at it
	err := r.attach(r.opts, func(o *datapath.Options) {
		o.BeforeStep = func(step string) error {
			if step == "entering the endpoint" {
				r.setTakesFrames(false)
			}
			return nil
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.redirects(r.opts) {
		t.Error("redirect is in force")
	}
	if err := r.check(r.opts); err != nil {
		t.Errorf("check of a pod that was never fit: %v", err)
	}
	r.setTakesFrames(true)
	r.refit()
	if !r.redirects(r.opts) {
		t.Error("redirect is not in force once the pod is fit")
	}
	r.mustDetach(r.opts)
	r.expectUnchanged(before)
}

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
