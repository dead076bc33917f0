package integration

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/podend"
	"github.com/xdp-cni/xdp-cni/tests"
)

// TestPaths finds out which way the plugin goes on this kernel, and holds it to what the kernel has: what is missing
// is done without, or ADD and STATUS say what it takes. The attributes make the table of `make test-kernels`.
func TestPaths(t *testing.T) {
	n := start(t)
	kernel, err := datapath.ProbeFeatures()
	if err != nil {
		t.Fatal(err)
	}
	t.Attr("clock", either(kernel.CoarseClock, "coarse", "exact"))
	fills, err := datapath.ProbeLRUFills() // of which xdpctl doctor warns
	if err != nil {
		t.Fatal(err)
	}
	t.Attr("lru", either(fills, "filled", "not filled"))
	for _, path := range []struct {
		attribute string
		find      func(t *testing.T, n *tests.Node, kernel datapath.Features) string
	}{{"tc", tcHooks}, {"frags", frags}, {"native-redirect", nativeRedirect}, {"big-tcp", bigTCP}} {
		var found string
		t.Run(path.attribute, func(t *testing.T) { found = path.find(t, n, kernel) })
		if found != "" {
			t.Attr(path.attribute, found)
		}
	}
}

func either(condition bool, yes, no string) string {
	if condition {
		return yes
	}
	return no
}

// pathPod makes a pod of the node and adds it. The error is what ADD says, if it fails.
func pathPod(t *testing.T, n *tests.Node, mtu int, conf tests.Conf) (*tests.Pod, *tests.Veth, *types.Error) {
	t.Helper()
	pod := tests.MustPod(t, n, t.Name())
	veth, err := tests.MakeVeth(t.Context(), n, pod, tests.VethOptions{MTU: mtu})
	if err != nil {
		t.Fatal(err)
	}
	stdin := pluginConf(n, "1.1.0", map[string]any{"cniVersion": "1.1.0"}, conf)
	out, err := n.RunPlugin(t.Context(), "ADD", pod, stdin)
	if err != nil {
		return pod, veth, outputError(t, out)
	}
	t.Cleanup(func() {
		if out, err := n.RunPlugin(context.WithoutCancel(t.Context()), "DEL", pod, stdin); err != nil {
			t.Errorf("DEL: %v: %s", err, out.Stdout)
		}
	})
	return pod, veth, nil
}

// tcHooks: tcx links, or filters on a clsact qdisc.
func tcHooks(t *testing.T, n *tests.Node, kernel datapath.Features) string {
	_, veth, refused := pathPod(t, n, 0, tests.Conf{"mode": "tcx"})
	if refused != nil {
		t.Fatal(refused)
	}
	links, filters := 0, 0
	err := n.Do(func() error {
		host, err := netlink.LinkByName(veth.HostName)
		if err != nil {
			return err
		}
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			list, err := netlink.FilterList(host, parent)
			if err != nil {
				return err
			}
			filters += len(list)
		}
		for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			// kernels that have none refuse to say how many
			if list, err := link.QueryPrograms(link.QueryOptions{Target: veth.HostIndex, Attach: hook}); err == nil {
				links += len(list.Programs)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := [2]int{0, 2}
	if kernel.TCX {
		want = [2]int{2, 0}
	}
	expect(t, "tcx links and filters", [2]int{links, filters}, want)
	return either(links > 0, "tcx", "clsact")
}

// frags: without multi-buffer XDP a jumbo frame is too large for mode native.
func frags(t *testing.T, n *tests.Node, kernel datapath.Features) string {
	for _, mtu := range []int{1500, 9000} {
		_, _, refused := pathPod(t, n, mtu, tests.Conf{"mode": "native"})
		switch {
		case refused == nil:
			if mtu == 9000 && !kernel.XDPFrags {
				t.Error("without multi-buffer XDP it took an MTU of 9000")
			}
		case mtu == 1500 || kernel.XDPFrags:
			t.Errorf("MTU %d: %v", mtu, refused)
		case refused.Code != 104 || !strings.Contains(refused.Error(), "5.18"):
			t.Errorf("the error does not say which kernel it takes: %d %v", refused.Code, refused)
		}
	}
	return either(kernel.XDPFrags, "yes", "no")
}

// nativeRedirect: pods to which native redirect goes are those with GRO, which the plugin turns on, or only those that
// run XDP.
func nativeRedirect(t *testing.T, n *tests.Node, _ datapath.Features) string {
	pod, veth, refused := pathPod(t, n, 0, tests.Conf{"mode": "native", "redirect": true})
	if refused != nil {
		t.Fatal(refused)
	}
	err := receives(n, pod, veth.HostIndex, veth.PodIndex)
	if err == nil {
		return "any pod (GRO)"
	}
	if !errors.Is(err, podend.ErrNotPrepared) {
		t.Fatal(err)
	}
	passAll, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer passAll.Close()
	inPod(t, pod, func() error {
		l, err := link.AttachXDP(link.XDPOptions{Program: passAll, Interface: veth.PodIndex, Flags: link.XDPDriverMode})
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		return nil
	})
	if err := receives(n, pod, veth.HostIndex, veth.PodIndex); err != nil {
		t.Error(err)
	}
	return "pods with XDP"
}

// bigTCP: asked for it is had, or ADD and STATUS say which kernel it takes; "auto" does without.
func bigTCP(t *testing.T, n *tests.Node, _ datapath.Features) string {
	if _, _, refused := pathPod(t, n, 0, tests.Conf{"mode": "auto", "bigTCP": "auto"}); refused != nil {
		t.Errorf("auto: %v", refused)
	}
	return either(haveBigTCP(t, n, tests.Conf{"mode": "tcx", "bigTCP": true}), "yes", "no")
}
