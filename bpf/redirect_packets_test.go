package bpf_test

import (
	"testing"

	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// TestRedirectShapes: padding goes along, any payload does, and where there are MACs of a bridge it
// depends on that which way a packet takes.
func TestRedirectShapes(t *testing.T) {
	eachNode(t, func(t *testing.T, n *node) {
		c := n.newTalk(packets.ProtocolTCP, 0)
		c.learn(t)
		short := c.ask()
		short.size = 0
		c.sends(t, c.client, input{frame: packets.Pad(short.frame(), packets.MinFrame)}, outcome{to: c.server})

		// to the bridge's own MAC: it routes, from one of its ports to another
		routed := c.ask()
		routed.destinationMAC = c.client.endpoint.RouterMac
		c.sends(t, c.client, routed.input(), c.directly(routed, c.server))
		routed.size = 0
		want := c.directly(routed, c.server)
		want.frame = packets.Pad(want.frame, packets.MinFrame)
		c.sends(t, c.client, input{frame: packets.Pad(routed.frame(), packets.MinFrame)}, want)

		// of two bridges each has its MAC; over the first the target's MAC is nobody's
		c.server.endpoint.Segment, c.server.endpoint.RouterMac = nodeBridge+1, [6]byte{2, 0, 0, 0, 2, 99}
		n.enter(t, c.server)
		routed = c.ask()
		c.sends(t, c.client, routed.input(), c.directly(routed, c.server))
		routed.destinationMAC = c.server.endpoint.Mac
		c.sends(t, c.client, routed.input(), byStack)
		// two that are routed are on no bridge together
		c.server.endpoint.Segment, c.client.endpoint.Segment = 0, 0
		n.enter(t, c.server)
		n.enter(t, c.client)
		c.sends(t, c.client, routed.input(), byStack)
		routed.destinationMAC = c.client.endpoint.RouterMac
		c.sends(t, c.client, routed.input(), c.directly(routed, c.server))
	})
}

// TestRedirectPacketsToStack sends packets of known flows that are not to go directly for what they are.
// Before and after each, another one does.
func TestRedirectPacketsToStack(t *testing.T) {
	someTalks(t, func(t *testing.T, c talk) {
		c.learn(t)
		ask := c.ask()
		ethernet := packets.Ethernet{Src: ask.sourceMAC, Dst: ask.destinationMAC}
		framed := func(layers ...packets.Layer) []byte {
			return packets.Frame(append([]packets.Layer{ethernet}, layers...)...)
		}
		to := func(mac packets.MAC) []byte {
			s := ask
			s.destinationMAC = mac
			return s.frame()
		}
		long := ask
		long.size = nodeMTU // and headers
		behind := func(tags ...packets.Layer) []byte { return framed(append(tags, ask.layers()...)...) }
		cases := map[string][]byte{
			"tagged":          behind(packets.VLAN{ID: 5}),
			"priority tag":    behind(packets.VLAN{}),
			"service tag":     behind(packets.VLAN{Service: true}),
			"two tags":        behind(packets.VLAN{Service: true}, packets.VLAN{}),
			"for all":         to(packets.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}),
			"for a group":     to(packets.MAC{1, 0, 0x5e, 0, 0, 1}),
			"for another pod": to(c.pods[2].endpoint.Mac),
			"foreign MAC":     to(packets.MAC{2, 9, 9, 9, 9, 9}),
			"too long":        long.frame(),
			"cut":             ask.frame()[:14+40],
			"ARP":             framed(packets.ARP{SenderMAC: ask.sourceMAC, SenderIP: c.client.addresses[0], TargetIP: c.server.addresses[0]}),
			"not IP":          framed(packets.Data(60)),
		}
		if ask.source.Is4() {
			with := func(ip packets.IPv4) []byte { return framed(ask.layersWith(ip, packets.IPv6{})...) }
			cases["first fragment"] = with(packets.IPv4{MoreFragments: true})
			cases["later fragment"] = with(packets.IPv4{MoreFragments: true, FragmentOffset: 8})
			cases["last fragment"] = with(packets.IPv4{FragmentOffset: 8})
			cases["options"] = with(packets.IPv4{Options: []byte{1, 1, 1, 1}})
			cases["bad header length"] = with(packets.IPv4{IHL: new(uint8(4))})
			cases["bad version"] = with(packets.IPv4{Version: new(uint8(6))})
			ip := packets.IPv4{Src: ask.source, Dst: ask.destination}
			cases["SCTP"] = framed(ip, packets.SCTP{}, packets.Data(16))
			cases["ICMP error"] = framed(ip, packets.ICMP{Type: new(uint8(3)), Code: 1}, packets.Payload(packets.Frame(c.answer().layers()...)))
			cases["timestamp"] = framed(ip, packets.ICMP{Type: new(uint8(13))}, packets.Data(12))
			cases["ICMPv6 in IPv4"] = framed(ip, packets.ICMPv6{})
		} else {
			with := func(between ...packets.Layer) []byte {
				return framed(ask.layersWith(packets.IPv4{}, packets.IPv6{}, between...)...)
			}
			cases["first fragment"] = with(packets.Fragment{More: true})
			cases["later fragment"] = with(packets.Fragment{More: true, Offset: 8})
			cases["last fragment"] = with(packets.Fragment{Offset: 8})
			cases["atomic fragment"] = with(packets.Fragment{})
			cases["hop by hop"] = with(packets.HopByHop())
			cases["destination options"] = with(packets.DestOptions())
			cases["routing header"] = with(packets.Routing())
			ip := packets.IPv6{Src: ask.source, Dst: ask.destination, HopLimit: new(uint8(255))}
			cases["ICMP error"] = framed(ip, packets.ICMPv6{Type: new(uint8(1))}, packets.Payload(packets.Frame(c.answer().layers()...)))
			cases["solicitation"] = framed(ip, packets.ICMPv6{Type: new(uint8(135)), Rest: new([4]byte)}, packets.Payload(ask.destination.AsSlice()))
			cases["advertisement"] = framed(ip, packets.ICMPv6{Type: new(uint8(136)), Rest: new([4]byte)}, packets.Payload(ask.source.AsSlice()))
			cases["ICMP in IPv6"] = framed(ip, packets.ICMP{})
		}
		for _, name := range sortedKeys(cases) {
			t.Run(name, func(t *testing.T) {
				c.reset(t)
				if c.client.endpoint.Segment != ethernetSegment(c, ask) {
					c.routed(t)
				}
				c.learn(t)
				c.direct(t)
				c.sends(t, c.client, input{frame: cases[name]}, byStack)
				c.restore(t)
				c.direct(t)
			})
		}
	})
}

