package bpf_test

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// A packetCase is a frame and what it must be counted as.
type packetCase struct {
	name  string
	frame []byte
	want  class
}

// frame returns the layers behind an Ethernet header.
func frame(layers ...packets.Layer) []byte {
	return packets.Frame(append([]packets.Layer{packets.Ethernet{}}, layers...)...)
}

// ext returns an IPv6 frame with the extension headers before a TCP segment.
func ext(extensions ...packets.Layer) []byte {
	layers := append([]packets.Layer{packets.IPv6{}}, extensions...)
	return frame(append(layers, packets.TCP{}, packets.Data(20))...)
}

// testCases sends each frame through every program.
func testCases(t *testing.T, groups ...[]packetCase) {
	hooks := newHooks(t)
	for _, group := range groups {
		for _, test := range group {
			t.Run(test.name, func(t *testing.T) {
				in := input{frame: test.frame}
				if got := classify(in); got != test.want {
					t.Errorf("the reference says %v, want %v", got, test.want)
				}
				for _, h := range hooks {
					t.Run(h.name, func(t *testing.T) { h.check(t, in, test.want, 1) })
				}
			})
		}
	}
}

// check sends in through the hook and compares all counters of its pod with what a frame of class
// want, which stands for n packets, must leave there.
func (h hook) check(t testing.TB, in input, want class, n uint64) {
	t.Helper()
	before := h.pod.counters(t)
	err := h.run(t, in)
	if errors.Is(err, unix.EINVAL) && h.mayRefuse(in) {
		return
	}
	if err != nil {
		t.Fatalf("running %d bytes: %v", len(in.frame), err)
	}
	got := h.pod.counters(t).minus(before)
	if wanted := want.counters(h.direction, n, uint64(len(in.frame))); got != wanted {
		t.Errorf("counted %v\nwant    %v\nof      %v", got, wanted, in)
	}
}

// counters are those that packets of the class leave in a pod's tables.
func (c class) counters(direction bpf.DatapathDirection, n, size uint64) (sum counters) {
	rec := bpf.DatapathDatarec{Packets: n, Bytes: size}
	d := &sum[direction]
	d[bpf.DatapathTableTABLE_VERDICT][bpf.DatapathVerdictVERDICT_PASS] = rec
	d[bpf.DatapathTableTABLE_KIND][c.kind] = rec
	if !c.broken() {
		d[bpf.DatapathTableTABLE_PROTOCOL][c.protocol] = rec
	}
	return sum
}

// mayRefuse says whether the kernel may refuse to run the frame at tc, for having no whole IP
// header (bpf_prog_test_run_skb() in net/bpf/test_run.c, 6.17 and later).
func (h hook) mayRefuse(in input) bool {
	if h.xdp || len(in.frame) < 14 {
		return false
	}
	switch uint16(in.frame[12])<<8 | uint16(in.frame[13]) {
	case packets.EtherTypeIPv4:
		return len(in.frame) < 14+20
	case packets.EtherTypeIPv6:
		return len(in.frame) < 14+40
	}
	return len(in.frame) == 14
}

func TestEthernet(t *testing.T) {
	testCases(t, ethernetCases())
}

