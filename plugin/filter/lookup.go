package filter

import (
	"math/bits"
	"net/netip"

	"github.com/xdp-cni/xdp-cni/conf"
)

// Lookup returns the number of the first rule of a direction that matches a packet, or -1 if none
// does, step by step as the packet path does. port is the destination port of TCP, UDP and SCTP,
// [conf.ICMPPort] of ICMP over IPv4 and of ICMPv6 over IPv6, and 0 of all else.
//
// It looks through all prefixes one by one: for tests and explanations.
func (p *Policy) Lookup(d conf.Direction, remote netip.Addr, protocol uint8, port uint16) int {
	head := p.Directions[d]
	word := p.Words[head.Protocols+2*uint32(protocol)]
	intervals := p.Words[uint32(word):][:word>>32]
	// The last interval that begins at port or before.
	low, high := 0, len(intervals)
	for high-low > 1 {
		if middle := (low + high) / 2; uint16(intervals[middle]) <= port {
			low = middle
		} else {
			high = middle
		}
	}
	if w, ok := p.first(d, remote, uint32(intervals[low]>>32)); ok {
		return w.Number()
	}
	return -1
}

// LookupFragment returns the number of the first rule of a direction that matches a later fragment,
// whose ports nobody knows, or -1 if none does, and whether that rule cannot tell without them.
func (p *Policy) LookupFragment(d conf.Direction, remote netip.Addr, protocol uint8) (number int, needsPort bool) {
	head := p.Directions[d]
	w, ok := p.first(d, remote, uint32(p.Words[head.Protocols+2*uint32(protocol)+1]))
	if !ok {
		return -1, false
	}
	return w.Number(), w.NeedsPort()
}

// first returns the first rule that is both in the row at index portRow of Words and in that of the
// remote address.
func (p *Policy) first(d conf.Direction, remote netip.Addr, portRow uint32) (RuleWord, bool) {
	head := p.Directions[d]
	row := func(at uint32) []uint64 {
		if at&OneRule == 0 {
			return p.Words[at:][:head.RowWords]
		}
		i := at &^ OneRule
		set := make([]uint64, head.RowWords)
		set[0], set[1+i/64] = 1<<(i/64), 1<<(i%64)
		return set
	}
	ports := row(portRow)
	class := p.class(d, remote)
	if class&OneRule == 0 {
		class = head.AddressRows + class*head.RowWords
	}
	addresses := row(class)
	for summary := ports[0] & addresses[0]; summary != 0; summary &= summary - 1 {
		word := bits.TrailingZeros64(summary)
		if both := ports[1+word] & addresses[1+word]; both != 0 {
			return RuleWord(p.Words[int(head.Rules)+word*64+bits.TrailingZeros64(both)]), true
		}
	}
	return 0, false
}

// class returns the class of an address: that of the longest prefix it is in.
func (p *Policy) class(d conf.Direction, remote netip.Addr) uint32 {
	address := remote.As16()
	class, longest := uint32(0), -1
	for _, prefix := range p.Prefixes {
		if prefix.Direction == d && int(prefix.Bits) > longest && commonBits(prefix.Address, address) >= int(prefix.Bits) {
			class, longest = prefix.Class, int(prefix.Bits)
		}
	}
	return class
}

// commonBits returns how many bits a and b have in common from their start.
func commonBits(a, b [16]byte) int {
	for i := range a {
		if x := a[i] ^ b[i]; x != 0 {
			return 8*i + bits.LeadingZeros8(x)
		}
	}
	return 128
}
