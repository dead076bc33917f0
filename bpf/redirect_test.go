package bpf_test

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// eachNode runs a test for every program by which a pod sends.
func eachNode(t *testing.T, test func(t *testing.T, n *node)) {
	for _, n := range newNodes(t) {
		t.Run(n.hook.name, func(t *testing.T) {
			n.reset(t)
			test(t, n)
		})
	}
}

// eachTalk runs a test for every protocol and family between two pods, on a bridge and routed.
func eachTalk(t *testing.T, test func(t *testing.T, c talk)) {
	eachNode(t, func(t *testing.T, n *node) {
		for _, routed := range []bool{false, true} {
			for _, protocol := range []uint8{packets.ProtocolTCP, packets.ProtocolUDP, packets.ProtocolICMP} {
				for family := range 2 {
					c := n.newTalk(protocol, family)
					t.Run(fmt.Sprintf("%v routed %v", c, routed), func(t *testing.T) {
						n.reset(t)
						if routed {
							n.routed(t)
						}
						test(t, c)
					})
				}
			}
		}
	})
}

// someTalks is eachTalk with fewer of them, for what depends on less and takes long.
func someTalks(t *testing.T, test func(t *testing.T, c talk)) {
	eachTalk(t, func(t *testing.T, c talk) {
		routed := c.client.endpoint.Segment == 0
		switch c.protocol {
		case packets.ProtocolTCP:
			if !routed {
				return
			}
		case packets.ProtocolUDP:
			if routed || c.family == 1 {
				return
			}
		default:
			if routed || c.family == 0 {
				return
			}
		}
		test(t, c)
	})
}

// TestRedirectBegins: which packet of a flow is the first direct one, and what is known before it.
func TestRedirectBegins(t *testing.T) {
	eachTalk(t, func(t *testing.T, c talk) {
		if c.protocol == packets.ProtocolTCP {
			syn, accept := c.ask().as(tcpSyn, 1000), c.answer().as(tcpSyn|tcpAck, 5000)
			c.knows(t, nil)
			c.sends(t, c.client, syn.input(), byStack)
			c.knows(t, &known{sent: [2]uint32{1, 0}, synSent: 1000, synDelivered: ^uint32(1000)})
			c.sends(t, c.client, c.ask().input(), byStack)
			c.gets(t, c.server, arrived(syn, c.server).frame())
			c.knows(t, &known{sent: [2]uint32{1, 0}, delivered: [2]uint32{1, 0}, synSent: 1000, synDelivered: 1000})
			c.sends(t, c.client, c.ask().input(), byStack)
			c.sends(t, c.server, c.answer().input(), byStack)
			c.sends(t, c.server, accept.input(), byStack)
			c.knows(t, &known{sent: [2]uint32{1, 1}, delivered: [2]uint32{1, 0}, synSent: 1000, synDelivered: 1000})
			c.sends(t, c.server, c.answer().input(), byStack)
			c.sends(t, c.client, c.ask().input(), byStack)
			c.gets(t, c.client, arrived(accept, c.client).frame())
			whole := &known{sent: [2]uint32{1, 1}, delivered: [2]uint32{1, 1}, synSent: 1000, synDelivered: 1000}
			c.knows(t, whole)
			c.direct(t)
			// of one flag or more, but for SYN
			for _, flags := range []uint8{tcpAck | 8, tcpFin | tcpAck, tcpRst, tcpRst | tcpAck, tcpAck | 0xc0} {
				c.sends(t, c.client, c.ask().as(flags, 7).input(), c.directly(c.ask().as(flags, 7), c.server))
			}
			// SYN never: neither those that come again nor others
			for _, flags := range []uint8{tcpSyn | tcpAck, tcpSyn | tcpRst | tcpAck} {
				c.sends(t, c.client, c.ask().as(flags, 1000).input(), byStack)
				c.sends(t, c.server, c.answer().as(flags, 5000).input(), byStack)
			}
			c.through(t, syn)
			c.knows(t, whole)
			c.through(t, accept)
			c.knows(t, whole)
			c.direct(t)
			return
		}
		c.knows(t, nil)
		c.sends(t, c.client, c.ask().input(), byStack)
		c.knows(t, &known{sent: [2]uint32{1, 0}})
		c.sends(t, c.client, c.ask().input(), byStack)
		c.gets(t, c.server, arrived(c.ask(), c.server).frame())
		c.knows(t, &known{sent: [2]uint32{2, 0}, delivered: [2]uint32{1, 0}})
		c.sends(t, c.server, c.answer().input(), byStack)
		c.gets(t, c.client, arrived(c.answer(), c.client).frame())
		c.knows(t, &known{sent: [2]uint32{2, 1}, delivered: [2]uint32{1, 1}})
		c.sends(t, c.server, c.answer().input(), byStack) // one of the client's is under way
		c.gets(t, c.server, arrived(c.ask(), c.server).frame())
		c.sends(t, c.client, c.ask().input(), byStack) // one of the server's is
		c.gets(t, c.client, arrived(c.answer(), c.client).frame())
		c.gets(t, c.server, arrived(c.ask(), c.server).frame())
		c.knows(t, &known{sent: [2]uint32{3, 2}, delivered: [2]uint32{3, 2}})
		c.direct(t)
		c.direct(t)
		c.knows(t, &known{sent: [2]uint32{3, 2}, delivered: [2]uint32{3, 2}})
	})
}

