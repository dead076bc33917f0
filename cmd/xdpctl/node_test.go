package main

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

func TestMain(m *testing.M) {
	time.Local = time.UTC // golden files have times of the day
	tests.Main(m)
}

// rig is a node with attachments to real veths.
type rig struct {
	*testing.T
	node     *tests.Node
	datapath *datapath.Datapath
	veths    []*tests.Veth
	pods     []*tests.Pod
}

func newRig(t *testing.T) *rig {
	node := tests.MustNode(t, tests.WithoutIPv6())
	r := &rig{T: t, node: node, datapath: datapath.New(datapath.Options{Root: pins.NewRoot(node.BPFFS), Version: "test"})}
	t.Cleanup(func() {
		for _, pod := range r.pods {
			// the test's own context is over
			if err := r.datapath.Detach(context.Background(), pod.ContainerID, pod.IfName); err != nil {
				t.Error(err)
			}
		}
	})
	return r
}

// attach makes a pod demo/<name> at 10.0.<n>.2, with the node at 10.0.<n>.1.
func (r *rig) attach(name string, mode datapath.Mode, peers uint32) {
	r.Helper()
	pod := tests.MustPod(r, r.node, name)
	n := byte(len(r.pods) + 1)
	address := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, n, 2}), 24)
	veth, err := tests.MakeVeth(r.Context(), r.node, pod, tests.VethOptions{
		PodAddress: address, HostAddress: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, n, 1}), 24),
	})
	if err != nil {
		r.Fatal(err)
	}
	// so that pings are all there is
	if err := pod.Neighbour(netip.AddrFrom4([4]byte{10, 0, n, 1}), veth.HostMAC); err != nil {
		r.Fatal(err)
	}
	if err := r.node.Neighbour(veth.HostName, address.Addr(), veth.PodMAC); err != nil {
		r.Fatal(err)
	}
	r.pods, r.veths = append(r.pods, pod), append(r.veths, veth)
	err = r.node.Do(func() error {
		return r.datapath.Attach(r.Context(), datapath.AttachOptions{
			ContainerID: pod.ContainerID, IfName: pod.IfName, Netns: pod.NetNS(), Network: "pods",
			PodNamespace: "demo", PodName: name, PodUID: "uid-" + name,
			HostName: veth.HostName, HostIndex: veth.HostIndex, PodIndex: veth.PodIndex, PodMAC: veth.PodMAC, PodTxQueues: 1,
			Addresses: []netip.Prefix{address}, Mode: mode, Peers: peers,
		})
	})
	if err != nil {
		r.Fatal(err)
	}
}

// xdpctl runs a command on the node, which must end with the status.
func (r *rig) xdpctl(status int, args ...string) (stdout, stderr string) {
	r.Helper()
	_ = r.node.Do(func() error {
		var have int
		have, stdout, stderr = xdpctl(r.Context(), append([]string{"--bpffs", r.node.BPFFS}, args...)...)
		if have != status {
			r.Errorf("xdpctl %s: status %d, want %d; stderr: %s", strings.Join(args, " "), have, status, stderr)
		}
		return nil
	})
	r.Logf("xdpctl %s\n%s%s", strings.Join(args, " "), stdout, stderr)
	return stdout, stderr
}

func (r *rig) contains(text string, wants ...string) {
	r.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			r.Errorf("no %q in:\n%s", want, text)
		}
	}
}

