package model

import (
	"net/netip"
	"time"

	"github.com/xdp-cni/xdp-cni/conf"
)

// How long a flow lives without a packet.
const (
	TimeoutTCP       = 24 * time.Hour
	TimeoutTCPOneWay = 30 * time.Second // until a packet from the other side was seen
	TimeoutTCPClosed = 10 * time.Second // after FIN from both sides, whatever comes then
	TimeoutUDP       = 180 * time.Second
	TimeoutUDPOneWay = 60 * time.Second
	TimeoutICMP      = 30 * time.Second
	TimeoutOther     = 600 * time.Second

	// TimeoutFragments is how long a first fragment's verdict is remembered, from that fragment on.
	TimeoutFragments = 30 * time.Second
)

// flowKey is a flow as seen from the pod, whoever began it.
type flowKey struct {
	remote, local         netip.Addr
	remotePort, localPort uint16
	protocol              uint8
}

type flow struct {
	initiator conf.Direction // that of its first packet
	subject   Subject        // of its first packet
	// byHost is set if the node's own address began it, and no rule was asked.
	byHost     bool
	generation int // of the policy that let it through
	expires    time.Duration
	seen, fin  [2]bool // by direction
	closed     bool
}

// key returns the key of the flow that p belongs to; false if it is of none: later fragments have no
// ports, and ICMP errors and redirects are about flows and not flows.
func (p *Packet) key(d conf.Direction) (flowKey, bool) {
	if p.Fragment.Later {
		return flowKey{}, false
	}
	inner := Inner{Src: p.Src, Dst: p.Dst, Protocol: p.Protocol, SrcPort: p.SrcPort, DstPort: p.DstPort}
	if p.ICMP != nil {
		if isICMPError(p.Protocol, p.ICMP.Type) {
			return flowKey{}, false
		}
		inner.ICMPType, inner.Identifier = p.ICMP.Type, p.ICMP.Identifier
	}
	return inner.key(p.ICMP != nil, d), true
}

// key returns the key of the flow of a packet that goes in direction d. An ICMP echo flow is that of who
// asks, by its identifier; other types have a flow each, with the type that answers them.
func (in Inner) key(isICMP bool, d conf.Direction) flowKey {
	k := flowKey{remote: in.Dst.Unmap(), local: in.Src.Unmap(), protocol: in.Protocol}
	switch {
	case hasPorts(in.Protocol):
		k.remotePort, k.localPort = in.DstPort, in.SrcPort
	case !isICMP:
	case isEchoRequest(in.Protocol, in.ICMPType):
		k.localPort = in.Identifier
	case isEcho(in.Protocol, in.ICMPType):
		k.remotePort = in.Identifier
	default:
		t := uint16(questionOf(in.Protocol, in.ICMPType))
		k.remotePort, k.localPort = t, t
	}
	if d == conf.Ingress {
		k.remote, k.local = k.local, k.remote
		k.remotePort, k.localPort = k.localPort, k.remotePort
	}
	return k
}

// live returns the flow of k, or nil if there is none or its time is over.
func (m *Model) live(k flowKey, now time.Duration) *flow {
	f := m.flows[k]
	if f == nil || now >= f.expires {
		delete(m.flows, k)
		return nil
	}
	return f
}

// related says whether p is an ICMP error about a live flow. The quoted packet went the other way, and p
// goes to whoever sent it.
func (m *Model) related(p *Packet, d conf.Direction, now time.Duration) bool {
	if p.ICMP == nil || !isRelated(p.Protocol, p.ICMP.Type) || p.ICMP.Inner == nil {
		return false
	}
	inner := *p.ICMP.Inner
	if inner.Src.Unmap() != p.Dst.Unmap() {
		return false
	}
	family := uint8(protocolICMP)
	if p.EtherType == EtherTypeIPv6 {
		family = protocolICMPv6
	}
	return m.live(inner.key(inner.Protocol == family, opposite(d)), now) != nil
}

// note enters into the flow, and makes it if it is nil, that p passed.
func (m *Model) note(k flowKey, f *flow, p *Packet, d conf.Direction, now time.Duration) {
	if f == nil {
		f = &flow{initiator: d, subject: p.subject(d), generation: m.generation}
		m.flows[k] = f
	}
	f.seen[d] = true
	if k.protocol == protocolTCP {
		if p.TCPFlags&RST != 0 {
			delete(m.flows, k)
			return
		}
		f.fin[d] = f.fin[d] || p.TCPFlags&FIN != 0
	}
	if f.closed {
		return
	}
	f.closed = f.fin[conf.Egress] && f.fin[conf.Ingress]
	f.expires = now + f.timeout(k.protocol)
}

func (f *flow) timeout(protocol uint8) time.Duration {
	bothWays := f.seen[conf.Egress] && f.seen[conf.Ingress]
	switch protocol {
	case protocolTCP:
		switch {
		case f.closed:
			return TimeoutTCPClosed
		case bothWays:
			return TimeoutTCP
		}
		return TimeoutTCPOneWay
	case protocolUDP:
		if bothWays {
			return TimeoutUDP
		}
		return TimeoutUDPOneWay
	case protocolICMP, protocolICMPv6:
		return TimeoutICMP
	}
	return TimeoutOther
}

func opposite(d conf.Direction) conf.Direction {
	if d == conf.Egress {
		return conf.Ingress
	}
	return conf.Egress
}
