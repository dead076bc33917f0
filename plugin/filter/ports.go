package filter

import (
	"cmp"
	"slices"

	"github.com/xdp-cni/xdp-cni/conf"
)

// portMatcher says which rules match the ports of some protocols, those of other addresses too.
type portMatcher struct {
	protocols []uint8
	intervals []interval // the first is from port 0
	portless  uint32     // the row of the rules that match one of the protocols with any port at all
}

// interval is the ports from first on, up to the next interval.
type interval struct {
	first uint16
	class uint32 // the row of the rules that match them
}

// portMatchers returns a matcher for each protocol that has rules of its own, and one for all
// others; together they have every protocol once.
func portMatchers(rules []rule, rows *rows) []portMatcher {
	var named [256]bool
	for _, r := range rules {
		if r.Protocol != conf.ProtocolAny {
			named[r.Protocol] = true
		}
	}
	var matchers []portMatcher
	var others []uint8
	for n := range named {
		if !named[n] {
			others = append(others, uint8(n))
			continue
		}
		matchers = append(matchers, matchPorts(rules, []uint8{uint8(n)}, conf.Protocol(n), rows))
	}
	if len(others) > 0 {
		matchers = append(matchers, matchPorts(rules, others, conf.ProtocolAny, rows))
	}
	return matchers
}

// matchPorts returns the matcher by the rules of protocol and those of any.
func matchPorts(rules []rule, protocols []uint8, protocol conf.Protocol, rows *rows) portMatcher {
	// Where the set of matching rules changes on the way from port 0 to 65535.
	type change struct {
		port   uint32
		rule   int
		begins bool
	}
	var changes []change
	all, now := make(ruleSet, rows.width), make(ruleSet, rows.width)
	for i, r := range rules {
		if r.Protocol != conf.ProtocolAny && r.Protocol != protocol {
			continue
		}
		all.set(i)
		if !r.NeedsPort() {
			now.set(i)
			continue
		}
		for _, p := range r.PortSpace() {
			changes = append(changes, change{uint32(p.First), i, true}, change{uint32(p.Last) + 1, i, false})
		}
	}
	slices.SortFunc(changes, func(a, b change) int { return cmp.Compare(a.port, b.port) })

	m := portMatcher{protocols: protocols, portless: rows.add(all)}
	emit := func(first uint32) {
		class := rows.add(now)
		if n := len(m.intervals); n == 0 || m.intervals[n-1].class != class {
			m.intervals = append(m.intervals, interval{uint16(first), class})
		}
	}
	if len(changes) == 0 || changes[0].port > 0 {
		emit(0)
	}
	for i, c := range changes {
		if c.port > 0xffff {
			break
		}
		if c.begins {
			now.set(c.rule)
		} else {
			now.clear(c.rule)
		}
		if i+1 == len(changes) || changes[i+1].port != c.port {
			emit(c.port)
		}
	}
	return m
}
