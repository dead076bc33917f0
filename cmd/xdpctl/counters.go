package main

import (
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

// verdicts counts by what was done with a packet.
type verdicts struct {
	Pass     counter `json:"pass"`
	Drop     counter `json:"drop"`
	TX       counter `json:"tx"`
	Redirect counter `json:"redirect"`
	Aborted  counter `json:"aborted"`
}

// protocols counts by what is in the IP packet.
type protocols struct {
	TCP    counter `json:"tcp"`
	UDP    counter `json:"udp"`
	ICMP   counter `json:"icmp"`
	ICMPv6 counter `json:"icmpv6"`
	Other  counter `json:"other"`
}

// kinds counts by what a packet is.
type kinds struct {
	IPv4      counter `json:"ipv4"`
	IPv6      counter `json:"ipv6"`
	Other     counter `json:"other"`
	Truncated counter `json:"truncated"`
	Malformed counter `json:"malformed"`
}

type rate struct {
	PacketsPerSecond float64 `json:"packetsPerSecond"`
	BytesPerSecond   float64 `json:"bytesPerSecond"`
}

// statsReport is what stats says of an attachment.
type statsReport struct {
	attachment
	directions[verdicts]
	Protocols directions[protocols] `json:"protocols"`
	Kinds     directions[kinds]     `json:"kinds"`
	Rates     *directions[rate]     `json:"rates,omitempty"` // with --watch
}

func newStatsReport(m *datapath.Meta, s *datapath.Stats) statsReport {
	return statsReport{
		attachment: newAttachment(m),
		directions: directions[verdicts]{newVerdicts(&s.Egress), newVerdicts(&s.Ingress)},
		Protocols:  directions[protocols]{newProtocols(&s.Egress), newProtocols(&s.Ingress)},
		Kinds:      directions[kinds]{newKinds(&s.Egress), newKinds(&s.Ingress)},
	}
}

func newVerdicts(s *datapath.DirectionStats) verdicts {
	return verdicts{
		Pass:     counter(s.Verdicts[bpf.DatapathVerdictVERDICT_PASS]),
		Drop:     counter(s.Verdicts[bpf.DatapathVerdictVERDICT_DROP]),
		TX:       counter(s.Verdicts[bpf.DatapathVerdictVERDICT_TX]),
		Redirect: counter(s.Verdicts[bpf.DatapathVerdictVERDICT_REDIRECT]),
		Aborted:  counter(s.Verdicts[bpf.DatapathVerdictVERDICT_ABORTED]),
	}
}

func newProtocols(s *datapath.DirectionStats) protocols {
	return protocols{
		TCP:    counter(s.Protocols[bpf.DatapathProtocolPROTOCOL_TCP]),
		UDP:    counter(s.Protocols[bpf.DatapathProtocolPROTOCOL_UDP]),
		ICMP:   counter(s.Protocols[bpf.DatapathProtocolPROTOCOL_ICMP]),
		ICMPv6: counter(s.Protocols[bpf.DatapathProtocolPROTOCOL_ICMPV6]),
		Other:  counter(s.Protocols[bpf.DatapathProtocolPROTOCOL_OTHER]),
	}
}

func newKinds(s *datapath.DirectionStats) kinds {
	return kinds{
		IPv4:      counter(s.Kinds[bpf.DatapathKindKIND_IPV4]),
		IPv6:      counter(s.Kinds[bpf.DatapathKindKIND_IPV6]),
		Other:     counter(s.Kinds[bpf.DatapathKindKIND_OTHER]),
		Truncated: counter(s.Kinds[bpf.DatapathKindKIND_TRUNCATED]),
		Malformed: counter(s.Kinds[bpf.DatapathKindKIND_MALFORMED]),
	}
}

// total is every packet of the direction: each has one verdict.
func (v verdicts) total() counter {
	var sum counter
	for _, c := range []counter{v.Pass, v.Drop, v.TX, v.Redirect, v.Aborted} {
		sum.add(c)
	}
	return sum
}

// dropped is the packets that went nowhere.
func (v verdicts) dropped() uint64 { return v.Drop.Packets + v.Aborted.Packets }

// broken is the packets that could not be parsed.
func (k kinds) broken() uint64 { return k.Truncated.Packets + k.Malformed.Packets }

// rateOf is how fast a counter that stood at before went to now.
func rateOf(before, now counter, over time.Duration) rate {
	seconds := over.Seconds()
	// per-CPU records are read one after the other: a sum is never less than an earlier one
	return rate{
		PacketsPerSecond: tenths(float64(now.Packets-before.Packets) / seconds),
		BytesPerSecond:   tenths(float64(now.Bytes-before.Bytes) / seconds),
	}
}

// named is a counter with its name, for tables.
type named struct {
	name  string
	count uint64
}

func (v verdicts) named() []named {
	return []named{{"pass", v.Pass.Packets}, {"drop", v.Drop.Packets}, {"tx", v.TX.Packets},
		{"redirect", v.Redirect.Packets}, {"aborted", v.Aborted.Packets}}
}

func (p protocols) named() []named {
	return []named{{"tcp", p.TCP.Packets}, {"udp", p.UDP.Packets}, {"icmp", p.ICMP.Packets},
		{"icmpv6", p.ICMPv6.Packets}, {"other", p.Other.Packets}}
}

func (k kinds) named() []named {
	return []named{{"ipv4", k.IPv4.Packets}, {"ipv6", k.IPv6.Packets}, {"other", k.Other.Packets},
		{"truncated", k.Truncated.Packets}, {"malformed", k.Malformed.Packets}}
}

// nonzero writes the counters that are not 0, as "tcp 1.2k, udp 5"; "-" if all are.
func (n numbers) nonzero(counters []named) string {
	var parts []string
	for _, c := range counters {
		if c.count != 0 {
			parts = append(parts, c.name+" "+n.packets(c.count))
		}
	}
	if len(parts) == 0 {
		return "-"
	}
	return strings.Join(parts, ", ")
}
