package bpf_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests/packets"
)

func TestIPv6(t *testing.T) {
	testCases(t, ipv6Cases(), ipv6LengthCases(), ipv6ChainCases(), ipv6FragmentCases())
}

func ipv6Cases() []packetCase {
	return []packetCase{
		{"tcp", frame(packets.IPv6{}, packets.TCP{}, packets.Data(10)), tcp6},
		{"udp", frame(packets.IPv6{}, packets.UDP{}, packets.Data(10)), udp6},
		{"icmpv6", frame(packets.IPv6{}, packets.ICMPv6{}, packets.Data(10)), icmp6},
		{"icmp in ipv6", frame(packets.IPv6{}, packets.ICMP{}), other6},
		{"sctp", frame(packets.IPv6{}, packets.SCTP{}, packets.Data(16)), other6},
		{"esp", frame(packets.IPv6{}, packets.ESP{}, packets.Data(16)), other6},
		{"ipv6 in ipv6", frame(packets.IPv6{}, packets.IPv6{}, packets.TCP{}), other6},
		{"no next header", frame(packets.IPv6{NextHeader: new(uint8(packets.ProtocolNone))}), other6},
		{"mobility header is not walked", frame(packets.IPv6{NextHeader: new(uint8(135))}, packets.Data(8)), other6},
		{"version 4", frame(packets.IPv6{Version: new(uint8(4))}, packets.TCP{}), malformed},
		{"version 7", frame(packets.IPv6{Version: new(uint8(7))}, packets.TCP{}), malformed},
		{"bad version before bad length", frame(packets.IPv6{Version: new(uint8(4)), PayloadLen: new(uint16(99))}), malformed},

		{"hop-by-hop", ext(packets.HopByHop()), tcp6},
		{"destination options", ext(packets.DestOptions()), tcp6},
		{"routing", ext(packets.Routing()), tcp6},
		{"ah", ext(packets.AH{ICV: make([]byte, 12)}), tcp6},
		{"ah without icv", ext(packets.AH{}), tcp6},
		{"ah of 96 bytes", ext(packets.AH{ICV: make([]byte, 84)}), tcp6},
		// what follows then begins within it: the data offset is read from the sequence number
		{"ah shorter than its fixed part", ext(packets.AH{Len: new(uint8(0))}), malformed},
		{"esp behind extensions", frame(packets.IPv6{}, packets.DestOptions(), packets.ESP{}, packets.Data(8)), other6},
		{"udp behind extensions", frame(packets.IPv6{}, packets.HopByHop(), packets.UDP{}, packets.Data(8)), udp6},
		{"icmpv6 behind extensions", frame(packets.IPv6{}, packets.HopByHop(5, 2), packets.ICMPv6{}), icmp6},
		{"sctp behind extensions", frame(packets.IPv6{}, packets.Routing(), packets.SCTP{}), other6},
		{"extension is all there is", frame(packets.IPv6{}, packets.Extension{Protocol: 60, NextHeader: new(uint8(59))}), other6},
		{"extension names itself", frame(packets.IPv6{}, packets.Extension{Protocol: 60, NextHeader: new(uint8(60))}), truncated},
		{"extension one unit too long", frame(packets.IPv6{}, packets.Extension{Protocol: 0, Len: new(uint8(4))}, packets.TCP{}, packets.Data(11)), truncated},
		{"extension to the datagram's end", frame(packets.IPv6{}, packets.Extension{Protocol: 60, Len: new(uint8(2)), NextHeader: new(uint8(59))}, packets.Data(16)), other6},
		{"tcp behind the datagram's end", frame(packets.IPv6{}, packets.Extension{Protocol: 60, Len: new(uint8(2)), NextHeader: new(uint8(6))}, packets.Data(16)), truncated},
	}
}

func ipv6LengthCases() []packetCase {
	udp := func(length uint16) []byte {
		return frame(packets.IPv6{PayloadLen: &length}, packets.UDP{}, packets.Data(32))
	}
	const full = 8 + 32 // the payload length of those
	return []packetCase{
		{"payload length one too long", udp(full + 1), truncated},
		{"payload length 65535", udp(0xffff), truncated},
		{"payload length one short", udp(full - 1), truncated},
		{"payload length of the udp header", udp(8), truncated},
		{"payload length 7", udp(7), truncated},
		{"payload length 0", udp(0), truncated},
		{"payload length 0 without next header", frame(packets.IPv6{PayloadLen: new(uint16(0)), NextHeader: new(uint8(59))}, packets.Data(8)), other6},
		{"payload length 0 before destination options", frame(packets.IPv6{PayloadLen: new(uint16(0))}, packets.DestOptions(), packets.TCP{}), truncated},
		{"payload length within an extension", frame(packets.IPv6{PayloadLen: new(uint16(15))}, packets.Extension{Protocol: 60, Body: make([]byte, 14), NextHeader: new(uint8(59))}), truncated},
		{"payload length below any extension", frame(packets.IPv6{PayloadLen: new(uint16(7))}, packets.DestOptions(), packets.TCP{}), truncated},
		{"jumbo", frame(packets.IPv6{PayloadLen: new(uint16(0))}, packets.Jumbo(8+8+32), packets.UDP{}, packets.Data(32)), udp6},
		{"jumbo udp without length", frame(packets.IPv6{PayloadLen: new(uint16(0))}, packets.Jumbo(8+8+32), packets.UDP{Len: new(uint16(0))}, packets.Data(32)), udp6},
		{"payload length 0 before plain hop-by-hop", frame(packets.IPv6{PayloadLen: new(uint16(0))}, packets.HopByHop(), packets.TCP{}), tcp6},
		{"payload length 0 before hop-by-hop that is missing", frame(packets.IPv6{PayloadLen: new(uint16(0)), NextHeader: new(uint8(0))}), truncated},
		{"padding", packets.Pad(frame(packets.IPv6{}, packets.UDP{}), 70), udp6},
		{"padding is not tcp", packets.Pad(frame(packets.IPv6{NextHeader: new(uint8(6))}), 80), truncated},
		{"padding is not icmpv6", packets.Pad(frame(packets.IPv6{NextHeader: new(uint8(58))}), 80), truncated},
		{"padding is not an extension", packets.Pad(frame(packets.IPv6{NextHeader: new(uint8(60))}), 80), truncated},
	}
}

