// Package filtertest makes random filters and packets, for comparing the implementations of a
// filter's semantics with each other. What it makes is random in the way that finds mistakes: few
// addresses and ports, so that rules overlap, and packets at the edges of what rules say.
package filtertest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/filter/model"
)

// pick returns one of values.
func pick[T any](rng *rand.Rand, values ...T) T { return values[rng.IntN(len(values))] }

// chance is true once in n times.
func chance(rng *rand.Rand, n int) bool { return rng.IntN(n) == 0 }

// The addresses and ports that everything is made of.
var (
	bases = []netip.Addr{
		netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("10.0.1.9"), netip.MustParseAddr("10.200.0.1"),
		netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("0.0.0.1"),
		netip.MustParseAddr("fd00::7"), netip.MustParseAddr("fd00:0:0:1::9"), netip.MustParseAddr("2001:db8::1"),
		netip.MustParseAddr("fe80::1"), netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
		// beside the IPv4-mapped addresses, ::ffff:0:0/96
		netip.MustParseAddr("::1"), netip.MustParseAddr("::fffe:a00:7"), netip.MustParseAddr("::1:0:0:0"),
	}
	ports      = []uint16{0, 1, 53, 67, 68, 80, 443, 1024, 8000, 65534, 65535}
	numbers    = []conf.Protocol{0, 2, 43, 47, 50, 255}
	icmpTypes  = []uint8{0, 3, 5, 8, 11, 13, 255}
	icmp6Types = []uint8{1, 2, 4, 100, 128, 129, 130, 135, 143, 200}
)

// RandomFilter returns a valid filter.
func RandomFilter(rng *rand.Rand) *conf.Filter {
	action := func() conf.Action { return pick(rng, conf.Allow, conf.Deny) }
	f := &conf.Filter{
		Stateful: !chance(rng, 4), AllowHost: !chance(rng, 3), AntiSpoof: !chance(rng, 3),
		Default:  conf.Default{Egress: action(), Ingress: action()},
		MaxFlows: conf.DefaultMaxFlows,
	}
	// Around the words of a row, too.
	for i := range pick(rng, rng.IntN(4), rng.IntN(12), 120+rng.IntN(20), rng.IntN(400)) {
		f.Rules = append(f.Rules, randomRule(rng, i))
	}
	return f
}

func randomRule(rng *rand.Rand, i int) conf.Rule {
	r := conf.Rule{
		Name:      fmt.Sprintf("rule-%d", i),
		Direction: pick(rng, conf.Egress, conf.Ingress),
		Action:    pick(rng, conf.Allow, conf.Deny, conf.Audit),
		Protocol: pick(rng, conf.ProtocolAny, conf.ProtocolTCP, conf.ProtocolTCP, conf.ProtocolUDP, conf.ProtocolUDP,
			conf.ProtocolSCTP, conf.ProtocolICMP, conf.ProtocolICMPv6, pick(rng, numbers...)),
	}
	var remote []netip.Prefix
	for range pick(rng, 0, 1, 1, 2, 5) {
		p := randomPrefix(rng)
		remote = append(remote, p)
		if chance(rng, 3) {
			r.Except = append(r.Except, randomWithin(rng, p))
		}
	}
	if r.Direction == conf.Egress {
		r.To = remote
	} else {
		r.From = remote
	}
	switch {
	case r.Protocol.HasPorts():
		for range pick(rng, 0, 1, 1, 2, 6) {
			first, last := randomPort(rng), randomPort(rng)
			r.Ports = append(r.Ports, conf.PortRange{First: min(first, last), Last: pick(rng, min(first, last), max(first, last))})
		}
	case r.Protocol == conf.ProtocolICMP && chance(rng, 2):
		r.ICMP = &conf.ICMP{Type: pick(rng, icmpTypes...)}
	case r.Protocol == conf.ProtocolICMPv6 && chance(rng, 2):
		r.ICMP = &conf.ICMP{Type: pick(rng, icmp6Types...)}
	}
	if r.ICMP != nil && chance(rng, 2) {
		r.ICMP.Code = new(pick[uint8](rng, 0, 1, 4, 255))
	}
	return r
}

