package bpf_test

import (
	"testing"

	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// TestGSO sends GSO packets through the tc programs: they count as the packets that they will be.
func TestGSO(t *testing.T) {
	const payload = 3 * 100
	var (
		v4      = frame(packets.IPv4{}, packets.TCP{}, packets.Data(payload))
		v6      = frame(packets.IPv6{}, packets.TCP{}, packets.Data(payload))
		big4    = frame(packets.IPv4{TotalLen: new(uint16(0))}, packets.TCP{}, packets.Data(payload))
		big6    = frame(packets.IPv6{PayloadLen: new(uint16(0))}, packets.TCP{}, packets.Data(payload))
		jumbo   = frame(packets.IPv6{PayloadLen: new(uint16(0))}, packets.Jumbo(8+20+payload), packets.TCP{}, packets.Data(payload))
		bigOpts = frame(packets.VLAN{}, packets.IPv4{TotalLen: new(uint16(0)), Options: make([]byte, 8)}, packets.TCP{}, packets.Data(payload))
		options = frame(packets.IPv6{PayloadLen: new(uint16(0))}, packets.DestOptions(), packets.TCP{}, packets.Data(payload))
	)
	testInputs(t, []inputCase{
		{"ipv4", input{frame: v4, gsoSize: 100, gsoSegs: 3}, tcp4, 3},
		{"ipv6", input{frame: v6, gsoSize: 100, gsoSegs: 3}, tcp6, 3},
		{"one segment", input{frame: v4, gsoSize: 1448, gsoSegs: 1}, tcp4, 1},
		{"65535 segments", input{frame: v4, gsoSize: 1, gsoSegs: 65535}, tcp4, 65535},
		{"segments without size", input{frame: v4, gsoSegs: 7}, tcp4, 1},
		{"udp", input{frame: frame(packets.IPv6{}, packets.UDP{}, packets.Data(300)), gsoSize: 100, gsoSegs: 3}, udp6, 3},

		// BIG TCP
		{"ipv4 total length 0", input{frame: big4, gsoSize: 100, gsoSegs: 3}, tcp4, 3},
		{"ipv4 total length 0, tag and options", input{frame: bigOpts, gsoSize: 100, gsoSegs: 3}, tcp4, 3},
		{"ipv6 payload length 0", input{frame: big6, gsoSize: 100, gsoSegs: 3}, tcp6, 3},
		{"ipv6 payload length 0 with jumbo", input{frame: jumbo, gsoSize: 100, gsoSegs: 3}, tcp6, 3},
		{"ipv6 payload length 0 with destination options", input{frame: options, gsoSize: 100, gsoSegs: 3}, tcp6, 3},
		{"ipv4 total length 0, not gso", input{frame: big4}, malformed, 1},
		{"ipv4 total length 0, not gso, tag and options", input{frame: bigOpts}, malformed, 1},
		{"ipv6 payload length 0, not gso", input{frame: big6}, truncated, 1},
		{"ipv6 payload length 0, not gso, with jumbo", input{frame: jumbo}, tcp6, 1},
		{"ipv6 payload length 0, not gso, with destination options", input{frame: options}, truncated, 1},

		// a packet that is broken stands for as many
		{"broken", input{frame: v4[:len(v4)-1], gsoSize: 100, gsoSegs: 3}, truncated, 3},
		{"ipv4 total length 19", input{frame: frame(packets.IPv4{TotalLen: new(uint16(19))}, packets.TCP{}), gsoSize: 100, gsoSegs: 2}, malformed, 2},
		{"ipv4 total length 0, cut in the tcp header", input{frame: big4[:14+20+19], gsoSize: 100, gsoSegs: 2}, truncated, 2},
	})
}

// TestGSOSegmentsUnstated sends GSO packets that do not say how many segments they are, such as
// come from a pod's packet socket or tap with a virtio header. The kernel counts them as
// qdisc_pkt_len_init() does (net/core/dev.c): the payload, without any header, by gso_size.
func TestGSOSegmentsUnstated(t *testing.T) {
	tcp := func(payload int) []byte { return frame(packets.IPv4{}, packets.TCP{}, packets.Data(payload)) }
	testInputs(t, []inputCase{
		{"less than a segment", input{frame: tcp(40), gsoSize: 100}, tcp4, 1},
		{"one full segment", input{frame: tcp(100), gsoSize: 100}, tcp4, 1},
		{"one byte more", input{frame: tcp(101), gsoSize: 100}, tcp4, 2},
		{"three full segments", input{frame: tcp(300), gsoSize: 100}, tcp4, 3},
		{"headers longer than a segment", input{frame: tcp(40), gsoSize: 20}, tcp4, 2},
		{"udp", input{frame: frame(packets.IPv6{}, packets.UDP{}, packets.Data(250)), gsoSize: 100}, udp6, 3},
		{"tcp options", input{frame: frame(packets.IPv6{}, packets.DestOptions(), packets.TCP{Options: make([]byte, 12)}, packets.Data(200)), gsoSize: 100}, tcp6, 2},
	})
}

// An inputCase is a packet and how many packets of what class it must be counted as.
type inputCase struct {
	name    string
	in      input
	want    class
	packets uint64
}

// testInputs sends each packet through the tc programs.
func testInputs(t *testing.T, cases []inputCase) {
	hooks := newHooks(t)
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			if got := classify(test.in); got != test.want {
				t.Errorf("the reference says %v, want %v", got, test.want)
			}
			for _, h := range hooks {
				if !h.xdp {
					t.Run(h.name, func(t *testing.T) { h.check(t, test.in, test.want, test.packets) })
				}
			}
		})
	}
}

