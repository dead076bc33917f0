package bpf_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// A segment is a packet of a flow.
type segment struct {
	sourceMAC, destinationMAC packets.MAC
	source, destination       netip.Addr
	sourcePort                uint16 // of echo the identifier, if it asks
	destinationPort           uint16 // of echo the identifier, if it answers
	protocol                  uint8
	flags                     uint8  // of TCP; 0: ACK
	sequence                  uint32 // of TCP
	answers                   bool   // an echo reply
	hops                      uint8  // 0: 64
	size                      int    // bytes of payload
	id                        uint16 // of IPv4
}

// layers are those of the segment behind its Ethernet header.
func (s segment) layers() []packets.Layer {
	hops := s.hops
	if hops == 0 {
		hops = 64
	}
	return s.layersWith(packets.IPv4{TTL: &hops, ID: s.id}, packets.IPv6{HopLimit: &hops})
}

// layersWith are those layers with the rest of an IP header.
func (s segment) layersWith(ip4 packets.IPv4, ip6 packets.IPv6, between ...packets.Layer) []packets.Layer {
	ip4.Src, ip4.Dst, ip6.Src, ip6.Dst = s.source, s.destination, s.source, s.destination
	var ip packets.Layer = ip6
	if s.source.Is4() {
		ip = ip4
	}
	ports := &packets.Ports{Src: s.sourcePort, Dst: s.destinationPort}
	var transport packets.Layer
	switch s.protocol {
	case packets.ProtocolTCP:
		flags := s.flags
		if flags == 0 {
			flags = tcpAck
		}
		transport = packets.TCP{Ports: ports, Flags: &flags, Seq: &s.sequence}
	case packets.ProtocolUDP:
		transport = packets.UDP{Ports: ports}
	default:
		id := s.sourcePort
		if s.answers {
			id = s.destinationPort
		}
		rest := &[4]byte{byte(id >> 8), byte(id), 0, 1}
		switch {
		case s.protocol == packets.ProtocolICMP && s.answers:
			transport = packets.ICMP{Type: new(uint8(0)), Rest: rest}
		case s.protocol == packets.ProtocolICMP:
			transport = packets.ICMP{Rest: rest}
		case s.answers:
			transport = packets.ICMPv6{Type: new(uint8(129)), Rest: rest}
		default:
			transport = packets.ICMPv6{Rest: rest}
		}
	}
	layers := append([]packets.Layer{ip}, between...)
	return append(layers, transport, packets.Data(s.size))
}

// frame is the segment as it is on the wire.
func (s segment) frame() []byte {
	return packets.Frame(append([]packets.Layer{packets.Ethernet{Src: s.sourceMAC, Dst: s.destinationMAC}}, s.layers()...)...)
}

func (s segment) input() input { return input{frame: s.frame()} }

// as returns the segment with a TCP header's flags and sequence number.
func (s segment) as(flags uint8, sequence uint32) segment {
	s.flags, s.sequence = flags, sequence
	return s
}

// A talk is a flow between two pods of a node, which the first of them begins.
type talk struct {
	*node
	client, server         *nodePod
	protocol               uint8
	family                 int // index of addresses
	clientPort, serverPort uint16
}

// newTalk is a flow between the first two pods; of ICMP with the protocol that family has.
func (n *node) newTalk(protocol uint8, family int) talk {
	c := talk{n, n.pods[0], n.pods[1], protocol, family, 1234, 80}
	if protocol == packets.ProtocolICMP {
		c.serverPort = 0
		if family == 1 {
			c.protocol = packets.ProtocolICMPv6
		}
	}
	return c
}

