package conf

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// filterObject says what a filter may hold, and where it goes. Keys that are not given have the
// safe value, but for the defaults: without rules nothing but spoofed packets is dropped.
var filterObject = object[Filter]{
	initial: Filter{Stateful: true, AllowHost: true, AntiSpoof: true, MaxFlows: DefaultMaxFlows},
	fields: []field[Filter]{
		at("stateful", func(f *Filter) *bool { return &f.Stateful }, boolean),
		at("allowHost", func(f *Filter) *bool { return &f.AllowHost }, boolean),
		at("antiSpoof", func(f *Filter) *bool { return &f.AntiSpoof }, boolean),
		at("default", func(f *Filter) *Default { return &f.Default }, defaultObject.rule()),
		at("maxFlows", func(f *Filter) *uint32 { return &f.MaxFlows }, wholeNumber[uint32](LeastMaxFlows, MostMaxFlows)),
		at("rules", func(f *Filter) *[]Rule { return &f.Rules }, ruleList),
	},
}

var defaultObject = object[Default]{
	fields: []field[Default]{
		at("egress", func(d *Default) *Action { return &d.Egress }, oneOf(defaultActions)),
		at("ingress", func(d *Default) *Action { return &d.Ingress }, oneOf(defaultActions)),
	},
}

var ruleObject = object[Rule]{
	initial: Rule{Protocol: ProtocolAny},
	fields: []field[Rule]{
		required(at("name", func(r *Rule) *string { return &r.Name }, ruleName)),
		required(at("direction", func(r *Rule) *Direction { return &r.Direction }, oneOf(directions))),
		required(at("action", func(r *Rule) *Action { return &r.Action }, oneOf(actions))),
		at("to", func(r *Rule) *[]netip.Prefix { return &r.To }, prefixList),
		at("from", func(r *Rule) *[]netip.Prefix { return &r.From }, prefixList),
		at("except", func(r *Rule) *[]netip.Prefix { return &r.Except }, prefixList),
		at("protocol", func(r *Rule) *Protocol { return &r.Protocol }, protocolOrNumber),
		at("ports", func(r *Rule) *[]PortRange { return &r.Ports }, list(portRange, "a list of ports and ranges of ports")),
		at("icmp", func(r *Rule) **ICMP { return &r.ICMP }, pointer(icmpObject.rule())),
	},
}

var icmpObject = object[ICMP]{
	fields: []field[ICMP]{
		required(at("type", func(i *ICMP) *uint8 { return &i.Type }, wholeNumber[uint8](0, 255))),
		at("code", func(i *ICMP) **uint8 { return &i.Code }, pointer(wholeNumber[uint8](0, 255))),
	},
}

var runtimeObject = object[RuntimeConfig]{
	fields: []field[RuntimeConfig]{
		at(filterCapability, func(r *RuntimeConfig) **Filter { return &r.XDPFilter }, filterRule),
	},
	// The other capabilities are other plugins'. Ours in another case would be a pod without the
	// filter that somebody meant it to have.
	ignore: func(key string) bool { return !strings.EqualFold(key, filterCapability) },
}

// filterRule takes a filter whole: one that lacks a rule would say something else.
var filterRule = pointer(whole(filterObject.rule()))

var prefixList = list(prefix, "a list of CIDRs and addresses")

var ruleNamePattern = regexp.MustCompile(fmt.Sprintf(`^[A-Za-z0-9._-]{1,%d}$`, MaxRuleName))

var ruleName = text(fmt.Sprintf("a name of 1 to %d of the characters A-Z a-z 0-9 . _ -", MaxRuleName),
	ruleNamePattern.MatchString)

var protocolOrNumber = value(`"any", "tcp", "udp", "sctp", "icmp", "icmpv6" or a whole number from 0 to 255`,
	func(raw json.RawMessage) (Protocol, bool) {
		if s, ok := stringOf(raw); ok {
			i := slices.IndexFunc(protocols, func(c choice[Protocol]) bool { return c.word == s })
			if i < 0 {
				return 0, false
			}
			return protocols[i].value, true
		}
		n, ok := wholeNumberOf[uint8](raw, 0, 255)
		return Protocol(n), ok
	})

var portRange = value(`a port as "53", or a range of them as "8000-8999"`, func(raw json.RawMessage) (PortRange, bool) {
	s, _ := stringOf(raw)
	low, high, isRange := strings.Cut(s, "-")
	if !isRange {
		high = low
	}
	first, ok1 := portOf(low)
	last, ok2 := portOf(high)
	return PortRange{first, last}, ok1 && ok2 && first <= last
})