// TestXDPFrames sends frames of more than one buffer through XDP: they count in full length.
func TestXDPFrames(t *testing.T) {
	if !needFrags(t) {
		return
	}
	h := newHooks(t)[0]
	tcp := func(ip packets.Layer, size int) []byte {
		frame := frame(ip, packets.TCP{})
		return append(frame, packets.Data(size-len(frame))...)
	}
	fit := func(size int) []byte { // with the right lengths
		return frame(packets.IPv4{}, packets.UDP{}, packets.Data(size-14-20-8))
	}
	big4, big6 := packets.IPv4{TotalLen: new(uint16(0))}, packets.IPv6{PayloadLen: new(uint16(0))}
	for _, test := range []packetCase{
		{"3000 bytes", fit(3000), udp4},
		{"a page", fit(4096), udp4},
		{"jumbo frame", fit(9014), udp4},
		{"largest datagram", fit(14 + 0xffff), udp4},
		{"jumbo frame, one byte short", fit(9014)[:9013], truncated},
		{"jumbo frame not IP", frame(packets.Data(9000)), notIP},
		{"ipv6 in many buffers", frame(packets.IPv6{}, packets.HopByHop(), packets.UDP{}, packets.Data(40000)), udp6},

		// BIG TCP: XDP is not told of GSO, but sees that no length field can say it
		{"ipv4 total length 0, 65535 bytes", tcp(big4, 14+0xffff), malformed},
		{"ipv4 total length 0, 65536 bytes", tcp(big4, 14+0x10000), tcp4},
		{"ipv4 total length 0, 70000 bytes", tcp(big4, 70000), tcp4},
		{"ipv6 payload length 0, 65535 bytes", tcp(big6, 14+0xffff), truncated},
		{"ipv6 payload length 0, 70000 bytes", tcp(big6, 70000), tcp6},
		{"ipv4 total length 100, 70000 bytes", tcp(packets.IPv4{TotalLen: new(uint16(100))}, 70000), tcp4},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := input{frame: test.frame}
			if got := classify(in); got != test.want {
				t.Errorf("the reference says %v, want %v", got, test.want)
			}
			h.check(t, in, test.want, 1)
		})
	}
}
