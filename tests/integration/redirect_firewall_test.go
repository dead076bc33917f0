package integration

import (
	"context"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
)

// firewall is a tool that puts rules in force on a node.
type firewall interface {
	// commands are what replaces all rules of the node, each with its standard input.
	commands(rules ruleset) []firewallCommand
}

type firewallCommand struct {
	name  []string
	stdin string
}

// ruleset is what a node's firewall is to do with what it forwards.
type ruleset struct {
	translations []translation
	// masquerades are packets that get the node's address as their source.
	masquerades []masquerade
	// dropInvalid drops what belongs to no connection, as kube-proxy does.
	dropInvalid bool
	// strict forwards nothing but connections to what is allowed.
	strict  bool
	allowed []destination
}

// destination is where a server listens.
type destination struct {
	protocol string
	at       netip.AddrPort
}

// translation is a service: who comes to its address gets to the backend.
type translation struct {
	service destination
	backend netip.AddrPort
	// masqueraded are those whose packets get the node's address as their source, by a mark, as kube-proxy has it.
	masqueraded netip.Prefix
}

// masquerade is by where packets come from and go to.
type masquerade struct{ from, to netip.Prefix }

// firewallFamilies are what rules have of their own in each family.
var firewallFamilies = []struct {
	is   func(netip.Addr) bool
	save string // what the names of the family's iptables begin with
	nft  string // what nft calls the family
}{
	{netip.Addr.Is4, "iptables", "ip"},
	{netip.Addr.Is6, "ip6tables", "ip6"},
}

// of is what of the rules is of one family.
func (r ruleset) of(is func(netip.Addr) bool) ruleset {
	part := ruleset{dropInvalid: r.dropInvalid, strict: r.strict}
	for _, s := range r.translations {
		if is(s.backend.Addr()) {
			part.translations = append(part.translations, s)
		}
	}
	for _, m := range r.masquerades {
		if is(m.from.Addr()) {
			part.masquerades = append(part.masquerades, m)
		}
	}
	for _, d := range r.allowed {
		if is(d.at.Addr()) {
			part.allowed = append(part.allowed, d)
		}
	}
	return part
}

// firewalls are the tools, by the names of tests.
var firewalls = []struct {
	name string
	firewall
}{
	{"nft", nft{}},
	{"iptables-nft", iptables{"nft"}},
	{"iptables-legacy", iptables{"legacy"}},
}

// eachFirewall runs a test with each tool. No rules are left when the test ends.
func (r *redirectRig) eachFirewall(t *testing.T, test func(t *testing.T, tool firewall)) {
	for _, tool := range firewalls {
		t.Run(tool.name, func(t *testing.T) {
			for _, command := range tool.commands(ruleset{}) {
				if _, err := exec.LookPath(command.name[0]); err != nil {
					t.Skipf("%s is not installed: apt-get install iptables nftables", command.name[0])
				}
			}
			defer func() {
				// the test's own context may be over
				if err := r.apply(context.Background(), tool, ruleset{}); err != nil {
					t.Error(err)
				}
			}()
			test(t, tool)
		})
	}
}

// firewallError is what a tool said of rules that it did not take.
type firewallError struct {
	command firewallCommand
	stderr  string
	err     error
}

func (e *firewallError) Error() string {
	return strings.Join(e.command.name, " ") + ": " + e.err.Error() + ": " + e.stderr + "\n" + e.command.stdin
}

func (e *firewallError) Unwrap() error { return e.err }

// apply puts rules in force in the place of those there.
func (r *redirectRig) apply(ctx context.Context, tool firewall, rules ruleset) error {
	for _, command := range tool.commands(rules) {
		cmd := exec.CommandContext(ctx, command.name[0], command.name[1:]...)
		cmd.Stdin = strings.NewReader(command.stdin)
		if out, err := r.Run(cmd); err != nil {
			return &firewallError{command, string(out.Stderr), err}
		}
	}
	return nil
}

// mustApply is apply in a test.
func (r *redirectRig) mustApply(t *testing.T, tool firewall, rules ruleset) {
	t.Helper()
	if err := r.apply(t.Context(), tool, rules); err != nil {
		t.Fatal(err)
	}
}

// single is the prefix of one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// kubeProxy are rules as kube-proxy would make for services of all pairs: what belongs to no connection is dropped, and
// what backends send to themselves is masqueraded.
func (r *redirectRig) kubeProxy(masqueraded func(c call) netip.Prefix) ruleset {
	rules := ruleset{dropInvalid: true}
	for _, c := range r.calls() {
		rules.translations = append(rules.translations, translation{
			destination{c.transport.name, c.service()}, c.backend(), masqueraded(c),
		})
	}
	return rules
}

// onlyItself has a backend masqueraded that talks to its own service.
func onlyItself(c call) netip.Prefix { return single(c.backend().Addr()) }

// everyone has all clients masqueraded.
func everyone(c call) netip.Prefix { return netip.PrefixFrom(anyOf(c.backend().Addr()), 0) }
