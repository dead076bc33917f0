package integration

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// directChains are those in which tests of filters have packets go directly.
var directChains = append(mostChains[:4:4], chain{"native", "ptp"})

// eachDirectChain runs a test in each, on a pod with a filter and redirect, beside a peer with redirect.
func eachDirectChain(t *testing.T, filter string, test func(r *filterRig)) {
	for _, c := range directChains {
		t.Run(c.mode+" "+c.shape, func(t *testing.T) {
			r := newFilterRig(t, c, filter, tests.Conf{"redirect": true})
			r.takeFrames(r.pod, r.peer)
			test(r)
		})
	}
}

// takeFrames makes pods of the rig take what is redirected to them.
func (r *filterRig) takeFrames(pods ...*tests.Pod) {
	r.t.Helper()
	if r.mode == "native" {
		allTakeFrames(r.t, r.network, pods...)
	}
}

// directFlow is one of UDP between the peer and the pod that goes directly, as long as both may.
func (r *filterRig) directFlow(client, server *tests.Pod, address netip.Addr) *known {
	r.t.Helper()
	pair := &redirected{node: r.Node, client: client, server: server}
	return pair.know(r.t, address)
}

// flowOf is a filter's rule about the flow's port at the server.
func flowOf(k *known, direction, action string) string {
	return fmt.Sprintf(`{"name":"flow","direction":%q,"action":%q,"protocol":"udp","ports":["%d"]}`, direction, action, k.echo.UDP.Port())
}

// TestRedirectedIsFiltered: a flow that goes directly is dropped from the moment that a filter denies it, at either pod
// and each way, and passes again when it is allowed. What the source counts as redirected is what the target drops.
func TestRedirectedIsFiltered(t *testing.T) {
	const allowAll = `{"default":{"egress":"allow","ingress":"allow"}}`
	for _, test := range []struct {
		name                 string
		toPod                bool   // the pod with the filter is the server
		byDefault, direction string // what is denied by default, and of it allowed at first
	}{
		{"to the pod", true, `{"egress":"allow","ingress":"deny"}`, "ingress"},
		{"from the pod", false, `{"egress":"deny","ingress":"allow"}`, "egress"},
	} {
		t.Run(test.name, func(t *testing.T) {
			eachDirectChain(t, allowAll, func(r *filterRig) {
				for _, family := range []int{0, 1} {
					client, server := r.peer, r.pod
					if !test.toPod {
						client, server = r.pod, r.peer
					}
					k := r.directFlow(client, server, families(server)[family])
					allowed := `{"default":` + test.byDefault + `,"rules":[` + flowOf(k, test.direction, "allow") + `]}`
					denied := `{"default":` + test.byDefault + `}`
					const n = 3
					size := frameLen(families(server)[family], 64)
					for range 2 {
						r.replaceAnyway(allowed)
						if got := k.expectExchanges("allowed", n, true); got != n {
							r.t.Errorf("allowed: %d of %d went directly", got, n)
						}
						r.replaceAnyway(denied)
						before := r.mustDecide()
						counted := [2]stats{readStats(r.t, r.Node, client), readStats(r.t, r.Node, server)}
						direct := k.expectExchanges("denied", n, false)
						sent, came := readStats(r.t, r.Node, client).since(counted[0]), readStats(r.t, r.Node, server).since(counted[1])
						dropped := r.mustDecide()[test.direction+" default"]
						dropped = counter{dropped.Packets - before[test.direction+" default"].Packets, dropped.Bytes - before[test.direction+" default"].Bytes}
						expect(r.t, "dropped by the filter", dropped, times(n, size))
						if test.toPod {
							expect(r.t, "directly, denied", direct, n)
							expect(r.t, "sent", sent.Egress["redirect"], times(n, size))
							expect(r.t, "dropped at the target", came.Ingress["drop"], times(n, size))
							expect(r.t, "came", came.Protocols.Ingress["udp"], times(n, size))
						} else {
							expect(r.t, "directly, denied", direct, 0)
							expect(r.t, "dropped at the source", sent.Egress["drop"], times(n, size))
							expect(r.t, "came", came.Protocols.Ingress["udp"], counter{})
						}
					}
					r.replaceAnyway(allowAll)
					if got := k.expectExchanges("allowed at last", n, true); got != n {
						r.t.Errorf("allowed at last: %d of %d went directly", got, n)
					}
				}
			})
		})
	}
}

