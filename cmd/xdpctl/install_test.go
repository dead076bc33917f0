package main

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/xdp-cni/xdp-cni/internal/install"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
)

func sampleInstall() *installReport {
	return &installReport{DryRun: true, Pods: []changedPod{}, Files: []install.Change{
		{Path: "/opt/cni/bin/xdp", Result: install.Created},
		{Path: "/opt/cni/bin/xdpctl", Result: install.Unchanged},
		{Path: "/etc/cni/net.d/10-pods.conflist", Result: install.Changed,
			Diff: "--- /etc/cni/net.d/10-pods.conflist\n+++ /etc/cni/net.d/10-pods.conflist\n@@ -1 +1,2 @@\n-  { \"type\": \"ptp\" }\n+  { \"type\": \"ptp\" },\n+  { \"type\": \"xdp\" }\n"},
	}}
}

func sampleUninstall() *installReport {
	return &installReport{Pods: sampleChanged(resultDetached), Files: []install.Change{
		{Path: "/etc/cni/net.d/10-pods.conflist", Result: install.Restored, Diff: "-  { \"type\": \"xdp\" }\n"},
		{Path: "/opt/cni/bin/xdp-ipam", Result: install.Kept},
	}}
}

func sampleAttach() *attachReport {
	return &attachReport{Pods: sampleChanged(resultAttached)}
}

func sampleChanged(result string) []changedPod {
	list := sampleAttachments()
	return []changedPod{
		{newAttachment(list[0].Meta), result, ""},
		{newAttachment(list[1].Meta), resultFailed, "it went wrong"},
	}
}

// installNode is a node with a chain in a directory of its own, and xdpctl run there as a process: what it
// does, it does on several threads, which all have to be in the node's network namespace.
type installNode struct {
	*testing.T
	*tests.Node
	confDir, binDir string
}

func newInstallNode(t *testing.T) *installNode {
	t.Helper()
	tests.MustBuild(t)
	n := &installNode{T: t, Node: tests.MustNode(t, tests.WithoutIPv6()), confDir: t.TempDir(), binDir: t.TempDir()}
	return n
}

func (n *installNode) xdpctl(status int, args ...string) string {
	n.Helper()
	return n.command(status, append([]string{n.Binaries.Xdpctl()}, args...))
}

// confined is xdpctl with no other capabilities than those, as in a container.
func (n *installNode) confined(capabilities string, args ...string) string {
	n.Helper()
	return n.command(0, append([]string{"setpriv", "--bounding-set=-all" + capabilities, "--no-new-privs", n.Binaries.Xdpctl()}, args...))
}

func (n *installNode) command(status int, args []string) string {
	n.Helper()
	var out, errs bytes.Buffer
	args = append(args, "--bpffs", n.BPFFS)
	cmd := exec.CommandContext(n.Context(), args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := n.Do(cmd.Run) // a child process begins in the network namespace of the thread that starts it
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		n.Fatal(err)
	}
	if have := cmd.ProcessState.ExitCode(); have != status {
		n.Fatalf("xdpctl %s: status %d, want %d\n%s%s", strings.Join(args, " "), have, status, &out, &errs)
	}
	return out.String() + errs.String()
}

// dirs are the flags of a command that say where the node has its CNI.
func (n *installNode) dirs(flags ...string) []string {
	known := map[string]string{"conf": n.confDir, "bin": n.binDir, "cache": n.CacheDir}
	var args []string
	for _, flag := range flags {
		args = append(args, "--"+flag+"-dir", known[flag])
	}
	return args
}

// network is the network of the configuration as it is now.
func (n *installNode) network() *tests.Network {
	n.Helper()
	text, err := os.ReadFile(filepath.Join(n.confDir, "10-pods.conflist"))
	if err != nil {
		n.Fatal(err)
	}
	return tests.MustNetwork(n, n.Node, string(text))
}

func (n *installNode) run(network *tests.Network, name string) *tests.Pod {
	n.Helper()
	pod := tests.MustPod(n, n.Node, name)
	tests.MustAdd(n, network, pod, tests.KubernetesArgs("demo", name, "uid-"+name))
	return pod
}

// contains checks what xdpctl wrote.
func (n *installNode) contains(text string, want ...string) {
	n.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			n.Errorf("no %q in\n%s", w, text)
		}
	}
}

