package bpf_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// service is an address that the stack translates, port one that it gives to who is masqueraded.
var service = [2]netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd96::1")}

const natPort = 33333

// withSource and withDestination are a segment as the stack translates it.
func (s segment) withSource(a netip.Addr, port uint16) segment {
	s.source, s.sourcePort = a, port
	return s
}

func (s segment) withDestination(a netip.Addr, port uint16) segment {
	s.destination, s.destinationPort = a, port
	return s
}

// rounds sends what a client and a server send of a connection, TCP's opening first, and what the stack
// makes of it; all of it must go by the stack.
func (c talk) rounds(t testing.TB, asked, got, answered, returned segment) {
	t.Helper()
	exchange := func(askFlags, answerFlags uint8, sequence uint32) {
		c.sends(t, c.client, asked.as(askFlags, sequence).input(), byStack)
		c.gets(t, c.server, arrived(got.as(askFlags, sequence), c.server).frame())
		c.sends(t, c.server, answered.as(answerFlags, sequence).input(), byStack)
		c.gets(t, c.client, arrived(returned.as(answerFlags, sequence), c.client).frame())
	}
	exchange(tcpSyn, tcpSyn|tcpAck, 70)
	for i := range uint32(2) {
		exchange(tcpAck, tcpAck, 71+i)
	}
	exchange(tcpFin|tcpAck, tcpFin|tcpAck, 90)
}

// TestRedirectTranslated: no packet of a translated flow goes directly, at neither end.
func TestRedirectTranslated(t *testing.T) {
	someTalks(t, func(t *testing.T, c talk) {
		ask, answer := c.ask(), c.answer()
		behindRouters := c.client.endpoint.Segment == 0
		routed := func(s segment, from *nodePod) segment {
			s.destinationMAC = from.endpoint.RouterMac
			return s
		}
		vip, host := service[c.family], netip.MustParseAddr("10.0.0.1")
		if c.family == 1 {
			host = netip.MustParseAddr("fd00::1")
		}
		ident := func(port uint16) uint16 { // an echo has one on the side that asks
			if c.protocol == packets.ProtocolTCP || c.protocol == packets.ProtocolUDP {
				return port
			}
			return 0
		}
		fresh := func(t *testing.T) {
			c.reset(t)
			if behindRouters {
				c.routed(t)
			}
		}
		t.Run("to a service", func(t *testing.T) {
			fresh(t)
			asked := routed(ask, c.client).withDestination(vip, ident(443))
			c.rounds(t, asked, ask, answer, answer.withSource(vip, ident(443)))
		})
		t.Run("to a service and masqueraded", func(t *testing.T) {
			fresh(t)
			asked := routed(ask, c.client).withDestination(vip, ident(443))
			c.rounds(t, asked, ask.withSource(host, natPort), routed(answer, c.server).withDestination(host, natPort), answer.withSource(vip, ident(443)))
		})
		t.Run("masqueraded", func(t *testing.T) {
			fresh(t)
			c.rounds(t, ask, ask.withSource(host, natPort), routed(answer, c.server).withDestination(host, natPort), answer)
		})
		t.Run("to another port of the pod", func(t *testing.T) {
			fresh(t)
			if ident(1) == 0 {
				return
			}
			c.rounds(t, ask.withDestination(ask.destination, 8080), ask, answer, answer.withSource(answer.source, 8080))
		})
		t.Run("from another port of the pod", func(t *testing.T) {
			fresh(t)
			c.rounds(t, ask, ask.withSource(ask.source, natPort), answer.withDestination(answer.destination, natPort), answer)
		})
		t.Run("to another pod", func(t *testing.T) {
			fresh(t)
			third := c
			third.server = c.pods[2]
			got, answered := third.ask(), third.answer()
			third.rounds(t, ask, got, answered, answer)
			third.rounds(t, ask, got, answered, answer)
		})
		t.Run("to the pod itself", func(t *testing.T) {
			fresh(t)
			self := c
			self.server = c.client
			asked := routed(ask, c.client).withDestination(vip, ident(443))
			self.rounds(t, asked, self.ask().withSource(host, natPort), routed(self.answer(), c.client).withDestination(host, natPort), answer.withSource(vip, ident(443)))
			self.rounds(t, asked, self.ask(), self.answer(), answer.withSource(vip, ident(443)))
		})
	})
}

