package runtimes

import (
	"fmt"
	"net/netip"
	"strconv"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/runtimes/talk"
)

// hostPort is the port of the node that leads to the server.
const hostPort = 8080

// basics runs a server and a client under a runtime, and checks all that pods are to have: each other, the node,
// hostPorts, the network outside behind the node's address, and counters by name, exact.
func basics(t *testing.T, n *node, r runtime, c chain) {
	t.Helper()
	serve(t, n.outside, "outside")
	web := mustRun(t, r, spec{name: "web", args: serveAs("web"), port: hostPort})
	client := mustRun(t, r, spec{name: "client", args: []string{"pause"}})
	for i, server := range web.at(serverPort) {
		family := []string{"IPv4", "IPv6"}[i]
		self := []netip.Addr{client.v4, client.v6}[i]
		node, outside := nodeAddresses[i].Addr(), outsideAddresses[i].Addr()
		serving := eventually(patience, func() error {
			_, err := r.exec(t.Context(), client, "who", server.String())
			return err
		})
		if serving != nil {
			t.Fatalf("pod to pod, %s: %v", family, serving)
		}
		who(t, r, client, server, "web", self, "pod to pod, "+family)
		whoFrom(t, n, server, "web", netip.Addr{}, "node to pod, "+family)
		whoFrom(t, n.outside, netip.AddrPortFrom(node, hostPort), "web", netip.Addr{}, "outside to hostPort, "+family)
		who(t, r, client, netip.AddrPortFrom(node, hostPort), "web", netip.Addr{}, "pod to hostPort, "+family)
		who(t, r, client, netip.AddrPortFrom(outside, serverPort), "outside", node, "pod to outside, "+family)
		exact(t, n, r, client, web, server, c)
	}
	for _, p := range []*pod{web, client} {
		s := mustStats(t, n, p)
		if s.ContainerID != p.sandbox || s.Mode != c.mode {
			t.Errorf("pod %s: xdpctl shows container %s in mode %s, want %s in %s", p.name, s.ContainerID, s.Mode, p.sandbox, c.mode)
		}
	}
	mustRemove(t, r, client, web)
}

// who has a pod ask a server who that is, and whom it sees; any address will do if seen is none.
func who(t *testing.T, r runtime, from *pod, server netip.AddrPort, name string, seen netip.Addr, what string) {
	t.Helper()
	answer, err := r.exec(t.Context(), from, "who", server.String())
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	var gotName, gotSeen string
	_, _ = fmt.Sscan(answer, &gotName, &gotSeen)
	if gotName != name || seen.IsValid() && gotSeen != seen.String() {
		t.Errorf("%s: %s answered and saw %s, want %s and %s", what, gotName, gotSeen, name, seen)
	}
}

// whoFrom is who for a place that is no pod of the runtime.
func whoFrom(t *testing.T, from tests.Place, server netip.AddrPort, name string, seen netip.Addr, what string) {
	t.Helper()
	err := from.Do(func() error {
		gotName, gotSeen, err := talk.Who(server)
		if err == nil && (gotName != name || seen.IsValid() && gotSeen != seen) {
			err = fmt.Errorf("%s answered and saw %s, want %s and %s", gotName, gotSeen, name, seen)
		}
		return err
	})
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// exact sends datagrams from a pod to another and back, and compares the counters of both. Whether some of them went
// directly has to be as the chain has it.
func exact(t *testing.T, n *node, r runtime, from, to *pod, server netip.AddrPort, c chain) {
	t.Helper()
	const packets, size = 20, 100
	frame := uint64(14 + 20 + 8 + size)
	if server.Addr().Is6() {
		frame += 20
	}
	beforeFrom, beforeTo := mustStats(t, n, from), mustStats(t, n, to)
	mustExec(t, r, from, "echo", server.String(), strconv.Itoa(packets), strconv.Itoa(size))
	afterFrom, afterTo := mustStats(t, n, from), mustStats(t, n, to)
	want := counter{packets, packets * frame}
	for _, d := range []struct {
		what          string
		before, after direction
	}{
		{"egress of " + from.name, beforeFrom.Protocols.Egress, afterFrom.Protocols.Egress},
		{"ingress of " + from.name, beforeFrom.Protocols.Ingress, afterFrom.Protocols.Ingress},
		{"egress of " + to.name, beforeTo.Protocols.Egress, afterTo.Protocols.Egress},
		{"ingress of " + to.name, beforeTo.Protocols.Ingress, afterTo.Protocols.Ingress},
	} {
		got := counter{d.after["udp"].Packets - d.before["udp"].Packets, d.after["udp"].Bytes - d.before["udp"].Bytes}
		if got != want {
			t.Errorf("%s, UDP to %s: counted %v, want %v", d.what, server, got, want)
		}
	}
	direct := afterFrom.Egress["redirect"].Packets - beforeFrom.Egress["redirect"].Packets
	if c.redirect != (direct > 0) {
		t.Errorf("%d of %d datagrams to %s went directly, and redirect is %t", direct, packets, server, c.redirect)
	}
}
