package integration

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests"
)

// TestRedirectNetworks has pods of different networks and bridges talk to each other, as far as the node routes between
// them: redirect changes nothing of that, and passes from one network to another only if both say so.
func TestRedirectNetworks(t *testing.T) {
	n := start(t)
	apart, across := any(true), any(tests.Conf{"acrossNetworks": true})
	number := 0
	// each has subnets and a bridge of its own
	network := func(name, shape string, redirect any, main tests.Conf) redirectNet {
		number++
		return redirectNet{
			name: name, shape: shape, bridge: fmt.Sprintf("cni%d", number), main: main, redirect: redirect,
			subnets: []string{fmt.Sprintf("10.250.%d.0/24", number), fmt.Sprintf("fd00:10:250:%x::/64", number)},
		}
	}
	masquerading := tests.Conf{"ipMasq": true}
	for _, test := range []struct {
		name           string
		client, server redirectNet
		direct         bool
		heard          func(c call) netip.Addr
	}{
		{"two bridges", network("a", "bridge", apart, nil), network("b", "bridge", apart, nil), false, theClient},
		{"two routed", network("c", "ptp", apart, nil), network("d", "ptp", apart, nil), false, theClient},
		{"bridged and routed", network("e", "bridge", apart, nil), network("f", "ptp", apart, nil), false, theClient},
		{"one across", network("g", "bridge", across, nil), network("h", "bridge", apart, nil), false, theClient},
		{"two bridges across", network("i", "bridge", across, nil), network("j", "bridge", across, nil), true, theClient},
		{"two routed across", network("k", "ptp", across, nil), network("l", "ptp", across, nil), true, theClient},
		{"bridged and routed across", network("m", "bridge", across, nil), network("n", "ptp", across, nil), true, theClient},
		{"one network on two bridges", network("o", "bridge", apart, nil), network("o", "bridge", apart, nil), true, theClient},
		{"masqueraded across", network("p", "bridge", across, masquerading), network("q", "ptp", across, masquerading), false, theNode},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := &redirectRig{Node: n}
			for _, mode := range redirectModes {
				r.pair(mode, r.add(t, test.client, mode, "client"), r.add(t, test.server, mode, "server"))
			}
			r.eachPair(t, func(t *testing.T, p pair) {
				r.counted(t, p, test.heard, func(protocol, mode, other string) bool {
					return test.direct && goesDirect(protocol, mode, other)
				})
			})
		})
	}
}
