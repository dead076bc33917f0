package firewall

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

func TestMain(m *testing.M) { tests.Main(m) }

// pair returns two pods of a /16, in networks 10.88.1.0/24 and 10.88.2.0/24, that the node routes between.
func routed(source, destination string) Pair {
	return Pair{
		Source: netip.MustParseAddr(source), Destination: netip.MustParseAddr(destination),
		In: Interface{"vetha", 10}, Out: Interface{"vethb", 11},
	}
}

func bridged(source, destination string) Pair {
	p := routed(source, destination)
	p.In, p.Out, p.Bridged = Interface{"cni0", 9}, Interface{"cni0", 9}, true
	return p
}

// commands runs the lines of a script, each a command of nft, iptables or sysctl, on a node, and reads what there is then.
func commands(t *testing.T, n *tests.Node, script string) *Ruleset {
	t.Helper()
	for line := range strings.Lines(script) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		out, err := n.Run(exec.CommandContext(t.Context(), words[0], words[1:]...))
		if err != nil {
			t.Fatalf("%s: %v: %s", line, err, out.Stderr)
		}
	}
	var r *Ruleset
	err := n.Do(func() (err error) {
		r, err = Read()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestNothing: a namespace without rules has nothing to tell of.
func TestNothing(t *testing.T) {
	priv.Root(t)
	r := commands(t, tests.MustNode(t), "")
	p := routed("10.88.1.2", "10.88.2.2")
	if f, m, d := r.Forward([]Pair{p}), r.Masquerades(p), r.DropsInvalid(p); len(f)+len(m)+len(d)+len(r.Legacy()) > 0 {
		t.Errorf("%v, %v, %v, %v", f, m, d, r.Legacy())
	}
}

const nftTables = `
nft add table ip t
nft add chain ip t post { type nat hook postrouting priority 100 ; }
nft add chain ip t through { type filter hook forward priority 0 ; }
`

// TestMasquerades: rules that match packets between pods, and others that nearly do.
func TestMasquerades(t *testing.T) {
	priv.Root(t)
	p := routed("10.88.1.2", "10.88.2.2")
	for _, test := range []struct {
		name, script string
		pair         Pair
		want         int
	}{
		{"iptables, all", "iptables-nft -t nat -A POSTROUTING -j MASQUERADE", p, 1},
		{"iptables, of the pods' network, but to it", "iptables-nft -t nat -A POSTROUTING -s 10.88.0.0/16 ! -d 10.88.0.0/16 -j MASQUERADE", p, 0},
		{"iptables, of the pod's network, but to it", "iptables-nft -t nat -A POSTROUTING -s 10.88.1.0/24 ! -d 10.88.1.0/24 -j MASQUERADE", p, 1},
		{"iptables, of another network", "iptables-nft -t nat -A POSTROUTING -s 10.89.0.0/16 -j MASQUERADE", p, 0},
		{"iptables, SNAT", "iptables-nft -t nat -A POSTROUTING -s 10.88.1.2 -j SNAT --to-source 192.0.2.1", p, 1},
		{"docker", "iptables-nft -t nat -A POSTROUTING -s 10.88.1.0/24 ! -o vethb -j MASQUERADE", p, 0},
		{"docker, elsewhere", "iptables-nft -t nat -A POSTROUTING -s 10.88.1.0/24 ! -o docker0 -j MASQUERADE", p, 1},
		{"wildcard", "iptables-nft -t nat -A POSTROUTING -o veth+ -j MASQUERADE", p, 1},
		{"kube-proxy", `
iptables-nft -t nat -N KUBE-POSTROUTING
iptables-nft -t nat -A POSTROUTING -m comment --comment kubernetes -j KUBE-POSTROUTING
iptables-nft -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
iptables-nft -t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully`, p, 0},
		{"bridge with ipMasq", `
iptables-nft -t nat -N CNI-1
iptables-nft -t nat -A POSTROUTING -s 10.88.1.2/32 -j CNI-1
iptables-nft -t nat -A CNI-1 -d 10.88.0.0/16 -j ACCEPT
iptables-nft -t nat -A CNI-1 ! -d 224.0.0.0/4 -j MASQUERADE`, p, 0},
		{"bridge with ipMasq, to another network", `
iptables-nft -t nat -N CNI-1
iptables-nft -t nat -A POSTROUTING -s 10.88.1.2/32 -j CNI-1
iptables-nft -t nat -A CNI-1 -d 10.88.1.0/24 -j ACCEPT
iptables-nft -t nat -A CNI-1 ! -d 224.0.0.0/4 -j MASQUERADE`, p, 1},
		{"ports: it may be", "iptables-nft -t nat -A POSTROUTING -p tcp --dport 80 -j MASQUERADE", p, 1},
		{"to the node itself", "iptables-nft -t nat -A POSTROUTING -m addrtype --dst-type LOCAL -j MASQUERADE", p, 1},
		{"nft, all", nftTables + "nft add rule ip t post masquerade", p, 1},
		{"nft, sets", nftTables + "nft add rule ip t post ip saddr { 10.88.1.0/24, 10.99.0.0/16 } ip daddr != { 10.0.0.0/8 } masquerade", p, 0},
		{"nft, sets that match", nftTables + "nft add rule ip t post ip saddr { 10.88.1.0/24, 10.99.0.0/16 } ip daddr != { 192.0.2.0/24 } masquerade", p, 1},
		{"nft, past an interval", nftTables + "nft add rule ip t post ip saddr { 10.88.0.0/24, 10.99.0.0/16 } masquerade", p, 0},
		{"nft, range", nftTables + "nft add rule ip t post ip daddr 10.88.2.1-10.88.2.9 snat to 192.0.2.1", p, 1},
		{"nft, past a range", nftTables + "nft add rule ip t post ip daddr 10.88.2.3-10.88.2.9 snat to 192.0.2.1", p, 0},
		{"nft, verdict map", nftTables + `
nft add chain ip t masq
nft add rule ip t masq masquerade
nft add rule ip t post ip saddr vmap { 10.88.1.2 : jump masq }`, p, 1},
		{"nft, verdict map of another", nftTables + `
nft add chain ip t masq
nft add rule ip t masq masquerade
nft add rule ip t post ip saddr vmap { 10.88.1.3 : jump masq }`, p, 0},
		{"nft, accepted before", nftTables + `
nft add rule ip t post ip daddr 10.88.0.0/16 accept
nft add rule ip t post masquerade`, p, 0},
		{"nft, perhaps accepted before", nftTables + `
nft add rule ip t post tcp dport 80 accept
nft add rule ip t post masquerade`, p, 1},
		{"nft, returned", nftTables + `
nft add chain ip t masq
nft add rule ip t masq ip daddr 10.88.0.0/16 return
nft add rule ip t masq masquerade
nft add rule ip t post jump masq`, p, 0},
		{"nft, local", nftTables + "nft add rule ip t post fib daddr type local masquerade", p, 0},
		{"nft, dnat is none", nftTables + "nft add chain ip t pre { type nat hook prerouting priority -100 ; }\nnft add rule ip t pre dnat to 10.88.2.2", p, 0},
		{"the other family", "ip6tables-nft -t nat -A POSTROUTING -j MASQUERADE", p, 0},
		{"IPv6", "ip6tables-nft -t nat -A POSTROUTING -s fd00::/64 ! -d fd00::/64 -j MASQUERADE", routed("fd00::2", "fd01::2"), 1},
		{"IPv6, within", "ip6tables-nft -t nat -A POSTROUTING -s fd00::/64 ! -d fd00::/64 -j MASQUERADE", routed("fd00::2", "fd00::3"), 0},
		{"inet", "nft add table inet t\nnft add chain inet t post { type nat hook postrouting priority 100 ; }\nnft add rule inet t post meta nfproto ipv6 masquerade", routed("fd00::2", "fd00::3"), 1},
		{"inet, the other family", "nft add table inet t\nnft add chain inet t post { type nat hook postrouting priority 100 ; }\nnft add rule inet t post meta nfproto ipv6 masquerade", p, 0},
		{"bridged", "sysctl -qw net.bridge.bridge-nf-call-iptables=0\niptables-nft -t nat -A POSTROUTING -j MASQUERADE", bridged("10.88.1.2", "10.88.1.3"), 0},
		{"bridged, br_netfilter", "sysctl -qw net.bridge.bridge-nf-call-iptables=1\niptables-nft -t nat -A POSTROUTING -j MASQUERADE", bridged("10.88.1.2", "10.88.1.3"), 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			needBridgeCalls(t, test.script)
			r := commands(t, tests.MustNode(t), test.script)
			have := r.Masquerades(test.pair)
			if len(have) != test.want {
				t.Errorf("%v, want %d", have, test.want)
			}
			for _, rule := range have {
				if !strings.Contains(rule, "handle ") || strings.Contains(rule, "handle 0") {
					t.Errorf("%q has no handle", rule)
				}
			}
		})
	}
}

// needBridgeCalls leaves out what a kernel without br_netfilter cannot show.
func needBridgeCalls(t *testing.T, script string) {
	t.Helper()
	if _, err := os.Stat("/proc/sys/net/bridge"); strings.Contains(script, "bridge-nf") && err != nil {
		t.Skip("this kernel has no br_netfilter")
	}
}

// TestDropsInvalid: what drops packets of a connection that conntrack has lost, and not those it knows.
func TestDropsInvalid(t *testing.T) {
	priv.Root(t)
	p := routed("10.88.1.2", "10.88.2.2")
	for _, test := range []struct {
		name, script, want string
	}{
		{"iptables", "iptables-nft -A FORWARD -m conntrack --ctstate INVALID -j DROP", "chain ip filter FORWARD, rule"},
		{"iptables, of many", "iptables-nft -A FORWARD -m conntrack --ctstate INVALID,UNTRACKED -j REJECT", "chain ip filter FORWARD, rule"},
		{"iptables, not", "iptables-nft -A FORWARD -m conntrack ! --ctstate RELATED,ESTABLISHED,NEW -j DROP", "chain ip filter FORWARD, rule"},
		{"iptables, early", "iptables-nft -t mangle -A PREROUTING -m state --state INVALID -j DROP", "chain ip mangle PREROUTING, rule"},
		{"kube-proxy", `
iptables-nft -N KUBE-FORWARD
iptables-nft -A FORWARD -j KUBE-FORWARD
iptables-nft -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP`, "chain ip filter KUBE-FORWARD, rule"},
		{"iptables, of another network", "iptables-nft -A FORWARD -s 10.0.0.0/16 -m conntrack --ctstate INVALID -j DROP", ""},
		{"iptables, accepted before", `
iptables-nft -A FORWARD -s 10.88.0.0/16 -j ACCEPT
iptables-nft -A FORWARD -m conntrack --ctstate INVALID -j DROP`, ""},
		{"iptables, new ones", "iptables-nft -A FORWARD -m conntrack --ctstate NEW -j DROP", ""},
		{"iptables, all", "iptables-nft -A FORWARD -j DROP", ""},
		{"iptables, policy", `
iptables-nft -P FORWARD DROP
iptables-nft -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`, "the policy of chain ip filter FORWARD"},
		{"iptables, policy alone", "iptables-nft -P FORWARD DROP", ""},
		{"iptables, to the node", "iptables-nft -A INPUT -m conntrack --ctstate INVALID -j DROP", ""},
		{"nft", nftTables + "nft add rule ip t through ct state invalid drop", "chain ip t through, rule"},
		{"nft, vmap", nftTables + "nft add rule ip t through ct state vmap { established : accept, related : accept, invalid : drop }", "chain ip t through, rule"},
		{"nft, set", nftTables + "nft add rule ip t through ct state { invalid, untracked } reject", "chain ip t through, rule"},
		{"nft, not", nftTables + "nft add rule ip t through ct state != { new, established, related } drop", "chain ip t through, rule"},
		{"nft, established", nftTables + "nft add rule ip t through ct state established drop", ""},
		{"nft, mark", nftTables + "nft add rule ip t through ct mark 7 ct state invalid drop", "chain ip t through, rule"},
		{"nft, interface", nftTables + `nft add rule ip t through iifname eth9 ct state invalid drop`, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := commands(t, tests.MustNode(t), test.script)
			have := strings.Join(r.DropsInvalid(p), "; ")
			if test.want == "" && have != "" || !strings.HasPrefix(have, test.want) {
				t.Errorf("%q, want %q", have, test.want)
			}
		})
	}
}

