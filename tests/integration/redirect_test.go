package integration

import (
	"net/netip"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests"
)

// shapes are the chains that pods of a node are put together by.
var shapes = []struct {
	name string
	conf func(n *tests.Node) tests.Conf
}{
	{"bridge", func(n *tests.Node) tests.Conf { return n.Bridge(tests.DualStack) }},
	{"ptp", func(n *tests.Node) tests.Conf { return n.PTP(tests.DualStack) }},
}

// redirected is two pods of a network whose packets go directly.
type redirected struct {
	node           *tests.Node
	client, server *tests.Pod
}

func startRedirected(t *testing.T, shape func(n *tests.Node) tests.Conf, xdp tests.Conf) *redirected {
	t.Helper()
	r := &redirected{node: start(t)}
	network := tests.MustNetwork(t, r.node, tests.Conflist("redirect", "1.1.0", shape(r.node), r.node.XDP(xdp)))
	r.client, r.server = tests.MustPod(t, r.node, "client"), tests.MustPod(t, r.node, "server")
	for _, pod := range []*tests.Pod{r.client, r.server} {
		tests.MustAdd(t, network, pod)
	}
	return r
}

// checkSums checks that one pod got all that the other sent, directly or not. Generic XDP does not see how many
// packets a GSO packet stands for: then only bytes are compared.
func checkSums(t *testing.T, mode string, client, server stats) {
	t.Helper()
	for _, way := range []struct {
		name     string
		from, to direction
	}{
		{"to the server", client.Protocols.Egress, server.Protocols.Ingress},
		{"to the client", server.Protocols.Egress, client.Protocols.Ingress},
	} {
		for _, protocol := range []string{"tcp", "udp"} {
			from, to := way.from[protocol], way.to[protocol]
			if from.Bytes != to.Bytes || mode != "generic" && from.Packets != to.Packets {
				t.Errorf("%s %s: %v was sent and %v came", protocol, way.name, from, to)
			}
		}
	}
}

// TestRedirect sends TCP, UDP and echo between two pods: all arrives, what can goes directly, and the counters of
// the two agree.
func TestRedirect(t *testing.T) {
	for _, shape := range shapes {
		for _, mode := range modes[:3] {
			const stream, datagrams, pings = 1 << 20, 100, 5
			t.Run(shape.name+" "+mode, func(t *testing.T) {
				r := startRedirected(t, shape.conf, tests.Conf{"mode": mode, "redirect": true})
				for _, server := range []netip.Addr{r.server.IPv4(), r.server.IPv6()} {
					echo := tests.MustEcho(t, r.server, server)
					quiet(t, r.client, r.server)
					client, target := readStats(t, r.node, r.client), readStats(t, r.node, r.server)
					if err := tests.EchoTCP(t.Context(), r.client, echo.TCP, stream); err != nil {
						t.Error(err)
					}
					if err := tests.EchoUDP(t.Context(), r.client, echo.UDP, datagrams, 1000); err != nil {
						t.Error(err)
					}
					if err := tests.Ping(t.Context(), r.client, server, pings); err != nil {
						t.Error(err)
					}
					quiet(t, r.client, r.server)
					client, target = readStats(t, r.node, r.client).since(client), readStats(t, r.node, r.server).since(target)
					checkSums(t, mode, client, target)
					// the first packet of each flow, and of TCP the SYN, go by the stack; all of TCP in generic mode
					least := uint64(datagrams - 1 + pings - 1)
					if mode != "generic" {
						least += stream / 65536
					}
					if got := client.Egress["redirect"].Packets; got < least {
						t.Errorf("%s: %d packets went directly, want at least %d", server, got, least)
					}
				}
			})
		}
	}
}
