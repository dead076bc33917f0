package bpf_test

import (
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

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
