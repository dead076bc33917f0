package samples

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// source returns what is counted for an address, over all CPUs.
func source(t *testing.T, m *ebpf.Map, address netip.Addr) (sum SourcesSourceCount) {
	t.Helper()
	var counts []SourcesSourceCount
	if err := m.Lookup(SourcesSource{Address: address.As16()}, &counts); err != nil {
		t.Fatalf("%s: %v", address, err)
	}
	for _, c := range counts {
		sum.Packets += c.Packets
		sum.Bytes += c.Bytes
	}
	return sum
}

func TestSources(t *testing.T) {
	c := load(t, "sources")
	p, m := c.Programs["xdp_count_sources"], c.Maps["sources"]
	other4, other6 := netip.MustParseAddr("10.0.0.255"), netip.MustParseAddr("fe80::1")
	want := map[netip.Addr]SourcesSourceCount{}
	count := func(source netip.Addr, frame []byte) {
		expect(t, p, frame, xdpPass, frame)
		now := want[source]
		now.Packets++
		now.Bytes += uint64(len(frame))
		want[source] = now
	}
	for tag := range tags {
		count(packets.SourceIPv4, behind(tag, packets.IPv4{}, packets.UDP{}))
		count(packets.SourceIPv4, behind(tag, packets.IPv4{FragmentOffset: 9}, packets.Data(100)))
		count(packets.SourceIPv4, packets.Pad(behind(tag, packets.IPv4{Options: make([]byte, 40)}, packets.ICMP{}), 100))
		count(other4, behind(tag, packets.IPv4{Src: other4}, packets.TCP{}))
		count(packets.SourceIPv6, behind(tag, packets.IPv6{}, packets.TCP{}))
		count(packets.SourceIPv6, behind(tag, packets.IPv6{}, packets.Fragment{Offset: 4}, packets.Data(1000)))
		count(other6, behind(tag, packets.IPv6{Src: other6}, packets.HopByHop(), packets.ICMPv6{}))
	}
	for address, w := range want {
		if got := source(t, m, address); got != w {
			t.Errorf("%s: %d packets of %d bytes, want %d of %d", address, got.Packets, got.Bytes, w.Packets, w.Bytes)
		}
	}
	unchanged(t, p, map[string][]byte{
		"arp": frame(packets.ARP{}), "version": frame(packets.IPv4{Version: new(uint8(5))}, packets.UDP{}),
		"cut": frame(packets.IPv6{Src: netip.MustParseAddr("::5")})[:53],
	})
	var key SourcesSource
	var counts []SourcesSourceCount
	n := 0
	for entries := m.Iterate(); entries.Next(&key, &counts); n++ {
		if _, ok := want[netip.AddrFrom16(key.Address).Unmap()]; !ok {
			t.Errorf("%x is counted", key.Address)
		}
	}
	if n != len(want) {
		t.Errorf("%d addresses are counted, want %d", n, len(want))
	}
}