// TestRedirectReused: the ports of a flow that went directly are used again by one that is translated, and
// that by one that is not.
func TestRedirectReused(t *testing.T) {
	eachTalk(t, func(t *testing.T, c talk) {
		ask, answer := c.ask(), c.answer()
		vip := service[c.family]
		asked := ask.withDestination(vip, 443)
		asked.destinationMAC = c.client.endpoint.RouterMac
		if c.protocol == packets.ProtocolICMP || c.protocol == packets.ProtocolICMPv6 {
			asked.destinationPort = 0
		}
		returned := answer.withSource(vip, asked.destinationPort)
		c.learn(t)
		c.direct(t)
		if c.protocol == packets.ProtocolTCP {
			// translated: the SYN that comes is none that was sent
			c.sends(t, c.client, asked.as(tcpSyn, 2000).input(), byStack)
			c.gets(t, c.server, arrived(ask.as(tcpSyn, 2000), c.server).frame())
			c.knows(t, &known{sent: [2]uint32{1, 1}, delivered: [2]uint32{1, 1}, synSent: 1000, synDelivered: 2000})
			c.sends(t, c.server, answer.as(tcpSyn|tcpAck, 3000).input(), byStack)
			c.gets(t, c.client, arrived(returned.as(tcpSyn|tcpAck, 3000), c.client).frame())
			c.sends(t, c.client, asked.input(), byStack)
			c.sends(t, c.server, answer.input(), byStack)
			// what was sent to the pod itself now goes elsewhere
			c.sends(t, c.client, ask.as(tcpSyn, 4000).input(), byStack)
			c.sends(t, c.client, ask.input(), byStack)
			c.gets(t, c.client, arrived(answer.as(tcpSyn|tcpAck, 5000), c.client).frame())
			c.sends(t, c.client, ask.input(), byStack)
			c.sends(t, c.server, answer.input(), byStack)
		} else {
			c.gets(t, c.server, arrived(ask, c.server).frame())
			c.knows(t, &known{sent: [2]uint32{1, 1}, delivered: [2]uint32{2, 1}, tainted: true})
			c.sends(t, c.server, answer.input(), byStack)
			c.gets(t, c.client, arrived(returned, c.client).frame())
			c.knows(t, &known{sent: [2]uint32{1, 2}, delivered: [2]uint32{2, 1}, tainted: true})
			for range 3 { // some of this flow, too: it stays mixed
				c.through(t, ask)
				c.through(t, answer)
			}
			c.age(t, 121*time.Second)
		}
		c.learn2(t)
		c.direct(t)
	})
}

// TestRedirectProxied: a connection of which the stack answers the SYN itself, and opens it to the server with the
// client's number (SYNPROXY), never goes directly: the numbers of the answers are not the same.
func TestRedirectProxied(t *testing.T) {
	eachNode(t, func(t *testing.T, n *node) {
		c := n.newTalk(packets.ProtocolTCP, 0)
		c.sends(t, c.client, c.ask().as(tcpSyn, 1000).input(), byStack)
		c.gets(t, c.client, arrived(c.answer().as(tcpSyn|tcpAck, 42), c.client).frame())
		c.sends(t, c.client, c.ask().as(tcpAck, 1001).input(), byStack)
		c.gets(t, c.server, arrived(c.ask().as(tcpSyn, 1000), c.server).frame())
		c.sends(t, c.server, c.answer().as(tcpSyn|tcpAck, 77777).input(), byStack)
		c.sends(t, c.client, c.ask().as(tcpAck, 1001).input(), byStack)
		c.sends(t, c.server, c.answer().as(tcpAck, 77778).input(), byStack)
	})
}