func ethernetCases() []packetCase {
	tagged := func(tags ...packets.Layer) []byte {
		return frame(append(tags, packets.IPv4{}, packets.UDP{}, packets.Data(32))...)
	}
	customer, service := packets.VLAN{ID: 7}, packets.VLAN{ID: 9, Service: true}
	return []packetCase{
		{"arp", frame(packets.ARP{}), notIP},
		{"arp padded", packets.Pad(frame(packets.ARP{}), packets.MinFrame), notIP},
		{"arp cut", frame(packets.ARP{})[:20], notIP},
		{"arp tagged", frame(customer, packets.ARP{}), notIP},
		{"lldp", packets.Frame(packets.Ethernet{Type: new(uint16(packets.EtherTypeLLDP))}, packets.Data(46)), notIP},
		{"unknown ethertype", frame(packets.Data(46)), notIP},
		{"802.3 length", packets.Frame(packets.Ethernet{Type: new(uint16(46))}, packets.Data(46)), notIP},
		{"no payload", frame(packets.Payload{}), notIP},

		{"802.1Q", tagged(customer), udp4},
		{"802.1ad", tagged(service), udp4},
		{"802.1ad and 802.1Q", tagged(service, customer), udp4},
		{"802.1Q and 802.1Q", tagged(customer, customer), udp4},
		{"802.1Q and 802.1ad", tagged(customer, service), udp4},
		{"three tags", tagged(service, customer, customer), notIP},
		{"802.1Q ipv6", frame(customer, packets.IPv6{}, packets.TCP{}), tcp6},
		{"QinQ ipv6 extensions", frame(service, customer, packets.IPv6{}, packets.HopByHop(), packets.ICMPv6{}), icmp6},
		{"802.1Q without tag", tagged(customer)[:14], truncated},
		{"802.1Q tag cut", tagged(customer)[:17], truncated},
		{"QinQ inner tag cut", tagged(service, customer)[:21], truncated},
		{"802.1Q priority tag of unknown ethertype", frame(packets.VLAN{}, packets.Data(46)), notIP},
		{"802.1Q ip cut", tagged(customer)[:37], truncated},
		{"QinQ padding is not payload", packets.Pad(frame(service, customer, packets.IPv4{}, packets.ICMP{}), 64), icmp4},
	}
}

func TestIPv4(t *testing.T) {
	testCases(t, ipv4Cases(), ipv4FragmentCases())
}

func ipv4Cases() []packetCase {
	udp := func(ip packets.IPv4) []byte { return frame(ip, packets.UDP{}, packets.Data(32)) }
	const full = 20 + 8 + 32 // the total length of those
	cases := []packetCase{
		{"tcp", frame(packets.IPv4{}, packets.TCP{}, packets.Data(10)), tcp4},
		{"udp", frame(packets.IPv4{}, packets.UDP{}, packets.Data(10)), udp4},
		{"icmp", frame(packets.IPv4{}, packets.ICMP{}, packets.Data(10)), icmp4},
		{"icmpv6 in ipv4", frame(packets.IPv4{}, packets.ICMPv6{}), other4},
		{"sctp", frame(packets.IPv4{}, packets.SCTP{}, packets.Data(16)), other4},
		{"esp", frame(packets.IPv4{}, packets.ESP{}, packets.Data(16)), other4},
		{"ah", frame(packets.IPv4{}, packets.AH{}, packets.TCP{}), other4},
		{"ipv6 in ipv4", frame(packets.IPv4{}, packets.IPv6{}, packets.TCP{}), other4},
		{"protocol 0", frame(packets.IPv4{}, packets.HopByHop(), packets.TCP{}), other4},
		{"no payload", frame(packets.IPv4{}), other4},
		{"every byte of the largest standard frame", frame(packets.IPv4{}, packets.UDP{}, packets.Data(1472)), udp4},

		{"padding", packets.Pad(frame(packets.IPv4{}, packets.UDP{}, packets.Data(1)), packets.MinFrame), udp4},
		{"padding is not tcp", packets.Pad(frame(packets.IPv4{Protocol: new(uint8(6))}), packets.MinFrame), truncated},
		{"padding is not udp", packets.Pad(frame(packets.IPv4{Protocol: new(uint8(17))}), packets.MinFrame), truncated},
		{"padding is not icmp", packets.Pad(frame(packets.IPv4{Protocol: new(uint8(1))}), packets.MinFrame), truncated},

		{"version 6", udp(packets.IPv4{Version: new(uint8(6))}), malformed},
		{"version 0", udp(packets.IPv4{Version: new(uint8(0))}), malformed},
		{"ihl 0", udp(packets.IPv4{IHL: new(uint8(0))}), malformed},
		{"ihl 4", udp(packets.IPv4{IHL: new(uint8(4))}), malformed},
		{"ihl beyond the datagram", frame(packets.IPv4{IHL: new(uint8(15))}, packets.Data(39)), malformed},
		{"ihl up to the datagram's end", frame(packets.IPv4{IHL: new(uint8(15))}, packets.Data(40)), other4},
		{"total length 0", udp(packets.IPv4{TotalLen: new(uint16(0))}), malformed},
		{"total length 19", udp(packets.IPv4{TotalLen: new(uint16(19))}), malformed},
		{"total length of the header", udp(packets.IPv4{TotalLen: new(uint16(20))}), truncated},
		{"total length below the options", udp(packets.IPv4{Options: make([]byte, 8), TotalLen: new(uint16(24))}), malformed},
		{"total length one short", udp(packets.IPv4{TotalLen: new(uint16(full - 1))}), truncated},
		{"total length one too long", udp(packets.IPv4{TotalLen: new(uint16(full + 1))}), truncated},
		{"total length 65535", udp(packets.IPv4{TotalLen: new(uint16(0xffff))}), truncated},
		{"bad version before bad length", udp(packets.IPv4{Version: new(uint8(5)), TotalLen: new(uint16(0xffff))}), malformed},
	}
	for size := 4; size <= 40; size += 4 {
		options := make([]byte, size)
		options[0] = 1 // no operation
		cases = append(cases,
			packetCase{fmt.Sprintf("options %d tcp", size), frame(packets.IPv4{Options: options}, packets.TCP{}), tcp4},
			packetCase{fmt.Sprintf("options %d udp", size), udp(packets.IPv4{Options: options}), udp4},
			packetCase{fmt.Sprintf("options %d icmp", size), frame(packets.IPv4{Options: options}, packets.ICMP{}), icmp4},
		)
	}
	return cases
}

