package samples

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// TestRouter has a node with two pods on routed veths, and runs frames as if they came in by the first.
func TestRouter(t *testing.T) {
	c := load(t, "router")
	p := c.Programs["xdp_route"]
	n := tests.MustNode(t)
	near := tests.MustPod(t, n, "near")
	far := tests.MustPod(t, n, "far")
	veth := func(pod *tests.Pod, o tests.VethOptions) *tests.Veth {
		v, err := tests.MakeVeth(t.Context(), n, pod, o)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	in := veth(near, tests.VethOptions{HostAddress: netip.MustParsePrefix("10.1.0.1/24"), HostName: "near"})
	out := veth(far, tests.VethOptions{HostAddress: netip.MustParsePrefix("10.2.0.1/24"), HostName: "far", MTU: 1400})
	to4, to6 := netip.MustParseAddr("10.2.0.2"), netip.MustParseAddr("fd02::2")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(n.Sysctl("net/ipv4/ip_forward", "1"))
	must(n.Sysctl("net/ipv6/conf/all/forwarding", "1"))
	route := func(index int, to string) {
		t.Helper()
		_, network, err := net.ParseCIDR(to)
		must(err)
		must(n.Do(func() error { return netlink.RouteAdd(&netlink.Route{LinkIndex: index, Dst: network}) }))
	}
	route(out.HostIndex, "fd02::/64")
	route(in.HostIndex, "fd01::/64")
	route(in.HostIndex, "240.0.0.0/4") // of which no packet may come
	for _, a := range []netip.Addr{to4, to6} {
		must(n.Neighbour("far", a, out.PodMAC))
	}
	for _, a := range []string{"10.1.0.2", "10.1.0.9", "fd01::2", "240.0.0.1"} {
		must(n.Neighbour("near", netip.MustParseAddr(a), in.PodMAC))
	}

	ethernet := packets.Ethernet{Src: packets.MAC(in.PodMAC), Dst: packets.MAC(in.HostMAC)}
	routed := packets.Ethernet{Src: packets.MAC(out.HostMAC), Dst: packets.MAC(out.PodMAC)}
	from4, from6 := netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd01::2")
	build := func(e packets.Ethernet, layers ...packets.Layer) []byte {
		return packets.Frame(append([]packets.Layer{e}, layers...)...)
	}
	v4 := func(ttl uint8) packets.IPv4 { return packets.IPv4{Src: from4, Dst: to4, TTL: &ttl} }
	v6 := func(limit uint8) packets.IPv6 { return packets.IPv6{Src: from6, Dst: to6, HopLimit: &limit} }
	check := func(name string, frame []byte, action uint32, want []byte) {
		t.Helper()
		must(n.Do(func() error {
			got, after, err := runAt(p, in.HostIndex, frame)
			if err == nil && (got != action || !bytes.Equal(after, want)) {
				t.Errorf("%s: action %d, want %d\ngot  %x\nwant %x", name, got, action, after, want)
			}
			return err
		}))
	}
	pass := func(name string, frame []byte) { t.Helper(); check(name, frame, xdpPass, frame) }

	if err := n.Do(func() error {
		_, _, err := runAt(p, in.HostIndex, build(ethernet, packets.ARP{}))
		return err
	}); errors.Is(err, unix.EINVAL) {
		t.Skip("the kernel tells test runs no interface (5.14 and older)")
	}
	from := func(source string) []byte {
		a := netip.MustParseAddr(source)
		if a.Is6() {
			return build(ethernet, packets.IPv6{Src: a, Dst: to6}, packets.UDP{})
		}
		return build(ethernet, packets.IPv4{Src: a, Dst: to4}, packets.UDP{})
	}
	pass("no port", build(ethernet, v4(64), packets.UDP{}))
	must(n.Do(func() error { // an index is one of the namespace that it is entered in
		return errors.Join(
			c.Maps["router_ports"].Put(uint32(out.HostIndex), uint32(out.HostIndex)),
			c.Maps["router_ports"].Put(uint32(in.HostIndex), uint32(in.HostIndex)))
	}))
	for _, ttl := range []uint8{2, 64, 128, 255} {
		for _, size := range []int{0, 1, 1352} {
			data := packets.Data(size)
			check("IPv4", build(ethernet, v4(ttl), packets.UDP{}, data), xdpRedirect,
				build(routed, v4(ttl-1), packets.UDP{}, data))
			check("IPv6", build(ethernet, v6(ttl), packets.UDP{}, data), xdpRedirect,
				build(routed, v6(ttl-1), packets.UDP{}, data))
		}
	}
	id := v4(9)
	id.ID, id.FragmentOffset = 0xffff, 100
	aged := id
	aged.TTL = new(uint8(8))
	check("fragment", build(ethernet, id, packets.Data(64)), xdpRedirect, build(routed, aged, packets.Data(64)))

	options := v4(64)
	options.Options = []byte{148, 4, 0, 0} // router alert
	with4 := func(dst string) packets.IPv4 { return packets.IPv4{Src: from4, Dst: netip.MustParseAddr(dst)} }
	with6 := func(src, dst string) packets.IPv6 {
		return packets.IPv6{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst)}
	}
	pass("TTL 1", build(ethernet, v4(1), packets.UDP{}))
	pass("TTL 0", build(ethernet, v4(0), packets.UDP{}))
	pass("hop limit 1", build(ethernet, v6(1), packets.UDP{}))
	pass("options", build(ethernet, options, packets.UDP{}))
	pass("hop-by-hop options", build(ethernet, v6(64), packets.HopByHop(), packets.UDP{}))
	pass("longer than the MTU", build(ethernet, v4(64), packets.UDP{}, packets.Data(1373)))
	pass("IPv6 longer than the MTU", build(ethernet, v6(64), packets.UDP{}, packets.Data(1353)))
	pass("neighbour unknown", build(ethernet, with4("10.2.0.77"), packets.UDP{}))
	pass("IPv6 neighbour unknown", build(ethernet, with6("fd01::2", "fd02::77"), packets.UDP{}))
	pass("no route", build(ethernet, with4("198.51.100.1"), packets.UDP{}))
	pass("to the node", build(ethernet, with4("10.2.0.1"), packets.UDP{}))
	pass("back to where it came from", build(ethernet, with4("10.1.0.9"), packets.UDP{}))
	pass("multicast", build(ethernet, with4("224.0.0.1"), packets.UDP{}))
	pass("IPv6 multicast", build(ethernet, with6("fd01::2", "ff0e::1"), packets.UDP{}))
	// the MAC is the router's in all but these
	other := packets.Ethernet{Src: ethernet.Src, Dst: packets.MAC{2, 0, 0, 0, 0, 9}}
	group := packets.Ethernet{Src: ethernet.Src, Dst: packets.MAC{1, 0, 0x5e, 0, 0, 1}}
	for name, e := range map[string]packets.Ethernet{"another": other, "a group": group} {
		pass("frame to "+name, build(e, v4(64), packets.UDP{}))
		pass("IPv6 frame to "+name, build(e, v6(64), packets.UDP{}))
	}
	for name, source := range map[string]string{
		"loopback": "127.0.0.1", "this network": "0.0.0.0", "multicast": "224.0.0.5", "class E": "240.0.0.1",
		"to all": "255.255.255.255", "the node": "10.1.0.1", "the node at the other side": "10.2.0.1",
		"broadcast": "10.1.0.255", "the other side": "10.2.0.2", "nowhere": "198.51.100.1",
		"a neighbour unknown": "10.1.0.77",
		"IPv6 unspecified":    "::", "IPv6 loopback": "::1", "IPv6 multicast": "ff0e::1", "IPv6 of the link": "fe80::1",
		"IPv6 the other side": "fd02::2", "IPv6 nowhere": "2001:db8::1", "IPv6 a neighbour unknown": "fd01::77",
	} {
		pass("from "+name, from(source))
	}
	pass("to class E", build(ethernet, with4("240.0.0.1"), packets.UDP{}))
	pass("tagged", build(ethernet, packets.VLAN{ID: 5}, v4(64), packets.UDP{}))
	pass("arp", build(ethernet, packets.ARP{}))
}

// runAt is run of a frame that came in by an interface.
func runAt(p *ebpf.Program, ifindex int, frame []byte) (action uint32, out []byte, err error) {
	options := ebpf.RunOptions{
		Data: frame, DataOut: make([]byte, len(frame)+256),
		Context: packets.CameIn(frame, ifindex),
	}
	action, err = p.Run(&options)
	return action, options.DataOut, err
}