func (c talk) String() string {
	return map[uint8]string{packets.ProtocolTCP: "TCP", packets.ProtocolUDP: "UDP", packets.ProtocolICMP: "ICMP",
		packets.ProtocolICMPv6: "ICMP"}[c.protocol] + []string{" IPv4", " IPv6"}[c.family]
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

// ask is a packet of the client, answer one of the server.
func (c talk) ask() segment {
	s := segment{
		sourceMAC: c.client.endpoint.Mac, destinationMAC: c.server.endpoint.Mac,
		source: c.client.addresses[c.family], destination: c.server.addresses[c.family],
		sourcePort: c.clientPort, destinationPort: c.serverPort, protocol: c.protocol, size: 20,
	}
	if c.client.endpoint.Segment == 0 || c.client.endpoint.Segment != c.server.endpoint.Segment {
		s.destinationMAC = c.client.endpoint.RouterMac
	}
	return s
}

func (c talk) answer() segment {
	c.client, c.server, c.clientPort, c.serverPort = c.server, c.client, c.serverPort, c.clientPort
	s := c.ask()
	s.answers = true
	return s
}

// arrived is a packet as the stack brings it to a pod.
func arrived(s segment, at *nodePod) segment {
	s.sourceMAC, s.destinationMAC = at.endpoint.RouterMac, at.endpoint.Mac
	return s
}

// through sends a packet by the stack, which brings it to the other as it is.
func (c talk) through(t testing.TB, s segment) {
	t.Helper()
	from, to := c.client, c.server
	if s.source == c.server.addresses[c.family] {
		from, to = to, from
	}
	c.sends(t, from, s.input(), byStack)
	c.gets(t, to, arrived(s, to).frame())
}

// learn sends what makes the flow known; the next packet is a direct one.
func (c talk) learn(t testing.TB) {
	t.Helper()
	if c.protocol == packets.ProtocolTCP {
		c.through(t, c.ask().as(tcpSyn, 1000))
		c.through(t, c.answer().as(tcpSyn|tcpAck, 5000))
		return
	}
	c.through(t, c.ask())
	c.through(t, c.answer())
}

// direct sends packets each way, which must go directly.
func (c talk) direct(t testing.TB) {
	t.Helper()
	c.sends(t, c.client, c.ask().input(), c.directly(c.ask(), c.server))
	c.sends(t, c.server, c.answer().input(), c.directly(c.answer(), c.client))
}

// directly is what becomes of a packet that goes directly to a pod.
func (c talk) directly(s segment, to *nodePod) outcome {
	if s.destinationMAC == to.endpoint.Mac {
		return outcome{to: to}
	}
	s.sourceMAC, s.destinationMAC = to.endpoint.RouterMac, to.endpoint.Mac
	if s.hops == 0 {
		s.hops = 64
	}
	s.hops--
	return outcome{to: to, frame: s.frame()}
}

// key is that of the flow in direct_flows, and clientEnd the end that the client is.
func (c talk) key() (key bpf.DatapathDirectKey, clientEnd int) {
	ask := c.ask()
	low, high := netip.AddrPortFrom(mapped(ask.source), c.clientPort), netip.AddrPortFrom(mapped(ask.destination), c.serverPort)
	if high.Addr().Less(low.Addr()) {
		low, high, clientEnd = high, low, 1
	}
	return bpf.DatapathDirectKey{
		Network: c.client.endpoint.Network, Low: low.Addr().As16(), High: high.Addr().As16(),
		LowPort: wire16(low.Port()), HighPort: wire16(high.Port()), Protocol: c.protocol,
	}, clientEnd
}

// wire16 and wire32 are numbers whose bytes in memory are those on the wire.
func wire16(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}
func wire32(n uint32) uint32 {
	return binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, n))
}

// known is what is to be known of a flow, as its client and its server have it.
type known struct {
	sent, delivered          [2]uint32 // of the client and of the server
	synSent, synDelivered    uint32    // of TCP, as numbers
	opener                   int       // of TCP: 0 the client, 1 the server
	clientOwner, serverOwner uint64    // 0: those of the pods
	tainted                  bool
}

// knows compares what is known of the flow; nil: nothing is to be.
func (c talk) knows(t testing.TB, want *known) {
	t.Helper()
	key, client := c.key()
	var got bpf.DatapathDirectFlow
	err := c.DirectFlows.Lookup(&key, &got)
	if want == nil {
		if !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Errorf("known of the flow: %+v, %v, want nothing", got, err)
		}
		return
	}
	if err != nil {
		t.Errorf("nothing is known of the flow: %v", err)
		return
	}
	got.Seen = 0
	if c.protocol == packets.ProtocolTCP {
		got.AnswerSent, got.AnswerDelivered = 0, 0 // see TestRedirectProxied
	}
	w := bpf.DatapathDirectFlow{SynSent: wire32(want.synSent), SynDelivered: wire32(want.synDelivered)}
	if c.protocol == packets.ProtocolTCP {
		w.Opener = uint8(client ^ want.opener)
	} else {
		w.SynSent, w.SynDelivered = 0, 0
	}
	for i, owner := range []uint64{or(want.clientOwner, c.client.endpoint.Owner), or(want.serverOwner, c.server.endpoint.Owner)} {
		w.Owner[i^client], w.Sent[i^client], w.Delivered[i^client] = owner, want.sent[i], want.delivered[i]
	}
	if want.tainted {
		w.Tainted = 1
	}
	if got != w {
		t.Errorf("known of the flow:\n%+v, want\n%+v", got, w)
	}
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

// age makes what is known of the flow older.
func (c talk) age(t testing.TB, by time.Duration) {
	t.Helper()
	// before boot perhaps, which is as good
	c.change(t, func(flow *bpf.DatapathDirectFlow) { flow.Seen -= uint64(by) })
}

func or(value, other uint64) uint64 {
	if value != 0 {
		return value
	}
	return other
}
