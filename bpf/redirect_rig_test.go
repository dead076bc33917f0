package bpf_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/tests/packets"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

const (
	firstNodeSlot = 2000 // of the pods of a node
	nodePods      = 4
	nodeNetwork   = 0x0123456789abcdef
	nodeBridge    = 9    // an ifindex
	firstHostEnd  = 5000 // the ifindex by which XDP redirects to the first pod
	nodeMTU       = 1400

	tcpFin, tcpSyn, tcpRst, tcpAck = 1, 2, 4, 16
)

// A node is a rig with pods that may hand packets to each other, and the program that they send by.
// All of them have the loopback interface; whichever acts is the one that the overflow names.
type node struct {
	*rig
	hook hook
	pods []*nodePod
}

// A nodePod is a pod of a node.
type nodePod struct {
	*pod
	name      string
	slot      uint32
	flags     bpf.DatapathSlotFlag
	endpoint  bpf.DatapathEndpoint // as others find it
	addresses []netip.Addr         // of either family
	peers     *ebpf.Map
}

// loaded are the nodes of all tests: the kernel has them until the tests are over.
var loaded struct {
	once  sync.Once
	nodes []*node
}

// newNodes loads the objects with frags, if the kernel has them, and without, and returns a node for
// every program by which a pod sends. Only one test at a time may use them.
func newNodes(t testing.TB) []*node {
	t.Helper()
	loaded.once.Do(func() {
		plain := newNode(t, false)
		if !haveFrags(t) {
			loaded.nodes = []*node{plain, plain.by(plain.hooks(nil)[1])}
			return
		}
		plain.hook.name += " without frags"
		frags := newNode(t, true)
		loaded.nodes = []*node{frags, frags.by(frags.hooks(nil)[1]), plain}
	})
	if loaded.nodes == nil {
		t.Fatal("the objects could not be loaded")
	}
	for _, n := range loaded.nodes {
		n.reset(t)
	}
	return loaded.nodes
}

// newNode loads the objects for redirect; its pods send by XDP.
func newNode(t testing.TB, frags bool) *node {
	t.Helper()
	priv.Root(t)
	spec := loadSpec(t, frags && haveFrags(t))
	withRedirect(t, spec)
	markFromHost(t, spec, bpf.DatapathProgTcEgress)
	markFromHost(t, spec, bpf.DatapathProgTcIngress)
	n := &node{rig: &rig{spec: spec}}
	if err := spec.LoadAndAssign(&n.DatapathObjects, nil); err != nil {
		t.Fatalf("loading the objects: %+v", err)
	}
	n.hook = n.hooks(nil)[0]
	var tableKeys, peerKeys []uint32
	var tableMaps, peerMaps []*ebpf.Map
	for i := range uint32(nodePods) {
		p := &nodePod{pod: &pod{}, name: string(rune('A' + i)), slot: firstNodeSlot + i}
		for d := range p.tables {
			for table := range p.tables[d] {
				p.tables[d][table] = n.newInner(t, bpf.DatapathMapXdpStatsMap, records, nil, nil)
				tableKeys = append(tableKeys, p.slot*podTables+uint32(d)*uint32(tables)+uint32(table))
				tableMaps = append(tableMaps, p.tables[d][table])
			}
		}
		p.peers = n.newInner(t, bpf.DatapathMapPeers, 256, nil, nil)
		peerKeys, peerMaps = append(peerKeys, p.slot), append(peerMaps, p.peers)
		n.pods = append(n.pods, p)
	}
	putMaps(t, n.PodTables, tableKeys, tableMaps)
	putMaps(t, n.PodPeers, peerKeys, peerMaps)
	n.reset(t)
	return n
}

// by returns the same node whose pods send by another program.
func (n *node) by(h hook) *node {
	other := *n
	other.hook = h
	return &other
}

// eachNode runs a test for every program by which a pod sends.
func eachNode(t *testing.T, test func(t *testing.T, n *node)) {
	for _, n := range newNodes(t) {
		t.Run(n.hook.name, func(t *testing.T) {
			n.reset(t)
			test(t, n)
		})
	}
}

// reset enters the pods as they are at first, on one bridge and of one network, and forgets all flows.
func (n *node) reset(t testing.TB) {
	t.Helper()
	clearMap[bpf.DatapathDirectKey, bpf.DatapathDirectFlow](t, n.DirectFlows)
	clearMap[bpf.DatapathEndpointKey, bpf.DatapathEndpoint](t, n.Endpoints)
	clearMap[uint32, uint32](t, n.TxPorts)
	for i, p := range n.pods {
		p.flags = bpf.DatapathSlotFlagSLOT_REDIRECT | bpf.DatapathSlotFlagSLOT_PEERS
		p.addresses = []netip.Addr{
			netip.AddrFrom4([4]byte{10, 0, 0, byte(10 + i)}),
			netip.AddrFrom16([16]byte{0xfd, 15: byte(10 + i)}),
		}
		p.endpoint = bpf.DatapathEndpoint{
			Owner: uint64(i)<<32 | 0x77, Network: nodeNetwork, Ifindex: firstHostEnd + uint32(i), Slot: p.slot,
			Mtu: nodeMTU, Segment: nodeBridge, Mac: [6]byte{2, 0, 0, 0, 1, byte(i)}, RouterMac: [6]byte{2, 0, 0, 0, 2, 0},
			Mode: uint8(bpf.DatapathPodModePOD_MODE_TCX),
		}
		if n.hook.xdp {
			p.endpoint.Mode = uint8(bpf.DatapathPodModePOD_MODE_NATIVE)
			p.endpoint.Flags = uint8(bpf.DatapathEndpointFlagENDPOINT_TAKES_FRAMES)
		}
		n.enter(t, p)
		put(t, n.TxPorts, p.endpoint.Ifindex, uint32(loopback))
	}
}