// TestForward: chains at the hooks that redirected packets jump over, where there is more than accept.
func TestForward(t *testing.T) {
	priv.Root(t)
	const bridgeTable = `
nft add table bridge t
nft add chain bridge t through { type filter hook forward priority 0 ; }
nft add rule bridge t through ip saddr 10.0.0.1 drop`
	through, over := routed("10.88.1.2", "10.88.2.2"), bridged("10.88.1.2", "10.88.1.3")
	for _, test := range []struct {
		name, script string
		pair         Pair
		want         string
	}{
		{"rules", `
iptables-nft -A FORWARD -s 10.0.0.1 -j DROP
iptables-nft -A FORWARD -j REJECT
iptables-nft -A FORWARD -j ACCEPT`, through, "chain ip filter FORWARD: 2 rules"},
		{"policy", "iptables-nft -P FORWARD DROP", through, "chain ip filter FORWARD: policy drop"},
		{"both, through a jump", `
iptables-nft -P FORWARD DROP
iptables-nft -N OTHER
iptables-nft -A FORWARD -j OTHER
iptables-nft -A OTHER -j DROP`, through, "chain ip filter FORWARD: policy drop, 1 rule"},
		{"only accepts", "iptables-nft -A FORWARD -m conntrack --ctstate ESTABLISHED -s 10.0.0.0/8 -j ACCEPT", through, ""},
		{"marks", "iptables-nft -t mangle -A FORWARD -j MARK --set-mark 1", through, "chain ip mangle FORWARD: 1 rule"},
		{"logs", "iptables-nft -A FORWARD -j LOG", through, "chain ip filter FORWARD: 1 rule"},
		{"limits", nftTables + "nft add rule ip t through limit rate 10/second accept", through, "chain ip t through: 1 rule"},
		{"the other family", "ip6tables-nft -P FORWARD DROP", through, ""},
		{"to the node", "iptables-nft -P INPUT DROP", through, ""},
		{"verdict map", nftTables + "nft add rule ip t through ip saddr vmap { 10.0.0.1 : drop }", through, "chain ip t through: 1 rule"},
		{"bridge", bridgeTable, over, "chain bridge t through: 1 rule"},
		{"bridge, routed", bridgeTable, through, ""},
		{"bridged", "sysctl -qw net.bridge.bridge-nf-call-iptables=0\niptables-nft -P FORWARD DROP", over, ""},
		{"bridged, br_netfilter", "sysctl -qw net.bridge.bridge-nf-call-iptables=1\niptables-nft -P FORWARD DROP", over, "chain ip filter FORWARD: policy drop"},
	} {
		t.Run(test.name, func(t *testing.T) {
			needBridgeCalls(t, test.script)
			r := commands(t, tests.MustNode(t), test.script)
			if have := strings.Join(r.Forward([]Pair{test.pair}), "; "); have != test.want {
				t.Errorf("%q, want %q", have, test.want)
			}
		})
	}
}