// TestRedirectFlooded: what a bridge floods to a pod that it is not for changes nothing.
func TestRedirectFlooded(t *testing.T) {
	eachNode(t, func(t *testing.T, n *node) {
		c := n.newTalk(packets.ProtocolUDP, 0)
		c.sends(t, c.client, c.ask().input(), byStack)
		c.gets(t, n.pods[2], c.ask().frame())
		c.gets(t, c.server, c.ask().frame())
		c.through(t, c.answer())
		c.direct(t)
	})
}

// TestRedirectSuspect: a flow goes by the stack until it has been silent once a packet came that was not sent under
// its addresses, though as many came as were sent.
func TestRedirectSuspect(t *testing.T) {
	someTalks(t, func(t *testing.T, c talk) {
		if c.protocol == packets.ProtocolTCP {
			return
		}
		ask, answer := c.ask(), c.answer()
		other := ask.withDestination(service[c.family], ask.destinationPort)
		other.destinationMAC = c.client.endpoint.RouterMac
		from := answer.withDestination(service[c.family], answer.destinationPort)
		from.destinationMAC = c.server.endpoint.RouterMac
		for _, test := range []struct {
			name     string
			original bool // was seen on this CPU just before
			first    func(t *testing.T)
		}{
			{"before any was sent", false, func(t *testing.T) {
				c.gets(t, c.server, arrived(ask, c.server).frame())
				c.sends(t, c.client, ask.input(), byStack)
			}},
			{"of which the original was seen", true, func(t *testing.T) {
				c.sends(t, c.client, ask.input(), byStack) // which is lost
				c.sends(t, c.client, other.input(), byStack)
				c.gets(t, c.server, arrived(ask, c.server).frame())
			}},
			{"the answer of which the original was seen", true, func(t *testing.T) {
				c.through(t, ask)
				c.sends(t, c.server, answer.input(), byStack)
				c.sends(t, c.server, from.input(), byStack)
				c.gets(t, c.client, arrived(answer, c.client).frame())
			}},
		} {
			if test.original && c.client.native() {
				continue
			}
			t.Run(test.name, func(t *testing.T) {
				test.first(t)
				for range 3 {
					c.through(t, answer)
					c.through(t, ask)
				}
				c.sends(t, c.client, ask.input(), byStack)
				c.age(t, 121*time.Second)
				c.learn(t)
				c.direct(t)
				c.age(t, 121*time.Second)
			})
		}
	})
}

// learn2 is learn with other numbers.
func (c talk) learn2(t testing.TB) {
	t.Helper()
	if c.protocol != packets.ProtocolTCP {
		c.learn(t)
		return
	}
	c.through(t, c.ask().as(tcpSyn, 777777))
	c.through(t, c.answer().as(tcpSyn|tcpAck, 888888))
}

// TestRedirectOpenedBack: a connection between the same ports that the other end opens is another one.
func TestRedirectOpenedBack(t *testing.T) {
	eachNode(t, func(t *testing.T, n *node) {
		for family := range 2 {
			c := n.newTalk(packets.ProtocolTCP, family)
			c.learn(t)
			c.direct(t)
			// the same number at that: only who opens it differs
			c.sends(t, c.server, c.answer().as(tcpSyn, 1000).input(), byStack)
			c.knows(t, &known{sent: [2]uint32{0, 1}, opener: 1, synSent: 1000, synDelivered: ^uint32(1000)})
			c.sends(t, c.client, c.ask().input(), byStack)
			c.sends(t, c.server, c.answer().input(), byStack)
			// one of the other end's that comes is not it
			c.gets(t, c.server, arrived(c.ask().as(tcpSyn, 1000), c.server).frame())
			c.knows(t, &known{sent: [2]uint32{0, 1}, delivered: [2]uint32{1, 0}, opener: 1, synSent: 1000, synDelivered: ^uint32(1000)})
			c.gets(t, c.client, arrived(c.answer().as(tcpSyn|tcpAck, 6), c.client).frame())
			c.sends(t, c.client, c.ask().input(), byStack)
			c.gets(t, c.client, arrived(c.answer().as(tcpSyn, 1000), c.client).frame())
			c.through(t, c.ask().as(tcpSyn|tcpAck, 6))
			c.direct(t)
		}
	})
}