// routed puts every pod behind a host end with a MAC of its own, as ptp does.
func (n *node) routed(t testing.TB) {
	t.Helper()
	for i, p := range n.pods {
		p.endpoint.Segment = 0
		p.endpoint.RouterMac = [6]byte{2, 0, 0, 0, 2, byte(i)}
		n.enter(t, p)
	}
}

// enter enters a pod as it is now: its slot, and its addresses.
func (n *node) enter(t testing.TB, p *nodePod) {
	t.Helper()
	n.enterSlot(t, p)
	for _, address := range p.addresses {
		put(t, n.Endpoints, endpointKey(p.endpoint.Network, address), p.endpoint)
	}
}

func (n *node) enterSlot(t testing.TB, p *nodePod) {
	t.Helper()
	put(t, n.Slots, p.slot, bpf.DatapathSlot{
		Ifindex: loopback, Flags: uint32(p.flags), Owner: p.endpoint.Owner, Self: p.endpoint,
	})
}

func endpointKey(network uint64, address netip.Addr) bpf.DatapathEndpointKey {
	return bpf.DatapathEndpointKey{Network: network, Address: address.As16()}
}

// clearMap removes all entries.
func clearMap[K, V any](t testing.TB, m *ebpf.Map) {
	t.Helper()
	var keys []K
	var key K
	var value V
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		keys = append(keys, key)
	}
	if err := entries.Err(); err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		if err := m.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Fatal(err)
		}
	}
}

func remove(t testing.TB, m *ebpf.Map, key any) {
	t.Helper()
	if err := m.Delete(key); err != nil {
		t.Fatal(err)
	}
}

// act runs a program on a frame of a pod, and returns its verdict and the frame that comes out.
func (n *node) act(t testing.TB, p *nodePod, h hook, in input) (uint32, []byte, error) {
	t.Helper()
	put(t, n.SlotOverflow, uint32(loopback), p.slot)
	opts := ebpf.RunOptions{Data: in.frame, DataOut: make([]byte, len(in.frame)+256), Repeat: 1}
	if !h.xdp { // not from the node itself
		opts.Context = skBuff{Mark: 1, GSOSize: in.gsoSize, GSOSegs: in.gsoSegs}
	}
	var (
		verdict uint32
		err     error
	)
	onOneCPU(func() { verdict, err = h.program.Run(&opts) })
	return verdict, opts.DataOut, err
}

// hands is act for a frame that the pod sends.
func (n *node) hands(t testing.TB, p *nodePod, in input) (uint32, []byte, error) {
	t.Helper()
	return n.act(t, p, n.hook, in)
}

// redirected is the verdict of the hook that hands a packet to another interface, dropped that of one
// that goes nowhere.
func (h hook) redirected() uint32 {
	if h.xdp {
		return 4 // XDP_REDIRECT
	}
	return 7 // TC_ACT_REDIRECT
}

func (h hook) dropped() uint32 {
	if h.xdp {
		return 1 // XDP_DROP
	}
	return 2 // TC_ACT_SHOT
}

// outcome is what becomes of a packet that a pod sends; the zero value: the stack gets it as it was.
type outcome struct {
	to      *nodePod               // who gets it directly, or whose filter drops it
	frame   []byte                 // as it comes out; nil: as it was
	reason  bpf.DatapathDropReason // why it is dropped: by the filter of to, or by the sender's if that is nil
	packets uint64                 // for how many it counts; 0: one
}

var byStack outcome

// tally is all that is counted of a pod.
type tally struct {
	counters counters
	peers    peerCounters
}

func (n *node) tallies(t testing.TB) map[*nodePod]tally {
	t.Helper()
	all := map[*nodePod]tally{}
	for _, p := range n.pods {
		all[p] = tally{p.counters(t), readPeers(t, p.peers)}
	}
	return all
}

