package bigtcp

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/plugin/podend"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

func TestMain(m *testing.M) { tests.Main(m) }

// plain is what a new veth has.
var plain = Both(65536)

// rig is a pod whose veth no plugin made.
type rig struct {
	t    *testing.T
	node *tests.Node
	pod  *tests.Pod
	veth *tests.Veth
}

func newRig(t *testing.T) *rig {
	t.Helper()
	priv.Root(t)
	r := &rig{t: t, node: tests.MustNode(t)}
	r.addPod("pod", tests.VethOptions{})
	return r
}

func (r *rig) addPod(name string, options tests.VethOptions) {
	r.t.Helper()
	r.pod = tests.MustPod(r.t, r.node, name)
	var err error
	if r.veth, err = tests.MakeVeth(r.t.Context(), r.node, r.pod, options); err != nil {
		r.t.Fatal(err)
	}
}

// newBigRig is newRig for tests of what a kernel without BIG TCP for IPv4 (below 6.3) has not: it is not ok there, and
// Set refuses, before it notes or changes anything.
func newBigRig(t *testing.T) (r *rig, ok bool) {
	t.Helper()
	r = newRig(t)
	err := r.node.Do(Supported)
	if err == nil {
		return r, true
	}
	if !errors.Is(err, ErrUnsupported) {
		t.Fatal(err)
	}
	if refused := r.do(func(host netlink.Link, pod *podend.End) error {
		_, err := Set(host, pod, Both(Size), func(Sizes) error {
			t.Error("Set noted what it is about to refuse")
			return nil
		})
		return err
	}); !errors.Is(refused, ErrUnsupported) {
		t.Fatalf("Set: %v, want ErrUnsupported", refused)
	}
	return r, false
}

// do runs f in the node's network namespace, with both ends of the veth.
func (r *rig) do(f func(host netlink.Link, pod *podend.End) error) error {
	r.t.Helper()
	return r.node.Do(func() error {
		host, err := netlink.LinkByIndex(r.veth.HostIndex)
		if err != nil {
			return err
		}
		pod, err := podend.Open(podend.Options{
			Netns: r.pod.NetNS(), IfName: r.pod.IfName, PodIndex: r.veth.PodIndex, HostIndex: r.veth.HostIndex,
		})
		if err != nil {
			return err
		}
		defer pod.Close()
		return f(host, pod)
	})
}

func (r *rig) set(to Limits, note func(Sizes) error) (sizes Sizes, err error) {
	r.t.Helper()
	err = r.do(func(host netlink.Link, pod *podend.End) (err error) {
		sizes, err = Set(host, pod, to, note)
		return err
	})
	return sizes, err
}

func (r *rig) mustSet(to Limits) Sizes {
	r.t.Helper()
	sizes, err := r.set(to, func(Sizes) error { return nil })
	if err != nil {
		r.t.Fatal(err)
	}
	return sizes
}

func (r *rig) mustRestore(sizes Sizes) {
	r.t.Helper()
	err := r.do(func(host netlink.Link, pod *podend.End) error { return Restore(host, pod, sizes) })
	if err != nil {
		r.t.Fatal(err)
	}
}