// TestLegacy: of iptables-legacy it is known at which hooks there are rules.
func TestLegacy(t *testing.T) {
	priv.Root(t)
	if _, err := os.Stat("/proc/net/ip_tables_names"); err != nil {
		t.Skip("this kernel has no iptables-legacy")
	}
	r := commands(t, tests.MustNode(t), `
iptables-legacy -A FORWARD -j DROP
iptables-legacy -t nat -A POSTROUTING -j MASQUERADE
iptables-legacy -t mangle -A INPUT -j DROP
ip6tables-legacy -L`)
	have := map[Legacy]bool{}
	for _, l := range r.Legacy() {
		have[l] = true
	}
	for _, want := range []Legacy{
		{"ip", "filter", true, false}, {"ip", "nat", false, true}, {"ip", "mangle", false, false}, {"ip6", "filter", false, false},
	} {
		if !have[want] {
			t.Errorf("no %+v in %v", want, r.Legacy())
		}
	}
}

func TestLiberal(t *testing.T) {
	priv.Root(t)
	n := tests.MustNode(t)
	for _, want := range []bool{true, false} {
		value := map[bool]string{true: "1", false: "0"}[want]
		if err := n.Sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", value); err != nil {
			t.Fatal(err)
		}
		_ = n.Do(func() error {
			if have, tracking := Liberal(); have != want || !tracking {
				t.Errorf("%v, %v; want %v", have, tracking, want)
			}
			return nil
		})
	}
}