// TestRedirectBeginsByEither: the pod with the higher address may begin as well, and what one asks the
// other is no answer.
func TestRedirectBeginsByEither(t *testing.T) {
	eachTalk(t, func(t *testing.T, c talk) {
		c.client, c.server = c.server, c.client
		c.learn(t)
		if c.protocol == packets.ProtocolTCP {
			c.knows(t, &known{sent: [2]uint32{1, 1}, delivered: [2]uint32{1, 1}, synSent: 1000, synDelivered: 1000})
		} else {
			c.knows(t, &known{sent: [2]uint32{1, 1}, delivered: [2]uint32{1, 1}})
		}
		c.direct(t)
		other := c
		other.client, other.server = c.server, c.client
		if c.protocol != packets.ProtocolUDP || c.clientPort != c.serverPort {
			other.knows(t, nil)
		}
		c.sends(t, other.client, other.ask().input(), byStack)
	})
}

// TestRedirectIsOfTheFlow: no other port, address or protocol goes directly with a flow.
func TestRedirectIsOfTheFlow(t *testing.T) {
	eachTalk(t, func(t *testing.T, c talk) {
		c.learn(t)
		for _, change := range []func(*segment){
			func(s *segment) { s.sourcePort++ },
			func(s *segment) { s.source = c.pods[2].addresses[c.family] },
			func(s *segment) {
				s.destination = c.pods[2].addresses[c.family]
				s.destinationMAC = c.pods[2].endpoint.Mac
			},
			func(s *segment) {
				if s.protocol == packets.ProtocolUDP {
					s.protocol = packets.ProtocolTCP
				} else {
					s.protocol = packets.ProtocolUDP
				}
			},
			func(s *segment) { s.destination = s.source },
			func(s *segment) { s.destination, s.source = s.source, s.destination },
		} {
			s := c.ask()
			change(&s)
			c.sends(t, c.client, s.input(), byStack)
		}
		c.direct(t)
	})
}

// TestRedirectHops: what is routed loses one of its TTL or hop limit, and goes by the stack where that
// ends; what is bridged keeps it.
func TestRedirectHops(t *testing.T) {
	eachTalk(t, func(t *testing.T, c talk) {
		routed := c.client.endpoint.Segment == 0
		for hops := 255; hops >= 0; hops-- {
			if hops == 253 {
				hops = 4
			}
			c.reset(t)
			if routed {
				c.routed(t)
			}
			c.learn(t)
			ask := c.ask()
			frame := ask.frame()
			if ask.source.Is4() {
				setHops(frame, uint8(hops))
			} else {
				frame[14+7] = uint8(hops)
			}
			want := outcome{to: c.server}
			switch {
			case routed && hops <= 1:
				want = byStack
			case routed:
				want.frame = append([]byte(nil), frame...)
				copy(want.frame, c.server.endpoint.Mac[:])
				copy(want.frame[6:], c.server.endpoint.RouterMac[:])
				if ask.source.Is4() {
					setHops(want.frame, uint8(hops-1))
				} else {
					want.frame[14+7]--
				}
			}
			c.sends(t, c.client, input{frame: frame}, want)
		}
	})
}

// setHops sets the TTL of an IPv4 header without options, and reckons its checksum anew.
func setHops(frame []byte, ttl uint8) {
	frame[14+8] = ttl
	frame[14+10], frame[14+11] = 0, 0
	binary.BigEndian.PutUint16(frame[14+10:], ^onesSum(frame[14:34]))
}

