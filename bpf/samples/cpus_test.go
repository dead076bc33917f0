package samples

import (
	"net/netip"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests/packets"
)

func TestCPUs(t *testing.T) {
	c := load(t, "cpus")
	p := c.Programs["xdp_spread_cpus"]
	flow := func(port uint16) []byte { return frame(packets.IPv4{}, packets.UDP{SrcPort: port}) }
	unchanged(t, p, map[string][]byte{"no list": flow(1)})
	list := CpusCpuList{Count: 1}
	put(t, c.Maps["cpu_list"], uint32(0), list)
	unchanged(t, p, map[string][]byte{"no queue": flow(1)})
	put(t, c.Maps["cpu_queues"], uint32(0), uint32(64))
	expect(t, p, flow(1), xdpRedirect, flow(1))

	// one of two CPUs has a queue: what passes is of the other
	list = CpusCpuList{Count: 2, Cpus: [64]uint32{0, 63}}
	put(t, c.Maps["cpu_list"], uint32(0), list)
	of := func(f []byte) uint32 { action, _ := run(t, p, f); return action }
	spread := func(name string, flow func(i int) []byte) {
		t.Helper()
		actions := map[uint32]int{}
		for i := range 512 {
			action := of(flow(i))
			actions[action]++
			if of(flow(i)) != action {
				t.Errorf("%s: a flow is on two CPUs", name)
			}
		}
		if a, b := actions[xdpPass], actions[xdpRedirect]; a+b != 512 || min(a, b) < 512/3 {
			t.Errorf("%s: of 512 flows are %d and %d on either CPU", name, a, b)
		}
	}
	address := func(i int) (netip.Addr, netip.Addr) {
		return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}),
			netip.AddrFrom16([16]byte{0xfd, 13: 1, 14: byte(i >> 8), 15: byte(i)})
	}
	for tag := range tags {
		spread(tag+"source ports", func(i int) []byte {
			return behind(tag, packets.IPv4{}, packets.UDP{SrcPort: uint16(1000 + i)})
		})
		spread(tag+"destination ports", func(i int) []byte {
			return behind(tag, packets.IPv6{}, packets.TCP{DstPort: uint16(1000 + i)})
		})
		spread(tag+"SCTP", func(i int) []byte {
			return behind(tag, packets.IPv6{}, packets.HopByHop(), packets.SCTP{DstPort: uint16(1000 + i)})
		})
		spread(tag+"IPv4 addresses", func(i int) []byte {
			a, _ := address(i)
			return behind(tag, packets.IPv4{Dst: a}, packets.ICMP{})
		})
		spread(tag+"IPv6 addresses", func(i int) []byte {
			_, a := address(i)
			return behind(tag, packets.IPv6{Src: a}, packets.ICMPv6{})
		})
	}
	// all fragments of a datagram are on one CPU
	for i := range 64 {
		a, b := address(i)
		first := of(frame(packets.IPv4{Src: a, MoreFragments: true}, packets.UDP{}, packets.Data(64)))
		v4 := packets.IPv4{Src: a, FragmentOffset: 9, Protocol: new(uint8(packets.ProtocolUDP))}
		if later := of(frame(v4, packets.Data(64))); later != first {
			t.Errorf("fragments from %s are on two CPUs", a)
		}
		first = of(frame(packets.IPv6{Src: b}, packets.Fragment{More: true}, packets.UDP{}, packets.Data(64)))
		v6 := packets.Fragment{Offset: 9, NextHeader: new(uint8(packets.ProtocolUDP))}
		if later := of(frame(packets.IPv6{Src: b}, v6, packets.Data(64))); later != first {
			t.Errorf("fragments from %s are on two CPUs", b)
		}
	}
	list.Count = 65 // more than there may be
	put(t, c.Maps["cpu_list"], uint32(0), list)
	unchanged(t, p, map[string][]byte{"list": flow(1), "arp": frame(packets.ARP{})})
}
