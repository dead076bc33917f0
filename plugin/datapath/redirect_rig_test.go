package datapath_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
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

// setPod changes an offload at the pod's end.
func (r *rig) setPod(set func(name string, on bool) error, on bool) {
	r.t.Helper()
	if err := r.pod.Do(func() error { return set(r.pod.IfName, on) }); err != nil {
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
