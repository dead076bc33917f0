package conf

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
)

// The limits of one pod's filter.
const (
	// MaxRules is how many [Filter.Rules] there may be, of both directions together.
	MaxRules = 4096
	// MaxPrefixes is how many entries To, From and Except of all rules may have together.
	MaxPrefixes = 16384
	// MaxRuleName is the longest [Rule.Name] in bytes.
	MaxRuleName = 63
	// DefaultMaxFlows is [Filter.MaxFlows] if the key is not given; LeastMaxFlows and MostMaxFlows
	// are its limits.
	DefaultMaxFlows = 4096
	LeastMaxFlows   = 256
	MostMaxFlows    = 1 << 20
)

// Direction is which way a packet goes, seen from the pod. The numbers are those of the packet path.
type Direction uint8

const (
	Egress  Direction = 0 // from the pod
	Ingress Direction = 1 // to the pod
)

// Action is what happens to a packet that a rule matches. The numbers are those of the packet path.
type Action uint8

const (
	Allow Action = 0 // let it through
	Deny  Action = 1 // drop it
	Audit Action = 2 // let it through, and count and report it as one that would be dropped
)

// Protocol is an IP protocol number (IANA "Assigned Internet Protocol Numbers"), that of the header
// behind the IPv6 extension headers, or [ProtocolAny]. Its zero value is protocol 0, not any.
type Protocol int16

const (
	ProtocolAny    Protocol = -1
	ProtocolICMP   Protocol = 1
	ProtocolTCP    Protocol = 6
	ProtocolUDP    Protocol = 17
	ProtocolICMPv6 Protocol = 58
	ProtocolSCTP   Protocol = 132
)

// PortRange is the ports from First to Last, both of them in it.
type PortRange struct{ First, Last uint16 }

// ICMP is a type of ICMP or ICMPv6 messages, and one of its codes or all.
type ICMP struct {
	Type uint8 `json:"type"`
	// Code is nil for every code of the type.
	Code *uint8 `json:"code,omitzero"`
}

// Default is what happens to the packets that no rule matches: [Allow] or [Deny].
type Default struct {
	Egress  Action `json:"egress"`
	Ingress Action `json:"ingress"`
}

// Of returns the default of a direction.
func (d Default) Of(direction Direction) Action {
	if direction == Egress {
		return d.Egress
	}
	return d.Ingress
}

// Rule says what happens to the packets it matches: those of its direction whose remote address,
// protocol and ports all match.
//
// As a later fragment has no ports, it follows the verdict of its first fragment.
type Rule struct {
	// Name is unique in the filter: 1 to [MaxRuleName] of the characters A-Z a-z 0-9 . _ -
	Name      string    `json:"name"`
	Direction Direction `json:"direction"`
	Action    Action    `json:"action"`
	// To (of egress rules) and From (of ingress rules) are the remote addresses; none are all, of
	// both families. An IPv6 prefix never means an IPv4 address, ::/0 neither. Bits behind the prefix
	// length are as they were given, and mean nothing; [Filter.Warnings] has them.
	To   []netip.Prefix `json:"to,omitzero"`
	From []netip.Prefix `json:"from,omitzero"`
	// Except is what To or From do not mean, each within one of their prefixes.
	Except []netip.Prefix `json:"except,omitzero"`
	// Protocol is the same in both families: protocol 1 in IPv6 is matched by icmp.
	Protocol Protocol `json:"protocol"`
	// Ports are destination ports of a flow's first packet; none are all. Only with protocols that
	// have ports: [Protocol.HasPorts].
	Ports []PortRange `json:"ports,omitzero"`
	// ICMP is nil for every type. Only with [ProtocolICMP] and [ProtocolICMPv6].
	ICMP *ICMP `json:"icmp,omitzero"`
}

