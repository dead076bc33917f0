package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// counter is a number of packets and of their bytes.
type counter struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

func (c *counter) add(other counter) {
	c.Packets += other.Packets
	c.Bytes += other.Bytes
}

// tally is counters by name, in the order they are shown in. As JSON it is an object of them.
type tally []tallied

type tallied struct {
	name string
	counter
}

// word is what a key of one of the packet path's tables is called.
type word[K ~uint32] struct {
	name string
	key  K
}

// The words of each table, by what it counts.
var (
	// by what was done with a packet
	verdictWords = []word[bpf.DatapathVerdict]{
		{"pass", bpf.DatapathVerdictVERDICT_PASS}, {"drop", bpf.DatapathVerdictVERDICT_DROP},
		{"tx", bpf.DatapathVerdictVERDICT_TX}, {"redirect", bpf.DatapathVerdictVERDICT_REDIRECT},
		{"aborted", bpf.DatapathVerdictVERDICT_ABORTED},
	}
	// by what is in the IP packet
	protocolWords = []word[bpf.DatapathProtocol]{
		{"tcp", bpf.DatapathProtocolPROTOCOL_TCP}, {"udp", bpf.DatapathProtocolPROTOCOL_UDP},
		{"icmp", bpf.DatapathProtocolPROTOCOL_ICMP}, {"icmpv6", bpf.DatapathProtocolPROTOCOL_ICMPV6},
		{"other", bpf.DatapathProtocolPROTOCOL_OTHER},
	}
	// by what a packet is
	kindWords = []word[bpf.DatapathKind]{
		{"ipv4", bpf.DatapathKindKIND_IPV4}, {"ipv6", bpf.DatapathKindKIND_IPV6},
		{"other", bpf.DatapathKindKIND_OTHER}, {"truncated", bpf.DatapathKindKIND_TRUNCATED},
		{"malformed", bpf.DatapathKindKIND_MALFORMED},
	}
	// by why a filter dropped it; DROP_NONE has no counter
	reasonWords = []word[bpf.DatapathDropReason]{
		{"spoof", bpf.DatapathDropReasonDROP_SPOOF - 1}, {"rule", bpf.DatapathDropReasonDROP_RULE - 1},
		{"default", bpf.DatapathDropReasonDROP_DEFAULT - 1}, {"malformed", bpf.DatapathDropReasonDROP_MALFORMED - 1},
		{"fragment", bpf.DatapathDropReasonDROP_FRAGMENT - 1},
	}
)

// newTally names a table's counters.
func newTally[K ~uint32](words []word[K], counters []datapath.Counter) tally {
	t := make(tally, 0, len(words))
	for _, w := range words {
		t = append(t, tallied{w.name, counter(counters[w.key])})
	}
	return t
}

func newVerdicts(s *datapath.DirectionStats) tally  { return newTally(verdictWords, s.Verdicts[:]) }
func newProtocols(s *datapath.DirectionStats) tally { return newTally(protocolWords, s.Protocols[:]) }
func newKinds(s *datapath.DirectionStats) tally     { return newTally(kindWords, s.Kinds[:]) }
func newReasons(s *datapath.DirectionStats) tally   { return newTally(reasonWords, s.Drops[:]) }

// MarshalJSON writes an object, in order.
func (t tally) MarshalJSON() ([]byte, error) {
	text := []byte{'{'}
	for i, c := range t {
		if i > 0 {
			text = append(text, ',')
		}
		text = strconv.AppendQuote(text, c.name)
		text = fmt.Appendf(text, `:{"packets":%d,"bytes":%d}`, c.Packets, c.Bytes)
	}
	return append(text, '}'), nil
}

// total is the sum of all: each packet of a direction has one verdict, and one kind.
func (t tally) total() counter { return t.of() }

// of is the sum of those that are named, of all if none is.
func (t tally) of(names ...string) counter {
	var sum counter
	for _, c := range t {
		if len(names) == 0 || slices.Contains(names, c.name) {
			sum.add(c.counter)
		}
	}
	return sum
}

type rate struct {
	PacketsPerSecond float64 `json:"packetsPerSecond"`
	BytesPerSecond   float64 `json:"bytesPerSecond"`
}

// statsReport is what stats says of an attachment.
type statsReport struct {
	attachment
	directions[tally]                   // by verdict
	Protocols         directions[tally] `json:"protocols"`
	Kinds             directions[tally] `json:"kinds"`
	Drops             directions[tally] `json:"drops"`
	Rates             *directions[rate] `json:"rates,omitempty"` // with --watch
}

func newStatsReport(m *datapath.Meta, s *datapath.Stats) statsReport {
	each := func(count func(*datapath.DirectionStats) tally) directions[tally] {
		return directions[tally]{count(&s.Egress), count(&s.Ingress)}
	}
	return statsReport{
		attachment: newAttachment(m),
		directions: each(newVerdicts),
		Protocols:  each(newProtocols),
		Kinds:      each(newKinds),
		Drops:      each(newReasons),
	}
}

// dropped is the packets that went nowhere, of verdicts.
func dropped(verdicts tally) uint64 { return verdicts.of("drop", "aborted").Packets }

// broken is the packets that could not be parsed, of kinds.
func broken(kinds tally) uint64 { return kinds.of("truncated", "malformed").Packets }

// rateOf is how fast a counter that stood at before went to now.
func rateOf(before, now counter, over time.Duration) rate {
	seconds := over.Seconds()
	// per-CPU records are read one after the other: a sum is never less than an earlier one
	return rate{
		PacketsPerSecond: tenths(float64(now.Packets-before.Packets) / seconds),
		BytesPerSecond:   tenths(float64(now.Bytes-before.Bytes) / seconds),
	}
}

// nonzero writes the packets of the counters that are not 0, as "tcp 1.2k, udp 5"; "-" if all are.
func (n numbers) nonzero(t tally) string {
	var parts []string
	for _, c := range t {
		if c.Packets != 0 {
			parts = append(parts, c.name+" "+n.packets(c.Packets))
		}
	}
	if len(parts) == 0 {
		return "-"
	}
	return strings.Join(parts, ", ")
}
