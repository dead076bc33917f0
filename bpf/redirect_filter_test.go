package bpf_test

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/filter"
	"github.com/xdp-cni/xdp-cni/plugin/filter/model"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

const (
	noSpoof   = bpf.DatapathDropReasonDROP_SPOOF
	byRule    = bpf.DatapathDropReasonDROP_RULE
	byDefault = bpf.DatapathDropReasonDROP_DEFAULT
)

// filter gives a pod a filter, and returns its flows.
func (n *node) filter(t testing.TB, p *nodePod, text string) *ebpf.Map {
	t.Helper()
	parsed, _, err := conf.ParseFilter([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	compiled, err := filter.Compile(parsed, p.addresses)
	if err != nil {
		t.Fatal(err)
	}
	policy := n.newPolicy(t, model.Pod{MAC: model.MAC(p.endpoint.Mac), Addresses: p.addresses}, compiled, 3)
	flows := n.newInner(t, bpf.DatapathMapFlows, 64, nil, nil)
	t.Cleanup(func() {
		policy.close()
		flows.Close()
	})
	place := p.slot * places
	put(t, n.Policies, place, policy.header)
	putMaps(t, n.PodPolicyWords, []uint32{place}, []*ebpf.Map{policy.words})
	putMaps(t, n.PodPolicyPrefixes, []uint32{place}, []*ebpf.Map{policy.prefixes})
	putMaps(t, n.PodRuleCounters, []uint32{place}, []*ebpf.Map{policy.counters})
	putMaps(t, n.PodFlows, []uint32{p.slot}, []*ebpf.Map{flows})
	p.flags |= bpf.DatapathSlotFlagSLOT_FILTER
	n.enterSlot(t, p)
	return flows
}

// filtered tells what flow a pod's filter knows, by the address and port of the pod and of the other.
func filteredFlow(t testing.TB, flows *ebpf.Map, protocol uint8, local, remote netip.Addr, localPort, remotePort uint16) (flow bpf.DatapathFlow, found bool) {
	t.Helper()
	key := bpf.DatapathFlowKey{
		Local: local.As16(), Remote: remote.As16(), LocalPort: wire16(localPort), RemotePort: wire16(remotePort), Protocol: protocol,
	}
	return flow, flows.Lookup(&key, &flow) == nil
}

// TestRedirectTargetFilter: the filter of who gets a packet judges it as if the stack had brought it; a
// sender counts what it handed on, and tells of nothing.
func TestRedirectTargetFilter(t *testing.T) {
	eachTalk(t, func(t *testing.T, c talk) {
		c.learn(t)
		c.direct(t)
		// also where the node itself may send: this is not from it
		c.filter(t, c.server, `{"allowHost":true,"stateful":false,"default":{"egress":"allow","ingress":"deny"}}`)
		reader, err := ringbuf.NewReader(c.DropEvents)
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		reader.SetDeadline(time.Now())
		for err == nil {
			_, err = reader.Read()
		}
		ask := c.ask()
		frame := c.directly(ask, c.server).frame
		if frame != nil {
			frame = ask.frame() // it was not changed yet
		}
		c.sends(t, c.client, ask.input(), outcome{to: c.server, reason: byDefault, frame: frame})
		reader.SetDeadline(time.Now().Add(5 * time.Second))
		record, err := reader.Read()
		if err != nil {
			t.Fatal(err)
		}
		var got bpf.DatapathDropEvent
		if _, err := binary.Decode(record.RawSample, binary.NativeEndian, &got); err != nil {
			t.Fatal(err)
		}
		want := bpf.DatapathDropEvent{
			Time: got.Time, Ifindex: c.server.endpoint.Ifindex, Rule: 1<<32 - 1, Generation: 3, Len: uint32(len(ask.frame())),
			Source: ask.source.As16(), Destination: ask.destination.As16(),
			SourcePort: wire16(c.clientPort), DestinationPort: wire16(c.serverPort),
			Ethertype: packets.EtherTypeIPv4, Protocol: c.protocol, Direction: uint8(conf.Ingress), Reason: uint8(byDefault),
		}
		if c.family == 1 {
			want.Ethertype = packets.EtherTypeIPv6
		}
		switch c.protocol {
		case packets.ProtocolICMP:
			want.SourcePort, want.DestinationPort = 0, wire16(8<<8)
		case packets.ProtocolICMPv6:
			want.SourcePort, want.DestinationPort = 0, wire16(128<<8)
		}
		if got != want {
			t.Errorf("told\n%+v, want\n%+v", got, want)
		}
		// the other way nothing has changed
		c.sends(t, c.server, c.answer().input(), c.directly(c.answer(), c.client))
		reader.SetDeadline(time.Now())
		if record, err := reader.Read(); err == nil {
			t.Errorf("told of something else: %x", record.RawSample)
		}
	})
}

// TestRedirectFilterRules: the target's rules are asked with the sender as the remote end.
func TestRedirectFilterRules(t *testing.T) {
	someTalks(t, func(t *testing.T, c talk) {
		c.learn(t)
		family, from, to := "10.0.0.10", "10.0.0.10/32", "10.0.0.11/32"
		if c.family == 1 {
			family, from, to = "fd00::a", "fd00::a/128", "fd00::b/128"
		}
		if c.client.addresses[c.family] != netip.MustParseAddr(family) {
			t.Fatal("the client has another address")
		}
		const deny = `{"stateful":false,"default":{"egress":"allow","ingress":"deny"},"rules":[`
		rule := func(from, ports string) string {
			text := deny + `{"name":"it","direction":"ingress","action":"allow","from":["` + from + `"]`
			if ports != "" && (c.protocol == packets.ProtocolTCP || c.protocol == packets.ProtocolUDP) {
				protocol := map[uint8]string{packets.ProtocolTCP: "tcp", packets.ProtocolUDP: "udp"}[c.protocol]
				text += `,"protocol":"` + protocol + `","ports":["` + ports + `"]`
			}
			return text + `}]}`
		}
		c.filter(t, c.server, rule(from, "80"))
		c.direct(t)
		c.filter(t, c.server, rule(to, "80"))
		frame := c.ask().frame()
		c.sends(t, c.client, c.ask().input(), outcome{to: c.server, reason: byDefault, frame: frame})
		if c.protocol == packets.ProtocolTCP || c.protocol == packets.ProtocolUDP {
			c.filter(t, c.server, rule(from, "1234"))
			c.sends(t, c.client, c.ask().input(), outcome{to: c.server, reason: byDefault, frame: frame})
		}
		// whatever a filter needs and has not got, it lets nothing through
		c.filter(t, c.server, rule(from, ""))
		c.direct(t)
		if err := c.PodFlows.Delete(c.server.slot); err != nil {
			t.Fatal(err)
		}
		verdict, _, err := c.hands(t, c.client, c.ask().input())
		if err != nil || verdict != c.hook.dropped() {
			t.Errorf("verdict %d, %v, want that it is dropped", int32(verdict), err)
		}
	})
}

// TestRedirectFilterFlows: what is handed on directly belongs to the flows of both filters as what goes
// by the stack does: who may only answer answers, and no more.
func TestRedirectFilterFlows(t *testing.T) {
	const only = `{"default":{"egress":"allow","ingress":"deny"}}`
	someTalks(t, func(t *testing.T, c talk) {
		asks, answers := c.ask(), c.answer()
		clientFlows := c.filter(t, c.client, only)
		c.learn(t) // with the client's filter: the answers are of its flow
		c.direct(t)

		clear := func(m *ebpf.Map) { clearMap[bpf.DatapathFlowKey, bpf.DatapathFlow](t, m) }
		flow := func() (bpf.DatapathFlow, bool) {
			return filteredFlow(t, clientFlows, c.protocol, asks.source, asks.destination, c.clientPort, c.serverPort)
		}
		const egress, ingress = 1 << bpf.DatapathDirectionDIRECTION_EGRESS, 1 << bpf.DatapathDirectionDIRECTION_INGRESS
		clear(clientFlows)
		c.sends(t, c.server, answers.input(), outcome{to: c.client, reason: byDefault, frame: answers.frame()})
		if f, found := flow(); found {
			t.Errorf("what is dropped made a flow: %+v", f)
		}
		c.sends(t, c.client, asks.input(), c.directly(asks, c.server))
		if f, found := flow(); !found || f.Sent != egress || f.Initiator != uint8(bpf.DatapathDirectionDIRECTION_EGRESS) || f.Generation != 3 {
			t.Errorf("the flow of what was asked directly: %+v, found: %v", f, found)
		}
		c.sends(t, c.server, answers.input(), c.directly(answers, c.client))
		if f, found := flow(); !found || f.Sent != egress|ingress {
			t.Errorf("the flow of what was asked and answered directly: %+v, found: %v", f, found)
		}
		if c.protocol != packets.ProtocolTCP {
			return
		}
		c.sends(t, c.server, answers.as(tcpFin|tcpAck, 9).input(), c.directly(answers.as(tcpFin|tcpAck, 9), c.client))
		if f, _ := flow(); f.Fin != ingress || f.Ends != 0 {
			t.Errorf("the flow of which the server is done: %+v", f)
		}
		c.sends(t, c.client, asks.as(tcpFin|tcpAck, 9).input(), c.directly(asks.as(tcpFin|tcpAck, 9), c.server))
		if f, _ := flow(); f.Fin != egress|ingress || f.Ends == 0 {
			t.Errorf("the flow that both have ended: %+v", f)
		}
		c.sends(t, c.server, answers.as(tcpRst, 9).input(), c.directly(answers.as(tcpRst, 9), c.client))
		if f, found := flow(); found {
			t.Errorf("the flow that was reset: %+v", f)
		}
	})
}

// TestRedirectFilterBegins: what only the target's filter sees begins a flow there, of which the answers
// need no rule.
func TestRedirectFilterBegins(t *testing.T) {
	someTalks(t, func(t *testing.T, c talk) {
		c.learn(t)
		flows := c.filter(t, c.server, `{"default":{"egress":"deny","ingress":"allow"}}`)
		ask, answer := c.ask(), c.answer()
		c.sends(t, c.server, answer.input(), outcome{reason: byDefault})
		c.sends(t, c.client, ask.input(), c.directly(ask, c.server))
		f, found := filteredFlow(t, flows, c.protocol, ask.destination, ask.source, c.serverPort, c.clientPort)
		if !found || f.Sent != 1<<bpf.DatapathDirectionDIRECTION_INGRESS || f.Initiator != uint8(bpf.DatapathDirectionDIRECTION_INGRESS) ||
			f.Flags&uint8(1) != 0 { // FLOW_BY_HOST
			t.Errorf("the flow at the server: %+v, found: %v", f, found)
		}
		c.sends(t, c.server, answer.input(), c.directly(answer, c.client))
	})
}

// TestRedirectSenderFilter: the sender's own filter comes first. What it drops is neither the target's to
// count nor anything to be noted.
func TestRedirectSenderFilter(t *testing.T) {
	someTalks(t, func(t *testing.T, c talk) {
		c.filter(t, c.client, `{"stateful":false,"default":{"egress":"deny","ingress":"allow"}}`)
		c.sends(t, c.client, c.ask().as(tcpSyn, 1000).input(), outcome{reason: byDefault})
		c.knows(t, nil)
		c.reset(t)
		c.learn(t)
		c.direct(t)
		c.filter(t, c.client, `{"stateful":false,"default":{"egress":"allow","ingress":"allow"},"rules":[
			{"name":"no","direction":"egress","action":"deny"}]}`)
		c.sends(t, c.client, c.ask().input(), outcome{reason: byRule})
		c.sends(t, c.client, c.ask().as(tcpSyn, 2000).input(), outcome{reason: byRule})
		// nor is what its filter drops of what comes by the stack noted
		c.reset(t)
		c.learn(t)
		c.filter(t, c.server, `{"stateful":false,"default":{"egress":"allow","ingress":"deny"}}`)
		if verdict, _, err := c.act(t, c.server, c.hooks(nil)[2], arrived(c.ask().as(tcpSyn, 7), c.server).input()); err != nil || int32(verdict) != 2 {
			t.Errorf("verdict %d, %v, want that it is dropped", int32(verdict), err)
		}
		c.server.flags &^= bpf.DatapathSlotFlagSLOT_FILTER
		c.enterSlot(t, c.server)
		c.direct(t)

		c.reset(t)
		c.learn(t)
		c.filter(t, c.client, `{"stateful":false,"antiSpoof":true,"default":{"egress":"allow","ingress":"allow"}}`)
		c.direct(t)
		foreign := c.ask()
		foreign.sourceMAC = c.pods[2].endpoint.Mac
		c.sends(t, c.client, foreign.input(), outcome{reason: noSpoof})
		foreign = c.ask()
		foreign.source = c.pods[2].addresses[c.family]
		c.sends(t, c.client, foreign.input(), outcome{reason: noSpoof})
		c.direct(t)
	})
}
