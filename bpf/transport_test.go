package bpf_test

import (
	"testing"

	"github.com/xdp-cni/xdp-cni/tests/packets"
)

func TestTransport(t *testing.T) {
	testCases(t, tcpCases(), udpCases(), icmpCases())
}

func tcpCases() []packetCase {
	offset := func(units uint8, payload int) []byte {
		return frame(packets.IPv4{}, packets.TCP{DataOffset: &units}, packets.Data(payload))
	}
	return []packetCase{
		{"tcp with options", frame(packets.IPv4{}, packets.TCP{Options: make([]byte, 40)}), tcp4},
		{"tcp data offset 0", offset(0, 40), malformed},
		{"tcp data offset 4", offset(4, 40), malformed},
		{"tcp data offset to the end", offset(15, 40), tcp4},
		{"tcp data offset beyond the end", offset(15, 39), truncated},
		{"tcp data offset into padding", packets.Pad(offset(6, 0), packets.MinFrame), truncated},
		{"tcp data offset 4 in ipv6", frame(packets.IPv6{}, packets.TCP{DataOffset: new(uint8(4))}), malformed},
		{"tcp data offset beyond the end in ipv6", frame(packets.IPv6{}, packets.TCP{DataOffset: new(uint8(6))}), truncated},
		{"tcp of 19 bytes", frame(packets.IPv4{Protocol: new(uint8(6))}, packets.Data(19)), truncated},
	}
}

func udpCases() []packetCase {
	udp4Len := func(length uint16) []byte {
		return frame(packets.IPv4{}, packets.UDP{Len: &length}, packets.Data(32))
	}
	udp6Len := func(length uint16) []byte {
		return frame(packets.IPv6{}, packets.UDP{Len: &length}, packets.Data(32))
	}
	return []packetCase{
		{"udp without data", frame(packets.IPv4{}, packets.UDP{}), udp4},
		{"udp of 7 bytes", frame(packets.IPv4{Protocol: new(uint8(17))}, packets.Data(7)), truncated},
		{"udp length 0", udp4Len(0), malformed},
		{"udp length 7", udp4Len(7), malformed},
		{"udp length 8", udp4Len(8), udp4},
		{"udp length to the end", udp4Len(40), udp4},
		{"udp length beyond the end", udp4Len(41), truncated},
		{"udp length 65535", udp4Len(0xffff), truncated},
		{"udp length into padding", packets.Pad(frame(packets.IPv4{}, packets.UDP{Len: new(uint16(9))}), packets.MinFrame), truncated},
		{"udp length 0 in ipv6", udp6Len(0), udp6},
		{"udp length 7 in ipv6", udp6Len(7), malformed},
		{"udp length beyond the end in ipv6", udp6Len(41), truncated},
	}
}

func icmpCases() []packetCase {
	return []packetCase{
		{"icmp of 8 bytes", frame(packets.IPv4{}, packets.ICMP{}), icmp4},
		{"icmp of 7 bytes", frame(packets.IPv4{Protocol: new(uint8(1))}, packets.Data(7)), truncated},
		{"icmpv6 of 8 bytes", frame(packets.IPv6{}, packets.ICMPv6{}), icmp6},
		{"icmpv6 of 7 bytes", frame(packets.IPv6{NextHeader: new(uint8(58))}, packets.Data(7)), truncated},
		{"icmpv6 of 7 bytes in ipv4", frame(packets.IPv4{Protocol: new(uint8(58))}, packets.Data(7)), other4},
	}
}
