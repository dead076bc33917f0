// Package addrs is the arithmetic of address ranges: what is in them, what of that may be handed
// out, and in which order. It is pure, and does not count through a range: a /64 takes no longer
// than a /24.
package addrs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
)

// Range is a run of addresses in a subnet. Addresses are never IPv4-mapped IPv6 ones.
type Range struct {
	Subnet      netip.Prefix
	First, Last netip.Addr // both included
	Gateway     netip.Addr
}

// Contains tells whether a is between the ends of the range.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.First.BitLen() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// Overlaps tells whether the ranges have an address in common.
func (r Range) Overlaps(other Range) bool {
	return r.Contains(other.First) || other.Contains(r.First)
}

// String returns the range as host-local's errors have it: "10.0.0.1-10.0.0.254".
func (r Range) String() string { return r.First.String() + "-" + r.Last.String() }

// Set is the ranges that one address of an attachment comes from: of one family, none overlapping
// another.
type Set []Range

// RangeOf returns the range that a is in.
func (s Set) RangeOf(a netip.Addr) (Range, bool) {
	for _, r := range s {
		if r.Contains(a) {
			return r, true
		}
	}
	return Range{}, false
}

// String lists the ranges as host-local's errors do.
func (s Set) String() string {
	var list []string
	for _, r := range s {
		list = append(list, r.String())
	}
	return strings.Join(list, ",")
}

// Overlap returns a range of each set that have an address in common.
func (s Set) Overlap(other Set) (a, b Range, overlap bool) {
	for _, a := range s {
		for _, b := range other {
			if a.Overlaps(b) {
				return a, b, true
			}
		}
	}
	return a, b, false
}

// Reserved says what an address of the set is that must not be handed out, "" for all others: a
// gateway of the set, or of its range's subnet the network address (in IPv6 that of the
// subnet-router anycast, RFC 4291 section 2.6.1) or the IPv4 broadcast address.
func (s Set) Reserved(a netip.Addr) string {
	r, ok := s.RangeOf(a)
	switch {
	case !ok:
		return ""
	case slices.ContainsFunc(s, func(r Range) bool { return r.Gateway == a }):
		return "gateway"
	case a == r.Subnet.Masked().Addr():
		return "network address"
	case a.Is4() && a == LastOf(r.Subnet):
		return "broadcast address"
	}
	return ""
}

// Usable counts the addresses of the set that may be handed out; math.MaxUint64 stands for that
// and more.
func (s Set) Usable() uint64 {
	var sum uint64
	for _, r := range s {
		n := Count(r.First, r.Last)
		reserved := map[netip.Addr]bool{}
		candidates := []netip.Addr{r.Subnet.Masked().Addr(), LastOf(r.Subnet)}
		for _, other := range s {
			candidates = append(candidates, other.Gateway)
		}
		for _, a := range candidates {
			if r.Contains(a) && s.Reserved(a) != "" {
				reserved[a] = true
			}
		}
		if n != math.MaxUint64 {
			n -= uint64(len(reserved))
		}
		sum = saturatingAdd(sum, n)
	}
	return sum
}

// Span is a run of addresses within one range of a set, both ends included.
type Span struct {
	First, Last netip.Addr
	Range       Range
}

// SpansAfter divides the set into spans in the order in which its addresses are handed out after
// the given one, that one last: round robin, like host-local. After an address outside the set it
// starts with the first.
func (s Set) SpansAfter(last netip.Addr) []Span {
	at := slices.IndexFunc(s, func(r Range) bool { return r.Contains(last) })
	var spans []Span
	if at < 0 {
		for _, r := range s {
			spans = append(spans, Span{r.First, r.Last, r})
		}
		return spans
	}
	if last != s[at].Last {
		spans = append(spans, Span{last.Next(), s[at].Last, s[at]})
	}
	for i := range len(s) - 1 {
		r := s[(at+1+i)%len(s)]
		spans = append(spans, Span{r.First, r.Last, r})
	}
	return append(spans, Span{s[at].First, last, s[at]})
}

// LastOf returns the last address of a subnet.
func LastOf(subnet netip.Prefix) netip.Addr {
	hi, lo := halves(subnet.Addr())
	host := 128 - uint(subnet.Bits()) - uint(128-subnet.Addr().BitLen())
	if host >= 64 {
		lo = math.MaxUint64
		hi |= ones(host - 64)
	} else {
		lo |= ones(host)
	}
	return address(hi, lo, subnet.Addr().Is4())
}

func ones(n uint) uint64 { return 1<<n - 1 }

// Count returns how many addresses there are from first to last, both included; math.MaxUint64
// stands for that and more.
func Count(first, last netip.Addr) uint64 {
	firstHi, firstLo := halves(first)
	lastHi, lastLo := halves(last)
	lo, borrow := bits.Sub64(lastLo, firstLo, 0)
	hi, _ := bits.Sub64(lastHi, firstHi, borrow)
	if hi > 0 {
		return math.MaxUint64
	}
	return saturatingAdd(lo, 1)
}

func saturatingAdd(a, b uint64) uint64 {
	sum, carry := bits.Add64(a, b, 0)
	if carry > 0 {
		return math.MaxUint64
	}
	return sum
}

// halves returns the address in 16 bytes, IPv4 mapped into IPv6, as two numbers.
func halves(a netip.Addr) (hi, lo uint64) {
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

func address(hi, lo uint64, is4 bool) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	a := netip.AddrFrom16(b)
	if is4 {
		return a.Unmap()
	}
	return a
}

// CheckSet returns what keeps ranges from being a set: none at all, two families, an overlap.
func CheckSet(s Set) error {
	if len(s) == 0 {
		return errors.New("empty range set")
	}
	for i, r := range s {
		if r.First.BitLen() != s[0].First.BitLen() {
			return fmt.Errorf("mixed address families: %s and %s", s[0], r)
		}
		for _, other := range s[:i] {
			if r.Overlaps(other) {
				return fmt.Errorf("subnets %s and %s overlap", other, r)
			}
		}
	}
	return nil
}