// Filter is the packet filter of one pod. The first rule that matches a packet of its direction
// decides, or Default if none does.
//
// Marshalled to JSON it is what [ParseFilter] reads.
type Filter struct {
	// Stateful lets through what belongs to a flow that was let through: replies, and ICMP errors.
	Stateful bool `json:"stateful"`
	// AllowHost lets the node's own addresses reach the pod.
	AllowHost bool `json:"allowHost"`
	// AntiSpoof drops what the pod sends with addresses other than its own.
	AntiSpoof bool    `json:"antiSpoof"`
	Default   Default `json:"default"`
	// MaxFlows is how many flows are known at once; past it the least recently used is forgotten.
	MaxFlows uint32 `json:"maxFlows"`
	// Rules are at most [MaxRules], with at most [MaxPrefixes] prefixes.
	Rules []Rule `json:"rules,omitzero"`
}

// Remote returns the rule's remote prefixes: To or From, as its direction has it. None are all
// addresses.
func (r *Rule) Remote() []netip.Prefix {
	if r.Direction == Egress {
		return r.To
	}
	return r.From
}

// NeedsPort says whether it takes ports, or an ICMP type, to tell if a packet matches.
func (r *Rule) NeedsPort() bool { return len(r.Ports) > 0 || r.ICMP != nil }

// ICMPPort is what stands in the place of a port for a message of ICMP and ICMPv6.
func ICMPPort(icmpType, code uint8) uint16 { return uint16(icmpType)<<8 | uint16(code) }

// PortSpace returns the ports that it matches, or the messages of ICMP in their place, as [ICMPPort] has
// them, as ranges that neither overlap nor touch, in order.
func (r *Rule) PortSpace() []PortRange {
	switch {
	case r.ICMP != nil && r.ICMP.Code != nil:
		one := ICMPPort(r.ICMP.Type, *r.ICMP.Code)
		return []PortRange{{one, one}}
	case r.ICMP != nil:
		return []PortRange{{ICMPPort(r.ICMP.Type, 0), ICMPPort(r.ICMP.Type, 255)}}
	case len(r.Ports) == 0:
		return []PortRange{{0, 0xffff}}
	}
	sorted := slices.SortedFunc(slices.Values(r.Ports), func(a, b PortRange) int { return cmp.Compare(a.First, b.First) })
	merged := sorted[:0]
	for _, p := range sorted {
		if n := len(merged); n > 0 && int(p.First) <= int(merged[n-1].Last)+1 {
			merged[n-1].Last = max(merged[n-1].Last, p.Last)
			continue
		}
		merged = append(merged, p)
	}
	return merged
}

// String returns "egress" or "ingress".
func (d Direction) String() string { return wordOf(directions, d) }

// MarshalText returns the word of a configuration.
func (d Direction) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String returns "allow", "deny" or "audit".
func (a Action) String() string { return wordOf(actions, a) }

// MarshalText returns the word of a configuration.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// HasPorts says whether the packet path reads the ports of the protocol: TCP, UDP and SCTP.
func (p Protocol) HasPorts() bool {
	return p == ProtocolTCP || p == ProtocolUDP || p == ProtocolSCTP
}

// String returns the word of a configuration, or the number.
func (p Protocol) String() string {
	for _, c := range protocols {
		if c.value == p {
			return c.word
		}
	}
	return strconv.Itoa(int(p))
}

// MarshalJSON returns the word of a configuration, or the number.
func (p Protocol) MarshalJSON() ([]byte, error) {
	for _, c := range protocols {
		if c.value == p {
			return json.Marshal(c.word)
		}
	}
	return json.Marshal(int(p))
}

// String returns "53" or "8000-8999".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// MarshalText returns what String does.
func (r PortRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

var directions = []choice[Direction]{{"egress", Egress}, {"ingress", Ingress}}

var actions = []choice[Action]{{"allow", Allow}, {"deny", Deny}, {"audit", Audit}}

// defaultActions leaves out audit: a last rule without addresses does that, and has a name to be
// reported by.
var defaultActions = actions[:2]

var protocols = []choice[Protocol]{
	{"any", ProtocolAny},
	{"tcp", ProtocolTCP},
	{"udp", ProtocolUDP},
	{"sctp", ProtocolSCTP},
	{"icmp", ProtocolICMP},
	{"icmpv6", ProtocolICMPv6},
}

// wordOf returns the word that stands for value, or the number of one that has none.
func wordOf[V ~uint8](choices []choice[V], value V) string {
	for _, c := range choices {
		if c.value == value {
			return c.word
		}
	}
	return strconv.Itoa(int(value))
}
