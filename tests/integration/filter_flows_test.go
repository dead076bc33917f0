package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// outOnly lets out what the pod begins, and in nothing but replies.
const outOnly = `{"default":{"egress":"allow","ingress":"deny"}}`

// patience is how long what has to come is waited for.
var patience = tests.Patience(10 * time.Second)

// dial connects two ends of which the test has both.
func dial(t *testing.T, from tests.Place, local netip.AddrPort, listener *net.TCPListener) (client, server *net.TCPConn) {
	t.Helper()
	accepted := make(chan error, 1)
	go func() {
		err := listener.SetDeadline(time.Now().Add(patience))
		if err == nil {
			server, err = listener.AcceptTCP()
		}
		accepted <- err
	}()
	client, err := tests.DialTCP(t.Context(), from, local, listener.Addr().(*net.TCPAddr).AddrPort(), patience)
	if err := errors.Join(err, <-accepted); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.Close()
		_ = server.Close()
	})
	return client, server
}

func listen(t *testing.T, at tests.Place, address netip.Addr) (listener *net.TCPListener) {
	t.Helper()
	err := at.Do(func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(address, 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return listener
}

// converse sends a few bytes each way.
func converse(t *testing.T, a, b *net.TCPConn) {
	t.Helper()
	for _, ends := range [][2]*net.TCPConn{{a, b}, {b, a}} {
		text := []byte("hello, world")
		if _, err := ends[0].Write(text); err != nil {
			t.Fatal(err)
		}
		received(t, ends[1], string(text))
	}
}

// received waits for what has to come.
func received(t *testing.T, conn *net.TCPConn, want string) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("%q came, %v; want %q", got, err, want)
	}
}

// ended waits for the end of what the other end sends.
func ended(t *testing.T, conn *net.TCPConn, want error) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, want) {
		t.Fatalf("the connection ended with %v, want %v", err, want)
	}
}

