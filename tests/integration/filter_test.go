package integration

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/tests"
)

// TestFilterThroughChain: a network's filter is in force when ADD returns, a pod's own stands in its place, and one
// that cannot be read leaves the pod without network and nothing behind.
func TestFilterThroughChain(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := start(t)
			network, err := n.Network(tests.Conflist("filter", "1.1.0", n.Bridge(tests.DualStack), n.XDP(tests.Conf{
				"mode": mode, "capabilities": tests.Conf{"xdpFilter": true},
				"filter": tests.Conf{"default": tests.Conf{"egress": "deny"}},
			})))
			if err != nil {
				t.Fatal(err)
			}
			closed, open := tests.MustPod(t, n, "closed"), tests.MustPod(t, n, "open")
			if _, err := network.Add(t.Context(), closed); err != nil {
				t.Fatal(err)
			}
			own := tests.Capability("xdpFilter", tests.Conf{
				"default": tests.Conf{"egress": "deny"},
				"rules": []tests.Conf{
					{"name": "ping", "direction": "egress", "action": "allow", "protocol": "icmp"},
					{"name": "ping6", "direction": "egress", "action": "allow", "protocol": "icmpv6"},
				},
			})
			if _, err := network.Add(t.Context(), open, own); err != nil {
				t.Fatal(err)
			}
			for _, gateway := range []netip.Addr{closed.GatewayIPv4(), closed.GatewayIPv6()} {
				answered, err := tests.PingCount(t.Context(), closed, gateway, 3, 100*time.Millisecond)
				if err != nil || answered > 0 {
					t.Errorf("%d answers from %s to a pod that may send nothing: %v", answered, gateway, err)
				}
				// in IPv6 its neighbour discovery is of its link-local address
				if err := tests.Ping(t.Context(), open, gateway, 3); err != nil {
					t.Errorf("from the pod with its own filter: %v", err)
				}
			}
			for _, pod := range []*tests.Pod{closed, open} {
				if err := network.Check(t.Context(), pod, own); err != nil {
					t.Errorf("check of %s: %v", pod.Name, err)
				}
			}
			broken := tests.MustPod(t, n, "broken")
			before := n.Tree()
			_, err = network.Add(t.Context(), broken, tests.Capability("xdpFilter", tests.Conf{
				"rules": []tests.Conf{{"name": "odd", "direction": "egress", "action": "allow", "protocol": "icmp", "ports": []string{"1"}}},
			}))
			if err == nil || !strings.Contains(err.Error(), "odd") && !strings.Contains(err.Error(), "rules[0]") {
				t.Errorf("a filter with ports of icmp: %v", err)
			}
			expect(t, "pins after an ADD that failed", n.Tree(), before)
			for _, pod := range []*tests.Pod{closed, open, broken} {
				if err := network.Del(t.Context(), pod); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
