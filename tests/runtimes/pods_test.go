package runtimes

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// TestHostNetwork: a pod with the node's network has no attachment, and reaches those that have.
func TestHostNetwork(t *testing.T) {
	n := newNode(t)
	r := startContainerd(t, n, "1.6", chain{main: "bridge", ipam: "host-local", mode: "generic"})
	web := mustRun(t, r, spec{name: "web", args: serveAs("web")})
	host := kubernetesPod(spec{name: "host"})
	host.HostNetwork = true
	p, err := r.runPod(t.Context(), spec{name: "host", args: []string{"serve", "8081", "host"}}, host)
	if err != nil {
		t.Fatal(err)
	}
	for i, server := range web.at(serverPort) {
		if err := eventually(patience, func() error { _, err := r.exec(t.Context(), p, "who", server.String()); return err }); err != nil {
			t.Errorf("to the other: %v", err)
		}
		self := []netip.Addr{web.v4, web.v6}[i]
		server := netip.AddrPortFrom(nodeAddresses[i].Addr(), 8081)
		answer, err := r.exec(t.Context(), web, "who", server.String())
		if err != nil || !strings.HasSuffix(strings.TrimSpace(answer), " "+self.String()) {
			t.Errorf("from the other: %v: %s", err, answer)
		}
	}
	if got, want := attached(t, n), []string{"default/web/eth0"}; !slices.Equal(got, want) {
		t.Errorf("xdpctl shows %q, want %q", got, want)
	}
	if counts := n.count(t, p.sandbox); len(counts) > 0 {
		t.Errorf("calls for the pod with the node's network: %v", counts)
	}
	mustRemove(t, r, p, web)
}

// TestSameName: a pod that is made anew under its name, as a StatefulSet's is, is counted from nothing, and the old one
// does not hinder it while it is stopped and not removed.
func TestSameName(t *testing.T) {
	n := newNode(t)
	r := startContainerd(t, n, "1.6", chain{main: "bridge", ipam: "xdp-ipam", mode: "tcx"})
	serve(t, n.outside, "outside")
	const size = 100
	server := netip.AddrPortFrom(outsideAddresses[0].Addr(), serverPort)
	var last *pod
	for attempt := range 3 {
		k := kubernetesPod(spec{name: "web"})
		k.Attempt = uint32(attempt)
		p, err := r.runPod(t.Context(), spec{name: "web", args: []string{"pause"}}, k)
		if err != nil {
			t.Fatal(err)
		}
		if last != nil {
			if err := r.RemovePod(t.Context(), last.sandbox); err != nil { // DEL of the old one, once more
				t.Error(err)
			}
		}
		packets := 10 + attempt
		mustExec(t, r, p, "echo", server.String(), strconv.Itoa(packets), strconv.Itoa(size))
		s := mustStats(t, n, p)
		want := counter{uint64(packets), uint64(packets * (14 + 20 + 8 + size))}
		if s.ContainerID != p.sandbox || s.Protocols.Egress["udp"] != want || s.Protocols.Ingress["udp"] != want {
			t.Errorf("attempt %d: container %.12s sent %v and got %v, want %.12s and %v both ways",
				attempt, s.ContainerID, s.Protocols.Egress["udp"], s.Protocols.Ingress["udp"], p.sandbox, want)
		}
		if err := r.StopPod(t.Context(), p.sandbox); err != nil {
			t.Error(err)
		}
		last = p
	}
	mustRemove(t, r, last)
}

// TestTwoNetworks: containerd takes more than one conflist if told to, and gives pods an interface of each.
func TestTwoNetworks(t *testing.T) {
	n := newNode(t)
	twoNetworks(t, n, startContainerd(t, n, "1.6", chain{main: "bridge", ipam: "host-local", mode: "tcx", networks: 2}))
}