// TestRedirectLostSYN: one that is lost behind its sender's end, and comes at the next try; and the answer
// that is.
func TestRedirectLostSYN(t *testing.T) {
	eachNode(t, func(t *testing.T, n *node) {
		c := n.newTalk(packets.ProtocolTCP, 0)
		syn, accept := c.ask().as(tcpSyn, 1000), c.answer().as(tcpSyn|tcpAck, 5000)
		c.sends(t, c.client, syn.input(), byStack)
		c.through(t, syn)
		c.sends(t, c.server, accept.input(), byStack)
		c.sends(t, c.client, c.ask().input(), byStack)
		c.through(t, accept)
		c.direct(t)
		// a new connection: of it nothing is known, also not what is like the last one's
		c.sends(t, c.client, c.ask().as(tcpSyn, 1001).input(), byStack)
		c.sends(t, c.client, c.ask().input(), byStack)
		c.through(t, accept)
		c.sends(t, c.client, c.ask().input(), byStack)
		c.sends(t, c.server, c.answer().input(), byStack)
		// the first one's, late
		c.gets(t, c.server, arrived(syn, c.server).frame())
		c.sends(t, c.server, c.answer().input(), byStack)
		c.through(t, c.ask().as(tcpSyn, 1001))
		c.direct(t)
	})
}

// TestRedirectAnswerAtBothEnds: an answer that comes and was not sent is another pod's.
func TestRedirectAnswerAtBothEnds(t *testing.T) {
	eachNode(t, func(t *testing.T, n *node) {
		c := n.newTalk(packets.ProtocolTCP, 0)
		c.through(t, c.ask().as(tcpSyn, 1000))
		c.gets(t, c.client, arrived(c.answer().as(tcpSyn|tcpAck, 5000), c.client).frame())
		c.sends(t, c.client, c.ask().input(), byStack)
		c.sends(t, c.server, c.answer().input(), byStack)
		c.through(t, c.answer().as(tcpSyn|tcpAck, 5000))
		c.direct(t)
	})
}

// TestRedirectSpoofed: who sends with another pod's address goes by the stack, and spoils nothing of what is
// known of the other's flows, nor begins any.
func TestRedirectSpoofed(t *testing.T) {
	eachTalk(t, func(t *testing.T, c talk) {
		spoofer := c.pods[3]
		spoof := func() {
			for _, s := range []segment{c.ask(), c.answer()} {
				s.sourceMAC = spoofer.endpoint.Mac
				if c.client.endpoint.Segment == 0 {
					s.destinationMAC = spoofer.endpoint.RouterMac
				}
				c.sends(t, spoofer, s.input(), byStack)
				for _, flags := range []uint8{tcpSyn, tcpSyn | tcpAck, tcpRst} {
					c.sends(t, spoofer, s.as(flags, 666).input(), byStack)
				}
			}
		}
		spoof()
		c.knows(t, nil)
		c.learn(t)
		key, _ := c.key()
		var before, after bpf.DatapathDirectFlow
		if err := c.DirectFlows.Lookup(&key, &before); err != nil {
			t.Fatal(err)
		}
		spoof()
		if err := c.DirectFlows.Lookup(&key, &after); err != nil || before != after {
			t.Errorf("known of the flow: %+v, %v, was %+v", after, err, before)
		}
		c.direct(t)

		// of a pod's own packets nothing is noted while it has not got the address
		clearMap[bpf.DatapathDirectKey, bpf.DatapathDirectFlow](t, c.DirectFlows)
		for _, address := range c.client.addresses {
			remove(t, c.Endpoints, endpointKey(nodeNetwork, address))
		}
		c.sends(t, c.client, c.ask().as(tcpSyn, 1000).input(), byStack)
		c.knows(t, nil)
	})
}

