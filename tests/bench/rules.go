package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/xdp-cni/xdp-cni/conf"
)

// ruleCounts are the lengths of lists of rules that are measured. Some of what is expected is of the last two.
var ruleCounts = []int{1, 10, 100, 1000, conf.MaxRules}

// ruleCount is how tables name one.
func ruleCount(n int) string {
	if n == 1 {
		return "1 rule"
	}
	return fmt.Sprintf("%d rules", n)
}

// A list of rules allows UDP, by destination: rule i has the prefix 10.x.y.0/24 with x.y = i, and as ports the eight from
// 10000 + 8i on, or only the first of them if i is even. What no rule allows is dropped. All of it can be said to
// iptables and nftables as well.
const (
	ruleNet      = 10 // first byte of the rules' addresses
	firstPort    = 10_000
	portsPerRule = 8
)

// ruleOf returns what rule i allows.
func ruleOf(i int) (to netip.Prefix, ports conf.PortRange) {
	to = netip.PrefixFrom(netip.AddrFrom4([4]byte{ruleNet, byte(i >> 8), byte(i)}), 24)
	ports.First = uint16(firstPort + portsPerRule*i)
	ports.Last = ports.First
	if i%2 == 1 {
		ports.Last += portsPerRule - 1
	}
	return to, ports
}

// matching returns an address and port that rule i matches, and no other.
func matching(i int) netip.AddrPort {
	to, ports := ruleOf(i)
	return netip.AddrPortFrom(to.Addr().Next(), ports.First)
}

// filterOf returns n rules as a filter.
func filterOf(n int, direction conf.Direction, stateful bool) *conf.Filter {
	f := &conf.Filter{
		Stateful: stateful, AntiSpoof: true, MaxFlows: conf.DefaultMaxFlows,
		Default: conf.Default{Egress: conf.Deny, Ingress: conf.Deny},
	}
	for i := range n {
		to, ports := ruleOf(i)
		r := conf.Rule{
			Name: fmt.Sprintf("rule-%d", i), Direction: direction, Action: conf.Allow,
			Protocol: conf.ProtocolUDP, Ports: []conf.PortRange{ports},
		}
		if direction == conf.Egress {
			r.To = []netip.Prefix{to}
		} else {
			r.From = []netip.Prefix{to}
		}
		f.Rules = append(f.Rules, r)
	}
	return f
}

// iptablesOf returns n rules for iptables-restore: a chain that packets pass rule by rule, but for those that conntrack
// knows.
func iptablesOf(n int) string {
	var s strings.Builder
	s.WriteString("*filter\n:FORWARD DROP\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n")
	for i := range n {
		to, ports := ruleOf(i)
		fmt.Fprintf(&s, "-A FORWARD -d %s -p udp -m udp --dport %d:%d -j ACCEPT\n", to, ports.First, ports.Last)
	}
	s.WriteString("COMMIT\n")
	return s.String()
}

// nftablesOf returns n rules for nft: one lookup in a verdict map, but for the packets that conntrack knows.
func nftablesOf(n int) string {
	elements := make([]string, n)
	for i := range n {
		to, ports := ruleOf(i)
		elements[i] = fmt.Sprintf("%s . %s : accept", to, ports)
	}
	return fmt.Sprintf(`table ip bench {
	map rules {
		type ipv4_addr . inet_service : verdict
		flags interval
		elements = { %s }
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state vmap { established : accept, related : accept }
		meta l4proto udp ip daddr . udp dport vmap @rules
	}
}
`, strings.Join(elements, ",\n"))
}
