package integration

import (
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/bigtcp"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
)

// foreignXDP attaches a program of nobody to an interface by netlink and returns its ID.
func foreignXDP(t *testing.T, n *tests.Node, name string) uint32 {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	host := hostLink(t, n, name)
	if err := n.Do(func() error {
		return netlink.LinkSetXdpFdWithFlags(host, prog.FD(), int(link.XDPGenericMode))
	}); err != nil {
		t.Fatal(err)
	}
	info, err := prog.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return uint32(id)
}

// dropCapabilities makes a command run as nobody.
func dropCapabilities(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

// waitGone waits until the host end of a closed pod is gone: a namespace is taken down by a worker.
func waitGone(t *testing.T, n *tests.Node, pod *tests.Pod) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if attached, err := staleAttachments(t, n); err == nil && attached > 0 {
			return
		}
	}
	t.Fatalf("the interface of pod %s is still there", pod.Name)
}

// staleAttachments counts what `xdpctl gc` would collect.
func staleAttachments(t *testing.T, n *tests.Node) (stale int, err error) {
	t.Helper()
	err = n.Do(func() error {
		d := datapath.New(datapath.Options{Root: pins.NewRoot(n.BPFFS)})
		list, err := d.Collect(t.Context(), datapath.CollectOptions{DryRun: true})
		stale = len(list)
		return err
	})
	return stale, err
}

// haveBigTCP tells whether the kernel has BIG TCP for IPv4 (6.3). If not, a pod for which it is asked is refused in the
// node, and STATUS says why before.
func haveBigTCP(t *testing.T, n *tests.Node, asked tests.Conf) bool {
	t.Helper()
	supported := n.Do(bigtcp.Supported)
	if supported != nil && !errors.Is(supported, bigtcp.ErrUnsupported) {
		t.Fatal(supported)
	}
	_, _, refused := pathPod(t, n, 0, asked)
	out, err := n.RunPlugin(t.Context(), "STATUS", nil, pluginConf(n, "1.1.0", nil, asked))
	if supported == nil {
		if refused != nil || err != nil {
			t.Errorf("ADD: %v; STATUS: %v", refused, err)
		}
		return true
	}
	if refused == nil || refused.Code != 104 || !strings.Contains(refused.Error(), "6.3") {
		t.Errorf("ADD: %v, want an error of code 104 that says which kernel it takes", refused)
	}
	if err == nil {
		t.Error("STATUS is silent about what ADD refuses")
	} else if e := outputError(t, out); e.Code != types.ErrPluginNotAvailable || !strings.Contains(e.Error(), "6.3") {
		t.Errorf("STATUS: %d %v", e.Code, e)
	}
	return false
}