// TestRedirectRecreated: a pod with the address of one that was there before knows nothing of its flows.
func TestRedirectRecreated(t *testing.T) {
	eachTalk(t, func(t *testing.T, c talk) {
		c.learn(t)
		c.direct(t)
		for i, p := range []*nodePod{c.client, c.server} {
			owners := [2]uint64{c.client.endpoint.Owner, c.server.endpoint.Owner}
			p.endpoint.Owner += 1 << 33
			c.enter(t, p)
			c.sends(t, c.client, c.ask().input(), byStack)
			if c.protocol == packets.ProtocolTCP {
				c.knows(t, &known{sent: [2]uint32{1, 1}, delivered: [2]uint32{1, 1}, synSent: 1000, synDelivered: 1000,
					clientOwner: owners[0], serverOwner: owners[1]})
				c.sends(t, c.server, c.answer().input(), byStack)
				// the very same numbers
				c.through(t, c.ask().as(tcpSyn, 1000))
				c.sends(t, c.client, c.ask().input(), byStack)
				c.through(t, c.answer().as(tcpSyn|tcpAck, 5000))
				c.knows(t, &known{sent: [2]uint32{1, 1}, delivered: [2]uint32{1, 1}, synSent: 1000, synDelivered: 1000})
			} else {
				c.knows(t, &known{sent: [2]uint32{1, 0}})
				c.gets(t, c.server, arrived(c.ask(), c.server).frame())
				c.through(t, c.answer())
				c.knows(t, &known{sent: [2]uint32{1, 1}, delivered: [2]uint32{1, 1}})
			}
			c.direct(t)
			if t.Failed() {
				t.Fatalf("pod %d", i)
			}
		}
		// what comes to a pod that is another than the flow's is not counted to it, and nobody sent it
		c.server.endpoint.Owner += 1 << 33
		c.enter(t, c.server)
		key, _ := c.key()
		var before, after bpf.DatapathDirectFlow
		if err := c.DirectFlows.Lookup(&key, &before); err != nil {
			t.Fatal(err)
		}
		c.gets(t, c.server, arrived(c.ask().as(tcpSyn, 4), c.server).frame())
		if c.protocol != packets.ProtocolTCP {
			c.knows(t, &known{tainted: true})
		} else if err := c.DirectFlows.Lookup(&key, &after); err != nil || before != after {
			t.Errorf("known of the flow: %+v, %v, was %+v", after, err, before)
		}
	})
}

// TestRedirectSameSocket: a client asks a service and the pod behind it from one port. The stack gives the
// second connection another source port, as its answers could not be told apart (nf_nat_used_tuple() in
// net/netfilter/nf_nat_core.c): what was sent and what came are equally many, and none of it is the same.
func TestRedirectSameSocket(t *testing.T) {
	eachNode(t, func(t *testing.T, n *node) {
		c := n.newTalk(packets.ProtocolUDP, 0)
		ask, answer := c.ask(), c.answer()
		asked := ask.withDestination(service[0], 443)
		asked.destinationMAC = c.client.endpoint.RouterMac
		for range 3 {
			// to the service, which is the pod
			c.sends(t, c.client, asked.input(), byStack)
			c.gets(t, c.server, arrived(ask, c.server).frame())
			c.sends(t, c.server, answer.input(), byStack)
			c.gets(t, c.client, arrived(answer.withSource(service[0], 443), c.client).frame())
			// to the pod
			c.sends(t, c.client, ask.input(), byStack)
			c.gets(t, c.server, arrived(ask.withSource(ask.source, natPort), c.server).frame())
			c.sends(t, c.server, answer.withDestination(answer.destination, natPort).input(), byStack)
			c.gets(t, c.client, arrived(answer, c.client).frame())
		}
	})
}
