package samples

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// blocklist returns the list of a prefix's family, and the prefix as a key of it.
func blocklist(c *ebpf.Collection, prefix netip.Prefix) (list *ebpf.Map, key any) {
	length, a := uint32(prefix.Bits()), prefix.Addr()
	if a.Is4() {
		return c.Maps["blocklist_v4"], BlocklistPrefixV4{Length: length, Address: a.As4()}
	}
	return c.Maps["blocklist_v6"], BlocklistPrefixV6{Length: length, Address: a.As16()}
}

// block enters a prefix in the list of its family.
func block(t testing.TB, c *ebpf.Collection, prefix netip.Prefix) {
	t.Helper()
	list, key := blocklist(c, prefix)
	put(t, list, key, BlocklistBlocked{})
}

// blocked is what a prefix has dropped.
func blocked(t testing.TB, c *ebpf.Collection, prefix netip.Prefix) (b BlocklistBlocked) {
	t.Helper()
	list, key := blocklist(c, prefix)
	if err := list.Lookup(key, &b); err != nil {
		t.Fatalf("%s: %v", prefix, err)
	}
	return b
}

func TestBlocklist(t *testing.T) {
	c := load(t, "blocklist")
	p := c.Programs["xdp_blocklist"]
	prefix := netip.MustParsePrefix
	for _, s := range []string{
		"10.1.0.0/16", "10.1.2.0/24", "192.0.2.7/32", "2001:db8:bad::/48", "2001:db8:bad:1::5/128",
	} {
		block(t, c, prefix(s))
	}
	hits := map[string]uint64{}
	for tag := range tags {
		for _, test := range []struct{ to, by string }{
			{"10.1.0.0", "10.1.0.0/16"}, {"10.1.255.255", "10.1.0.0/16"}, {"10.1.2.3", "10.1.2.0/24"},
			{"192.0.2.7", "192.0.2.7/32"},
			{"10.2.0.0", ""}, {"10.0.255.255", ""}, {"192.0.2.6", ""}, {"1.10.0.1", ""},
			{"2001:db8:bad::1", "2001:db8:bad::/48"}, {"2001:db8:bad:1::5", "2001:db8:bad:1::5/128"},
			{"2001:db8:bac:ffff::", ""}, {"2001:db8:bae::", ""}, {"::ffff:10.1.0.0", ""},
		} {
			to := netip.MustParseAddr(test.to)
			var frames [][]byte
			if to.Is4() {
				frames = [][]byte{
					behind(tag, packets.IPv4{Dst: to}, packets.UDP{}),
					behind(tag, packets.IPv4{Dst: to, Options: make([]byte, 4)}, packets.TCP{}),
					behind(tag, packets.IPv4{Dst: to, FragmentOffset: 1}, packets.Data(64)),
				}
			} else {
				frames = [][]byte{
					behind(tag, packets.IPv6{Dst: to}, packets.UDP{}),
					behind(tag, packets.IPv6{Dst: to}, packets.Fragment{Offset: 1}, packets.Data(64)),
				}
			}
			for _, f := range frames {
				action := xdpPass
				if test.by != "" {
					action = xdpDrop
					hits[test.by]++
				}
				t.Run(tag+test.to, func(t *testing.T) { expect(t, p, f, action, f) })
			}
		}
	}
	for by, n := range hits {
		if got := blocked(t, c, prefix(by)).Packets; got != n {
			t.Errorf("%s dropped %d packets, want %d", by, got, n)
		}
	}
	// who is blocked may send: only what is sent to it is dropped
	unchanged(t, p, map[string][]byte{
		"from": frame(packets.IPv4{Src: netip.MustParseAddr("192.0.2.7")}, packets.UDP{}),
		"arp":  frame(packets.ARP{TargetIP: netip.MustParseAddr("192.0.2.7")}),
	})
	// the whole of a family: the other is not touched
	block(t, c, prefix("0.0.0.0/0"))
	f := frame(packets.IPv4{}, packets.UDP{})
	expect(t, p, f, xdpDrop, f)
	unchanged(t, p, map[string][]byte{"ipv6": frame(packets.IPv6{}, packets.UDP{})})
}
