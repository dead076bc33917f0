package integration

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"

	"github.com/xdp-cni/xdp-cni/plugin/podend"
	"github.com/xdp-cni/xdp-cni/tests"
)

// allStats reads what was counted for all pods, by container ID.
func (r *redirectRig) allStats(t *testing.T) map[string]stats {
	t.Helper()
	out, err := r.RunXdpctl(t.Context(), "stats", "-o", "json")
	if err != nil {
		t.Fatalf("xdpctl stats: %v: %s", err, out.Stderr)
	}
	var list []stats
	if err := json.Unmarshal(out.Stdout, &list); err != nil {
		t.Fatalf("xdpctl stats -o json: %v: %s", err, out.Stdout)
	}
	byContainer := map[string]stats{}
	for _, s := range list {
		byContainer[s.ContainerID] = s
	}
	if len(byContainer) != len(r.pods) {
		t.Fatalf("xdpctl stats shows %d pods, want %d", len(byContainer), len(r.pods))
	}
	return byContainer
}

// byStack runs traffic, and expects all of it to have gone by the stack.
func (r *redirectRig) byStack(t *testing.T, traffic func()) {
	t.Helper()
	before := r.allStats(t)
	traffic()
	now := r.allStats(t)
	for _, p := range r.pods {
		sent := now[p.ContainerID].since(before[p.ContainerID]).Egress
		if sent["redirect"] != (counter{}) {
			t.Errorf("%s: sent %v, of which nothing was to be redirected", p.Name, sent)
		}
	}
}

// sameCounted waits until what one pod has sent by a protocol is what the other got: in packets and bytes, or in those
// of the two that the hooks of the sender's mode see as they are on the wire.
func (r *redirectRig) sameCounted(t *testing.T, protocol string, from, to redirectPod, before map[string]stats) (sent stats) {
	t.Helper()
	eventually(t, func() error {
		now := r.allStats(t)
		sent = now[from.ContainerID].since(before[from.ContainerID])
		got := now[to.ContainerID].since(before[to.ContainerID]).Protocols.Ingress[protocol]
		was := sent.Protocols.Egress[protocol]
		if protocol == "tcp" && from.mode == "generic" { // counted as buffers at XDP
			was.Packets, got.Packets = 0, 0
		}
		if protocol == "tcp" && from.mode == "native" { // merged by GRO before they arrive
			was.Bytes, got.Bytes = 0, 0
		}
		if was != got || was == (counter{}) {
			return fmt.Errorf("%s sent %v of %s, %s got %v", from.Name, was, protocol, to.Name, got)
		}
		return nil
	})
	return sent
}

// nativeTargets tells whether frames can be handed to a pod that has GRO and runs no XDP program (from 5.13 on).
var nativeTargets = sync.OnceValue(func() bool {
	polls, err := podend.GROPolls()
	if err != nil {
		panic(err)
	}
	return polls
})

// receives returns what podend.End.Receives does.
func receives(n *tests.Node, pod *tests.Pod, hostIndex, podIndex int) error {
	return n.Do(func() error {
		end, err := podend.Open(podend.Options{
			Netns: pod.NetNS(), IfName: pod.IfName, PodIndex: podIndex, HostIndex: hostIndex,
		})
		if err != nil {
			return err
		}
		defer end.Close()
		return end.Receives()
	})
}

// goesDirect tells whether pods of two modes talk to each other by redirect once they know each other. Who cannot
// answer the same way gets nothing that way; a pod that is not native is not prepared for native redirect, and the GSO
// packets of a generic one are too large.
func goesDirect(protocol, mode, other string) bool {
	switch {
	case mode == "native" || other == "native":
		return mode == other && nativeTargets()
	case mode == "generic" || other == "generic":
		return protocol != "tcp"
	}
	return true
}

// expectDirect expects at least half of what a pod sent by a protocol to have gone direct, or nothing.
func expectDirect(t *testing.T, what string, direct bool, protocol string, sent stats) {
	t.Helper()
	packets, redirected := sent.Protocols.Egress[protocol].Packets, sent.Egress["redirect"].Packets
	expect(t, what+", passed and redirected", sent.Egress["pass"].Packets+redirected, total(sent.Protocols.Egress).Packets)
	switch {
	case !direct:
		if redirected != 0 {
			t.Errorf("%s: %d packets were redirected, want none", what, redirected)
		}
	case redirected*2 < packets:
		t.Errorf("%s: %d of %d packets were redirected, want most", what, redirected, packets)
	}
}
