package conf

import (
	"fmt"
	"net/netip"
	"slices"
)

// Warning is something in a valid filter that is most likely not what its author meant.
type Warning struct {
	// Rule is the number of the rule in [Filter.Rules], and Name its name.
	Rule int    `json:"rule"`
	Name string `json:"name"`
	// Text says what is odd, for a person, without the rule's name.
	Text string `json:"text"`
}

// String returns the warning with the rule that it is about.
func (w Warning) String() string { return fmt.Sprintf("%s: %s", ruleAt(w.Rule, w.Name), w.Text) }

func ruleAt(number int, name string) string { return fmt.Sprintf("rule %q (rules[%d])", name, number) }

// Warnings returns what is odd in a valid filter, by rule: rules that can never decide, lists that
// mean all when empty, prefixes with bits behind their length.
//
// A rule can never decide if one earlier rule of its direction matches all that it does. That
// several earlier ones together do is not looked for.
func (f *Filter) Warnings() []Warning {
	var ws []Warning
	seen := [2]*coverage{newCoverage(f), newCoverage(f)}
	for i := range f.Rules {
		r := &f.Rules[i]
		warn := func(format string, args ...any) {
			ws = append(ws, Warning{i, r.Name, fmt.Sprintf(format, args...)})
		}
		warnOfLists(r, warn)
		c := seen[r.Direction]
		switch by, covered := c.add(i); {
		case len(c.addresses[i]) == 0:
			warn("never matches: except leaves none of its addresses")
		case neverOfFamily(r):
			warn("never matches: protocol %s with addresses of the other family only", r.Protocol)
		case alwaysPasses(r):
			warn("never decides: neighbour discovery and multicast listener messages pass under any rules, and ICMPv6 type %d is one",
				r.ICMP.Type)
		case covered:
			warn("never decides: %s comes before it and matches all that it does", ruleAt(by, f.Rules[by].Name))
		}
	}
	return ws
}

func warnOfLists(r *Rule, warn func(string, ...any)) {
	key := "to"
	if r.Direction == Ingress {
		key = "from"
	}
	if remote := r.Remote(); remote != nil && len(remote) == 0 {
		warn("%q is an empty list, which is every address", key)
	}
	if r.Ports != nil && len(r.Ports) == 0 {
		warn(`"ports" is an empty list, which is every port`)
	}
	for _, l := range []struct {
		key      string
		prefixes []netip.Prefix
	}{{key, r.Remote()}, {"except", r.Except}} {
		for _, p := range l.prefixes {
			if p != p.Masked() {
				warn("%q has %s, which is taken as %s", l.key, p, p.Masked())
			}
		}
	}
}

// neverOfFamily says whether r has the ICMP of one family and addresses of the other.
func neverOfFamily(r *Rule) bool {
	if len(r.Remote()) == 0 {
		return false
	}
	is4 := func(p netip.Prefix) bool { return p.Addr().Is4() }
	switch r.Protocol {
	case ProtocolICMP:
		return !slices.ContainsFunc(r.Remote(), is4)
	case ProtocolICMPv6:
		return !slices.ContainsFunc(r.Remote(), func(p netip.Prefix) bool { return !is4(p) })
	}
	return false
}

// alwaysPasses says whether r is about messages that IPv6 does not work without, and which no rule
// is asked about: neighbour discovery (RFC 4861) and MLD (RFC 2710, RFC 3810).
func alwaysPasses(r *Rule) bool {
	if r.Protocol != ProtocolICMPv6 || r.ICMP == nil {
		return false
	}
	t := r.ICMP.Type
	return t >= 130 && t <= 137 || t == 143
}

// coverage finds the rules of one direction that an earlier one covers.
type coverage struct {
	rules     []Rule
	addresses []addressSet  // by rule, of those entered
	ports     [][]PortRange // the same
	// byPrefix has the rules seen by each of their remote prefixes, so that only those are compared
	// that share an address.
	byPrefix map[netip.Prefix][]int
}

func newCoverage(f *Filter) *coverage {
	return &coverage{rules: f.Rules, addresses: make([]addressSet, len(f.Rules)),
		ports: make([][]PortRange, len(f.Rules)), byPrefix: make(map[netip.Prefix][]int)}
}

// add enters rule i, and returns the first one entered before that covers it.
func (c *coverage) add(i int) (by int, covered bool) {
	r := &c.rules[i]
	c.addresses[i] = addressesOf(r.Remote(), r.Except)
	c.ports[i] = r.PortSpace()
	if len(c.addresses[i]) == 0 {
		return 0, false
	}
	// Whoever covers the rule has a prefix around its first address.
	some := c.addresses[i][0].first
	for bits := 0; bits <= some.BitLen(); bits++ {
		p, _ := some.Prefix(bits) // within BitLen, so never an error
		for _, j := range c.byPrefix[p] {
			if covered && j >= by {
				break
			}
			if c.covers(j, i) {
				by, covered = j, true
			}
		}
	}
	remote := r.Remote()
	if len(remote) == 0 {
		remote = []netip.Prefix{allIPv4, allIPv6}
	}
	for _, p := range remote {
		p = p.Masked()
		if rules := c.byPrefix[p]; len(rules) == 0 || rules[len(rules)-1] != i {
			c.byPrefix[p] = append(rules, i)
		}
	}
	return by, covered
}

// covers says whether rule j matches all that rule i does; what is cheap to refute comes first.
func (c *coverage) covers(j, i int) bool {
	a, b := &c.rules[j], &c.rules[i]
	if a.Protocol != ProtocolAny && a.Protocol != b.Protocol {
		return false
	}
	for _, p := range c.ports[i] {
		if !withinRange(p, c.ports[j]) {
			return false
		}
	}
	return c.addresses[i].within(c.addresses[j])
}

// withinRange says whether one of the ranges holds all of p.
func withinRange(p PortRange, ranges []PortRange) bool {
	for _, outer := range ranges {
		if outer.First <= p.First && p.Last <= outer.Last {
			return true
		}
	}
	return false
}