// reset ends a connection with RST.
func reset(t *testing.T, conn *net.TCPConn) {
	t.Helper()
	if err := errors.Join(conn.SetLinger(0), conn.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestFilterFlows follows connections from their first packet to their last.
func TestFilterFlows(t *testing.T) {
	eachChain(t, mixedChains, `{}`, func(r *filterRig) {
		r.sub("ports reused at once", outOnly, portsReused)
		r.sub("after a reset", outOnly, afterReset)
		r.sub("the server connects back", outOnly, serverConnectsBack)
		r.sub("refusals", `{}`, refusals)
		r.sub("stateless", `{}`, stateless)
	})
}

// portsReused makes connections one after the other between the same two ports, each at once when the one
// before has ended, by FIN or by RST of either end.
func portsReused(r *filterRig) {
	const rounds, clientPort = 12, 20_000
	for i, remote := range families(r.peer) {
		local := families(r.pod)[i]
		for _, test := range []struct {
			name     string
			from, at *tests.Pod
			src, dst netip.Addr
		}{
			{"out", r.pod, r.peer, local, remote},
			{"in", r.peer, r.pod, remote, local},
		} {
			listener := listen(r.t, test.at, test.dst)
			r.apply(fmt.Sprintf(`{"default":{"egress":"deny","ingress":"deny"},"rules":[
				{"name":"out","direction":"egress","action":"allow","protocol":"tcp","ports":["%d"]},
				{"name":"in","direction":"ingress","action":"allow","protocol":"tcp","ports":["%[1]d"]}]}`,
				listener.Addr().(*net.TCPAddr).Port))
			for round := range rounds {
				client, server := dial(r.t, test.from, netip.AddrPortFrom(test.src, clientPort), listener)
				converse(r.t, client, server)
				switch round % 3 {
				case 0: // the server's end waits then, which does not keep a new connection off
					_ = server.Close()
					ended(r.t, client, io.EOF)
					_ = client.Close()
				case 1:
					reset(r.t, client)
					ended(r.t, server, syscall.ECONNRESET)
					_ = server.Close()
				case 2:
					reset(r.t, server)
					ended(r.t, client, syscall.ECONNRESET)
					_ = client.Close()
				}
			}
			r.expect(fmt.Sprintf("connections %s to %s", test.name, test.dst),
				decisions{"rule " + test.name: times(rounds, synLen(test.dst))})
		}
	}
}

// afterReset sends the pod a segment of a connection that it began: it arrives while the connection is there,
// and after a reset, by either end, it is for the rules to judge.
func afterReset(r *filterRig) {
	for i, remote := range families(r.peer) {
		listener := listen(r.t, r.peer, remote)
		for _, by := range []string{"pod", "peer"} {
			client, server := dial(r.t, r.pod, netip.AddrPort{}, listener)
			late := r.fromPeer(families(r.pod)[i], packets.TCP{
				SrcPort: listener.Addr().(*net.TCPAddr).AddrPort().Port(),
				DstPort: client.LocalAddr().(*net.TCPAddr).AddrPort().Port(),
			}, packets.Data(99))
			arrived := r.capture(r.pod, late)
			converse(r.t, client, server)
			arrived.send(late)
			arrived.next("in the connection")
			r.expect("a segment of a connection", nil)
			if by == "pod" {
				reset(r.t, client)
				ended(r.t, server, syscall.ECONNRESET)
			} else {
				reset(r.t, server)
				ended(r.t, client, syscall.ECONNRESET)
			}
			arrived.send(late)
			r.expect("a segment after a reset by the "+by, decisions{"ingress default": times(1, uint64(len(late)))})
			arrived.none("after a reset by the " + by)
		}
	}
}

// serverConnectsBack has a server open a connection of its own to the client, as FTP's does in active mode:
// the pod gets none of it, while its own connections, in passive mode, go on.
func serverConnectsBack(r *filterRig) {
	for i, remote := range families(r.peer) {
		control, passive := listen(r.t, r.peer, remote), listen(r.t, r.peer, remote)
		active := listen(r.t, r.pod, families(r.pod)[i])
		client, server := dial(r.t, r.pod, netip.AddrPort{}, control)
		converse(r.t, client, server)
		dropped := r.refused(r.peer, active.Addr().(*net.TCPAddr).AddrPort())
		r.expect("a connection of the server", decisions{"ingress default": dropped})
		converse(r.t, server, client)
		data, dataServer := dial(r.t, r.pod, netip.AddrPort{}, passive)
		converse(r.t, dataServer, data)
		r.expect("connections of the pod", nil)
	}
}

// refusals: what a closed port says comes back to who asked, in both directions, whatever the default.
func refusals(r *filterRig) {
	const closed = 9
	r.apply(fmt.Sprintf(`{"default":{"egress":"deny","ingress":"deny"},"rules":[
		{"name":"out","direction":"egress","action":"allow","ports":["%d"],"protocol":"tcp"},
		{"name":"out-udp","direction":"egress","action":"allow","ports":["%[1]d"],"protocol":"udp"},
		{"name":"in","direction":"ingress","action":"allow","ports":["%[1]d"],"protocol":"tcp"},
		{"name":"in-udp","direction":"ingress","action":"allow","ports":["%[1]d"],"protocol":"udp"}]}`, closed))
	for i := range families(r.pod) {
		for name, ends := range map[string][2]*tests.Pod{"out": {r.pod, r.peer}, "in": {r.peer, r.pod}} {
			to := netip.AddrPortFrom(families(ends[1])[i], closed)
			if _, err := tests.DialTCP(r.t.Context(), ends[0], netip.AddrPort{}, to, patience); !errors.Is(err, syscall.ECONNREFUSED) {
				r.t.Errorf("TCP %s to %s: %v", name, to, err)
			}
			if err := tests.EchoUDP(r.t.Context(), ends[0], to, 1, probeSize); !errors.Is(err, syscall.ECONNREFUSED) {
				r.t.Errorf("UDP %s to %s: %v", name, to, err)
			}
			r.expect(fmt.Sprintf("%s to %s", name, to), decisions{
				"rule " + name:          times(1, synLen(to.Addr())),
				"rule " + name + "-udp": times(1, frameLen(to.Addr(), probeSize)),
			})
		}
	}
}

// stateless asks a server a question, as of DNS: without flows the answer needs a rule of its own.
func stateless(r *filterRig) {
	for _, remote := range families(r.peer) {
		echo := tests.MustEcho(r.t, r.peer, remote)
		filter := func(stateful bool, rules string) string {
			return fmt.Sprintf(`{"stateful":%t,"default":{"egress":"deny","ingress":"deny"},"rules":[
				{"name":"ask","direction":"egress","action":"allow","to":["%s"],"protocol":"udp","ports":["%d"]}%s]}`,
				stateful, remote, echo.UDP.Port(), rules)
		}
		asked := func(n uint64) decisions {
			return decisions{"rule ask": times(n, frameLen(remote, probeSize))}
		}
		r.apply(filter(true, ""))
		if err := tests.EchoUDP(r.t.Context(), r.pod, echo.UDP, datagrams, probeSize); err != nil {
			r.t.Error(err)
		}
		r.expect("with flows", asked(1))

		r.apply(filter(false, ""))
		dropped := r.lost(r.pod, echo.UDP)
		r.expect("without flows", decisions{"rule ask": dropped, "ingress default": dropped})

		r.apply(filter(false, fmt.Sprintf(`,{"name":"answer","direction":"ingress","action":"allow","from":["%s"],"protocol":"udp"}`, remote)))
		if err := tests.EchoUDP(r.t.Context(), r.pod, echo.UDP, datagrams, probeSize); err != nil {
			r.t.Error(err)
		}
		r.expect("without flows, with a rule for answers", decisions{
			"rule ask":    times(datagrams, frameLen(remote, probeSize)),
			"rule answer": times(datagrams, frameLen(remote, probeSize)),
		})
	}
}
