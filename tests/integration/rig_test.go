// Package integration tests the plugin as runtimes call it: through libcni and through the
// protocol itself, with real traffic.
package integration

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

func TestMain(m *testing.M) { tests.Main(m) }

var modes = []string{"generic", "native", "tcx", "auto"}

// counter and stats are what scripts read of `xdpctl stats -o json`.
type counter struct {
	Packets, Bytes uint64
}

type direction map[string]counter

type stats struct {
	ContainerID, IfName, Netns, Network, Mode string
	Pod                                       struct{ Namespace, Name, UID string }
	HostInterface                             struct {
		Name  string
		Index int
	}
	Addresses       []string
	Egress, Ingress direction
	Protocols       struct{ Egress, Ingress direction }
	Kinds           struct{ Egress, Ingress direction }
}

func readStats(t *testing.T, n *tests.Node, pod *tests.Pod) stats {
	t.Helper()
	out, err := n.RunXdpctl(t.Context(), "stats", "-o", "json", pod.ContainerID)
	if err != nil {
		t.Fatalf("xdpctl stats: %v: %s", err, out.Stderr)
	}
	var list []stats
	if err := json.Unmarshal(out.Stdout, &list); err != nil {
		t.Fatalf("xdpctl stats -o json: %v: %s", err, out.Stdout)
	}
	if len(list) != 1 {
		t.Fatalf("xdpctl stats shows %d attachments, want 1", len(list))
	}
	return list[0]
}

// since returns what was counted between two readings.
func (s stats) since(before stats) stats {
	diff := func(now, then direction) direction {
		d := direction{}
		for name, c := range now {
			d[name] = counter{c.Packets - then[name].Packets, c.Bytes - then[name].Bytes}
		}
		return d
	}
	s.Egress, s.Ingress = diff(s.Egress, before.Egress), diff(s.Ingress, before.Ingress)
	s.Protocols.Egress = diff(s.Protocols.Egress, before.Protocols.Egress)
	s.Protocols.Ingress = diff(s.Protocols.Ingress, before.Protocols.Ingress)
	s.Kinds.Egress, s.Kinds.Ingress = diff(s.Kinds.Egress, before.Kinds.Egress), diff(s.Kinds.Ingress, before.Kinds.Ingress)
	return s
}

func total(d direction) counter {
	var sum counter
	for _, c := range d {
		sum.Packets += c.Packets
		sum.Bytes += c.Bytes
	}
	return sum
}

func expect(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// quiet waits until a pod's interface has been silent for a moment.
func quiet(t *testing.T, pods ...*tests.Pod) {
	t.Helper()
	for _, pod := range pods {
		if err := tests.WaitQuiet(t.Context(), pod, pod.IfName, 300*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}

// outputError is what a run of the plugin without libcni printed as an error.
func outputError(t *testing.T, out tests.Output) *types.Error {
	t.Helper()
	var e types.Error
	if err := json.Unmarshal(out.Stdout, &e); err != nil {
		t.Fatalf("standard output is not a CNI error: %v: %q; standard error: %s", err, out.Stdout, out.Stderr)
	}
	return &e
}

func hostLink(t *testing.T, n *tests.Node, name string) netlink.Link {
	t.Helper()
	var host netlink.Link
	err := n.Do(func() (err error) {
		host, err = netlink.LinkByName(name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return host
}

// start builds, and makes a node whose end is checked for objects left in the kernel.
func start(t *testing.T, options ...tests.NodeOption) *tests.Node {
	t.Helper()
	priv.Root(t)
	tests.MustBuild(t)
	tests.MustObjects(t)
	return tests.MustNode(t, options...)
}