// sends has a pod send a packet, and looks at all that comes of it.
func (n *node) sends(t testing.TB, from *nodePod, in input, want outcome) {
	t.Helper()
	before := n.tallies(t)
	verdict, out, err := n.hands(t, from, in)
	if err != nil {
		t.Fatalf("running %v: %v", in, err)
	}
	wantVerdict, counted := n.hook.pass(), bpf.DatapathVerdictVERDICT_PASS
	switch {
	case want.to != nil && want.reason != 0:
		wantVerdict, counted = n.hook.dropped(), bpf.DatapathVerdictVERDICT_REDIRECT
	case want.to != nil:
		wantVerdict, counted = n.hook.redirected(), bpf.DatapathVerdictVERDICT_REDIRECT
	case want.reason != 0:
		wantVerdict, counted = n.hook.dropped(), bpf.DatapathVerdictVERDICT_DROP
	}
	if verdict != wantVerdict {
		t.Errorf("verdict %d, want %d", int32(verdict), int32(wantVerdict))
	}
	frame := want.frame
	if frame == nil {
		frame = in.frame
	}
	if !bytes.Equal(out, frame) {
		t.Errorf("the frame came out as\n     %x\nwant %x\nof   %x", out, frame, in.frame)
	}

	c := classify(in)
	if n.hook.xdp {
		c = classify(input{frame: in.frame})
	}
	number, size := max(want.packets, 1), uint64(len(in.frame))
	wanted := map[*nodePod]tally{}
	count := func(p *nodePod, d bpf.DatapathDirection, verdict bpf.DatapathVerdict, reason bpf.DatapathDropReason) {
		sum := c.counters(d, number, size)
		rec := sum[d][bpf.DatapathTableTABLE_VERDICT][bpf.DatapathVerdictVERDICT_PASS]
		sum[d][bpf.DatapathTableTABLE_VERDICT] = [records]bpf.DatapathDatarec{}
		sum[d][bpf.DatapathTableTABLE_VERDICT][verdict] = rec
		if reason != 0 {
			sum[d][bpf.DatapathTableTABLE_DROP][reason-1] = rec
		}
		peers := peerCounters{}
		if source, destination, ok := ends(in.frame); ok && !c.broken() && p.flags&bpf.DatapathSlotFlagSLOT_PEERS != 0 {
			if d == bpf.DatapathDirectionDIRECTION_EGRESS {
				peers.add(destination, d, number, size)
			} else {
				peers.add(source, d, number, size)
			}
		}
		wanted[p] = tally{sum, peers}
	}
	switch {
	case want.to == nil:
		count(from, bpf.DatapathDirectionDIRECTION_EGRESS, counted, want.reason)
	default:
		count(from, bpf.DatapathDirectionDIRECTION_EGRESS, counted, 0)
		at := bpf.DatapathVerdictVERDICT_PASS
		if want.reason != 0 {
			at = bpf.DatapathVerdictVERDICT_DROP
		}
		count(want.to, bpf.DatapathDirectionDIRECTION_INGRESS, at, want.reason)
	}
	after := n.tallies(t)
	for _, p := range n.pods {
		if got := after[p].counters.minus(before[p].counters); got != wanted[p].counters {
			t.Errorf("%s counted %v\nwant %v", p.name, got, wanted[p].counters)
		}
		if got := after[p].peers.minus(before[p].peers); !maps.Equal(got, wanted[p].peers) {
			t.Errorf("%s counted the peers %v, want %v", p.name, got, wanted[p].peers)
		}
	}
}

// minus returns what was counted since before, without what was not.
func (p peerCounters) minus(before peerCounters) peerCounters {
	since := peerCounters{}
	for peer, c := range p {
		for d := range c.Direction {
			c.Direction[d].Packets -= before[peer].Direction[d].Packets
			c.Direction[d].Bytes -= before[peer].Direction[d].Bytes
		}
		if c != (bpf.DatapathPeerCounters{}) {
			since[peer] = c
		}
	}
	return since
}

// ends are the addresses of an IP packet behind up to two tags, as they stand in maps.
func ends(frame []byte) (source, destination netip.Addr, ok bool) {
	for at := 12; at <= 20 && at+2 <= len(frame); at += 4 {
		switch ip := frame[at+2:]; binary.BigEndian.Uint16(frame[at:]) {
		case packets.EtherTypeVLAN, packets.EtherTypeQinQ:
			continue
		case packets.EtherTypeIPv4:
			if len(ip) < 20 {
				return
			}
			return mapped(netip.AddrFrom4([4]byte(ip[12:]))), mapped(netip.AddrFrom4([4]byte(ip[16:]))), true
		case packets.EtherTypeIPv6:
			if len(ip) < 40 {
				return
			}
			return netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:])), true
		}
		return
	}
	return
}

// native tells whether the pod's mode is native, in which it is not noted what was sent last.
func (p *nodePod) native() bool {
	return p.endpoint.Mode == uint8(bpf.DatapathPodModePOD_MODE_NATIVE)
}

// gets has the stack bring a frame to a pod, which must get it as it is.
func (n *node) gets(t testing.TB, p *nodePod, frame []byte) {
	t.Helper()
	h := n.hooks(nil)[2]
	verdict, out, err := n.act(t, p, h, input{frame: frame})
	if err != nil {
		t.Fatal(err)
	}
	if verdict != h.pass() || !bytes.Equal(out, frame) {
		t.Errorf("what comes to %s: verdict %d, frame\n     %x\nwant %x", p.name, int32(verdict), out, frame)
	}
}

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
