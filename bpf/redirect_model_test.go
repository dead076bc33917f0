package bpf_test

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// A tuple is what the stack tracks connections by.
type tuple struct {
	protocol    uint8
	source, dst netip.AddrPort
}

func (t tuple) inverse() tuple { return tuple{t.protocol, t.dst, t.source} }

// pair is the same for both directions.
func (t tuple) pair() tuple {
	if t.dst.Compare(t.source) < 0 {
		return t.inverse()
	}
	return t
}

// end says at which end of its pair the sender is.
func (t tuple) end() int {
	if t.pair() == t {
		return 0
	}
	return 1
}

// A chat is what two pods, or what the server pod and who the stack says it is, send each other. Whether
// it is translated is the truth that the programs have to find.
type chat struct {
	tuple               // as the client sends
	server        tuple // as the server does, once it has got something
	translated    bool
	sequence      uint32
	client        *nodePod
	owners        [2]uint64 // of the client, and of whoever got something
	serverPod     *nodePod
	opened, both  bool // TCP: the SYN came; and the answer did
	closed, began bool
}

// A flight is a packet in the stack, as it will come out.
type flight struct {
	tuple
	was      tuple
	chat     *chat
	toServer bool
	flags    uint8
	sequence uint32
	to       *nodePod
	owner    uint64
	truth    *pairTruth // of the packet as it was
}

// known to be true of a pair of pods' addresses and ports.
type pairTruth struct {
	owners    [2]uint64
	delivered [2]int // by the stack, of what either end sent
	flying    int
	idle      time.Duration
	unclear   bool // lost, translated or spoofed packets: it may go by the stack for good
}

// A world is pods that talk, and a stack that translates, loses and delays.
type world struct {
	*node
	t       testing.TB
	rng     *rand.Rand
	conns   map[tuple]tuple // both directions of each connection
	pairs   map[tuple]*pairTruth
	chats   []*chat
	flights []flight
	direct  map[*nodePod]uint64 // packets that each pod got directly
	stack   map[*nodePod]uint64
	last    tuple // what a pod sent last, but for TCP: what comes is compared with it
	stats   *worldStats
}

type worldStats struct{ direct, translated, byStack, recreated, spoofed, opened int }

func (w *world) chance(n int) bool { return w.rng.IntN(n) == 0 }

func (w *world) podAt(a netip.Addr) *nodePod {
	for _, p := range w.pods {
		if slices.Contains(p.addresses, a) {
			return p
		}
	}
	return nil
}

func (w *world) truth(t tuple) *pairTruth {
	pair := t.pair()
	var owners [2]uint64
	for i, a := range []netip.AddrPort{pair.source, pair.dst} {
		if p := w.podAt(a.Addr()); p != nil {
			owners[i] = p.endpoint.Owner
		}
	}
	if found := w.pairs[pair]; found != nil && found.owners == owners {
		return found
	}
	fresh := &pairTruth{owners: owners}
	w.pairs[pair] = fresh
	return fresh
}

// nat is what the stack makes of a packet: the rules are asked for the first of a connection.
func (w *world) nat(t tuple, opens, first bool) (tuple, bool) {
	if out, found := w.conns[t]; found {
		if !opens || !first || w.chance(4) {
			return out, true
		}
		delete(w.conns, t) // a new connection in the old one's place
		delete(w.conns, out.inverse())
	} else if t.protocol == packets.ProtocolTCP && !opens {
		return t, false // INVALID
	}
	out := t
	family := 0
	if t.source.Addr().Is6() {
		family = 1
	}
	host := netip.MustParseAddr([]string{"10.0.0.1", "fd00::1"}[family])
	masquerade := false
	switch {
	case t.dst.Port() == 443:
		backend := w.pods[w.rng.IntN(len(w.pods))].addresses[family]
		out.dst = netip.AddrPortFrom(backend, 80)
		masquerade = backend == t.source.Addr() || w.chance(4)
	case t.dst.Port() == 8080 || t.source.Port() >= 50000 && t.dst.Port() == 0:
		switch w.rng.IntN(4) {
		case 0: // port 9090 is nobody's to ask directly
			if t.dst.Port() != 0 {
				out.dst = netip.AddrPortFrom(w.pods[w.rng.IntN(len(w.pods))].addresses[family], 9090)
				masquerade = out.dst.Addr() == t.source.Addr()
			}
		case 1:
			masquerade = true
		case 2:
			return t, false // a rule drops it
		}
	}
	if masquerade {
		out.source = netip.AddrPortFrom(host, t.source.Port())
	}
	// another source port where the answers could not be told apart (get_unique_tuple() in
	// net/netfilter/nf_nat_core.c)
	for port := uint16(20000); ; port++ {
		if _, taken := w.conns[out.inverse()]; !taken {
			break
		}
		out.source = netip.AddrPortFrom(out.source.Addr(), port)
	}
	w.conns[t], w.conns[out.inverse()] = out, t.inverse()
	return out, true
}