// TestNode runs every command on real attachments, from all is well to nothing is left.
func TestNode(t *testing.T) {
	priv.Root(t)
	features, err := datapath.ProbeFeatures()
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	r.attach("client", datapath.AutoMode(features), 64)
	r.attach("server", datapath.ModeGeneric, 0)
	const pings = 5
	for i, pod := range r.pods {
		if err := tests.Ping(t.Context(), pod, netip.AddrFrom4([4]byte{10, 0, byte(i + 1), 1}), pings); err != nil {
			t.Fatal(err)
		}
	}

	stdout, _ := r.xdpctl(0, "stats", "-o", "json")
	var stats []statsReport
	if err := json.Unmarshal([]byte(stdout), &stats); err != nil || len(stats) != 2 {
		t.Fatalf("%d attachments, %v", len(stats), err)
	}
	for _, s := range stats {
		want := counter{pings, pings * (14 + 84)}
		if s.Egress.of("pass") != want || s.Ingress.of("pass") != want || s.Protocols.Egress.of("icmp") != want ||
			s.Protocols.Ingress.of("icmp") != want || s.Kinds.Egress.of("ipv4") != want || s.Kinds.Ingress.of("ipv4") != want {
			t.Errorf("%s: %+v, want %+v each way", s.label(), s, want)
		}
	}
	stdout, _ = r.xdpctl(0, "stats")
	r.contains(stdout, "demo/client", "demo/server", "490 B", "EGRESS", r.veths[0].HostName)
	stdout, _ = r.xdpctl(0, "stats", "10.0.1.2", "--watch", "10ms", "--count", "3", "-o", "json")
	if lines := strings.Count(stdout, "\n"); lines != 3 || strings.Count(stdout, `"packetsPerSecond"`) != 6 {
		t.Errorf("%d lines: %s", lines, stdout)
	}
	stdout, _ = r.xdpctl(0, "stats", "--watch=10ms", "--count=2", "-o", "wide")
	r.contains(stdout, "PACKETS/S", "icmp 5")
	stdout, _ = r.xdpctl(0, "pods", "-o", "wide")
	r.contains(stdout, "10.0.1.2/24", r.pods[1].ContainerID, "generic")
	stdout, _ = r.xdpctl(0, "peers", "demo/client", "--bytes")
	r.contains(stdout, "10.0.1.1", "490")
	_, stderr := r.xdpctl(exitFailure, "peers", r.veths[1].HostName)
	r.contains(stderr, "demo/server has no counters by peer")
	stdout, _ = r.xdpctl(0, "version")
	r.contains(stdout, "runs test", "xdp_egress", "tc_ingress", "2 attachments of 4096")
	stdout, _ = r.xdpctl(0, "doctor")
	r.contains(stdout, "2 intact", "an ADD can succeed", "nothing to collect")
	stdout, _ = r.xdpctl(0, "__complete", "stats", "demo/s")
	r.contains(stdout, "demo/server\t"+r.veths[1].HostName)

	// somebody removes a pin
	if err := os.Remove(filepath.Join(r.datapath.Root.Pod(pins.ID(r.pods[1].ContainerID, "eth0")), "kind_stats_map")); err != nil {
		t.Fatal(err)
	}
	stdout, stderr = r.xdpctl(exitFailure, "stats")
	r.contains(stdout, "demo/client")
	r.contains(stderr, "kind_stats_map")
	stdout, stderr = r.xdpctl(exitFailure, "doctor")
	r.contains(stdout, "attachment demo/server", "kind_stats_map", "1 intact")
	r.contains(stderr, "xdpctl: 1 check failed")

	// the client goes without a DEL
	err = r.node.Do(func() error {
		host, err := netlink.LinkByIndex(r.veths[0].HostIndex)
		if err != nil {
			return err
		}
		return netlink.LinkDel(host)
	})
	if err != nil {
		t.Fatal(err)
	}
	stdout, _ = r.xdpctl(exitFailure, "doctor")
	r.contains(stdout, "the interface is gone of demo/client", "-> xdpctl gc")
	for _, want := range []string{"WOULD REMOVE", "REMOVED", "Nothing is stale"} {
		args := []string{"gc"}
		if want == "WOULD REMOVE" {
			args = append(args, "--dry-run")
		}
		stdout, _ = r.xdpctl(0, args...)
		r.contains(stdout, want)
	}
	_, stderr = r.xdpctl(exitFailure, "stats", "demo/client")
	r.contains(stderr, "no pod is known", "demo/server")
}
