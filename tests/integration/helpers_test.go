package integration

import (
	"errors"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
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
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
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

// needsBigTCP is for tests of what kernels below 6.3 have not.
func needsBigTCP(t *testing.T) {
	t.Helper()
	if err := bigtcp.Supported(); errors.Is(err, bigtcp.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
}