func ipv4FragmentCases() []packetCase {
	first, last := packets.IPv4{MoreFragments: true}, packets.IPv4{FragmentOffset: 185}
	with := func(ip packets.IPv4, protocol uint8, payload int) []byte {
		ip.Protocol = &protocol
		return frame(ip, packets.Data(payload))
	}
	whole := new(uint16(3000)) // of the datagram whose first fragment has 1480 bytes
	return []packetCase{
		{"first fragment tcp", frame(first, packets.TCP{}, packets.Data(44)), tcp4},
		{"first fragment udp", frame(first, packets.UDP{Len: whole}, packets.Data(1472)), udp4},
		{"first fragment udp with bad length", frame(first, packets.UDP{Len: new(uint16(7))}, packets.Data(1472)), malformed},
		{"first fragment icmp", frame(first, packets.ICMP{}, packets.Data(1472)), icmp4},
		{"first fragment sctp", frame(first, packets.SCTP{}, packets.Data(60)), other4},
		{"middle fragment", with(packets.IPv4{FragmentOffset: 185, MoreFragments: true}, 6, 1480), tcp4},
		{"last fragment tcp", with(last, 6, 100), tcp4},
		{"last fragment udp", with(last, 17, 100), udp4},
		{"last fragment icmp", with(last, 1, 100), icmp4},
		{"last fragment icmpv6", with(last, 58, 100), other4},
		{"last fragment of one byte", with(last, 6, 1), tcp4},
		{"last fragment padded", packets.Pad(with(last, 17, 1), packets.MinFrame), udp4},
		{"last fragment of nothing", with(last, 6, 0), tcp4},
		{"last fragment with options", with(packets.IPv4{FragmentOffset: 1, Options: make([]byte, 12)}, 17, 3), udp4},
		{"largest offset", with(packets.IPv4{FragmentOffset: 0x1fff}, 17, 8), udp4},
		{"smallest offset", with(packets.IPv4{FragmentOffset: 1}, 6, 8), tcp4},
		{"do not fragment", dontFragment(frame(packets.IPv4{}, packets.UDP{Len: whole})), truncated},

		// RFC 1858: the header must not be spread over fragments
		{"tiny first fragment tcp", with(first, 6, 16), truncated},
		{"tiny first fragment udp", with(first, 17, 7), truncated},
		{"tiny first fragment icmp", with(first, 1, 4), truncated},
		{"first fragment without tcp options", frame(first, packets.TCP{DataOffset: new(uint8(8))}), truncated},
	}
}

// dontFragment sets the flag, which is next to those that make a fragment.
func dontFragment(frame []byte) []byte {
	frame[14+6] |= 0x40
	return frame
}
