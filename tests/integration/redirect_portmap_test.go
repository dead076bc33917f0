package integration

import (
	"net/netip"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests"
)

// nodePort is the first of the ports of the node that are mapped to pods', each for TCP and UDP.
const nodePort = 8080

// TestRedirectPortmap has pods talk to each other, and to themselves, by ports of the node that the portmap plugin maps.
func TestRedirectPortmap(t *testing.T) {
	needsFirewall(t)
	node := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	for _, test := range []struct {
		name  string
		conf  tests.Conf
		heard func(c call) netip.Addr
		own   bool // a pod reaches itself: only masqueraded can it
	}{
		// it takes all of the pod's subnet for the pod
		{"iptables", tests.Conf{"backend": "iptables"}, theNode, true},
		{"iptables, not masqueraded", tests.Conf{"backend": "iptables", "snat": false}, theClient, false},
		{"nftables", tests.Conf{"backend": "nftables"}, theClient, true},
		{"nftables, not masqueraded", tests.Conf{"backend": "nftables", "snat": false}, theClient, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := &redirectRig{Node: start(t)}
			for _, address := range node {
				addAddress(t, r.Node, "lo", single(address))
			}
			test.conf["type"], test.conf["capabilities"] = "portmap", tests.Conf{"portMappings": true}
			for _, w := range []redirectNet{bridgedNet, routedNet} {
				w.chained = []tests.Conf{test.conf}
				for _, mode := range redirectModes {
					port := uint16(nodePort + len(r.pairs))
					r.pair(w.shape+" "+mode, r.add(t, w, mode, "client"), r.add(t, w, mode, "server", mapped(port)))
				}
			}
			for i, p := range r.pairs {
				t.Run(p.name, func(t *testing.T) {
					r.byStack(t, func() {
						for _, c := range p.calls() {
							to := netip.AddrPortFrom(node[c.family], uint16(nodePort+i))
							c.talk(t, c.client, to)
							c.serverHeard(t, test.heard(c))
							if test.own {
								c.talk(t, c.server, to)
								c.serverHeard(t, theNode(c))
							}
						}
					})
				})
			}
		})
	}
}

// mapped maps a port of the node to the pod's servers.
func mapped(port uint16) podOption {
	return func(p redirectPod) tests.CallOption {
		var mappings []tests.Conf
		for _, transport := range transports {
			mappings = append(mappings, tests.Conf{
				"hostPort": port, "containerPort": transport.port(p.echo), "protocol": transport.name,
			})
		}
		return tests.Capability("portMappings", mappings)
	}
}
