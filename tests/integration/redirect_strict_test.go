package integration

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests"
)

// TestRedirectStrictFirewall has a node that forwards connections to known ports only, drops all that belongs to none,
// and translates services besides. Redirect hides packets from the node's connection tracking; what is allowed works
// all the same, and what is not does not, also between pods that talk direct.
func TestRedirectStrictFirewall(t *testing.T) {
	r := newRedirectRig(t)
	strict := make(map[string]strictServer)
	for _, p := range r.pairs {
		if strict[p.server.Name].blocked == nil {
			strict[p.server.Name] = newStrictServer(t, p.server)
		}
	}
	rules := r.kubeProxy(onlyItself)
	rules.strict = true
	for _, c := range r.calls() {
		at := []netip.AddrPort{c.backend(), netip.AddrPortFrom(c.backend().Addr(), strict[c.server.Name].closed[c.transport.name])}
		for _, a := range at {
			rules.allowed = append(rules.allowed, destination{c.transport.name, a})
		}
	}
	r.eachFirewall(t, func(t *testing.T, tool firewall) {
		r.mustApply(t, tool, rules)
		r.eachPair(t, func(t *testing.T, p pair) {
			s := strict[p.server.Name]
			for _, c := range p.calls() {
				c.talk(t, c.client, c.backend())
				c.isBlocked(t, s.blocked)
				c.isClosed(t, s.closed[c.transport.name])
				c.talk(t, c.client, c.service())
				c.serverHeard(t, theClient(c))
				c.talk(t, c.client, c.backend())
			}
		})
	})
}

// strictServer is what else a pod has.
type strictServer struct {
	blocked *tests.Echo       // servers to which nothing is forwarded
	closed  map[string]uint16 // ports, by protocol, at which nobody listens
}

func newStrictServer(t *testing.T, p redirectPod) strictServer {
	t.Helper()
	blocked := tests.MustEcho(t, p, netip.IPv6Unspecified())
	// last, so that nobody gets the ports that it leaves
	gone, err := tests.ServeEcho(t.Context(), p, netip.IPv6Unspecified())
	if err == nil {
		err = gone.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return strictServer{blocked, map[string]uint16{"tcp": gone.TCP.Port(), "udp": gone.UDP.Port()}}
}

// isBlocked sends to a server to which nothing is forwarded, and expects it not to have heard.
func (c call) isBlocked(t *testing.T, blocked *tests.Echo) {
	t.Helper()
	to := netip.AddrPortFrom(c.backend().Addr(), c.port(blocked))
	if c.transport.name == "tcp" {
		conn, err := tests.DialTCP(t.Context(), c.client, netip.AddrPort{}, to, refusedAfter)
		if err == nil {
			_ = conn.Close()
			t.Errorf("%s: connected to %s, to which nothing is forwarded", c, to)
		}
	} else if _, err := tests.EchoUDPCount(t.Context(), c.client, to, rounds, roundBytes, 0); err != nil {
		t.Errorf("%s: %v", c, err)
	}
	if from := c.heard(blocked); from.IsValid() {
		t.Errorf("%s: %s, to which nothing is forwarded, has heard from %s", c, to, from)
	}
}

// isClosed sends to a port at which nobody listens, again and again, and expects to be told so.
func (c call) isClosed(t *testing.T, port uint16) {
	t.Helper()
	to := netip.AddrPortFrom(c.backend().Addr(), port)
	for range 3 {
		s, err := c.open(t, c.client, c.clientAddress(0), to)
		if err == nil {
			err = errors.Join(s.exchange(noise(roundBytes)), s.Close())
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s to %s, where nobody listens: %v, want %v", c, to, err, syscall.ECONNREFUSED)
		}
	}
}