func (w *world) segment(t tuple, from *nodePod, toServer bool, flags uint8, sequence uint32) segment {
	s := segment{
		sourceMAC: from.endpoint.Mac, destinationMAC: from.endpoint.RouterMac, protocol: t.protocol,
		source: t.source.Addr(), destination: t.dst.Addr(), sourcePort: t.source.Port(), destinationPort: t.dst.Port(),
		answers: !toServer, flags: flags, sequence: sequence, size: w.rng.IntN(30),
	}
	if to := w.podAt(t.dst.Addr()); to != nil && from.endpoint.Segment != 0 && w.chance(2) {
		s.destinationMAC = to.endpoint.Mac
	}
	return s
}

// send has a pod of a chat send a packet.
func (w *world) send(c *chat, toServer bool, flags uint8, odd bool) {
	from, t := c.client, c.tuple
	if !toServer {
		from, t = c.serverPod, c.server
	}
	sequence := c.sequence
	if !toServer {
		sequence = ^sequence
	}
	s := w.segment(t, from, toServer, flags, sequence)
	syn := t.protocol == packets.ProtocolTCP && flags&tcpSyn != 0
	first := syn && toServer && !c.began
	if toServer {
		c.began = true
	}
	if odd {
		switch w.rng.IntN(3) {
		case 0:
			s.size = nodeMTU
		case 1:
			s.hops, s.destinationMAC = 1, from.endpoint.RouterMac
		case 2:
			s.destinationMAC = packets.MAC{2, 8, 8, 8, 8, 8}
		}
	}
	verdict, _, err := w.hands(w.t, from, s.input())
	if err != nil {
		w.t.Fatal(err)
	}
	w.sent(from, t)
	to := w.podAt(t.dst.Addr())
	truth := w.truth(t)
	truth.idle = 0
	if verdict == w.hook.redirected() {
		w.stats.direct++
		if to == nil || odd || syn || c.translated || truth.delivered[0] == 0 || truth.delivered[1] == 0 {
			w.t.Fatalf("went directly: %+v\nof %+v\nodd %v, truth %+v", s, c, odd, truth)
		}
		w.direct[to]++
		w.receive(flight{tuple: t, chat: c, toServer: toServer, flags: flags, sequence: sequence, to: to, owner: to.endpoint.Owner})
		return
	}
	if verdict != w.hook.pass() {
		w.t.Fatalf("verdict %d of %+v", int32(verdict), s)
	}
	w.stats.byStack++
	if c.translated {
		w.stats.translated++
	}
	must := to != nil && to != from && !odd && !syn && !c.translated && !truth.unclear && truth.flying == 0 &&
		truth.delivered[0] > 0 && truth.delivered[1] > 0 && (t.protocol != packets.ProtocolTCP || c.both)
	if must {
		w.t.Fatalf("went by the stack: %+v\nof %+v\ntruth %+v", s, c, truth)
	}
	if first { // what was known of the last one is no more; what is under way of it may confuse
		*truth = pairTruth{owners: truth.owners, flying: truth.flying, unclear: truth.flying > 0}
	}
	if odd {
		truth.unclear = true
		return
	}
	out, passes := w.nat(t, syn && flags&tcpAck == 0, first)
	if out != t {
		c.translated = true
		w.truth(t).unclear, w.truth(out).unclear = true, true
	}
	if !passes || w.chance(30) {
		truth.unclear = true
		return
	}
	f := flight{tuple: out, was: t, chat: c, toServer: toServer, flags: flags, sequence: sequence, to: w.podAt(out.dst.Addr())}
	if f.to == nil {
		return
	}
	f.owner, f.truth = f.to.endpoint.Owner, truth
	truth.flying++
	w.flights = append(w.flights, f)
}

// land brings one of the packets in the stack to where it goes.
func (w *world) land(i int) {
	f := w.flights[i]
	w.flights = slices.Delete(w.flights, i, i+1)
	f.truth.flying--
	if f.to.endpoint.Owner != f.owner {
		return
	}
	s := w.segment(f.tuple, f.to, f.toServer, f.flags, f.sequence)
	w.gets(w.t, f.to, arrived(s, f.to).frame())
	w.stack[f.to]++
	truth := w.truth(f.tuple)
	truth.delivered[f.end()]++
	truth.idle = 0
	if f.tuple != f.was || w.isOther(f.tuple) {
		truth.unclear = true
	}
	w.receive(f)
}

// sent notes what a pod sent.
func (w *world) sent(from *nodePod, t tuple) {
	switch {
	case t.protocol == packets.ProtocolTCP:
	case from.native():
		w.last = tuple{} // not compared with
	default:
		w.last = t
	}
}

