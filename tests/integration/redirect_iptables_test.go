package integration

import (
	"fmt"
	"strings"
)

// iptables is iptables and ip6tables, of one backend.
type iptables struct{ backend string }

// masqueradeMark is kube-proxy's (its --iptables-masquerade-bit).
const masqueradeMark = "0x4000"

func (f iptables) commands(rules ruleset) (commands []firewallCommand) {
	for _, family := range firewallFamilies {
		commands = append(commands, firewallCommand{
			[]string{family.save + "-" + f.backend + "-restore"}, f.tables(rules.of(family.is)),
		})
	}
	return commands
}

// tables are what iptables-restore reads, of which it replaces all that is there.
func (iptables) tables(rules ruleset) string {
	lines := []string{"*nat"}
	for _, s := range rules.translations {
		to := fmt.Sprintf("-d %s -p %s --dport %d", s.service.at.Addr(), s.service.protocol, s.service.at.Port())
		lines = append(lines,
			fmt.Sprintf("-A PREROUTING -s %s %s -j MARK --or-mark %s", s.masqueraded, to, masqueradeMark),
			fmt.Sprintf("-A PREROUTING %s -j DNAT --to-destination %s", to, s.backend))
	}
	lines = append(lines, fmt.Sprintf("-A POSTROUTING -m mark --mark %s/%[1]s -j MASQUERADE --random-fully", masqueradeMark))
	for _, m := range rules.masquerades {
		lines = append(lines, fmt.Sprintf("-A POSTROUTING -s %s -d %s -j MASQUERADE --random-fully", m.from, m.to))
	}
	lines = append(lines, "COMMIT", "*filter", ":FORWARD "+map[bool]string{true: "DROP", false: "ACCEPT"}[rules.strict])
	if rules.dropInvalid {
		lines = append(lines, "-A FORWARD -m conntrack --ctstate INVALID -j DROP")
	}
	// neighbour discovery that is bridged comes by here, and is not tracked
	lines = append(lines, "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED,UNTRACKED -j ACCEPT")
	for _, d := range rules.allowed {
		lines = append(lines, fmt.Sprintf("-A FORWARD -d %s -p %s --dport %d -m conntrack --ctstate NEW -j ACCEPT",
			d.at.Addr(), d.protocol, d.at.Port()))
	}
	return strings.Join(append(lines, "COMMIT", ""), "\n")
}