// pingUntil sends pings, one after the other, until the end, and returns how many had no answer.
func pingUntil(t *testing.T, stop <-chan struct{}, from tests.Place, to netip.Addr) (lost int) {
	for {
		select {
		case <-stop:
			return lost
		default:
		}
		// what is not there after this time is lost, not late, also where the processor is emulated
		got, err := tests.PingCount(t.Context(), from, to, 1, tests.Patience(time.Second))
		if err != nil {
			t.Error(err)
			return lost
		}
		lost += 1 - got
	}
}

// mayLose is how many of packets sent one after the other may get lost by changes at tc hooks that they come by: none
// where those are tcx links. To add or remove a clsact qdisc the kernel takes the device's queues out of service until
// the next grace period (dev_deactivate() in qdisc_graft()), which is over before the loss is noticed.
func mayLose(t *testing.T, changes int) int {
	t.Helper()
	kernel, err := datapath.ProbeFeatures()
	if err != nil {
		t.Fatal(err)
	}
	if kernel.TCX {
		return 0
	}
	return changes
}

// TestInstall puts the plugin on a node where pods run, and takes it away again. They are attached and
// detached without losing one of their packets, but for what a clsact qdisc costs, and in the end all is as it was.
func TestInstall(t *testing.T) {
	n := newInstallNode(t)
	list := tests.Conflist("pods", "1.0.0", n.Bridge(tests.IPv4), tests.Conf{"type": "tuning"})
	file := filepath.Join(n.confDir, "10-pods.conflist")
	if err := os.WriteFile(file, []byte(list), 0o640); err != nil {
		t.Fatal(err)
	}
	before := n.network()
	first, second := n.run(before, "first"), n.run(before, "second")

	n.contains(n.xdpctl(0, append(n.dirs("conf", "bin"), "install", "--dry-run")...), `+      "type": "xdp",`, "xdp-ipam")
	if text, err := os.ReadFile(file); err != nil || string(text) != list {
		t.Error(err, string(text))
	}
	// with the capabilities of install/kubernetes: none, and those of uninstall below
	n.contains(n.confined("", append(n.dirs("conf", "bin"), "install", "--mode", "generic")...), "is not checked: missing capabilities")
	n.contains(n.xdpctl(0, append(n.dirs("conf", "bin"), "install")...), "10-pods.conflist  unchanged")
	network := n.network()
	third := n.run(network, "third")
	if have := n.xdpctl(0, "pods"); strings.Contains(have, "demo/first") || !strings.Contains(have, "demo/third") {
		t.Error(have)
	}

	// packets go on all the while
	stop := make(chan struct{})
	lost := make(chan int, 1)
	go func() { lost <- pingUntil(t, stop, first, second.IPv4()) }()
	attach := append(n.dirs("conf", "cache"), "attach")
	if have := n.xdpctl(1, append(attach, "demo/none")...); !strings.Contains(have, "demo/second") {
		t.Error(have)
	}
	n.contains(n.xdpctl(0, append(attach, "--all", "--dry-run")...), "demo/first", "pending", "unchanged")
	n.contains(n.xdpctl(0, append(attach, first.IPv4().String())...), "demo/first", "attached")
	n.contains(n.xdpctl(0, append(attach, "--all")...), "demo/second  eth0", "attached", "unchanged")
	for _, pod := range []*tests.Pod{first, second, third} {
		if err := network.Check(t.Context(), pod); err != nil {
			t.Errorf("CHECK of %s: %v", pod.Name, err)
		}
	}
	n.contains(n.xdpctl(0, "detach", "demo/second"), "detached")
	if err := network.Check(t.Context(), second); err == nil {
		t.Error("a pod that was detached passes CHECK")
	}
	n.contains(n.xdpctl(0, append(attach, "demo/second")...), "attached")

	uninstall := append(n.dirs("conf", "bin", "cache"), "uninstall")
	n.contains(n.xdpctl(0, append(uninstall, "--dry-run")...), "pending", "restored", "removed")
	n.contains(n.xdpctl(0, append(uninstall, "--keep-running")...), "restored")
	n.contains(n.xdpctl(0, "pods"), "demo/first", "demo/second", "demo/third")
	n.xdpctl(0, append(n.dirs("conf", "bin"), "install", "--mode", "generic")...)
	n.contains(n.confined(",+net_admin,+sys_admin,+sys_resource", uninstall...), "detached", "restored", "removed")
	close(stop)
	// first and second are attached, second is taken off and attached again, and both go
	if have, most := <-lost, mayLose(t, 6); have > most {
		t.Errorf("%d packets were lost, more than %d", have, most)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != list {
		t.Error(err, string(text))
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o640 {
		t.Error(err, info.Mode())
	}
	for _, dir := range []string{n.confDir, n.binDir} {
		entries, err := os.ReadDir(dir)
		if want := map[string]int{n.confDir: 1}[dir]; err != nil || len(entries) != want {
			t.Error(entries, err)
		}
	}
	if pins := n.Tree(); len(pins) > 0 {
		t.Error("left:", pins)
	}
	n.contains(n.xdpctl(0, uninstall...), "nothing of it")

	// the chain that CRI-O and podman would give a pod's DEL does without the plugin
	cni := libcni.NewCNIConfigWithCacheDir(n.Binaries.CNIPath(), n.CacheDir, nil)
	for _, pod := range []*tests.Pod{first, second, third} {
		config, _, err := cni.GetNetworkListCachedConfig(before.List, &libcni.RuntimeConf{ContainerID: pod.ContainerID, IfName: pod.IfName})
		if err != nil || strings.Contains(string(config), `"xdp"`) {
			t.Errorf("%s: %v, %s", pod.Name, err, config)
		}
	}
}

// TestAttachFilter: a pod that runs gets the filter of its network, and an address that it gave itself is
// not its own.
func TestAttachFilter(t *testing.T) {
	n := newInstallNode(t)
	list := tests.Conflist("pods", "1.0.0", n.Bridge(tests.IPv4))
	if err := os.WriteFile(filepath.Join(n.confDir, "10-pods.conflist"), []byte(list), 0o640); err != nil {
		t.Fatal(err)
	}
	filter := filepath.Join(t.TempDir(), "filter.yaml")
	if err := os.WriteFile(filter, []byte("antiSpoof: true\nrules:\n- {name: no-ping, direction: egress, action: deny, to: [10.244.0.1], protocol: icmp}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pod := n.run(n.network(), "web")
	node := netip.MustParseAddr("10.244.0.1")
	if err := tests.Ping(t.Context(), pod, node, 1); err != nil {
		t.Fatal(err)
	}
	n.xdpctl(0, append(n.dirs("conf", "bin"), "install", "--filter", filter)...)
	n.xdpctl(0, append(n.dirs("conf", "cache"), "attach", "--all")...)
	if got, err := tests.PingCount(t.Context(), pod, node, 3, 0); err != nil || got != 0 {
		t.Errorf("%d pings, %v: the filter is not in force", got, err)
	}
	n.contains(n.xdpctl(0, "drops", "demo/web"), "no-ping")
	n.xdpctl(0, append(n.dirs("conf", "bin", "cache"), "uninstall")...)
	if err := tests.Ping(t.Context(), pod, node, 1); err != nil {
		t.Error(err)
	}
}

// TestInstallRefuses: a chain that cannot have the entry is named, and nothing copied for it.
func TestInstallRefuses(t *testing.T) {
	confDir, binDir := t.TempDir(), t.TempDir()
	list := tests.Conflist("pods", "1.0.0", tests.Conf{"type": "macvlan"})
	if err := os.WriteFile(filepath.Join(confDir, "10.conflist"), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	status, _, stderr := xdpctl(t.Context(), "install", "--conf-dir", confDir, "--bin-dir", binDir, "--bpffs", t.TempDir())
	if status != exitFailure || !strings.Contains(stderr, `the main plugin of network "pods" makes no veth: macvlan`) {
		t.Errorf("status %d, %q", status, stderr)
	}
	if entries, err := os.ReadDir(binDir); err != nil || len(entries) > 0 {
		t.Error(entries, err)
	}
}

// TestInstallUsage: what is wrong with the command lines.
func TestInstallUsage(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct{ args, want string }{
		{"install --mode fast", `--mode is "fast"`},
		{"install --watch --dry-run", "do not go together"},
		{"install --conf /etc/x.conflist", "has to be the name of a file"},
		{"install --subnet 10", "has to be addresses"},
		{"attach", "takes a POD or more, or --all"},
		{"attach --all x", "takes no POD with --all, got x"},
		{"detach", "takes a POD or more, or --all"},
		{"uninstall x", `unknown command "x"`},
	} {
		status, _, stderr := xdpctl(context.Background(), append(strings.Fields(test.args), "--bpffs", dir)...)
		if status != exitUsage || !strings.Contains(stderr, test.want) {
			t.Errorf("%s: status %d, %q", test.args, status, stderr)
		}
	}
	status, _, stderr := xdpctl(context.Background(), "attach", "--all", "--conf-dir", dir)
	if status != exitFailure || !strings.Contains(stderr, "see xdpctl install") {
		t.Errorf("status %d, %q", status, stderr)
	}
}