// ethernetSegment is the segment of pods when ask was made: routed ones have none.
func ethernetSegment(c talk, ask segment) uint32 {
	if ask.destinationMAC == c.server.endpoint.Mac {
		return nodeBridge
	}
	return 0
}

// TestRedirectLengths: as long as the target's MTU and no longer; of GSO packets it is the segments
// that count, where the program is told of them.
func TestRedirectLengths(t *testing.T) {
	eachNode(t, func(t *testing.T, n *node) {
		for family, headers := range []int{40, 60} {
			c := n.newTalk(packets.ProtocolTCP, family)
			c.learn(t)
			for _, mtu := range []int{1400, 576, 1500} {
				c.server.endpoint.Mtu = uint32(mtu)
				n.enter(t, c.server)
				ask := c.ask()
				for size, want := range map[int]outcome{mtu - headers: {to: c.server}, mtu - headers + 1: byStack, mtu + 500: byStack} {
					ask.size = size
					c.sends(t, c.client, ask.input(), want)
				}
				// the sender's own MTU is no matter
				c.client.endpoint.Mtu = 100
				n.enter(t, c.client)
				ask.size = mtu - headers
				c.sends(t, c.client, ask.input(), outcome{to: c.server})

				ask.size = 3 * (mtu - headers)
				if ask.size > 3000 {
					ask.size = 2 * (mtu - headers)
				}
				if n.hook.xdp {
					c.sends(t, c.client, ask.input(), byStack)
					continue
				}
				gso := input{frame: ask.frame(), gsoSize: uint32(mtu - headers), gsoSegs: 3}
				c.sends(t, c.client, gso, outcome{to: c.server, packets: 3})
				gso.gsoSize++
				c.sends(t, c.client, gso, outcome{packets: 3})
				gso.gsoSize, gso.gsoSegs = 1, 1000
				c.sends(t, c.client, gso, outcome{to: c.server, packets: 1000})
			}
		}
	})
}
