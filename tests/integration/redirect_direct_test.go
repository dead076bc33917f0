package integration

import (
	"net/netip"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/tests"
)

// TestRedirectDirect has pods talk to each other with nothing between that changes packets: they go direct where the
// modes of both allow it, and what one has sent is what the other got, by whichever way.
func TestRedirectDirect(t *testing.T) {
	r := newRedirectRig(t)
	r.eachPair(t, func(t *testing.T, p pair) { r.counted(t, p, theClient, goesDirect) })
}

// counted has a pair talk, and expects what each sends to be counted at both. Heard is whom the server is to hear, and
// direct tells what goes direct.
func (r *redirectRig) counted(
	t *testing.T, p pair, heard func(c call) netip.Addr, direct func(protocol, mode, other string) bool,
) {
	t.Helper()
	for _, c := range p.calls() {
		settled(t, p)
		before := r.allStats(t)
		c.talk(t, p.client, c.backend())
		c.serverHeard(t, heard(c))
		for _, way := range []struct {
			name     string
			from, to redirectPod
		}{{"client", p.client, p.server}, {"server", p.server, p.client}} {
			sent := r.sameCounted(t, c.transport.name, way.from, way.to, before)
			expectDirect(t, c.String()+", "+way.name, direct(c.transport.name, way.from.mode, way.to.mode), c.transport.name, sent)
		}
	}
}

// settled waits until nothing of what the pair said before is on its way: two pods are not read at one time.
func settled(t *testing.T, p pair) {
	t.Helper()
	for _, pod := range []redirectPod{p.client, p.server} {
		if err := tests.WaitQuiet(t.Context(), pod, pod.IfName, 50*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}
