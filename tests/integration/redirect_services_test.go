package integration

import (
	"net/netip"
	"testing"
)

// TestRedirectServices has pods talk to each other by addresses that the node translates: the client hears from the
// address that it spoke to, the server from the one that it is to see, and nothing of it is redirected.
func TestRedirectServices(t *testing.T) {
	r := newRedirectRig(t)
	cases := []struct {
		name   string
		rules  ruleset
		client func(p pair) redirectPod
		to     func(c call) netip.AddrPort
		heard  func(c call) netip.Addr
	}{
		{"service", r.kubeProxy(onlyItself), ofClient, call.service, theClient},
		{"masqueraded service", r.kubeProxy(everyone), ofClient, call.service, theNode},
		{"own service", r.kubeProxy(onlyItself), ofServer, call.service, theNode},
		{"masqueraded pods", r.masqueradePods(), ofClient, call.backend, theNode},
	}
	r.eachFirewall(t, func(t *testing.T, tool firewall) {
		for _, test := range cases {
			t.Run(test.name, func(t *testing.T) {
				r.mustApply(t, tool, test.rules)
				r.eachPair(t, func(t *testing.T, p pair) {
					r.byStack(t, func() {
						for _, c := range p.calls() {
							c.talk(t, test.client(p), test.to(c))
							c.serverHeard(t, test.heard(c))
						}
					})
				})
			})
		}
	})
}

// Who talks to the server, and whom it hears.
func ofClient(p pair) redirectPod { return p.client }
func ofServer(p pair) redirectPod { return p.server }
func theClient(c call) netip.Addr { return c.clientAddress(0).Addr() }
func theNode(c call) netip.Addr   { return c.server.gateways()[c.family] }

// masqueradePods are rules that have pods come to each other with the node's address.
func (r *redirectRig) masqueradePods() ruleset {
	rules := ruleset{dropInvalid: true}
	for _, w := range []redirectNet{bridgedNet, routedNet} {
		for _, subnet := range w.subnets {
			pods := netip.MustParsePrefix(subnet)
			rules.masquerades = append(rules.masquerades, masquerade{pods, pods})
		}
	}
	return rules
}