// write sets the limits of an interface.
func (r *rig) write(place tests.Place, ifindex int, to Limits) {
	r.t.Helper()
	err := place.Do(func() error {
		l, err := netlink.LinkByIndex(ifindex)
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetGSOMaxSize(l, int(to.GSO)), netlink.LinkSetGROMaxSize(l, int(to.GRO)),
			netlink.LinkSetGSOIPv4MaxSize(l, int(to.GSOIPv4)), netlink.LinkSetGROIPv4MaxSize(l, int(to.GROIPv4)))
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) expect(when string, host, pod Limits) {
	r.t.Helper()
	for _, end := range []struct {
		name  string
		place tests.Place
		index int
		want  Limits
	}{{"host", r.node, r.veth.HostIndex, host}, {"pod", r.pod, r.veth.PodIndex, pod}} {
		err := end.place.Do(func() error {
			l, err := netlink.LinkByIndex(end.index)
			if err != nil {
				return err
			}
			a := l.Attrs()
			have := Limits{a.GSOMaxSize, a.GROMaxSize, a.GSOIPv4MaxSize, a.GROIPv4MaxSize}
			if have != end.want {
				r.t.Errorf("%s: the %s end has %+v, want %+v", when, end.name, have, end.want)
			}
			return nil
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

func TestSetAndRestore(t *testing.T) {
	r, ok := newBigRig(t)
	if !ok {
		return
	}
	// legacy sizes for the others set these for IPv4 too: whoever restores must know
	odd := Limits{GSO: 30000, GRO: 65536, GSOIPv4: 90000, GROIPv4: 250000}
	for _, before := range []Limits{plain, odd} {
		for _, to := range []Limits{Both(Size), IPv4(Size)} {
			r.write(r.node, r.veth.HostIndex, before)
			r.write(r.pod, r.veth.PodIndex, odd)
			r.expect("before", before, odd)
			var noted []Sizes
			sizes, err := r.set(to, func(s Sizes) error {
				r.expect("when it is noted", before, odd)
				noted = append(noted, s)
				return nil
			})
			if err != nil || len(noted) != 1 || noted[0] != sizes || sizes != (Sizes{to, before, odd}) {
				t.Errorf("set %+v: %+v, noted %+v, %v", to, sizes, noted, err)
			}
			want := func(before Limits) Limits {
				l := Limits{before.GSO, before.GRO, Size, max(before.GROIPv4, Size)} // none is lowered
				if to.GSO != 0 {
					l.GSO, l.GRO = Size, Size
				}
				return l
			}
			r.expect("set", want(before), want(odd))
			for range 2 {
				r.mustRestore(sizes)
				r.expect("restored", before, odd)
			}
		}
	}
	r.mustRestore(Sizes{})
	r.expect("nothing restored", odd, odd)
}

// TestRestoreKeeps: what somebody changed after us stays, at each end.
func TestRestoreKeeps(t *testing.T) {
	r, ok := newBigRig(t)
	if !ok {
		return
	}
	sizes := r.mustSet(Both(Size))
	r.write(r.node, r.veth.HostIndex, Limits{Size, 100000, Size, 70000})
	r.write(r.pod, r.veth.PodIndex, Limits{100000, Size, 70000, Size})
	r.mustRestore(sizes)
	r.expect("restored", Limits{65536, 100000, 65536, 70000}, Limits{100000, 65536, 70000, 65536})
	// without the pod end
	r.write(r.node, r.veth.HostIndex, plain)
	sizes = r.mustSet(Both(Size))
	err := r.do(func(host netlink.Link, _ *podend.End) error { return Restore(host, nil, sizes) })
	if err != nil {
		t.Error(err)
	}
	r.expect("without the pod end", plain, Both(Size))
}

// TestSetFails: what fails is undone. A size that a veth refuses fails at the first limit, and one that it refuses for
// IPv4 after others are set.
func TestSetFails(t *testing.T) {
	r, ok := newBigRig(t)
	if !ok {
		return
	}
	failure := errors.New("failure")
	if sizes, err := r.set(Both(Size), func(Sizes) error { return failure }); sizes != (Sizes{}) || !errors.Is(err, failure) {
		t.Errorf("the note fails: %+v, %v", sizes, err)
	}
	r.expect("the note fails", plain, plain)
	const tooLarge = 600000
	for _, to := range []Limits{Both(tooLarge), {Size, Size, tooLarge, Size}, {Size, Size, Size, tooLarge}} {
		sizes, err := r.set(to, func(Sizes) error { return nil })
		if sizes != (Sizes{}) || !errors.Is(err, unix.EINVAL) {
			t.Errorf("set %+v: %+v, %v, want EINVAL", to, sizes, err)
		}
		r.expect("failed", plain, plain)
	}
	// the second end fails
	err := r.do(func(host netlink.Link, pod *podend.End) error {
		_, err := Set(host, pod, Both(Size), func(Sizes) error { return r.pod.Do(func() error { return remove(r.veth.PodIndex) }) })
		return err
	})
	if err == nil {
		t.Error("set without the pod end: no error")
	}
}

// remove takes the interface away: with it goes its peer.
func remove(ifindex int) error {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return err
	}
	return netlink.LinkDel(l)
}

// TestSupported: a kernel without says so, and then nothing is changed or noted.
func TestSupported(t *testing.T) {
	r := newRig(t)
	switch err := r.node.Do(Supported); {
	case errors.Is(err, ErrUnsupported):
		sizes, err := r.set(Both(Size), func(Sizes) error { return errors.New("noted") })
		if !errors.Is(err, ErrUnsupported) || sizes != (Sizes{}) {
			t.Errorf("set without BIG TCP: %+v, %v, want ErrUnsupported", sizes, err)
		}
	case err != nil:
		t.Error(err)
	default:
		r.mustRestore(r.mustSet(Both(Size)))
	}
	old := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{GSOMaxSize: 65536}}
	if err := supported(old); !errors.Is(err, ErrUnsupported) {
		t.Errorf("an interface without the limit: %v, want ErrUnsupported", err)
	}
	if got := largest(old); got != 65536 {
		t.Errorf("its largest packet is %d", got)
	}
}

// TestLimit: all default routes count, of both families, and no other route.
func TestLimit(t *testing.T) {
	r, ok := newBigRig(t)
	if !ok {
		return
	}
	expect := func(when string, want uint32) {
		t.Helper()
		var got uint32
		err := r.node.Do(func() (err error) {
			got, err = Limit()
			return err
		})
		if err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", when, got, err, want)
		}
	}
	route := func(change func(*netlink.Route) error, route netlink.Route) {
		t.Helper()
		if err := r.node.Do(func() error { return change(&route) }); err != nil {
			t.Fatal(err)
		}
	}
	_, other, _ := net.ParseCIDR("10.9.0.0/16")
	_, all4, _ := net.ParseCIDR("0.0.0.0/0")
	_, all6, _ := net.ParseCIDR("::/0")
	expect("no route", Size)
	first := r.veth.HostIndex
	route(netlink.RouteAdd, netlink.Route{LinkIndex: first, Dst: other})
	route(netlink.RouteAdd, netlink.Route{LinkIndex: first, Dst: all4, Table: 100})
	route(netlink.RouteAdd, netlink.Route{Dst: all4, Type: unix.RTN_UNREACHABLE, Priority: 99})
	route(netlink.RouteAdd, netlink.Route{Dst: all6, Type: unix.RTN_UNREACHABLE, Priority: 99})
	expect("no default route", Size)

	for _, all := range []*net.IPNet{all4, all6} {
		r.write(r.node, first, plain)
		route(netlink.RouteAdd, netlink.Route{LinkIndex: first, Dst: all})
		expect("a default route", 65536)
		// the hardware's limit, of 524280, is not the point
		r.write(r.node, first, Limits{150000, 65536, 150000, 65536})
		expect("a larger device", 150000)
		r.write(r.node, first, Limits{150000, 65536, 120000, 65536})
		expect("a device with less for IPv4", 120000)
		r.write(r.node, first, Limits{110000, 65536, 150000, 65536})
		expect("a device with less for IPv6", 110000)
		r.write(r.node, first, Both(500000))
		expect("a device with more", Size)
		route(netlink.RouteDel, netlink.Route{LinkIndex: first, Dst: all})
	}
	// over two devices, and a second default route over a third
	hops := []*netlink.NexthopInfo{{LinkIndex: first}}
	r.addPod("second", tests.VethOptions{})
	r.write(r.node, r.veth.HostIndex, Both(100000))
	hops = append(hops, &netlink.NexthopInfo{LinkIndex: r.veth.HostIndex})
	route(netlink.RouteAdd, netlink.Route{Dst: all4, MultiPath: hops})
	expect("two next hops", 100000)
	r.addPod("third", tests.VethOptions{})
	r.write(r.node, r.veth.HostIndex, Both(80000))
	route(netlink.RouteAdd, netlink.Route{LinkIndex: r.veth.HostIndex, Dst: all4, Priority: 50})
	expect("two default routes", 80000)
}

// TestSegmented shows what the limit is about: a device with less makes the stack segment what a pod sends, and one with
// as much gets it whole.
func TestSegmented(t *testing.T) {
	prefixes := []netip.Prefix{
		netip.MustParsePrefix("10.1.0.2/24"), netip.MustParsePrefix("10.1.0.1/24"),
		netip.MustParsePrefix("10.2.0.2/24"), netip.MustParsePrefix("10.2.0.1/24"),
	}
	r, ok := newBigRig(t)
	if !ok {
		return
	}
	if err := r.node.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	gateway := func(via netip.Prefix) {
		t.Helper()
		err := r.pod.Do(func() error {
			return netlink.RouteAdd(&netlink.Route{LinkIndex: r.veth.PodIndex, Gw: via.Addr().AsSlice()})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	r.addPod("sender", tests.VethOptions{PodAddress: prefixes[0], HostAddress: prefixes[1]})
	gateway(prefixes[1])
	r.mustSet(IPv4(Size))
	sender := r.pod
	r.addPod("receiver", tests.VethOptions{PodAddress: prefixes[2], HostAddress: prefixes[3]})
	gateway(prefixes[3])
	echo := tests.MustEcho(t, r.pod, prefixes[2].Addr())
	const sent = 8 << 20
	for _, limits := range []Limits{plain, Both(Size)} {
		r.write(r.node, r.veth.HostIndex, limits)
		before := received(t, r)
		if err := tests.EchoTCP(t.Context(), sender, echo.TCP, sent); err != nil {
			t.Fatal(err)
		}
		// acknowledgements come along
		packets := received(t, r) - before
		if segmented := packets > sent/1500/2; segmented != (limits == plain) {
			t.Errorf("with %+v the device got %d packets for %d bytes", limits, packets, sent)
		}
	}
}

// received returns how many packets the pod end has received.
func received(t *testing.T, r *rig) (packets uint64) {
	t.Helper()
	err := r.pod.Do(func() error {
		l, err := netlink.LinkByIndex(r.veth.PodIndex)
		if err == nil {
			packets = l.Attrs().Statistics.RxPackets
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return packets
}
