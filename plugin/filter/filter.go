// Package filter compiles a pod's filter into the data that the packet path decides by.
//
// A rule of a direction is a bit. What a packet shows of itself, its remote address and its protocol
// with its port, each picks a row of bits: the rules that match it. The first bit that both rows have
// is the rule that decides. So a decision costs two lookups and one pass over two rows, whatever the
// rules are, and a word in front of each row, with a bit for every word of it that is not zero, makes
// the pass as short as the rows are sparse (the bit vector scheme of Lakshman and Stiliadis, with the
// aggregation of Baboescu and Varghese).
//
// Everything here is pure: no maps, no I/O.
package filter

import (
	"net/netip"

	"github.com/xdp-cni/xdp-cni/conf"
)

// Flags of a [Policy].
const (
	FlagStateful  = 1 << 0
	FlagAllowHost = 1 << 1
	FlagAntiSpoof = 1 << 2
)

// OneRule is set in what stands in the place of a row's index, or of an address class, for exactly one
// rule, whose bit is the rest.
const OneRule = 1 << 31

// Policy is a compiled filter.
//
// Words holds, for each direction:
//
//   - 512 words at Protocols, two for each IP protocol number. The first has the index in Words of
//     the protocol's first interval (low 32 bits) and how many there are (high 32 bits), at least 1;
//     the second has the index of the row of all rules that match the protocol with one port at
//     least, for fragments without ports.
//   - The intervals, in ascending order, the first from port 0: the first port (low 16 bits) and the
//     index in Words of the row for the ports from there to the next interval (high 32 bits).
//   - The rows for ports.
//   - The rows for addresses, from AddressRows on; the class of an address is the number of its row, or one rule.
//   - A word for each rule, from Rules on: see [RuleWord].
//
// Where a row would have one bit, no row is: in its place stands [OneRule] and the number of the bit. Rules
// with a prefix or a port of their own need no rows at all, then, and few look-ups.
//
// A row is RowWords words: a summary, in which bit w says whether word w of those behind it is not
// zero, and those words, in which bit i%64 of word i/64 is rule i of the direction.
type Policy struct {
	Flags         uint32         // FlagStateful and so on
	DefaultAction [2]conf.Action // by conf.Direction: Allow or Deny
	Directions    [2]Direction   // by conf.Direction
	Words         []uint64
	// Prefixes have the class of each address: that of the longest prefix of its direction that it
	// is in. There always is one, as each direction has ::/0 and, for IPv4, ::ffff:0:0/96.
	Prefixes []PrefixClass
	// Addresses are the pod's own, without repeats, IPv4 as such.
	Addresses []netip.Addr
	RuleCount int    // of both directions
	MaxFlows  uint32 // how many flows are known at once
}

// Direction says where the words of a direction are. All but the last two are indexes in
// [Policy.Words].
type Direction struct {
	Protocols   uint32
	AddressRows uint32
	Rules       uint32
	RowWords    uint32 // words of a row, its summary too
	Count       uint32 // rules
}

// PrefixClass is the class of the addresses in a prefix.
type PrefixClass struct {
	Direction conf.Direction
	// Address is the first of the prefix, IPv4 as an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2).
	Address [16]byte
	Bits    uint8 // of Address that count, 0 to 128
	Class   uint32
}

// RuleWord is what the packet path knows of a rule: its action (low 8 bits), whether it takes ports or
// an ICMP type to tell if a packet matches (bit 8), and its number in the filter (high 32 bits).
type RuleWord uint64

const ruleNeedsPort = 1 << 8

func ruleWord(number int, r *conf.Rule) RuleWord {
	w := RuleWord(number)<<32 | RuleWord(r.Action)
	if r.NeedsPort() {
		w |= ruleNeedsPort
	}
	return w
}

// Action is what happens to a packet that the rule matches.
func (w RuleWord) Action() conf.Action { return conf.Action(w & 0xff) }

// NeedsPort says whether a fragment without ports cannot be judged by the rule.
func (w RuleWord) NeedsPort() bool { return w&ruleNeedsPort != 0 }

// Number is the rule's number in the filter, over both directions, from 0.
func (w RuleWord) Number() int { return int(w >> 32) }