func ipv6ChainCases() []packetCase {
	options := func(n, size int) []packets.Layer {
		return slices.Repeat([]packets.Layer{packets.Extension{Protocol: 60, Body: make([]byte, size-2)}}, n)
	}
	cases := []packetCase{
		{"one of each", ext(packets.HopByHop(), packets.DestOptions(), packets.Routing(), packets.Fragment{}, packets.AH{}, packets.DestOptions()), tcp6},
		{"hop-by-hop out of place", ext(packets.DestOptions(), packets.HopByHop()), tcp6},
		{"chain ends in its last header", ext(append(options(8, 8), packets.AH{})...)[:14+40+64+7], truncated},
		// a header that starts past byte 2048 is out of reach
		{"tcp at 2046", ext(options(1, 1992)...), tcp6},
		{"tcp at 2054", ext(options(1, 2000)...), malformed},
		{"extension at 2046", ext(options(1, 1992)[0], packets.HopByHop()), malformed},
		{"extension at 2046, sctp behind", frame(packets.IPv6{}, options(1, 1992)[0], packets.HopByHop(), packets.SCTP{}), other6},
		{"extension at 2054, sctp behind", frame(packets.IPv6{}, options(1, 2000)[0], packets.HopByHop(), packets.SCTP{}), malformed},
		{"icmpv6 at 2054", frame(packets.IPv6{}, options(1, 2000)[0], packets.ICMPv6{}), malformed},
		{"sctp at 2102 is not read", frame(packets.IPv6{}, options(1, 2048)[0], packets.SCTP{}), other6},
		{"tcp at 2102, cut", frame(packets.IPv6{}, options(1, 2048)[0], packets.TCP{})[:2110], truncated},
	}
	for n := 1; n <= 10; n++ {
		want := tcp6
		if n > 8 {
			want = malformed
		}
		cases = append(cases, packetCase{fmt.Sprintf("chain of %d", n), ext(options(n, 8)...), want})
	}
	return cases
}

func ipv6FragmentCases() []packetCase {
	with := func(fragment packets.Fragment, protocol uint8, payload int) []byte {
		fragment.NextHeader = &protocol
		return frame(packets.IPv6{}, fragment, packets.Data(payload))
	}
	first, last := packets.Fragment{More: true}, packets.Fragment{Offset: 181}
	whole := new(uint16(3000))
	return []packetCase{
		{"atomic fragment", ext(packets.Fragment{}), tcp6},
		{"atomic fragment udp too long", frame(packets.IPv6{}, packets.Fragment{}, packets.UDP{Len: whole}), truncated},
		{"reserved byte of a fragment header is no length", ext(packets.Fragment{Reserved: 0xff}), tcp6},
		{"first fragment tcp", ext(first), tcp6},
		{"first fragment udp", frame(packets.IPv6{}, first, packets.UDP{Len: whole}, packets.Data(1440)), udp6},
		{"first fragment icmpv6", frame(packets.IPv6{}, first, packets.ICMPv6{}, packets.Data(1440)), icmp6},
		{"first fragment with extensions", ext(packets.HopByHop(), first, packets.DestOptions()), tcp6},
		{"tiny first fragment tcp", with(first, 6, 16), truncated},
		{"tiny first fragment udp", with(first, 17, 7), truncated},
		{"tiny first fragment icmpv6", with(first, 58, 4), truncated},
		{"middle fragment", with(packets.Fragment{Offset: 181, More: true}, 6, 1448), tcp6},
		{"last fragment tcp", with(last, 6, 3), tcp6},
		{"last fragment udp", with(last, 17, 3), udp6},
		{"last fragment icmpv6", with(last, 58, 3), icmp6},
		{"last fragment icmp", with(last, 1, 3), other6},
		{"last fragment of nothing", with(last, 6, 0), tcp6},
		{"last fragment of an extension", with(last, 60, 100), other6},
		{"smallest offset", with(packets.Fragment{Offset: 1}, 6, 8), tcp6},
		{"largest offset", with(packets.Fragment{Offset: 0x1fff}, 17, 8), udp6},
		{"fragment header cut", with(last, 6, 3)[:14+40+7], truncated},
		{"fragment within a fragment", ext(first, packets.Fragment{}), tcp6},
		{"last fragment within a first", frame(packets.IPv6{}, first, packets.Fragment{Offset: 9, NextHeader: new(uint8(17))}, packets.Data(3)), udp6},
	}
}
