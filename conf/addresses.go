package conf

import (
	"net/netip"
	"slices"
)

// addressSet is a set of addresses of both families: spans in ascending order, IPv4 first, that
// neither overlap nor touch, so that a span is within a set if it is within one of its spans.
type addressSet []addressSpan

// addressSpan is the addresses from first to last of one family, both in it.
type addressSpan struct{ first, last netip.Addr }

var (
	allIPv4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	allIPv6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
)

// addressesOf returns the addresses in prefixes, of which none are all, that are not in except.
func addressesOf(prefixes, except []netip.Prefix) addressSet {
	if len(prefixes) == 0 {
		prefixes = []netip.Prefix{allIPv4, allIPv6}
	}
	return union(prefixes).minus(union(except))
}

func union(prefixes []netip.Prefix) addressSet {
	spans := make(addressSet, len(prefixes))
	for i, p := range prefixes {
		spans[i] = addressSpan{p.Masked().Addr(), lastOf(p)}
	}
	slices.SortFunc(spans, func(a, b addressSpan) int { return a.first.Compare(b.first) })
	merged := spans[:0]
	for _, s := range spans {
		if n := len(merged); n > 0 && merged[n-1].meets(s) {
			if merged[n-1].last.Less(s.last) {
				merged[n-1].last = s.last
			}
			continue
		}
		merged = append(merged, s)
	}
	return merged
}

// meets says whether next, which begins no earlier, overlaps or touches s.
func (s addressSpan) meets(next addressSpan) bool {
	return s.first.BitLen() == next.first.BitLen() &&
		(next.first.Compare(s.last) <= 0 || s.last.Next() == next.first)
}

// lastOf returns the last address of p.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		if host := 8*(i+1) - p.Bits(); host > 0 {
			b[i] |= byte(0xff >> max(0, 8-host))
		}
	}
	a, _ := netip.AddrFromSlice(b) // as long as it came
	return a
}

// minus returns what of s is not in o.
func (s addressSet) minus(o addressSet) addressSet {
	var left addressSet
	for _, span := range s {
		for _, hole := range o {
			if hole.last.Less(span.first) || span.last.Less(hole.first) {
				continue
			}
			if span.first.Less(hole.first) {
				left = append(left, addressSpan{span.first, hole.first.Prev()})
			}
			// The zero Addr that follows the last of a family is less than all.
			span.first = hole.last.Next()
			if !span.first.IsValid() || span.last.Less(span.first) {
				span.first = netip.Addr{}
				break
			}
		}
		if span.first.IsValid() {
			left = append(left, span)
		}
	}
	return left
}

// within says whether every address of s is in o.
func (s addressSet) within(o addressSet) bool {
	for _, span := range s {
		// the last of o's that begins no later
		i, found := slices.BinarySearchFunc(o, span, func(e, t addressSpan) int { return e.first.Compare(t.first) })
		if !found {
			i--
		}
		if i < 0 || o[i].last.BitLen() != span.last.BitLen() || o[i].last.Less(span.last) {
			return false
		}
	}
	return true
}
