package bpf_test

import (
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/tests/packets"
)

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
		// what the stack brings then was not sent, as far as is known
		c.age(t, 121*time.Second)
		c.gets(t, c.server, arrived(c.ask(), c.server).frame())
		c.sends(t, c.server, c.answer().input(), byStack)
		c.knows(t, &known{sent: [2]uint32{0, 1}, tainted: true})
	})
}
