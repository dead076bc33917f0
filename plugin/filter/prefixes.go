package filter

import (
	"net/netip"
	"slices"

	"github.com/xdp-cni/xdp-cni/conf"
)

// mappedBits is the length of ::ffff:0:0/96, in which the IPv4 addresses are.
const mappedBits = 96

// node is a prefix with the rules that name it, as places among those of their direction.
type node struct {
	prefix  netip.Prefix // of IPv4 as such
	rules   []int        // in their addresses
	excepts []int        // in their exceptions
}

// frame is a prefix on the way from the root to the one looked at.
type frame struct {
	prefix  netip.Prefix
	covered ruleSet // rules with an address prefix here or above
	taken   ruleSet // those with an exception here or above
	class   uint32
}

// classify returns the class of every prefix of the rules. Prefixes of the class of the next shorter
// one around them are left out, as a lookup finds that one then, but for the two roots.
//
// IPv4 prefixes are compared with IPv4 ones only, so that ::/0 does not mean IPv4 too.
func classify(d conf.Direction, rules []rule, rows *rows) []PrefixClass {
	var classes []PrefixClass
	var path []frame // the buffers below its end are used again
	set := make(ruleSet, rows.width)
	for _, n := range nodesOf(rules) {
		depth := len(path)
		for depth > 0 && !path[depth-1].prefix.Contains(n.prefix.Addr()) {
			depth--
		}
		path = path[:depth]
		if cap(path) > depth {
			path = path[:depth+1]
		} else {
			path = append(path, frame{})
		}
		here := &path[depth]
		if here.covered == nil {
			here.covered, here.taken = make(ruleSet, rows.width), make(ruleSet, rows.width)
		}
		here.prefix = n.prefix
		if depth == 0 {
			clear(here.covered)
			clear(here.taken)
		} else {
			copy(here.covered, path[depth-1].covered)
			copy(here.taken, path[depth-1].taken)
		}
		for _, i := range n.rules {
			here.covered.set(i)
		}
		for _, i := range n.excepts {
			here.taken.set(i)
		}
		for w := range set {
			set[w] = here.covered[w] &^ here.taken[w]
		}
		here.class = rows.add(set)
		if depth == 0 || here.class != path[depth-1].class {
			classes = append(classes, prefixClass(d, n.prefix, here.class))
		}
	}
	return classes
}

// nodesOf returns the prefixes of the rules, each once and behind all that are around it, the roots
// of both families among them.
func nodesOf(rules []rule) []node {
	roots := []netip.Prefix{
		netip.PrefixFrom(netip.IPv4Unspecified(), 0),
		netip.PrefixFrom(netip.IPv6Unspecified(), 0),
	}
	var nodes []node
	index := make(map[netip.Prefix]int)
	at := func(p netip.Prefix) *node {
		p = p.Masked()
		i, ok := index[p]
		if !ok {
			i = len(nodes)
			index[p] = i
			nodes = append(nodes, node{prefix: p})
		}
		return &nodes[i]
	}
	for _, root := range roots {
		at(root)
	}
	for i, r := range rules {
		remote := r.Remote()
		if len(remote) == 0 {
			remote = roots
		}
		for _, p := range remote {
			n := at(p)
			n.rules = append(n.rules, i)
		}
		for _, p := range r.Except {
			n := at(p)
			n.excepts = append(n.excepts, i)
		}
	}
	slices.SortFunc(nodes, func(a, b node) int {
		if c := a.prefix.Addr().Compare(b.prefix.Addr()); c != 0 {
			return c
		}
		return a.prefix.Bits() - b.prefix.Bits()
	})
	return nodes
}

func prefixClass(d conf.Direction, p netip.Prefix, class uint32) PrefixClass {
	length := p.Bits()
	if p.Addr().Is4() {
		length += mappedBits
	}
	return PrefixClass{Direction: d, Address: p.Addr().As16(), Bits: uint8(length), Class: class}
}
