package integration

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests"
)

// redirectNet is a network with redirect on a node.
type redirectNet struct {
	name, shape string
	bridge      string       // of the shape bridge
	subnets     []string     // IPv4 and IPv6
	main        tests.Conf   // overrides what the first plugin has
	chained     []tests.Conf // between the first plugin and ours
	redirect    any
}

// Two networks, one of each shape of chain. The bridge sends back to a pod what the pod sent to itself by a service.
var (
	bridgedNet = redirectNet{
		name: "bridged", shape: "bridge", bridge: "cni0", subnets: []string{"10.244.0.0/24", "fd00:10:244::/64"}, redirect: true,
	}
	routedNet = redirectNet{
		name: "routed", shape: "ptp", subnets: []string{"10.245.0.0/24", "fd00:10:245::/64"}, redirect: true,
	}
)

// conflist is that of the network for pods of a mode: modes are of pods, not of networks.
func (w redirectNet) conflist(n *tests.Node, mode string) string {
	main := n.PTP(tests.DualStack)
	if w.shape == "bridge" {
		main = n.Bridge(tests.DualStack, tests.Conf{"bridge": w.bridge, "hairpinMode": true})
	}
	var ranges [][]tests.Conf
	for _, subnet := range w.subnets {
		ranges = append(ranges, []tests.Conf{{"subnet": subnet}})
	}
	main["ipam"].(tests.Conf)["ranges"] = ranges
	maps.Copy(main, w.main)
	plugins := append([]tests.Conf{main}, w.chained...)
	plugins = append(plugins, n.XDP(tests.Conf{"mode": mode, "redirect": w.redirect}))
	return tests.Conflist(w.name, "1.1.0", plugins...)
}

// redirectPod is a pod with echo servers at all its addresses.
type redirectPod struct {
	*tests.Pod
	mode string
	echo *tests.Echo
}

// gateways are the addresses that the node has towards the pod, IPv4 and IPv6.
func (p redirectPod) gateways() []netip.Addr { return []netip.Addr{p.GatewayIPv4(), p.GatewayIPv6()} }

// pair is two pods of a node, of which one talks to the other.
type pair struct {
	name           string
	client, server redirectPod
	services       []netip.Addr // addresses of nobody, IPv4 and IPv6, that the node may translate to the server's
}

// redirectRig is a node with pairs of pods.
type redirectRig struct {
	*tests.Node
	pods  []redirectPod
	pairs []pair
}

// podOption makes a pod other than most.
type podOption func(p redirectPod) tests.CallOption

// add makes a pod in a network.
func (r *redirectRig) add(t *testing.T, w redirectNet, mode, role string, options ...podOption) redirectPod {
	t.Helper()
	p := redirectPod{Pod: tests.MustPod(t, r.Node, role+"-"+mode+"-"+w.name), mode: mode}
	// there before the addresses are: a port mapping wants to know its port
	p.echo = tests.MustEcho(t, p, netip.IPv6Unspecified())
	var calls []tests.CallOption
	for _, option := range options {
		calls = append(calls, option(p))
	}
	tests.MustAdd(t, tests.MustNetwork(t, r.Node, w.conflist(r.Node, mode)), p.Pod, calls...)
	for _, address := range families(p.Pod) {
		if err := tests.WaitAddress(t.Context(), p, address); err != nil {
			t.Fatal(err)
		}
	}
	r.pods = append(r.pods, p)
	return p
}

// pair has two pods talk to each other in tests.
func (r *redirectRig) pair(name string, client, server redirectPod) pair {
	v4, v6 := netip.MustParseAddr("10.96.0.1").As4(), netip.MustParseAddr("fd00:10:96::1").As16()
	v4[3] += byte(len(r.pairs))
	v6[15] += byte(len(r.pairs))
	p := pair{name, client, server, []netip.Addr{netip.AddrFrom4(v4), netip.AddrFrom16(v6)}}
	r.pairs = append(r.pairs, p)
	return p
}

// redirectModes are those that differ.
var redirectModes = []string{"tcx", "native", "generic"}

// newRedirectRig makes a node with a client and a server of each mode in each shape of chain, and pairs of each client
// with each server of its network.
func newRedirectRig(t *testing.T) *redirectRig {
	t.Helper()
	r := &redirectRig{Node: start(t)}
	for _, w := range []redirectNet{bridgedNet, routedNet} {
		clients, servers := map[string]redirectPod{}, map[string]redirectPod{}
		for _, mode := range redirectModes {
			clients[mode], servers[mode] = r.add(t, w, mode, "client"), r.add(t, w, mode, "server")
		}
		for _, from := range redirectModes {
			for _, to := range redirectModes {
				r.pair(w.shape+" "+from+" to "+to, clients[from], servers[to])
			}
		}
	}
	return r
}

// call is one way for a client to talk to a server: a family and a transport.
type call struct {
	pair
	transport
	family int // 0 for IPv4, 1 for IPv6
}

// calls are all ways in which a pair can talk.
func (p pair) calls() (calls []call) {
	for family := range p.services {
		for _, transport := range transports {
			calls = append(calls, call{p, transport, family})
		}
	}
	return calls
}

// calls are those of all pairs.
func (r *redirectRig) calls() (calls []call) {
	for _, p := range r.pairs {
		calls = append(calls, p.calls()...)
	}
	return calls
}

func (c call) String() string { return c.transport.name + " " + []string{"IPv4", "IPv6"}[c.family] }

// clientAddress is the client's own, with a port, which may be 0 for any.
func (c call) clientAddress(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(families(c.client.Pod)[c.family], port)
}

// backend is where the server listens.
func (c call) backend() netip.AddrPort {
	return netip.AddrPortFrom(families(c.server.Pod)[c.family], c.port(c.server.echo))
}

// service is an address that the node may translate to the backend.
func (c call) service() netip.AddrPort { return netip.AddrPortFrom(c.services[c.family], 80) }

// eachPair runs a test of each pair.
func (r *redirectRig) eachPair(t *testing.T, test func(t *testing.T, p pair)) {
	for _, p := range r.pairs {
		t.Run(p.name, func(t *testing.T) { test(t, p) })
	}
}
