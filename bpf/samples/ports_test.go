package samples

import (
	"encoding/binary"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// rewrite has a destination port of a protocol replaced by another.
func rewrite(t testing.TB, c *ebpf.Collection, protocol uint8, from, to uint16) {
	t.Helper()
	put(t, c.Maps["port_rewrites"], PortsPort{Port: packets.NetworkOrder(from), Protocol: protocol},
		PortsPortRewrite{Port: packets.NetworkOrder(to)})
}

func TestPorts(t *testing.T) {
	c := load(t, "ports")
	p := c.Programs["xdp_rewrite_ports"]
	rewrite(t, c, unix.IPPROTO_TCP, 80, 8080)
	rewrite(t, c, unix.IPPROTO_UDP, 53, 0xff53)
	rewrite(t, c, unix.IPPROTO_UDP, 5, 6)
	tcp := func(port uint16) packets.Layer { return packets.TCP{DstPort: port, Options: []byte{1, 1, 1}} }
	udp := func(port uint16) packets.Layer { return packets.UDP{DstPort: port} }

	padN := append([]byte{1, 12}, make([]byte, 12)...) // RFC 8200, 4.2

	type change struct {
		layer    func(uint16) packets.Layer
		from, to uint16
	}
	for name, r := range map[string]change{
		"tcp": {tcp, 80, 8080}, "udp": {udp, 53, 0xff53},
		"tcp of another port": {tcp, 81, 81}, "tcp of udp's port": {tcp, 53, 53}, "udp of tcp's port": {udp, 80, 80},
	} {
		for tag := range tags {
			for ip, layers := range map[string][]packets.Layer{
				"IPv4":           {packets.IPv4{}},
				"IPv4 options":   {packets.IPv4{Options: make([]byte, 8)}},
				"IPv4 padded":    {packets.IPv4{}},
				"IPv6":           {packets.IPv6{}},
				"IPv6 extension": {packets.IPv6{}, packets.HopByHop(), packets.DestOptions(padN...)},
				"IPv6 atomic":    {packets.IPv6{}, packets.Fragment{}},
			} {
				for _, size := range []int{0, 1, 1400} {
					build := func(port uint16) []byte {
						all := append(append([]packets.Layer{}, layers...), r.layer(port), packets.Data(size))
						return packets.Pad(behind(tag, all...), packets.MinFrame)
					}
					t.Run(tag+ip+" "+name, func(t *testing.T) { expect(t, p, build(r.from), xdpPass, build(r.to)) })
				}
			}
		}
	}
	for tag := range tags {
		unchanged(t, p, shortened(behind(tag, packets.IPv4{}, packets.UDP{DstPort: 53})))
		unchanged(t, p, shortened(behind(tag, packets.IPv6{}, packets.UDP{DstPort: 53})))
	}
	unchanged(t, p, map[string][]byte{
		"arp":                 frame(packets.ARP{}),
		"icmp":                frame(packets.IPv4{}, packets.ICMP{Rest: &[4]byte{0, 53, 0, 53}}),
		"later fragment":      frame(packets.IPv4{FragmentOffset: 1}, udp(53), packets.Data(64)),
		"ipv6 later fragment": frame(packets.IPv6{}, packets.Fragment{Offset: 1}, udp(53), packets.Data(64)),
		"in the padding":      packets.Pad(frame(packets.IPv4{TotalLen: new(uint16(27))}, udp(53)), packets.MinFrame),
	})
}

// TestPortsFragments rewrites the first fragment, whose checksum is over the whole datagram.
func TestPortsFragments(t *testing.T) {
	c := load(t, "ports")
	rewrite(t, c, unix.IPPROTO_UDP, 53, 5353)
	for name, layers := range map[string][]packets.Layer{
		"IPv4": {packets.IPv4{MoreFragments: true}}, "IPv6": {packets.IPv6{}, packets.Fragment{More: true}},
	} {
		// only the port differs, so the checksums do as they would over more
		build := func(port uint16) []byte {
			return frame(append(append([]packets.Layer{}, layers...), packets.UDP{DstPort: port}, packets.Data(1448))...)
		}
		t.Run(name, func(t *testing.T) { expect(t, c.Programs["xdp_rewrite_ports"], build(53), xdpPass, build(5353)) })
	}
}

// TestPortsChecksums has what is particular about checksums of UDP, and those that are left to the device.
func TestPortsChecksums(t *testing.T) {
	c := load(t, "ports")
	p := c.Programs["xdp_rewrite_ports"]
	rewrite(t, c, unix.IPPROTO_UDP, 53, 5353)
	rewrite(t, c, unix.IPPROTO_TCP, 53, 5353)
	const udpSum, tcpSum = 6, 16 // in their headers
	// with puts a value in the place of a checksum, which is at off behind l4
	with := func(frame []byte, off int, sum uint16) []byte {
		binary.BigEndian.PutUint16(frame[off:], sum)
		return frame
	}
	const l4, l4v6 = 14 + 20, 14 + 40
	build := func(ip, transport packets.Layer) []byte { return frame(ip, transport, packets.Data(100)) }
	udp := func(ip packets.Layer, port uint16) []byte { return build(ip, packets.UDP{DstPort: port}) }
	tcp := func(ip packets.Layer, port uint16) []byte { return build(ip, packets.TCP{DstPort: port}) }

	t.Run("none", func(t *testing.T) {
		expect(t, p, with(udp(packets.IPv4{}, 53), l4+udpSum, 0), xdpPass,
			with(udp(packets.IPv4{}, 5353), l4+udpSum, 0))
	})
	t.Run("wrong stays wrong", func(t *testing.T) {
		right := binary.BigEndian.Uint16(udp(packets.IPv4{}, 53)[l4+udpSum:])
		now := binary.BigEndian.Uint16(udp(packets.IPv4{}, 5353)[l4+udpSum:])
		_, out := run(t, p, with(udp(packets.IPv4{}, 53), l4+udpSum, right-1))
		if got := binary.BigEndian.Uint16(out[l4+udpSum:]); got == now {
			t.Error("a wrong checksum has become a right one")
		}
	})
	t.Run("comes out as 0", func(t *testing.T) {
		for word := range 1 << 16 {
			data := packets.Payload{byte(word >> 8), byte(word)}
			want := frame(packets.IPv4{}, packets.UDP{DstPort: 5353}, data)
			if binary.BigEndian.Uint16(want[l4+udpSum:]) == 0xffff {
				expect(t, p, frame(packets.IPv4{}, packets.UDP{DstPort: 53}, data), xdpPass, want)
				return
			}
		}
		t.Error("no data makes such a checksum")
	})
	// the sum of the pseudo-header: 192.0.2.1, 198.51.100.2, protocol, length; 2001:db8::1, 2001:db8:ffff::2
	sum := func(words ...uint32) uint16 {
		var s uint32
		for _, w := range words {
			s += w
		}
		s = s&0xffff + s>>16
		return uint16(s&0xffff + s>>16)
	}
	v4 := []uint32{0xc000, 0x0201, 0xc633, 0x6402}
	v6 := []uint32{0x2001, 0x0db8, 1, 0x2001, 0x0db8, 0xffff, 2}
	for name, test := range map[string]struct {
		build func(packets.Layer, uint16) []byte
		ip    packets.Layer
		off   int
		sum   uint16
	}{
		"udp":      {udp, packets.IPv4{}, l4 + udpSum, sum(append(v4, 17, 108)...)},
		"tcp":      {tcp, packets.IPv4{}, l4 + tcpSum, sum(append(v4, 6, 120)...)},
		"ipv6 udp": {udp, packets.IPv6{}, l4v6 + udpSum, sum(append(v6, 17, 108)...)},
		"ipv6 tcp": {tcp, packets.IPv6{}, l4v6 + tcpSum, sum(append(v6, 6, 120)...)},
	} {
		t.Run("unfinished "+name, func(t *testing.T) {
			expect(t, p, with(test.build(test.ip, 53), test.off, test.sum), xdpPass,
				with(test.build(test.ip, 5353), test.off, test.sum))
		})
	}
}
