package integration

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
)

// Bytes of headers, by which frames are longer than what sockets send.
const (
	ethernetLen = 14
	ipv4Len     = 20
	ipv6Len     = 40
	udpLen      = 8
	icmpLen     = 8
)

// TestExactCounts sends known packets between two pods and expects each to be counted once, in the
// right place, at both pods, in each mode and both shapes of chain.
func TestExactCounts(t *testing.T) {
	for _, mode := range modes {
		for _, shape := range []string{"bridge", "ptp"} {
			t.Run(mode+" "+shape, func(t *testing.T) {
				n := start(t)
				chain := n.Bridge(tests.DualStack)
				if shape == "ptp" {
					chain = n.PTP(tests.DualStack)
				}
				// below 6.17 each CPU keeps 128 entries of an LRU map for itself, and another evicts what it needs: of a
				// map for fewer peers than that it may take one that is new (kernel/bpf/bpf_lru_list.c)
				w := tests.MustNetwork(t, n, tests.Conflist("net", "1.1.0", chain,
					n.XDP(tests.Conf{"mode": mode, "stats": tests.Conf{"peers": 1024}})))
				client, server := tests.MustPod(t, n, "client"), tests.MustPod(t, n, "server")
				tests.MustAdd(t, w, client, tests.KubernetesArgs("default", "client", "uid-client"))
				tests.MustAdd(t, w, server)
				if err := w.Check(t.Context(), client, tests.KubernetesArgs("default", "client", "uid-client")); err != nil {
					t.Errorf("CHECK: %v", err)
				}
				if shape == "bridge" {
					if err := tests.Introduce(client, server); err != nil {
						t.Fatal(err)
					}
				}
				s := readStats(t, n, client)
				wantMode := mode
				if mode == "auto" {
					wantMode = autoMode(t)
				}
				expect(t, "mode", s.Mode, wantMode)
				expect(t, "pod", s.Pod, struct{ Namespace, Name, UID string }{"default", "client", "uid-client"})
				expect(t, "network", s.Network, "net")
				if !strings.Contains(strings.Join(s.Addresses, " "), client.IPv4().String()+"/") || len(s.Addresses) != 2 {
					t.Errorf("addresses are %v, want %s and %s", s.Addresses, client.IPv4(), client.IPv6())
				}
				icmp(t, n, client, server, server.IPv4(), "icmp", "ipv4", ethernetLen+ipv4Len+icmpLen+tests.PingPayload)
				icmp(t, n, client, server, server.IPv6(), "icmpv6", "ipv6", ethernetLen+ipv6Len+icmpLen+tests.PingPayload)
				icmp(t, n, client, nil, client.GatewayIPv4(), "icmp", "ipv4", ethernetLen+ipv4Len+icmpLen+tests.PingPayload)
				udp(t, n, client, server, server.IPv4(), ethernetLen+ipv4Len+udpLen)
				udp(t, n, client, server, server.IPv6(), ethernetLen+ipv6Len+udpLen)
				tcp(t, n, client, server, server.IPv4())
				tcp(t, n, client, server, server.IPv6())
				peers(t, n, client, server)
			})
		}
	}
}

// autoMode is what mode auto chooses on this kernel.
func autoMode(t *testing.T) string {
	t.Helper()
	features, err := datapath.ProbeFeatures()
	if err != nil {
		t.Fatal(err)
	}
	return datapath.AutoMode(features).String()
}

// measure runs traffic and returns what was counted for it at the pods.
func measure(t *testing.T, n *tests.Node, pods []*tests.Pod, traffic func() error) []stats {
	t.Helper()
	quiet(t, pods...)
	var before, diff []stats
	for _, pod := range pods {
		before = append(before, readStats(t, n, pod))
	}
	if err := traffic(); err != nil {
		t.Fatal(err)
	}
	quiet(t, pods...)
	for i, pod := range pods {
		diff = append(diff, readStats(t, n, pod).since(before[i]))
	}
	return diff
}