// onesSum is the sum of RFC 1071.
func onesSum(data []byte) uint16 {
	sum := uint32(0)
	for ; len(data) > 1; data = data[2:] {
		sum += uint32(binary.BigEndian.Uint16(data))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// TestRedirectChecksum: the checksum is the right one with any TTL and whatever it was, at the carries
// too.
func TestRedirectChecksum(t *testing.T) {
	checks := []uint16{0x0000, 0x0001, 0x00ff, 0x0100, 0xfe00, 0xfefe, 0xfeff, 0xff00, 0xff01, 0xfffe, 0x8000, 0x1234}
	eachNode(t, func(t *testing.T, n *node) {
		n.routed(t)
		c := n.newTalk(packets.ProtocolTCP, 0)
		c.learn(t)
		seen := 0
		try := func(frame []byte) {
			want := c.directly(c.ask(), c.server).frame
			want[14+4], want[14+5] = frame[14+4], frame[14+5]
			setHops(want, frame[14+8]-1)
			verdict, out, err := n.hands(t, c.client, input{frame: frame})
			if err != nil {
				t.Fatal(err)
			}
			if verdict != n.hook.redirected() || string(out) != string(want) {
				t.Fatalf("verdict %d, frame\n     %x\nwant %x\nof   %x", int32(verdict), out, want, frame)
			}
			seen++
		}
		for ttl := 2; ttl <= 255; ttl++ {
			for _, check := range checks {
				frame := c.ask().frame()
				setHops(frame, uint8(ttl))
				// with this ID, so far 0, the checksum is check
				id := uint32(^check) + uint32(binary.BigEndian.Uint16(frame[14+10:]))
				id = id&0xffff + id>>16
				binary.BigEndian.PutUint16(frame[14+4:], uint16(id))
				setHops(frame, uint8(ttl))
				if got := binary.BigEndian.Uint16(frame[14+10:]); got != check {
					t.Fatalf("the checksum is %#04x, want %#04x", got, check)
				}
				try(frame)
				if check == 0 { // the other 0 of ones' complement
					frame[14+10], frame[14+11] = 0xff, 0xff
					try(frame)
				}
			}
		}
		if want := 254 * (len(checks) + 1); seen != want {
			t.Errorf("%d frames tried, want %d", seen, want)
		}
	})
}

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

// restore makes the counts of both ends equal again, as if what was lost had come.
func (c talk) restore(t testing.TB) {
	t.Helper()
	c.change(t, func(flow *bpf.DatapathDirectFlow) { flow.Delivered = flow.Sent })
}

// change changes what is known of the flow.
func (c talk) change(t testing.TB, change func(*bpf.DatapathDirectFlow)) {
	t.Helper()
	key, _ := c.key()
	var flow bpf.DatapathDirectFlow
	if err := c.DirectFlows.Lookup(&key, &flow); err != nil {
		t.Fatal(err)
	}
	change(&flow)
	put(t, c.DirectFlows, key, flow)
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

// TestRedirectGSORouted: all of a GSO packet's header is changed as that of any.
func TestRedirectGSORouted(t *testing.T) {
	for _, n := range newNodes(t) {
		if n.hook.xdp {
			continue
		}
		n.routed(t)
		for family := range 2 {
			c := n.newTalk(packets.ProtocolTCP, family)
			c.learn(t)
			ask := c.ask()
			ask.size = 2500
			want := c.directly(ask, c.server)
			want.packets = 3
			c.sends(t, c.client, input{frame: ask.frame(), gsoSize: 1000, gsoSegs: 3}, want)
		}
		// of UDP every packet that it stands for counts at either end
		c := n.newTalk(packets.ProtocolUDP, 0)
		ask := c.ask()
		ask.size = 2500
		c.sends(t, c.client, input{frame: ask.frame(), gsoSize: 1000, gsoSegs: 3}, outcome{packets: 3})
		c.knows(t, &known{sent: [2]uint32{3, 0}})
		for _, size := range []int{1000, 1000, 500} { // in pieces, as the stack may make them
			ask.size = size
			c.gets(t, c.server, arrived(ask, c.server).frame())
		}
		c.through(t, c.answer())
		c.knows(t, &known{sent: [2]uint32{3, 1}, delivered: [2]uint32{3, 1}})
		c.direct(t)
	}
}

// TestRedirectTargets: who is no target, and from when on again.
func TestRedirectTargets(t *testing.T) {
	eachNode(t, func(t *testing.T, n *node) {
		c := n.newTalk(packets.ProtocolTCP, 0)
		address := c.server.addresses[0]
		key := endpointKey(nodeNetwork, address)
		slot := func(change func(*bpf.DatapathSlot)) func(t *testing.T) {
			return func(t *testing.T) {
				s := bpf.DatapathSlot{Ifindex: loopback, Flags: uint32(c.server.flags), Owner: c.server.endpoint.Owner, Self: c.server.endpoint}
				change(&s)
				put(t, n.Slots, c.server.slot, s)
			}
		}
		endpoint := func(change func(*bpf.DatapathEndpoint)) func(t *testing.T) {
			return func(t *testing.T) {
				e := c.server.endpoint
				change(&e)
				put(t, n.Endpoints, key, e)
			}
		}
		for _, test := range []struct {
			name   string
			change func(t *testing.T)
			both   bool // neither way
		}{
			{"unknown", func(t *testing.T) { remove(t, n.Endpoints, key) }, false},
			{"known in another network", func(t *testing.T) {
				remove(t, n.Endpoints, key)
				put(t, n.Endpoints, endpointKey(nodeNetwork+1, address), c.server.endpoint)
			}, false},
			{"known across networks", func(t *testing.T) {
				remove(t, n.Endpoints, key)
				put(t, n.Endpoints, endpointKey(0, address), c.server.endpoint)
			}, false},
			{"slot without redirect", slot(func(s *bpf.DatapathSlot) { s.Flags &^= uint32(bpf.DatapathSlotFlagSLOT_REDIRECT) }), true},
			{"slot free", slot(func(s *bpf.DatapathSlot) { *s = bpf.DatapathSlot{} }), true},
			{"slot of another", slot(func(s *bpf.DatapathSlot) { s.Owner++ }), false},
			{"slot of another in the upper half", slot(func(s *bpf.DatapathSlot) { s.Owner ^= 1 << 40 }), false},
			{"another's address", endpoint(func(e *bpf.DatapathEndpoint) { e.Owner++ }), false},
			{"another's slot", endpoint(func(e *bpf.DatapathEndpoint) { e.Slot = c.pods[2].slot }), false},
			{"no slot", endpoint(func(e *bpf.DatapathEndpoint) { e.Slot = maxPods }), false},
			{"the sender's slot", endpoint(func(e *bpf.DatapathEndpoint) { e.Slot = c.client.slot }), false},
			{"recreated", func(t *testing.T) {
				defer func(owner uint64) { c.server.endpoint.Owner = owner }(c.server.endpoint.Owner)
				c.server.endpoint.Owner++
				n.enter(t, c.server)
			}, true},
			{"the sender recreated", func(t *testing.T) {
				defer func(owner uint64) { c.client.endpoint.Owner = owner }(c.client.endpoint.Owner)
				c.client.endpoint.Owner++
				n.enter(t, c.client)
			}, true},
			{"the sender without redirect", func(t *testing.T) {
				defer func(flags bpf.DatapathSlotFlag) { c.client.flags = flags }(c.client.flags)
				c.client.flags &^= bpf.DatapathSlotFlagSLOT_REDIRECT
				n.enterSlot(t, c.client)
			}, true},
			{"the sender of another network", func(t *testing.T) {
				defer func(network uint64) { c.client.endpoint.Network = network }(c.client.endpoint.Network)
				c.client.endpoint.Network++
				n.enterSlot(t, c.client)
			}, false},
		} {
			t.Run(test.name, func(t *testing.T) {
				n.reset(t)
				c.learn(t)
				c.direct(t)
				test.change(t)
				c.sends(t, c.client, c.ask().input(), byStack)
				if test.both {
					free := test.name == "slot free"
					if free { // nobody is there who could count
						if verdict, _, err := n.hands(t, c.server, c.answer().input()); err != nil || verdict != n.hook.pass() {
							t.Errorf("verdict %d, %v, want that it passes", int32(verdict), err)
						}
					} else {
						c.sends(t, c.server, c.answer().input(), byStack)
					}
				}
				n.enter(t, c.server)
				n.enter(t, c.client)
				c.direct(t)
			})
		}
		t.Run("itself", func(t *testing.T) {
			n.reset(t)
			self := c
			self.server = c.client
			for _, protocol := range []uint8{packets.ProtocolTCP, packets.ProtocolUDP, packets.ProtocolICMP} {
				self.protocol = protocol
				for range 3 {
					self.through(t, self.ask().as(tcpSyn, 1))
					self.through(t, self.answer().as(tcpSyn|tcpAck, 1))
					self.sends(t, c.client, self.ask().input(), byStack)
				}
				self.knows(t, nil)
			}
		})
		t.Run("one slot's flag is not the other's", func(t *testing.T) {
			n.reset(t)
			c.client.flags &^= bpf.DatapathSlotFlagSLOT_REDIRECT
			n.enterSlot(t, c.client)
			c.through(t, c.ask().as(tcpSyn, 1000))
			c.knows(t, nil)
			c.through(t, c.answer().as(tcpSyn|tcpAck, 5000))
			c.knows(t, nil)
		})
	})
}

func remove(t testing.TB, m *ebpf.Map, key any) {
	t.Helper()
	if err := m.Delete(key); err != nil {
		t.Fatal(err)
	}
}

// TestRedirectNetworks: pods of one number know each other, whether it is that of a network or 0, and
// two networks may have the same addresses.
func TestRedirectNetworks(t *testing.T) {
	eachNode(t, func(t *testing.T, n *node) {
		for _, network := range []uint64{0, 1, 1 << 63} {
			n.reset(t)
			for i, p := range n.pods {
				p.endpoint.Network = network
				if i >= 2 { // the others have the addresses of the first two
					p.endpoint.Network = nodeNetwork
				}
			}
			for i, p := range n.pods {
				p.addresses = n.pods[i%2].addresses
				n.enter(t, p)
			}
			one, other := n.newTalk(packets.ProtocolTCP, 0), n.newTalk(packets.ProtocolTCP, 0)
			other.client, other.server = n.pods[2], n.pods[3]
			one.learn(t)
			one.direct(t)
			other.knows(t, nil)
			other.sends(t, other.client, other.ask().input(), byStack)
			other.learn(t)
			other.direct(t)
			one.direct(t)
		}
	})
}

// TestRedirectModes tries all pairs of modes: a flow goes directly both ways or not at all.
func TestRedirectModes(t *testing.T) {
	const generic, native, tcx = bpf.DatapathPodModePOD_MODE_GENERIC, bpf.DatapathPodModePOD_MODE_NATIVE, bpf.DatapathPodModePOD_MODE_TCX
	type end struct {
		mode  bpf.DatapathPodMode
		takes bool
	}
	var all []end
	for _, mode := range []bpf.DatapathPodMode{generic, native, tcx} {
		all = append(all, end{mode, false}, end{mode, true})
	}
	// by hand, from what the kernel does: of TCP, of all else
	pairs := func(a, b end) (tcp, other bool) {
		switch {
		case a.mode == native && b.mode == native:
			return a.takes && b.takes, a.takes && b.takes
		case a.mode == native: // which sends XDP frames to b
			return b.takes && b.mode == tcx, b.takes
		case b.mode == native:
			return a.takes && a.mode == tcx, a.takes
		case a.mode == generic || b.mode == generic:
			return false, true
		}
		return true, true
	}
	eachNode(t, func(t *testing.T, n *node) {
		for _, from := range all {
			for _, to := range all {
				n.reset(t)
				for i, e := range []end{from, to} {
					n.pods[i].endpoint.Mode, n.pods[i].endpoint.Flags = uint8(e.mode), 0
					if e.takes {
						n.pods[i].endpoint.Flags = uint8(bpf.DatapathEndpointFlagENDPOINT_TAKES_FRAMES)
					}
					n.enter(t, n.pods[i])
				}
				tcp, other := pairs(from, to)
				for protocol, want := range map[uint8]bool{packets.ProtocolTCP: tcp, packets.ProtocolUDP: other, packets.ProtocolICMP: other} {
					c := n.newTalk(protocol, 0)
					c.learn(t)
					if want {
						c.direct(t)
					} else {
						c.sends(t, c.client, c.ask().input(), byStack)
						c.sends(t, c.server, c.answer().input(), byStack)
						c.knows(t, nil)
					}
					if t.Failed() {
						t.Fatalf("%v: from %+v to %+v, want that it goes directly: %v", c, from, to, want)
					}
				}
			}
		}
	})
}

// TestRedirectPorts: XDP hands nothing to an interface that is not in its map; then nothing is counted
// for the target, and the stack has the packet. The map is no matter to tc.
func TestRedirectPorts(t *testing.T) {
	eachTalk(t, func(t *testing.T, c talk) {
		c.learn(t)
		c.direct(t)
		remove(t, c.TxPorts, c.server.endpoint.Ifindex)
		if !c.hook.xdp {
			c.direct(t)
			return
		}
		c.sends(t, c.client, c.ask().input(), byStack)
		c.sends(t, c.server, c.answer().input(), c.directly(c.answer(), c.client))
		put(t, c.TxPorts, c.server.endpoint.Ifindex, uint32(loopback))
		c.direct(t)
	})
}

// age makes what is known of the flow older.
func (c talk) age(t testing.TB, by time.Duration) {
	t.Helper()
	// before boot perhaps, which is as good
	c.change(t, func(flow *bpf.DatapathDirectFlow) { flow.Seen -= uint64(by) })
}

// TestRedirectTimeout: what is known of a flow is forgotten 120 s after its last packet, by whichever
// way that went. A TCP connection has no such end.
func TestRedirectTimeout(t *testing.T) {
	eachTalk(t, func(t *testing.T, c talk) {
		c.learn(t)
		c.age(t, 115*time.Second)
		c.direct(t) // which makes it young
		c.age(t, 115*time.Second)
		c.direct(t)
		if c.protocol == packets.ProtocolTCP {
			c.age(t, 240*time.Second)
			c.direct(t)
			return
		}
		c.age(t, 115*time.Second)
		// by the stack, as the last of its hops or for its length: the same
		long := c.ask()
		long.size = nodeMTU
		c.sends(t, c.client, long.input(), byStack)
		c.restore(t)
		c.age(t, 115*time.Second)
		c.direct(t)
		c.age(t, 121*time.Second)
		c.sends(t, c.client, c.ask().input(), byStack)
		c.knows(t, &known{sent: [2]uint32{1, 0}})
		c.sends(t, c.server, c.answer().input(), byStack)
		c.gets(t, c.server, arrived(c.ask(), c.server).frame())
		c.gets(t, c.client, arrived(c.answer(), c.client).frame())
		c.direct(t)
		// what the stack brings does not make it younger
		c.age(t, 121*time.Second)
		c.gets(t, c.server, arrived(c.ask(), c.server).frame())
		c.sends(t, c.server, c.answer().input(), byStack)
		c.knows(t, &known{sent: [2]uint32{0, 1}})
	})
}

// TestRedirectOff: programs without redirect, and pods without the flag, note and hand on nothing.
func TestRedirectOff(t *testing.T) {
	r := newFilterRig(t)
	for name, m := range map[string]*ebpf.Map{"endpoints": r.Endpoints, "direct_flows": r.DirectFlows} {
		if m.MaxEntries() == 0 {
			t.Errorf("%s has no room", name)
		}
	}
	p := r.addPod(t, loopback, loopback, bpf.DatapathSlotFlagSLOT_REDIRECT)
	self := bpf.DatapathEndpoint{Owner: 1, Slot: loopback, Mtu: 1500, Segment: 1, Mode: uint8(bpf.DatapathPodModePOD_MODE_TCX)}
	put(t, r.Slots, uint32(loopback), bpf.DatapathSlot{Ifindex: loopback, Flags: uint32(bpf.DatapathSlotFlagSLOT_REDIRECT), Owner: 1, Self: self})
	other := self
	other.Owner, other.Slot, other.Mac = 2, loopback+1, [6]byte(packets.DestinationMAC)
	put(t, r.Slots, uint32(loopback+1), bpf.DatapathSlot{Ifindex: 7, Flags: uint32(bpf.DatapathSlotFlagSLOT_REDIRECT), Owner: 2, Self: other})
	put(t, r.Endpoints, endpointKey(0, packets.SourceIPv4), self)
	put(t, r.Endpoints, endpointKey(0, packets.DestinationIPv4), other)
	for _, h := range r.hooks(p) {
		h.check(t, input{frame: frame(packets.IPv4{}, packets.UDP{})}, udp4, 1)
		h.check(t, input{frame: frame(packets.IPv4{}, packets.TCP{Flags: new(uint8(tcpSyn))})}, tcp4, 1)
	}
	var key bpf.DatapathDirectKey
	var flow bpf.DatapathDirectFlow
	if r.DirectFlows.Iterate().Next(&key, &flow) {
		t.Errorf("%+v is known", key)
	}
}
