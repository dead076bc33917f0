package bpf_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"sync"
	"testing"

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