// portOf takes digits only, where ParseUint would take them after a sign, and no zeros before them,
// which some would read as octal.
func portOf(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && strconv.Itoa(int(n)) == s
}

// prefix refuses IPv4-mapped IPv6 prefixes: to the packet path they are IPv4, so the one who
// wrote IPv6 would get something else than it says.
var prefix = value(`a CIDR such as "10.0.0.0/8" or "fd00::/8", or an address`,
	func(raw json.RawMessage) (netip.Prefix, bool) {
		s, _ := stringOf(raw)
		if p, err := netip.ParsePrefix(s); err == nil {
			return p, !p.Addr().Is4In6()
		}
		a, err := netip.ParseAddr(s)
		return netip.PrefixFrom(a, a.BitLen()), err == nil && a.Zone() == "" && !a.Is4In6()
	})

// ruleList is the rule for the rules of a filter. It reads all of them, whatever is wrong with one.
var ruleList = rule[[]Rule]{"a list of rules", func(ps *problems, path string, raw json.RawMessage) ([]Rule, bool) {
	before := len(*ps)
	entries, ok := entriesOf(raw)
	switch {
	case !ok:
		ps.add(path, "want a list of rules, got %s", shown(raw))
		return nil, false
	case len(entries) > MaxRules:
		ps.add(path, "want at most %d rules, got %d", MaxRules, len(entries))
		return nil, false
	}
	rules := make([]Rule, len(entries))
	prefixes, first := 0, make(map[string]int, len(entries))
	for i, entry := range entries {
		r, at := &rules[i], fmt.Sprintf("%s[%d]", path, i)
		var own problems
		*r, ok = ruleObject.rule().read(&own, at, entry)
		if ok && len(own) == 0 {
			checkRule(&own, at, r)
		}
		if j, taken := first[r.Name]; taken && r.Name != "" {
			own.add(join(at, "name"), "want a name that no other rule has, got %q, as has %s[%d]", r.Name, path, j)
		} else {
			first[r.Name] = i
		}
		fit := prefixes <= MaxPrefixes
		prefixes += len(r.To) + len(r.From) + len(r.Except)
		if fit && prefixes > MaxPrefixes {
			own.add(at, "want at most %d prefixes in to, from and except of all rules together, got %d up to this one",
				MaxPrefixes, prefixes)
		}
		for _, p := range own {
			if r.Name != "" {
				p = fmt.Sprintf("rule %q: %s", r.Name, p)
			}
			*ps = append(*ps, p)
		}
	}
	return rules, len(*ps) == before
}}

// checkRule checks the keys of a rule against each other.
func checkRule(ps *problems, path string, r *Rule) {
	if r.Direction == Egress && len(r.From) > 0 {
		ps.add(join(path, "from"), `want "to" in an egress rule, got %s`, listed(r.From))
	}
	if r.Direction == Ingress && len(r.To) > 0 {
		ps.add(join(path, "to"), `want "from" in an ingress rule, got %s`, listed(r.To))
	}
	for i, except := range r.Except {
		if !withinOne(except, r.Remote()) {
			key := "to"
			if r.Direction == Ingress {
				key = "from"
			}
			ps.add(fmt.Sprintf("%s[%d]", join(path, "except"), i), "want a prefix within one of %q, got %q", key, except)
		}
	}
	if len(r.Ports) > 0 && !r.Protocol.HasPorts() {
		ps.add(join(path, "ports"), "want no ports, or a protocol that has them (tcp, udp, sctp), got %s with protocol %s",
			listed(r.Ports), r.Protocol)
	}
	if r.ICMP != nil && r.Protocol != ProtocolICMP && r.Protocol != ProtocolICMPv6 {
		ps.add(join(path, "icmp"), "want no ICMP type, or the protocol icmp or icmpv6, got type %d with protocol %s",
			r.ICMP.Type, r.Protocol)
	}
}

// withinOne says whether one of the prefixes holds all of p.
func withinOne(p netip.Prefix, prefixes []netip.Prefix) bool {
	for _, outer := range prefixes {
		if outer.Bits() <= p.Bits() && outer.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// listed returns a list as errors print it.
func listed[V fmt.Stringer](values []V) string {
	words := make([]string, 0, len(values))
	for _, v := range values {
		words = append(words, v.String())
	}
	return clip("[" + quoted(words) + "]")
}

// ParseProtocol reads the word of a protocol, or its number from 0 to 255.
func ParseProtocol(s string) (Protocol, error) {
	for _, c := range protocols {
		if c.word == s {
			return c.value, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("protocol %q: want %s", s, protocolOrNumber.want)
	}
	return Protocol(n), nil
}
