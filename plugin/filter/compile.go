package filter

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/xdp-cni/xdp-cni/conf"
)

// Compile returns the policy of a pod with the given addresses. Those are the addresses that the pod
// may send from; the link-local one of its interface has to be among them.
//
// A filter from [conf.Parse] compiles; errors are for those made by hand, and for addresses that are
// none or have a zone.
func Compile(f *conf.Filter, addresses []netip.Addr) (*Policy, error) {
	p := &Policy{RuleCount: len(f.Rules), MaxFlows: f.MaxFlows}
	for flag, set := range map[uint32]bool{
		FlagStateful: f.Stateful, FlagAllowHost: f.AllowHost, FlagAntiSpoof: f.AntiSpoof,
	} {
		if set {
			p.Flags |= flag
		}
	}
	for _, a := range addresses {
		a = a.Unmap()
		if !a.IsValid() || a.Zone() != "" {
			return nil, fmt.Errorf("pod address %q: want an address without a zone", a)
		}
		if !slices.Contains(p.Addresses, a) {
			p.Addresses = append(p.Addresses, a)
		}
	}
	var rules [2][]rule
	for i := range f.Rules {
		r := &f.Rules[i]
		if err := check(r); err != nil {
			return nil, fmt.Errorf("rule %q (rules[%d]): %w", r.Name, i, err)
		}
		rules[r.Direction] = append(rules[r.Direction], rule{r, i})
	}
	for _, d := range []conf.Direction{conf.Egress, conf.Ingress} {
		p.DefaultAction[d] = f.Default.Of(d)
		if p.DefaultAction[d] != conf.Allow && p.DefaultAction[d] != conf.Deny {
			return nil, fmt.Errorf("default of %s: want allow or deny, got %s", d, p.DefaultAction[d])
		}
		if len(rules[d]) > conf.MaxRules {
			return nil, fmt.Errorf("%s rules: want at most %d, got %d", d, conf.MaxRules, len(rules[d]))
		}
		p.compileDirection(d, rules[d])
	}
	return p, nil
}

// rule is a rule with its number in the filter. Its bit is its place among those of its direction.
type rule struct {
	*conf.Rule
	number int
}

// check refuses what would be compiled to something else than it says.
func check(r *conf.Rule) error {
	switch {
	case r.Direction > conf.Ingress:
		return fmt.Errorf("unknown direction %s", r.Direction)
	case r.Action > conf.Audit:
		return fmt.Errorf("unknown action %s", r.Action)
	case r.Protocol < conf.ProtocolAny || r.Protocol > 255:
		return fmt.Errorf("unknown protocol %s", r.Protocol)
	case len(r.Ports) > 0 && !r.Protocol.HasPorts():
		return fmt.Errorf("protocol %s has no ports", r.Protocol)
	case r.ICMP != nil && r.Protocol != conf.ProtocolICMP && r.Protocol != conf.ProtocolICMPv6:
		return fmt.Errorf("protocol %s has no ICMP types", r.Protocol)
	}
	for _, ports := range r.Ports {
		if ports.First > ports.Last {
			return fmt.Errorf("ports %s: the first is after the last", ports)
		}
	}
	for _, prefix := range slices.Concat(r.Remote(), r.Except) {
		if !prefix.IsValid() || prefix.Addr().Is4In6() {
			return fmt.Errorf("prefix %q: want one of IPv4 or of IPv6", prefix)
		}
	}
	return nil
}

// compileDirection appends the words and prefixes of a direction.
func (p *Policy) compileDirection(d conf.Direction, rules []rule) {
	width := max(1, (len(rules)+63)/64)
	head := Direction{
		Protocols: uint32(len(p.Words)),
		RowWords:  uint32(width + 1),
		Count:     uint32(len(rules)),
	}

	rows := newRows(width)
	matchers := portMatchers(rules, rows)
	intervals := head.Protocols + 2*256
	portRows := intervals
	for _, m := range matchers {
		portRows += uint32(len(m.intervals))
	}
	row := func(class uint32) uint64 {
		if class&OneRule != 0 {
			return uint64(class)
		}
		return uint64(portRows + class*head.RowWords)
	}
	words := make([]uint64, 2*256, int(portRows-head.Protocols)+len(rows.words))
	for _, m := range matchers {
		at := uint64(head.Protocols) + uint64(len(words))
		for _, protocol := range m.protocols {
			words[2*int(protocol)] = at | uint64(len(m.intervals))<<32
			words[2*int(protocol)+1] = row(m.portless)
		}
		for _, i := range m.intervals {
			words = append(words, uint64(i.first)|row(i.class)<<32)
		}
	}
	p.Words = append(append(p.Words, words...), rows.words...)

	rows = newRows(width)
	head.AddressRows = uint32(len(p.Words))
	p.Prefixes = append(p.Prefixes, classify(d, rules, rows)...)
	p.Words = append(p.Words, rows.words...)

	head.Rules = uint32(len(p.Words))
	for _, r := range rules {
		p.Words = append(p.Words, uint64(ruleWord(r.number, r.Rule)))
	}
	p.Directions[d] = head
}