// isOther tells whether a packet is taken for what was sent last, translated: also one that is not, and waited in the
// stack while its sender sent another.
func (w *world) isOther(t tuple) bool {
	return t.protocol == w.last.protocol && t.source == w.last.source && t.dst != w.last.dst
}

// receive is what an application makes of a packet.
func (w *world) receive(f flight) {
	c := f.chat
	if c == nil || c.closed {
		return
	}
	if !f.toServer {
		if f.to == c.client && f.flags == tcpSyn|tcpAck && c.opened {
			c.both = true
		}
		return
	}
	if f.protocol == packets.ProtocolTCP && f.flags != tcpSyn && !c.opened {
		return
	}
	c.serverPod, c.server, c.opened = f.to, f.inverse(), true
	c.owners[1] = f.to.endpoint.Owner
}

// begin has a pod begin a chat.
func (w *world) begin() {
	client, family := w.pods[w.rng.IntN(len(w.pods))], w.rng.IntN(2)
	c := &chat{client: client, sequence: w.rng.Uint32()}
	c.owners[0] = client.endpoint.Owner
	c.protocol = []uint8{packets.ProtocolTCP, packets.ProtocolTCP, packets.ProtocolUDP, packets.ProtocolICMP}[w.rng.IntN(4)]
	dst := netip.AddrPortFrom(w.pods[w.rng.IntN(len(w.pods))].addresses[family], []uint16{80, 80, 8080}[w.rng.IntN(3)])
	if toService := w.chance(3); toService {
		dst = netip.AddrPortFrom(service[family], 443)
	}
	port := 1000 + uint16(w.rng.IntN(12))
	switch c.protocol {
	case packets.ProtocolICMP:
		if family == 1 {
			c.protocol = packets.ProtocolICMPv6
		}
		dst = netip.AddrPortFrom(w.pods[w.rng.IntN(len(w.pods))].addresses[family], 0)
		if w.chance(3) {
			port += 50000
		}
	}
	if dst.Addr() == client.addresses[family] {
		return
	}
	c.source, c.dst = netip.AddrPortFrom(client.addresses[family], port), dst
	for _, other := range w.chats {
		if other.tuple == c.tuple && !other.closed {
			return
		}
	}
	w.stats.opened++
	w.chats = append(w.chats, c)
	w.speak(c)
}

// speak has one end of a chat send what it may.
func (w *world) speak(c *chat) {
	toServer := c.serverPod == nil || w.chance(2)
	if c.protocol != packets.ProtocolTCP {
		w.send(c, toServer, tcpAck, c.serverPod != nil && w.chance(60))
		return
	}
	switch {
	case !c.opened:
		w.send(c, true, tcpSyn, false)
	case !c.both && toServer:
		w.send(c, true, tcpSyn, false) // again
	case !c.both:
		w.send(c, false, tcpSyn|tcpAck, false)
	default:
		w.send(c, toServer, tcpAck, w.chance(60))
	}
}

// spoof has a pod send with the address of another, what belongs to a chat or would begin one.
func (w *world) spoof() {
	if len(w.chats) == 0 {
		return
	}
	c := w.chats[w.rng.IntN(len(w.chats))]
	t, toServer := c.tuple, true
	if c.serverPod != nil && w.chance(2) {
		t, toServer = c.server, false
	}
	from := w.pods[w.rng.IntN(len(w.pods))]
	if slices.Contains(from.addresses, t.source.Addr()) {
		return
	}
	flags := []uint8{tcpSyn, tcpSyn | tcpAck, tcpAck, tcpRst}[w.rng.IntN(4)]
	sequence := w.rng.Uint32()
	verdict, out, err := w.hands(w.t, from, w.segment(t, from, toServer, flags, sequence).input())
	if err != nil || verdict != w.hook.pass() {
		w.t.Fatalf("a spoofed packet has verdict %d, %v: %x", int32(verdict), err, out)
	}
	w.sent(from, t)
	w.stats.spoofed++
	// one that comes where a translated one does not would make up for it in what is counted
	ruled := c.protocol != packets.ProtocolTCP && (c.dst.Port() == 8080 || c.source.Port() >= 50000)
	if to := w.podAt(t.dst.Addr()); to != nil && !ruled && w.chance(3) {
		truth := w.truth(t)
		truth.unclear = true
		truth.flying++
		w.flights = append(w.flights, flight{tuple: t, was: t, toServer: toServer, flags: flags, sequence: sequence,
			to: to, owner: to.endpoint.Owner, truth: truth})
	}
}

