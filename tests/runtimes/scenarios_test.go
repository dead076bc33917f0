package runtimes

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/runtimes/talk"
)

// limits checks that the limits of the chain hold for what a pod sends, what it gets, and between two. The bounds are
// wide: without a limit there would be hundreds of times as much.
func limits(t *testing.T, n *node, r runtime, c chain) {
	t.Helper()
	const sending = time.Second
	serve(t, n.outside, "outside")
	web := mustRun(t, r, spec{name: "web", args: serveAs("web")})
	client := mustRun(t, r, spec{name: "client", args: []string{"pause"}})
	webAt := netip.AddrPortFrom(web.v4, serverPort)
	fill := func(server netip.AddrPort) func() (string, error) {
		return func() (string, error) { return r.exec(t.Context(), client, "fill", server.String(), sending.String()) }
	}
	check := func(what string, fill func() (string, error)) func() error {
		return func() error {
			out, err := fill()
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			var received, milliseconds int
			if _, err := fmt.Sscan(out, &received, &milliseconds); err != nil {
				return fmt.Errorf("%s: %q: %w", what, out, err)
			}
			allowed := c.limit/8*milliseconds/1000 + c.limit/80 // and the burst
			t.Logf("%s: %d bytes in %d ms, of %d allowed", what, received, milliseconds, allowed)
			if received > 3*allowed || received < c.limit/80 { // at least the burst
				return fmt.Errorf("%s: %d bytes came in %d ms, and %d are allowed", what, received, milliseconds, allowed)
			}
			return nil
		}
	}
	var both errgroup.Group
	both.Go(check("pod to outside", fill(netip.AddrPortFrom(outsideAddresses[0].Addr(), serverPort))))
	both.Go(check("node to pod", func() (out string, err error) {
		err = eventually(patience, func() error {
			return n.Do(func() error { _, _, err := talk.Who(webAt); return err })
		})
		if err != nil {
			return "", err
		}
		err = n.Do(func() error {
			received, took, err := talk.Fill(webAt, sending)
			out = fmt.Sprintln(received, took.Milliseconds())
			return err
		})
		return out, err
	}))
	if err := both.Wait(); err != nil {
		t.Error(err)
	}
	if err := check("pod to pod", fill(webAt))(); err != nil {
		t.Error(err)
	}
	mustRemove(t, r, client, web)
}

// firstPacket runs pods that send as the first thing they do, to a port that the filter denies and to one that it
// allows: nothing comes of the one, all of the other, and all is counted.
func firstPacket(t *testing.T, n *node, r runtime) {
	t.Helper()
	const packets, size = 50, 100
	for _, test := range []struct {
		name    string
		port    uint16
		arrive  int
		dropped uint64
	}{{"denied", deniedPort, 0, packets}, {"allowed", deniedPort + 1, packets, 0}} {
		server := netip.AddrPortFrom(outsideAddresses[0].Addr(), test.port)
		arrivals, err := listen(n.outside, server)
		if err != nil {
			t.Fatal(err)
		}
		p := mustRun(t, r, spec{name: test.name, args: []string{"flood", server.String(), strconv.Itoa(packets), strconv.Itoa(size)}})
		want := counter{packets, packets * (14 + 20 + 8 + size)}
		err = eventually(patience, func() error {
			s, err := n.stats(t.Context(), p.stats)
			if err == nil && s.Protocols.Egress["udp"] != want {
				err = fmt.Errorf("pod %s: counted %v as sent, want %v", p.name, s.Protocols.Egress["udp"], want)
			}
			if err == nil && s.Drops.Egress["rule"].Packets != test.dropped {
				err = fmt.Errorf("pod %s: %d dropped, want %d", p.name, s.Drops.Egress["rule"].Packets, test.dropped)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if got := arrivals(test.arrive); got != test.arrive {
			t.Errorf("pod %s: %d datagrams arrived, want %d", p.name, got, test.arrive)
		}
		mustRemove(t, r, p)
	}
}

// deniedPort is the UDP port that denyPort denies.
const deniedPort = 9

var denyPort = tests.Conf{"rules": []tests.Conf{{
	"name": "discard", "direction": "egress", "action": "deny", "protocol": "udp", "ports": []string{strconv.Itoa(deniedPort)},
}}}

// listen receives datagrams at a place. What it returns waits for as many as told, and for a moment whether more come,
// counts them, and ends it.
func listen(at tests.Place, address netip.AddrPort) (count func(expected int) int, err error) {
	var conn *net.UDPConn
	err = at.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(address))
		return err
	})
	return func(expected int) (n int) {
		defer conn.Close()
		for buffer := make([]byte, 1<<16); ; n++ {
			wait := patience
			if n >= expected {
				wait = 300 * time.Millisecond
			}
			_ = conn.SetReadDeadline(time.Now().Add(wait))
			if _, err := conn.Read(buffer); err != nil {
				return n
			}
		}
	}, err
}

// attached are the pods that xdpctl shows, with their namespaces.
func attached(t *testing.T, n *node) (names []string) {
	t.Helper()
	out, err := n.RunXdpctl(t.Context(), "pods", "-o", "json")
	if err != nil {
		t.Fatalf("xdpctl pods: %v: %s", err, out.Stderr)
	}
	var list []struct {
		IfName string
		Pod    struct{ Namespace, Name string }
	}
	unmarshal(t, out.Stdout, &list)
	for _, a := range list {
		names = append(names, strings.Join([]string{a.Pod.Namespace, a.Pod.Name, a.IfName}, "/"))
	}
	return names
}