func icmp(t *testing.T, n *tests.Node, client, server *tests.Pod, to netip.Addr, protocol, family string, size uint64) {
	t.Helper()
	const pings = 7
	pods := []*tests.Pod{client}
	if server != nil {
		pods = append(pods, server)
	}
	want := counter{pings, pings * size}
	for i, s := range measure(t, n, pods, func() error { return tests.Ping(t.Context(), client, to, pings) }) {
		name := pods[i].Name + ", ping " + to.String() + ": "
		if family == "ipv6" || server == nil {
			// neighbour discovery and ARP with the gateway are the stack's own choice
			noise := s.Protocols.Egress["icmpv6"].Packets - pings
			if family == "ipv6" && (s.Protocols.Egress["icmpv6"].Packets < pings || noise > 4) {
				t.Errorf("%sICMPv6 egress %v", name, s.Protocols.Egress["icmpv6"])
			}
			if family == "ipv4" {
				expect(t, name+"icmp egress", s.Protocols.Egress["icmp"], want)
				expect(t, name+"icmp ingress", s.Protocols.Ingress["icmp"], want)
			}
			continue
		}
		expect(t, name+"egress", s.Protocols.Egress[protocol], want)
		expect(t, name+"ingress", s.Protocols.Ingress[protocol], want)
		expect(t, name+"family", s.Kinds.Egress[family], want)
		expect(t, name+"egress sums", total(s.Protocols.Egress), total(s.Egress))
		expect(t, name+"ingress sums", total(s.Protocols.Ingress), total(s.Ingress))
		expect(t, name+"pass", s.Egress["pass"], total(s.Egress))
	}
}

func udp(t *testing.T, n *tests.Node, client, server *tests.Pod, to netip.Addr, headers uint64) {
	t.Helper()
	const datagrams, size = 20, 333
	echo := tests.MustEcho(t, server, to)
	want := counter{datagrams, datagrams * (headers + size)}
	for i, s := range measure(t, n, []*tests.Pod{client, server}, func() error {
		return tests.EchoUDP(t.Context(), client, echo.UDP, datagrams, size)
	}) {
		name := []string{"client", "server"}[i] + ", UDP " + to.String() + ": "
		expect(t, name+"egress", s.Protocols.Egress["udp"], want)
		expect(t, name+"ingress", s.Protocols.Ingress["udp"], want)
	}
}

// tcp: how many segments there are is TCP's own choice, but what one pod sends is what the other
// gets, byte for byte where both hooks see the same buffers.
func tcp(t *testing.T, n *tests.Node, client, server *tests.Pod, to netip.Addr) {
	t.Helper()
	const size = 1 << 20
	echo := tests.MustEcho(t, server, to)
	diff := measure(t, n, []*tests.Pod{client, server}, func() error {
		return tests.EchoTCP(t.Context(), client, echo.TCP, size)
	})
	for i, s := range diff {
		name := []string{"client", "server"}[i] + ", TCP " + to.String() + ": "
		other := diff[1-i]
		sent, got := s.Protocols.Egress["tcp"], other.Protocols.Ingress["tcp"]
		if sent.Bytes < size || got.Bytes < size {
			t.Errorf("%s%d bytes sent and %d received, want at least %d", name, sent.Bytes, got.Bytes, size)
		}
		switch s.Mode {
		case "tcx": // the same buffers, counted as segments
			expect(t, name+"sent and received", sent, got)
			if perPacket := sent.Bytes / sent.Packets; perPacket > 1514+100 {
				t.Errorf("%s%d bytes a packet: GSO packets are not counted as their segments", name, perPacket)
			}
		case "generic": // the same buffers, counted as buffers at XDP
			expect(t, name+"bytes sent and received", sent.Bytes, got.Bytes)
		case "native": // segments at XDP, merged by GRO and counted as segments at tc
			expect(t, name+"packets sent and received", sent.Packets, got.Packets)
		}
		for _, d := range []direction{s.Kinds.Egress, s.Kinds.Ingress} {
			expect(t, name+"broken packets", total(direction{"t": d["truncated"], "m": d["malformed"]}), counter{})
		}
	}
}

func peers(t *testing.T, n *tests.Node, client, server *tests.Pod) {
	t.Helper()
	out, err := n.RunXdpctl(t.Context(), "peers", client.ContainerID, "-o", "json")
	if err != nil {
		t.Fatalf("xdpctl peers: %v: %s", err, out.Stderr)
	}
	for _, address := range []netip.Addr{server.IPv4(), server.IPv6(), client.GatewayIPv4()} {
		if !strings.Contains(string(out.Stdout), `"`+address.String()+`"`) {
			t.Errorf("xdpctl peers does not show %s: %s", address, out.Stdout)
		}
	}
}
