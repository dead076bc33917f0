package runtimes

import (
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/tests/runtimes/cri"
)

// patience is how long a test waits for what comes by itself. It is a bound for what does not come, however slow the
// machine.
const patience = 2 * time.Minute

// TestContainerd runs the basics under each containerd with chains of all kinds; under the first one, and not with
// -short, with all chains there are.
func TestContainerd(t *testing.T) {
	for i, version := range []string{"1.6", "1.7", "2.1"} {
		list := chains(i == 0 && !testing.Short())
		if i > 0 && testing.Short() {
			list = list[i : i+1]
		}
		for _, c := range list {
			t.Run(version+" "+c.String(), func(t *testing.T) {
				n := newNode(t)
				r := startContainerd(t, n, version, c)
				basics(t, n, r, c)
			})
		}
	}
}

// versions are the containerds of a test, all but the first only without -short.
func versions() []string {
	if testing.Short() {
		return []string{"1.6"}
	}
	return []string{"1.6", "1.7", "2.1"}
}

// TestContainerdLimits: bandwidth's limits hold beside XDP and redirect.
func TestContainerdLimits(t *testing.T) {
	for i, mode := range modes {
		c := chain{main: "bridge", ipam: "host-local", mode: mode, limit: 16_000_000}
		if i == 1 {
			c.main, c.xdpFirst = "ptp", true
		} else {
			c.redirect = true
		}
		t.Run(c.String(), func(t *testing.T) {
			n := newNode(t)
			limits(t, n, startContainerd(t, n, "1.6", c), c)
		})
	}
}

// TestContainerdAnnotations: Kubernetes' annotations come to bandwidth, and packets of such a pod do not go directly past
// the limit.
func TestContainerdAnnotations(t *testing.T) {
	n := newNode(t)
	r := startContainerd(t, n, "1.6", chain{main: "bridge", ipam: "host-local", mode: "tcx", redirect: true})
	web := mustRun(t, r, spec{name: "web", args: serveAs("web")})
	limited := kubernetesPod(spec{name: "limited"})
	limited.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "20M", "kubernetes.io/egress-bandwidth": "20M"}
	for _, k := range []cri.Pod{limited, kubernetesPod(spec{name: "other"})} {
		p, err := r.runPod(t.Context(), spec{name: k.Name, args: []string{"pause"}}, k)
		if err != nil {
			t.Fatal(err)
		}
		if err := reaches(t.Context(), r, p, web); err != nil {
			t.Fatal(err)
		}
		mustExec(t, r, p, "echo", web.at(serverPort)[0].String(), "20", "100")
		s := mustStats(t, n, p)
		if direct := s.Egress["redirect"].Packets > 0; direct != (k.Annotations == nil) {
			t.Errorf("pod %s: %v went directly", p.name, s.Egress["redirect"])
		}
		mustRemove(t, r, p)
	}
	mustRemove(t, r, web)
}

// TestContainerdFirstPacket: the filter is in force when a pod's first program starts.
func TestContainerdFirstPacket(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			c := chain{main: "bridge", ipam: "xdp-ipam", mode: mode, filter: denyPort}
			firstPacket(t, n, startContainerd(t, n, "1.6", c))
		})
	}
}

// TestContainerdCalls checks what the rest relies on: containerd calls ADD once and DEL twice for a pod, and 2.1 asks
// for STATUS, all of which succeed.
func TestContainerdCalls(t *testing.T) {
	for _, version := range versions() {
		t.Run(version, func(t *testing.T) {
			n := newNode(t)
			r := startContainerd(t, n, version, chain{main: "bridge", ipam: "host-local", mode: "tcx"})
			p := mustRun(t, r, spec{name: "web", args: []string{"pause"}})
			mustRemove(t, r, p)
			counts := n.count(t, p.sandbox)
			if counts["ADD"] != 1 || counts["DEL"] != 2 {
				t.Errorf("calls for the pod: %v, want ADD once and DEL twice", counts)
			}
			noCallFailed(t, n)
		})
	}
	t.Run("STATUS", func(t *testing.T) {
		n := newNode(t)
		r := startContainerd(t, n, "2.1", chain{main: "bridge", ipam: "xdp-ipam", mode: "tcx"})
		for range 3 {
			if err := r.Ready(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if n.count(t, "")["STATUS"] < 3 {
			t.Errorf("calls for no pod: %v, want STATUS at least three times", n.count(t, ""))
		}
		noCallFailed(t, n)
	})
}