// randomPrefix returns a prefix, its bits behind the length set or not.
func randomPrefix(rng *rand.Rand) netip.Prefix {
	for {
		a := pick(rng, bases...)
		length := pick(rng, 0, 8, 16, 24, a.BitLen()-1, a.BitLen(), a.BitLen(), rng.IntN(a.BitLen()+1))
		p := netip.PrefixFrom(a, length)
		if !chance(rng, 4) {
			p = p.Masked()
		}
		if !p.Addr().Is4In6() {
			return p
		}
	}
}

// randomWithin returns a prefix within p.
func randomWithin(rng *rand.Rand, p netip.Prefix) netip.Prefix {
	more := p.Addr().BitLen() - p.Bits()
	inner := netip.PrefixFrom(p.Addr(), p.Bits()+min(more, pick(rng, 0, 1, 2, 8, rng.IntN(more+1))))
	if chance(rng, 2) {
		inner = netip.PrefixFrom(edge(rng, p), inner.Bits())
	}
	if inner.Addr().Is4In6() || !p.Contains(inner.Addr()) {
		return p
	}
	return inner.Masked()
}

// edge returns the first or the last address of p, or one beside them.
func edge(rng *rand.Rand, p netip.Prefix) netip.Addr {
	a := p.Masked().Addr()
	if chance(rng, 2) {
		b := a.AsSlice()
		for i := p.Bits(); i < a.BitLen(); i++ {
			b[i/8] |= 0x80 >> (i % 8)
		}
		a, _ = netip.AddrFromSlice(b) // as long as it came
	}
	beside := pick(rng, a, a, a.Next(), a.Prev())
	if !beside.IsValid() {
		return a
	}
	return beside
}

func randomPort(rng *rand.Rand) uint16 {
	if chance(rng, 8) {
		return uint16(rng.Uint32())
	}
	return pick(rng, ports...)
}

// randomRemote returns an address at the edge of a prefix of a rule, if there is one.
func randomRemote(rng *rand.Rand, f *conf.Filter) netip.Addr {
	if len(f.Rules) > 0 && !chance(rng, 5) {
		r := &f.Rules[rng.IntN(len(f.Rules))]
		if all := slices.Concat(r.Remote(), r.Except); len(all) > 0 {
			return edge(rng, pick(rng, all...))
		}
	}
	return pick(rng, bases...)
}

// RandomSubject returns what rules can be asked about, at the edges of one of them. In a real packet
// the ICMP message of a family comes over that family only.
func RandomSubject(rng *rand.Rand, f *conf.Filter) model.Subject {
	s := model.Subject{Remote: randomRemote(rng, f), Protocol: uint8(rng.Uint32())}
	if s.Remote.Is4() && chance(rng, 20) {
		s.Remote = netip.AddrFrom16(s.Remote.As16())
	}
	var r *conf.Rule
	if len(f.Rules) > 0 {
		r = &f.Rules[rng.IntN(len(f.Rules))]
	}
	switch {
	case r != nil && r.Protocol != conf.ProtocolAny && !chance(rng, 6):
		s.Protocol = uint8(r.Protocol)
	case !chance(rng, 6):
		s.Protocol = uint8(pick(rng, conf.ProtocolTCP, conf.ProtocolUDP, conf.ProtocolSCTP, conf.ProtocolICMP, conf.ProtocolICMPv6))
	}
	switch protocol := conf.Protocol(s.Protocol); {
	case protocol.HasPorts():
		s.Port = randomPort(rng)
		if r != nil && len(r.Ports) > 0 && chance(rng, 2) {
			p := pick(rng, r.Ports...)
			s.Port = pick(rng, p.First, p.Last, p.First-1, p.Last+1)
		}
	case protocol == conf.ProtocolICMP || protocol == conf.ProtocolICMPv6:
		s.ICMPType = pick(rng, slices.Concat(icmpTypes, icmp6Types)...)
		s.ICMPCode = pick[uint8](rng, 0, 1, 2, 4, 255)
		if r != nil && r.ICMP != nil && chance(rng, 2) {
			s.ICMPType = r.ICMP.Type + uint8(rng.IntN(3)) - 1
		}
	}
	return s
}