// recreate puts another pod in the place of one.
func (w *world) recreate() {
	p := w.pods[w.rng.IntN(len(w.pods))]
	w.stats.recreated++
	p.endpoint.Owner += 1 << 40
	w.enter(w.t, p)
	for i := len(w.flights) - 1; i >= 0; i-- {
		if f := w.flights[i]; f.to == p || slices.Contains(p.addresses, f.was.source.Addr()) {
			f.truth.flying--
			w.flights = slices.Delete(w.flights, i, i+1)
		}
	}
	for _, c := range w.chats {
		if c.client == p || c.serverPod == p && c.protocol == packets.ProtocolTCP {
			c.closed = true
		} else if c.serverPod == p { // the new one gets what comes
			c.serverPod = nil
		}
	}
	w.chats = slices.DeleteFunc(w.chats, func(c *chat) bool { return c.closed })
}

// pause lets time go by, in which the stack forgets connections.
func (w *world) pause() {
	for len(w.flights) > 0 {
		w.land(0)
	}
	long := w.chance(2)
	by := 50 * time.Second // a sum of which is never near DIRECT_TIMEOUT
	if long {
		by = 125 * time.Second
	}
	var key bpf.DatapathDirectKey
	var flow bpf.DatapathDirectFlow
	all := map[bpf.DatapathDirectKey]bpf.DatapathDirectFlow{}
	for entries := w.DirectFlows.Iterate(); entries.Next(&key, &flow); {
		all[key] = flow
	}
	now := uint64(monotonic(w.t))
	for key, flow := range all {
		if age := now - flow.Seen + uint64(by); int64(age) > 0 {
			flow.Seen = now - min(age, uint64(125*time.Second))
		}
		put(w.t, w.DirectFlows, key, flow)
	}
	clear(w.conns)
	// what was translated is over; what was not goes on, or begins anew
	w.chats = slices.DeleteFunc(w.chats, func(c *chat) bool {
		return c.translated || c.protocol == packets.ProtocolTCP && !c.both || long && c.protocol != packets.ProtocolTCP
	})
	for pair, truth := range w.pairs {
		if truth.idle += by; truth.idle > 120*time.Second && pair.protocol != packets.ProtocolTCP {
			delete(w.pairs, pair)
		}
	}
}

func (w *world) step() {
	switch w.rng.IntN(40) {
	case 0, 1:
		if len(w.chats) < 40 {
			w.begin()
		}
	case 2:
		w.spoof()
	case 3:
		if w.chance(6) {
			w.recreate()
		}
	case 4:
		if w.chance(8) {
			w.pause()
		}
	case 5: // one is over
		if len(w.chats) > 0 && w.chance(4) {
			i := w.rng.IntN(len(w.chats))
			w.chats[i].closed = true
			w.chats = slices.Delete(w.chats, i, i+1)
		}
	default:
		if len(w.flights) > 0 && (w.chance(2) || len(w.flights) > 10) {
			w.land(w.rng.IntN(len(w.flights)))
		} else if len(w.chats) > 0 {
			w.speak(w.chats[w.rng.IntN(len(w.chats))])
		}
	}
}

// TestRedirectModel has pods talk at random through a stack that translates, loses, delays and forgets,
// among spoofers and pods that come anew: what is translated never goes directly, and what is not, and was
// not lost, does.
func TestRedirectModel(t *testing.T) {
	const worlds, steps = 36, 4000
	var stats worldStats
	for seed := range uint64(worlds) {
		nodes := newNodes(t)
		w := newWorld(t, nodes[seed%uint64(len(nodes))], seed, &stats)
		if seed%2 == 1 {
			w.routed(t)
		}
		before := w.tallies(t)
		for i := range steps {
			w.step()
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, i)
			}
		}
		for p, tally := range w.tallies(t) {
			got := tally.counters.minus(before[p].counters)[bpf.DatapathDirectionDIRECTION_INGRESS][bpf.DatapathTableTABLE_VERDICT]
			if n := got[bpf.DatapathVerdictVERDICT_PASS].Packets; n != w.direct[p]+w.stack[p] {
				t.Errorf("seed %d: %s got %d packets, want %d directly and %d by the stack", seed, p.name, n, w.direct[p], w.stack[p])
			}
		}
	}
	t.Logf("%+v", stats)
	for what, n := range map[string]int{"went directly": stats.direct, "were translated": stats.translated} {
		if n < worlds*steps/40 {
			t.Errorf("only %d packets %s", n, what)
		}
	}
	for what, n := range map[string]int{"spoofed packets": stats.spoofed, "new pods": stats.recreated, "chats": stats.opened} {
		if n < 100 {
			t.Errorf("only %d %s", n, what)
		}
	}
}

func newWorld(t testing.TB, n *node, seed uint64, stats *worldStats) *world {
	return &world{
		node: n, t: t, rng: rand.New(rand.NewPCG(seed, 3)), conns: map[tuple]tuple{}, pairs: map[tuple]*pairTruth{},
		direct: map[*nodePod]uint64{}, stack: map[*nodePod]uint64{}, stats: stats,
	}
}