// twoNetworks checks that pods have an attachment for each network, and reach each other by the second one.
func twoNetworks(t *testing.T, n *node, r runtime) {
	t.Helper()
	web := mustRun(t, r, spec{name: "web", args: serveAs("web")})
	client := mustRun(t, r, spec{name: "client", args: []string{"pause"}})
	if got := attached(t, n); len(got) != 4 {
		t.Errorf("xdpctl shows %q, want two of each pod", got)
	}
	second := secondAddress(t, mustExec(t, r, web, "interfaces"))
	server := netip.AddrPortFrom(second, serverPort)
	if err := eventually(patience, func() error { _, err := r.exec(t.Context(), client, "who", server.String()); return err }); err != nil {
		t.Fatalf("by the second network: %v", err)
	}
	mustExec(t, r, client, "echo", server.String(), "7", "100")
	counted := func(p *pod, ifname string) counter {
		out, err := n.RunXdpctl(t.Context(), "stats", "-o", "json", p.sandbox)
		if err != nil {
			t.Fatalf("xdpctl stats: %v: %s", err, out.Stderr)
		}
		var list []stats
		unmarshal(t, out.Stdout, &list)
		for _, s := range list {
			if s.IfName == ifname {
				return s.Protocols.Egress["udp"]
			}
		}
		t.Fatalf("xdpctl shows no %s of pod %s", ifname, p.name)
		return counter{}
	}
	for _, p := range []*pod{client, web} {
		if got, want := counted(p, "eth1"), (counter{7, 7 * 142}); got != want {
			t.Errorf("eth1 of pod %s: counted %v, want %v", p.name, got, want)
		}
		if got := counted(p, "eth0"); got != (counter{}) {
			t.Errorf("eth0 of pod %s: counted %v, want nothing", p.name, got)
		}
	}
	mustRemove(t, r, client, web)
}

// secondAddress is the IPv4 address of eth1, of what app prints of its interfaces.
func secondAddress(t *testing.T, text string) netip.Addr {
	t.Helper()
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if fields[0] != "eth1" {
			continue
		}
		for _, field := range fields[2:] {
			if prefix, err := netip.ParsePrefix(field); err == nil && prefix.Addr().Is4() {
				return prefix.Addr()
			}
		}
	}
	t.Fatalf("no IPv4 address on eth1: %s", text)
	return netip.Addr{}
}

// TestManyPods makes 50 pods at the same time, and removes them so.
func TestManyPods(t *testing.T) {
	const pods = 50
	ipams := []string{"xdp-ipam"}
	if !testing.Short() {
		ipams = append(ipams, "host-local")
	}
	for _, ipam := range ipams {
		t.Run(ipam, func(t *testing.T) {
			n := newNode(t)
			r := startContainerd(t, n, "1.6", chain{main: "bridge", ipam: ipam, mode: "tcx", redirect: true})
			manyPods(t, n, r, pods)
		})
	}
}

func manyPods(t *testing.T, n *node, r *containerd, pods int) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	sandboxes := make([]string, pods)
	addresses := make([][]netip.Addr, pods)
	var group errgroup.Group
	for i := range pods {
		group.Go(func() (err error) {
			if sandboxes[i], err = r.RunPod(ctx, kubernetesPod(spec{name: fmt.Sprint("pod-", i), port: int32(9000 + i)})); err == nil {
				addresses[i], err = r.Addresses(ctx, sandboxes[i])
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	all := map[netip.Addr]bool{}
	for _, list := range addresses {
		for _, a := range list {
			all[a] = true
		}
	}
	if len(all) != 2*pods {
		t.Errorf("%d pods have %d addresses, want two each and none twice", pods, len(all))
	}
	if got := attached(t, n); len(got) != pods {
		t.Errorf("xdpctl shows %d attachments, want %d", len(got), pods)
	}
	group = errgroup.Group{}
	for _, id := range sandboxes {
		group.Go(func() error { return r.remove(ctx, &pod{sandbox: id}) })
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	noCallFailed(t, n)
	if pins := n.podPins(); len(pins) > 0 { // at once, not some time later
		t.Errorf("pins left: %q", pins)
	}
}
