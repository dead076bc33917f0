package samples

import (
	"net/netip"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// reply is an Ethernet header of a reply to what packets.Ethernet{} leads.
var reply = packets.Ethernet{Dst: packets.SourceMAC, Src: packets.DestinationMAC}

func TestEcho(t *testing.T) {
	p := load(t, "echo").Programs["xdp_icmp_echo"]
	answer := func(tag string, layers ...packets.Layer) []byte {
		return packets.Frame(append(append([]packets.Layer{reply}, tags[tag]...), layers...)...)
	}
	rest := [4]byte{0xbe, 0xef, 0xff, 0xfe} // identifier, sequence number
	request4 := packets.IPv4{ID: 0x1234, TTL: new(uint8(3))}
	reply4 := packets.IPv4{ID: 0x1234, Src: packets.DestinationIPv4, Dst: packets.SourceIPv4}
	request6 := packets.IPv6{HopLimit: new(uint8(255))}
	reply6 := packets.IPv6{Src: packets.DestinationIPv6, Dst: packets.SourceIPv6}
	for tag := range tags {
		for _, size := range []int{0, 1, 56, 1472, 1900} {
			data := packets.Data(size)
			t.Run(tag+"IPv4", func(t *testing.T) {
				expect(t, p, behind(tag, request4, packets.ICMP{Rest: &rest}, data), xdpTX,
					answer(tag, reply4, packets.ICMP{Type: new(uint8(0)), Rest: &rest}, data))
			})
			t.Run(tag+"IPv6", func(t *testing.T) {
				expect(t, p, behind(tag, request6, packets.ICMPv6{Rest: &rest}, data), xdpTX,
					answer(tag, reply6, packets.ICMPv6{Type: new(uint8(129)), Rest: &rest}, data))
			})
		}
	}
	// what the padding of a short frame holds goes back as it is
	padded := packets.Pad(frame(packets.IPv4{}, packets.ICMP{}), packets.MinFrame)
	expect(t, p, padded, xdpTX, packets.Pad(answer("", packets.IPv4{Src: packets.DestinationIPv4, Dst: packets.SourceIPv4},
		packets.ICMP{Type: new(uint8(0))}), packets.MinFrame))
}

// TestEchoChecksums has all kinds of carries come up, and replies of nothing but zeroes.
func TestEchoChecksums(t *testing.T) {
	p := load(t, "echo").Programs["xdp_icmp_echo"]
	for word := range 1 << 16 {
		if word%251 != 0 && word > 16 && word < 1<<16-16 && word&0xff00 != 0xf700 && word&0xff00 != 0x0800 {
			continue
		}
		rest := [4]byte{byte(word >> 8), byte(word)}
		request := frame(packets.IPv4{ID: uint16(word)}, packets.ICMP{Rest: &rest})
		want := packets.Frame(reply, packets.IPv4{ID: uint16(word), Src: packets.DestinationIPv4, Dst: packets.SourceIPv4},
			packets.ICMP{Type: new(uint8(0)), Rest: &rest})
		if sum := want[14+20+2:][:2]; sum[0] == 0 && sum[1] == 0 {
			sum[0], sum[1] = 0xff, 0xff // the other zero of one's complement
		}
		if expect(t, p, request, xdpTX, want); t.Failed() {
			return
		}
	}
}

// TestEchoLeaves has what must not be answered here.
func TestEchoLeaves(t *testing.T) {
	p := load(t, "echo").Programs["xdp_icmp_echo"]
	addr := netip.MustParseAddr
	solicitation := packets.ICMPv6{Type: new(uint8(135))}
	none := packets.IPv4{TotalLen: new(uint16(20))}
	many := packets.Ethernet{Dst: packets.MAC{0x01, 0, 0x5e, 0, 0, 1}}
	unchanged(t, p, map[string][]byte{
		"arp":                    frame(packets.ARP{}),
		"udp":                    frame(packets.IPv4{}, packets.UDP{}),
		"ipv6 tcp":               frame(packets.IPv6{}, packets.TCP{}),
		"reply":                  frame(packets.IPv4{}, packets.ICMP{Type: new(uint8(0))}),
		"unreachable":            frame(packets.IPv4{}, packets.ICMP{Type: new(uint8(3))}),
		"unknown code":           frame(packets.IPv4{}, packets.ICMP{Code: 1}),
		"ipv6 reply":             frame(packets.IPv6{}, packets.ICMPv6{Type: new(uint8(129))}),
		"neighbour solicitation": frame(packets.IPv6{HopLimit: new(uint8(255))}, solicitation, packets.Data(16)),
		"ICMP over IPv6":         frame(packets.IPv6{}, packets.ICMP{}),
		"ICMPv6 over IPv4":       frame(packets.IPv4{}, packets.ICMPv6{}),
		"options":                frame(packets.IPv4{Options: []byte{1, 1, 1, 1}}, packets.ICMP{}),
		"ipv6 extensions":        frame(packets.IPv6{}, packets.HopByHop(), packets.ICMPv6{}),
		"first fragment":         frame(packets.IPv4{MoreFragments: true}, packets.ICMP{}, packets.Data(64)),
		"later fragment":         frame(packets.IPv4{FragmentOffset: 9}, packets.ICMP{}, packets.Data(64)),
		"ipv6 first fragment":    frame(packets.IPv6{}, packets.Fragment{More: true}, packets.ICMPv6{}, packets.Data(64)),
		"ipv6 later fragment":    frame(packets.IPv6{}, packets.Fragment{Offset: 9}, packets.ICMPv6{}, packets.Data(64)),
		"multicast frame":        packets.Frame(many, packets.IPv4{}, packets.ICMP{}),
		"to multicast":           frame(packets.IPv4{Dst: addr("224.0.0.1")}, packets.ICMP{}),
		"to broadcast":           frame(packets.IPv4{Dst: addr("255.255.255.255")}, packets.ICMP{}),
		"to loopback":            frame(packets.IPv4{Dst: addr("127.0.0.1")}, packets.ICMP{}),
		"from nobody":            frame(packets.IPv4{Src: addr("0.0.0.0")}, packets.ICMP{}),
		"from broadcast":         frame(packets.IPv4{Src: addr("255.255.255.255")}, packets.ICMP{}),
		"ipv6 to multicast":      frame(packets.IPv6{Dst: addr("ff02::1")}, packets.ICMPv6{}),
		"ipv6 from nobody":       frame(packets.IPv6{Src: addr("::")}, packets.ICMPv6{}),
		"ipv6 to loopback":       frame(packets.IPv6{Dst: addr("::1")}, packets.ICMPv6{}),
		"in the padding":         packets.Pad(frame(none, packets.ICMP{}), packets.MinFrame),
		"ipv6 in the padding":    packets.Pad(frame(packets.IPv6{PayloadLen: new(uint16(4))}, packets.ICMPv6{}), 64),
		"version":                frame(packets.IPv4{Version: new(uint8(6))}, packets.ICMP{}),
		"header length":          frame(packets.IPv4{IHL: new(uint8(4))}, packets.ICMP{}),
	})
	for tag := range tags {
		unchanged(t, p, shortened(behind(tag, packets.IPv4{}, packets.ICMP{})))
		unchanged(t, p, shortened(behind(tag, packets.IPv6{}, packets.ICMPv6{})))
	}
}
