package model

import (
	"net/netip"

	"github.com/xdp-cni/xdp-cni/conf"
)

// Subject is what rules are asked about: the remote end of a flow's first packet, its protocol, and
// its destination port or ICMP message.
type Subject struct {
	Remote   netip.Addr
	Protocol uint8
	Port     uint16 // of TCP, UDP and SCTP
	// ICMPType and ICMPCode are 0 but for ICMP over IPv4 and ICMPv6 over IPv6, so that protocol 1
	// over IPv6 is as an echo reply to the rules.
	ICMPType, ICMPCode uint8
}

// Match returns the number of the first rule of a direction that matches, or -1 if none does.
func Match(f *conf.Filter, d conf.Direction, s Subject) int {
	for i := range f.Rules {
		if r := &f.Rules[i]; matchesAddress(r, d, s) && matchesPort(r, s) {
			return i
		}
	}
	return -1
}

// MatchFragment is Match for a later fragment: ports match if they could. It also returns whether
// the rule cannot tell without them.
func MatchFragment(f *conf.Filter, d conf.Direction, s Subject) (rule int, needsPort bool) {
	for i := range f.Rules {
		if r := &f.Rules[i]; matchesAddress(r, d, s) {
			return i, r.NeedsPort()
		}
	}
	return -1, false
}

// matchesAddress says whether direction, address and protocol match.
func matchesAddress(r *conf.Rule, d conf.Direction, s Subject) bool {
	remote := s.Remote.Unmap()
	if r.Direction != d || r.Protocol != conf.ProtocolAny && r.Protocol != conf.Protocol(s.Protocol) {
		return false
	}
	for _, except := range r.Except {
		if except.Contains(remote) {
			return false
		}
	}
	prefixes := r.To
	if d == conf.Ingress {
		prefixes = r.From
	}
	for _, p := range prefixes {
		if p.Contains(remote) {
			return true
		}
	}
	return len(prefixes) == 0
}

func matchesPort(r *conf.Rule, s Subject) bool {
	if r.ICMP != nil {
		return r.ICMP.Type == s.ICMPType && (r.ICMP.Code == nil || *r.ICMP.Code == s.ICMPCode)
	}
	for _, p := range r.Ports {
		if p.First <= s.Port && s.Port <= p.Last {
			return true
		}
	}
	return len(r.Ports) == 0
}

// subject returns what rules of a direction are asked about p.
func (p *Packet) subject(d conf.Direction) Subject {
	s := Subject{Remote: p.Dst, Protocol: p.Protocol}
	if d == conf.Ingress {
		s.Remote = p.Src
	}
	if hasPorts(p.Protocol) {
		s.Port = p.DstPort
	}
	if p.ICMP != nil {
		s.ICMPType, s.ICMPCode = p.ICMP.Type, p.ICMP.Code
	}
	return s
}
