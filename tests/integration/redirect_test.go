package integration

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/plugin/bigtcp"
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
// packets a GSO packet stands for: then only bytes are compared. Of TCP in native mode by the stack only packets are: GRO at
// the host end merges frames, and their headers.
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
			merged := protocol == "tcp" && mode == "native" && !goesDirect(protocol, mode, mode)
			if !merged && from.Bytes != to.Bytes || mode != "generic" && from.Packets != to.Packets {
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
					least := uint64(0)
					if goesDirect("udp", mode, mode) {
						least += datagrams - 1 + pings - 1
					}
					if goesDirect("tcp", mode, mode) {
						least += stream / 65536
					}
					if got := client.Egress["redirect"].Packets; got < least || least == 0 && got > 0 {
						t.Errorf("%s: %d packets went directly, want at least %d, and none if that is 0", server, got, least)
					}
				}
			})
		}
	}
}

// TestRedirectBigTCP sends a stream between pods whose limits are raised, and looks at how large its packets are. Where
// the kernel has no BIG TCP, "auto" does without.
func TestRedirectBigTCP(t *testing.T) {
	const stream = 32 << 20
	asked := tests.Conf{"mode": "tcx", "redirect": true, "bigTCP": true}
	size := uint32(bigtcp.Size)
	if !haveBigTCP(t, start(t), asked) {
		asked["bigTCP"], size = "auto", 0 // the kernel does not say one
	}
	r := startRedirected(t, func(n *tests.Node) tests.Conf { return n.Bridge(tests.IPv4) }, asked)
	for _, pod := range []*tests.Pod{r.client, r.server} {
		for end, link := range ends(t, r.node, pod) {
			if a := link.Attrs(); a.GSOIPv4MaxSize != size || a.GROIPv4MaxSize != size {
				t.Errorf("the limits of %s's %s are %d and %d, want %d", pod.Name, end, a.GSOIPv4MaxSize, a.GROIPv4MaxSize, size)
			}
		}
	}
	echo := tests.MustEcho(t, r.server, r.server.IPv4())
	before, counted := ends(t, r.node, r.client)["host end"].Attrs().Statistics, readStats(t, r.node, r.client)
	if err := tests.EchoTCP(t.Context(), r.client, echo.TCP, stream); err != nil {
		t.Fatal(err)
	}
	after := ends(t, r.node, r.client)["host end"].Attrs().Statistics
	largest := (after.RxBytes - before.RxBytes) / (after.RxPackets - before.RxPackets)
	t.Logf("%d bytes a packet", largest)
	counts := readStats(t, r.node, r.client).since(counted)
	if got := counts.Egress["redirect"]; got.Bytes < stream || got.Packets < stream/1448 {
		t.Errorf("%v went directly, want at least %d bytes in packets of at most 1448", got, stream)
	}
	if counts.Kinds.Egress["malformed"].Packets+counts.Kinds.Egress["truncated"].Packets > 0 {
		t.Errorf("broken packets: %v", counts.Kinds.Egress)
	}
	if seen := after.RxBytes - before.RxBytes; seen < stream {
		t.Errorf("the host end saw %d bytes, want at least %d", seen, stream)
	}
}

// ends returns both ends of a pod's veth.
func ends(t *testing.T, n *tests.Node, pod *tests.Pod) map[string]netlink.Link {
	t.Helper()
	host, err := pod.HostInterface()
	if err != nil {
		t.Fatal(err)
	}
	var end netlink.Link
	if err := pod.Do(func() (err error) {
		end, err = netlink.LinkByName(pod.IfName)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return map[string]netlink.Link{"host end": host, "pod end": end}
}
