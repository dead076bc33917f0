package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/tests"
)

// What a node has of kube-proxy: services, each of so many pods on other nodes.
const (
	kubeServices  = 50
	kubeEndpoints = 3
)

// kubeTool restores rules. Legacy, where there is a choice: it costs less than iptables by nf_tables, so what is
// compared with it gains less.
const kubeTool = "iptables-legacy-restore"

// kubeRules returns, for iptables-restore, the rules that kube-proxy in its iptables mode has for that
// (pkg/proxy/iptables/proxier.go in Kubernetes).
func kubeRules() string {
	const mark = "0x4000/0x4000"
	var chains, services, backends strings.Builder
	for i := range kubeServices {
		service, name := kubeAddress(0, i), fmt.Sprintf("bench/service-%d:http", i)
		chain := fmt.Sprintf("KUBE-SVC-%016X", i)
		fmt.Fprintf(&chains, ":%s - [0:0]\n", chain)
		fmt.Fprintf(&services, "-A KUBE-SERVICES -d %s/32 -p tcp -m comment --comment %q -m tcp --dport 80 -j %s\n",
			service, name+" cluster IP", chain)
		fmt.Fprintf(&backends, "-A %s ! -s 10.244.0.0/16 -d %s/32 -p tcp -m comment --comment %q -m tcp --dport 80 -j KUBE-MARK-MASQ\n",
			chain, service, name+" cluster IP")
		for j := range kubeEndpoints {
			endpoint := fmt.Sprintf("KUBE-SEP-%08X%08X", i, j)
			address := kubeAddress(1+j, i)
			chance := ""
			if left := kubeEndpoints - j; left > 1 {
				chance = fmt.Sprintf("-m statistic --mode random --probability %.10f ", 1/float64(left))
			}
			fmt.Fprintf(&chains, ":%s - [0:0]\n", endpoint)
			fmt.Fprintf(&backends, "-A %s -m comment --comment \"%s -> %s:8080\" %s-j %s\n", chain, name, address, chance, endpoint)
			fmt.Fprintf(&backends, "-A %s -s %s/32 -m comment --comment %q -j KUBE-MARK-MASQ\n", endpoint, address, name)
			fmt.Fprintf(&backends, "-A %s -p tcp -m comment --comment %q -m tcp -j DNAT --to-destination %s:8080\n", endpoint, name, address)
		}
	}
	return `*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
` + chains.String() + `-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark ` + mark + ` -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
` + services.String() +
		`-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
` + backends.String() + `COMMIT
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark ` + mark + ` -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
`
}

// kubeAddress is service number i's (of kind 0), or one of its pods'. No pod of the bench has one.
func kubeAddress(kind, i int) netip.Addr {
	if kind == 0 {
		return netip.AddrFrom4([4]byte{10, 96, 0, byte(10 + i)})
	}
	return netip.AddrFrom4([4]byte{10, 244, byte(100 + kind), byte(2 + i)})
}

// loadKube puts kube-proxy's rules in force on a node.
func loadKube(ctx context.Context, node *tests.Node) error {
	return command(ctx, node, kubeRules(), kubeTool)
}

// forgetFlows empties conntrack's table of a node.
func forgetFlows(node *tests.Node) error {
	err := node.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
	if err != nil {
		return fmt.Errorf("emptying conntrack's table: %w", err)
	}
	return nil
}
