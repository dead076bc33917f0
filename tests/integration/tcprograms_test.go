package integration

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// TestTCPrograms runs user tc programs through the chain: one before the filter, whose TC_ACT_OK does not pass by
// it, and one after. A kernel without tcx refuses them.
func TestTCPrograms(t *testing.T) {
	object, err := filepath.Abs("../../plugin/programs/testdata/others.bpf.o")
	if err != nil {
		t.Fatal(err)
	}
	n := start(t)
	if kernel, err := datapath.ProbeFeatures(); err != nil {
		t.Fatal(err)
	} else if !kernel.TCX {
		pod, _, prev := vethPod(t, n, "pod", "1.1.0")
		out, err := n.RunPlugin(t.Context(), "ADD", pod, pluginConf(n, "1.1.0", prev, tests.Conf{
			"mode": "tcx", "programs": []tests.Conf{{"object": object, "program": "tc_first"}},
		}))
		if err == nil {
			t.Fatalf("ADD without tcx succeeded: %s", out.Stdout)
		}
		if refused := outputError(t, out); refused.Code != 109 || !strings.Contains(refused.Msg, "6.6") {
			t.Errorf("ADD without tcx: code %d, %q, want 109 that names kernel 6.6", refused.Code, refused.Msg)
		}
		return
	}
	r := newSampleRigOf(t, n, "tcx", (*tests.Node).Bridge, tests.Conf{
		"programs": []tests.Conf{
			{"object": object, "program": "tc_third", "name": "behind", "order": "after"},
			{"object": object, "program": "tc_first"},
		},
		"filter": tests.Conf{"rules": []tests.Conf{
			{"name": "not-this", "direction": "egress", "action": "deny", "protocol": "udp", "ports": []string{"8000"}},
		}},
	})
	p := r.add(t, "pod")
	if err := r.w.Check(t.Context(), p.Pod); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	// what neither of them decides passes both and the filter
	if err := tests.Ping(t.Context(), p, p.GatewayIPv4(), 3); err != nil {
		t.Error(err)
	}
	quiet(t, p.Pod)
	seen := func(name string) (count uint64) {
		t.Helper()
		for _, path := range n.Tree() {
			if !strings.HasSuffix(path, "/programs/"+name+"/seen") {
				continue
			}
			m, err := ebpf.LoadPinnedMap(path, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if err := m.Lookup(uint32(0), &count); err != nil {
				t.Fatal(err)
			}
			return count
		}
		t.Fatalf("program %s has no map", name)
		return 0
	}
	const ok, dropBefore, dropBehind, passes = 8000, 8000 + int(netlink.TC_ACT_SHOT), 8020 + int(netlink.TC_ACT_SHOT), 9
	before, first, behind := readStats(t, n, p.Pod), seen("tc_first"), seen("behind")
	for _, port := range []int{ok, dropBefore, dropBehind, passes} {
		p.send(t, p.of(packets.IPv4{Src: p.IPv4(), Dst: p.GatewayIPv4()}, packets.UDP{DstPort: uint16(port)}))
	}
	p.counted(t, before, "pass", 2) // the filter let pass what was dropped behind it
	p.counted(t, before, "drop", 1)
	if got := seen("tc_first") - first; got != 4 {
		t.Errorf("the program before the filter saw %d packets, want 4", got)
	}
	if got := seen("behind") - behind; got != 2 {
		t.Errorf("the program after the filter saw %d packets, want 2", got)
	}
	out, err := n.RunXdpctl(t.Context(), "programs", p.ContainerID)
	if err != nil || !strings.Contains(string(out.Stdout), "tc_first") {
		t.Errorf("xdpctl programs: %v\n%s%s", err, out.Stdout, out.Stderr)
	}
	if err := r.w.Del(t.Context(), p.Pod); err != nil {
		t.Error(err)
	}
	if left := n.Tree(); len(left) > 0 {
		t.Errorf("DEL left %v", left)
	}
}