func (r *filterRig) mustDecide() decisions {
	r.t.Helper()
	d, err := r.decided()
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

// TestRedirectDefaultDeny: behind a filter that lets nothing begin, answers come directly, and nothing else comes.
func TestRedirectDefaultDeny(t *testing.T) {
	eachDirectChain(t, `{"default":{"egress":"allow","ingress":"deny"}}`, func(r *filterRig) {
		for _, address := range families(r.peer) {
			k := r.directFlow(r.pod, r.peer, address)
			const n = 10
			before := readStats(r.t, r.Node, r.peer)
			if got := k.expectExchanges("of the pod's own", n, true); got != n {
				r.t.Errorf("%d of %d went directly", got, n)
			}
			if got := readStats(r.t, r.Node, r.peer).since(before).Egress["redirect"].Packets; got != n {
				r.t.Errorf("%d of %d answers went directly", got, n)
			}
			if r.mode != "generic" {
				tcp := readStats(r.t, r.Node, r.peer)
				if err := tests.EchoTCP(r.t.Context(), r.pod, k.echo.TCP, 1<<20); err != nil {
					r.t.Error(err)
				}
				if got := readStats(r.t, r.Node, r.peer).since(tcp).Egress["redirect"]; got.Bytes < 1<<20 {
					r.t.Errorf("%v of TCP's answers went directly", got)
				}
			}
		}
		if got := r.mustDecide(); len(got) > 0 {
			r.t.Errorf("the filter dropped %v of the pod's own flows", got)
		}
		// the way round: what the peer begins is dropped, also beside flows that go directly
		for _, address := range families(r.pod) {
			echo := tests.MustEcho(r.t, r.pod, address)
			r.expect("TCP that the peer begins", decisions{"ingress default": r.refused(r.peer, echo.TCP)})
			got, err := tests.EchoUDPCount(r.t.Context(), r.peer, echo.UDP, 5, 100, loss)
			if err != nil || got != 0 {
				r.t.Errorf("%d datagrams that the peer begins came back, %v", got, err)
			}
			r.expect("UDP that the peer begins", decisions{"ingress default": times(5, frameLen(address, 100))})
		}
	})
}

// TestRedirectSpoof: who sends in a flow of others, under their addresses, is dropped, and theirs goes on directly.
func TestRedirectSpoof(t *testing.T) {
	eachDirectChain(t, `{}`, func(r *filterRig) {
		third := tests.MustPod(r.t, r.Node, "third")
		tests.MustAdd(r.t, r.network, third)
		r.takeFrames(third)
		for f := range families(r.peer) {
			owner, server := families(third)[f], families(r.peer)[f]
			k := r.directFlow(third, r.peer, server)
			source := k.conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
			frame := r.fromPod(owner, server, packets.UDP{SrcPort: source, DstPort: k.echo.UDP.Port()}, packets.Data(64))
			if r.shape == "bridge" {
				mac, err := r.peer.MAC()
				if err != nil {
					r.t.Fatal(err)
				}
				copy(frame, mac)
			}
			quiet(r.t, r.pod, r.peer, third)
			before := [2]stats{readStats(r.t, r.Node, r.pod), readStats(r.t, r.Node, r.peer)}
			const n = 3
			for range n {
				if err := tests.SendFrame(r.pod, r.pod.IfName, frame); err != nil {
					r.t.Fatal(err)
				}
			}
			r.expect("under another's address", decisions{"egress spoof": times(n, uint64(len(frame)))})
			sent, came := readStats(r.t, r.Node, r.pod).since(before[0]), readStats(r.t, r.Node, r.peer).since(before[1])
			expect(r.t, "directly under another's address", sent.Egress["redirect"], counter{})
			expect(r.t, "came to the peer", came.Protocols.Ingress["udp"], counter{})
			if got := k.expectExchanges("the other's own", 5, true); got != 5 {
				r.t.Errorf("%d of 5 of the other's own went directly", got)
			}
		}
	})
}

// TestRedirectFilterReplaced replaces the pod's filter under flows that go directly, each of which one of two filters
// denies: each datagram is answered or counted as dropped.
func TestRedirectFilterReplaced(t *testing.T) {
	eachDirectChain(t, `{"default":{"egress":"allow","ingress":"allow"}}`, func(r *filterRig) {
		const replacements = 30
		flows := [2]*known{r.directFlow(r.peer, r.pod, r.pod.IPv4()), r.directFlow(r.peer, r.pod, r.pod.IPv6())}
		filters := [2]string{}
		for i, k := range flows {
			// egress too: else an answer under way at a replacement begins the flow anew, as the pod's own
			filters[i] = `{"default":{"egress":"deny","ingress":"deny"},"rules":[` + flowOf(k, "ingress", "allow") + `]}`
		}
		r.replaceAnyway(filters[0])
		quiet(r.t, r.pod, r.peer)
		drops := r.mustDecide()
		before := [2]stats{readStats(r.t, r.Node, r.peer), readStats(r.t, r.Node, r.pod)}
		ctx, stop := context.WithCancel(r.t.Context())
		defer stop()
		var (
			running    sync.WaitGroup
			exchanging [2]exchanging
		)
		for i, k := range flows {
			running.Go(func() {
				for ctx.Err() == nil {
					exchanging[i].count(k.exchange(5 * time.Millisecond))
				}
			})
		}
		for i := range replacements {
			allowed := (i + 1) % 2
			r.replaceAnyway(filters[allowed])
			exchanging[allowed].wait(r.t, true)
			exchanging[1-allowed].wait(r.t, false)
		}
		stop()
		running.Wait()
		quiet(r.t, r.pod, r.peer)
		out, in := readStats(r.t, r.Node, r.peer).since(before[0]), readStats(r.t, r.Node, r.pod).since(before[1])
		all := counter{}
		for i, address := range families(r.pod) {
			sent := exchanging[i].answered.Load() + exchanging[i].lost.Load()
			all.Packets += sent
			all.Bytes += sent * frameLen(address, 64)
			r.t.Logf("%s: %d sent, %d not answered in time", address, sent, exchanging[i].lost.Load())
		}
		expect(r.t, "sent", out.Protocols.Egress["udp"], all)
		expect(r.t, "directly", out.Egress["redirect"].Packets, all.Packets)
		expect(r.t, "came", in.Protocols.Ingress["udp"], all)
		dropped := in.Ingress["drop"]
		after := r.mustDecide()["ingress default"]
		expect(r.t, "dropped by the filter", counter{after.Packets - drops["ingress default"].Packets, after.Bytes - drops["ingress default"].Bytes}, dropped)
		expect(r.t, "passed and dropped", in.Ingress["pass"].Packets+dropped.Packets-notUDP(in), all.Packets)
		// one that came too late for the test is an answer all the same; those of a flow denied meanwhile are dropped too
		expect(r.t, "answers", out.Protocols.Ingress["udp"].Packets, all.Packets-dropped.Packets-in.Egress["drop"].Packets)
	})
}

// exchanging is what became of datagrams that one goroutine sends and others ask about.
type exchanging struct{ answered, lost atomic.Uint64 }

func (e *exchanging) count(answered bool) {
	if answered {
		e.answered.Add(1)
	} else {
		e.lost.Add(1)
	}
}

// wait returns when one more datagram, sent after the call, was answered, or was not.
func (e *exchanging) wait(t *testing.T, answered bool) {
	t.Helper()
	counter := &e.lost
	if answered {
		counter = &e.answered
	}
	// the first may have been sent before
	for until, deadline := counter.Load()+2, time.Now().Add(patience); counter.Load() < until; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no two datagrams with answered=%v in %v", answered, patience)
		}
	}
}

// notUDP is what came besides, of neighbour discovery and such.
func notUDP(s stats) uint64 { return total(s.Ingress).Packets - s.Protocols.Ingress["udp"].Packets }
