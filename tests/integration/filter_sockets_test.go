package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests"
)

// How much a test sends.
const (
	streamBytes = 200_000
	datagrams   = 7
	pings       = 5
)

// way is one direction to one address of a pod, with a server for what a filter is to let through and one for the rest.
type way struct {
	name, direction, remoteKey string
	from, at                   *tests.Pod
	to, remote                 netip.Addr
	allowed, denied            *tests.Echo
}

// ways are both directions in both families.
func (r *filterRig) ways() (ways []way) {
	for i, family := range []string{"4", "6"} {
		pod, peer := families(r.pod)[i], families(r.peer)[i]
		ways = append(ways,
			way{name: "in" + family, direction: "ingress", remoteKey: "from", from: r.peer, at: r.pod, to: pod, remote: peer},
			way{name: "out" + family, direction: "egress", remoteKey: "to", from: r.pod, at: r.peer, to: peer, remote: peer})
	}
	for i := range ways {
		ways[i].allowed = tests.MustEcho(r.t, ways[i].at, ways[i].to)
		ways[i].denied = tests.MustEcho(r.t, ways[i].at, ways[i].to)
	}
	return ways
}

// rule is a rule for a way; more is what it says besides.
func (w way) rule(name, action, more string) string {
	return fmt.Sprintf(`{"name":"%s-%s","direction":%q,"action":%q,%q:["%s"],%s}`,
		name, w.name, w.direction, action, w.remoteKey, w.remote, more)
}

func (w way) echoRequest() string {
	if w.to.Is6() {
		return `"protocol":"icmpv6","icmp":{"type":128}`
	}
	return `"protocol":"icmp","icmp":{"type":8}`
}

// rulesFor lets through, or not, what goes to one of the servers of a way, and pings.
func (w way) rulesFor(action string, echo *tests.Echo) string {
	return strings.Join([]string{
		w.rule("tcp", action, fmt.Sprintf(`"protocol":"tcp","ports":["%d"]`, echo.TCP.Port())),
		w.rule("udp", action, fmt.Sprintf(`"protocol":"udp","ports":["%d"]`, echo.UDP.Port())),
		w.rule("ping", action, w.echoRequest()),
	}, ",")
}

// firsts is what rules count of flows that they let through: the first packet of each.
func (w way) firsts() decisions {
	return decisions{
		"rule tcp-" + w.name:  times(1, synLen(w.to)),
		"rule udp-" + w.name:  times(1, frameLen(w.to, probeSize)),
		"rule ping-" + w.name: times(1, frameLen(w.to, tests.PingPayload)),
	}
}

// passes sends by sockets what has to come back.
func (r *filterRig) passes(from tests.Place, echo *tests.Echo) {
	r.t.Helper()
	r.streams(from, echo.TCP)
	r.comesBack(from, echo.UDP)
	if err := tests.Ping(r.t.Context(), from, echo.UDP.Addr(), pings); err != nil {
		r.t.Error(err)
	}
}

func (r *filterRig) streams(from tests.Place, to netip.AddrPort) {
	r.t.Helper()
	if err := tests.EchoTCP(r.t.Context(), from, to, streamBytes); err != nil {
		r.t.Error(err)
	}
}

func (r *filterRig) comesBack(from tests.Place, to netip.AddrPort) {
	r.t.Helper()
	if err := tests.EchoUDP(r.t.Context(), from, to, datagrams, probeSize); err != nil {
		r.t.Error(err)
	}
}

// lost sends datagrams that must not come back, and returns what of them the filter has to drop.
func (r *filterRig) lost(from tests.Place, to netip.AddrPort) counter {
	r.t.Helper()
	if came, err := tests.EchoUDPCount(r.t.Context(), from, to, datagrams, probeSize, 0); err != nil || came > 0 {
		r.t.Errorf("%d of %d datagrams came back from %s, %v", came, datagrams, to, err)
	}
	return times(datagrams, frameLen(to.Addr(), probeSize))
}

// unanswered sends pings that must not be answered, and returns what of them the filter has to drop.
func (r *filterRig) unanswered(from tests.Place, to netip.Addr) counter {
	r.t.Helper()
	for range pings {
		// the kernel tells a sender on the node of the drop
		if came, err := tests.PingCount(r.t.Context(), from, to, 1, 0); err != nil && !errors.Is(err, syscall.ENOBUFS) || came > 0 {
			r.t.Errorf("%d pings to %s were answered, %v", came, to, err)
		}
	}
	return times(pings, frameLen(to, tests.PingPayload))
}

func sum(counters ...counter) (s counter) {
	for _, c := range counters {
		s.Packets, s.Bytes = s.Packets+c.Packets, s.Bytes+c.Bytes
	}
	return s
}

// TestFilterSockets sends TCP, UDP and pings of real sockets both ways, in both families: what is allowed comes back
// whole, what is denied does not arrive, and all that decides is counted, to the packet and the byte.
func TestFilterSockets(t *testing.T) {
	eachChain(t, mostChains, `{}`, func(r *filterRig) {
		ways := r.ways()
		var allow, deny, audit []string
		for _, w := range ways {
			allow = append(allow, w.rulesFor("allow", w.allowed))
			deny = append(deny, w.rulesFor("deny", w.denied))
			audit = append(audit, w.rulesFor("audit", w.allowed))
		}
		filter := func(byDefault string, rules []string) string {
			return fmt.Sprintf(`{"default":{"egress":%q,"ingress":%[1]q},"rules":[%s]}`, byDefault, strings.Join(rules, ","))
		}
		r.apply(filter("deny", allow))
		for _, w := range ways {
			r.passes(w.from, w.allowed)
			r.expect("allowed by rules, "+w.name, w.firsts())
			r.expect("denied by default, "+w.name, decisions{
				w.direction + " default": sum(r.refused(w.from, w.denied.TCP), r.lost(w.from, w.denied.UDP)),
			})
		}
		r.apply(filter("allow", deny))
		for _, w := range ways {
			tcp, udp, ping := r.refused(w.from, w.denied.TCP), r.lost(w.from, w.denied.UDP), r.unanswered(w.from, w.to)
			r.expect("denied by rules, "+w.name, decisions{
				w.direction + " rule": sum(tcp, udp, ping),
				"rule tcp-" + w.name:  tcp, "rule udp-" + w.name: udp, "rule ping-" + w.name: ping,
			})
			r.streams(w.from, w.allowed.TCP)
			r.comesBack(w.from, w.allowed.UDP)
			r.expect("allowed by default, "+w.name, nil)
		}
		r.apply(filter("deny", audit))
		for _, w := range ways {
			r.passes(w.from, w.allowed)
			r.expect("audited, "+w.name, w.firsts())
		}
		if err := r.network.Check(r.t.Context(), r.pod, xdpFilter(`{}`)); err != nil {
			r.t.Errorf("CHECK: %v", err)
		}
	})
}
