package integration

import (
	"fmt"
	"strings"
)

// nft is nftables by its own tool.
type nft struct{}

func (f nft) commands(rules ruleset) []firewallCommand {
	script := []string{"flush ruleset"}
	for _, family := range firewallFamilies {
		script = append(script, f.table(family.nft, rules.of(family.is)))
	}
	return []firewallCommand{{[]string{"nft", "-f", "-"}, strings.Join(script, "\n")}}
}

// table is one of a family, "ip" or "ip6".
func (nft) table(family string, rules ruleset) string {
	var prerouting, postrouting, forward []string
	for _, s := range rules.translations {
		to := fmt.Sprintf("%s daddr %s %s dport %d", family, s.service.at.Addr(), s.service.protocol, s.service.at.Port())
		prerouting = append(prerouting,
			fmt.Sprintf("%s saddr %s %s meta mark set mark or %s", family, s.masqueraded, to, masqueradeMark),
			fmt.Sprintf("%s dnat to %s", to, s.backend))
	}
	postrouting = append(postrouting, fmt.Sprintf("mark and %s == %[1]s masquerade fully-random", masqueradeMark))
	for _, m := range rules.masquerades {
		postrouting = append(postrouting, fmt.Sprintf("%s saddr %s %[1]s daddr %s masquerade fully-random", family, m.from, m.to))
	}
	if rules.dropInvalid {
		forward = append(forward, "ct state invalid drop")
	}
	// neighbour discovery that is bridged comes by here, and is not tracked
	forward = append(forward, "ct state established,related,untracked accept")
	for _, d := range rules.allowed {
		forward = append(forward, fmt.Sprintf("%s daddr %s %s dport %d ct state new accept", family, d.at.Addr(), d.protocol, d.at.Port()))
	}
	policy := map[bool]string{true: "drop", false: "accept"}[rules.strict]
	chain := func(name, hook string, rules []string) string {
		return fmt.Sprintf("chain %s { type %s;\n%s\n}", name, hook, strings.Join(rules, "\n"))
	}
	return strings.Join([]string{
		fmt.Sprintf("table %s tests {", family),
		chain("prerouting", "nat hook prerouting priority dstnat", prerouting),
		chain("postrouting", "nat hook postrouting priority srcnat", postrouting),
		chain("forward", "filter hook forward priority filter; policy "+policy, forward),
		"}",
	}, "\n")
}
