package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// pluginConf returns a plugin configuration with a prevResult, as a runtime gives it on stdin.
func pluginConf(n *tests.Node, version string, prev any, overrides ...tests.Conf) string {
	c := n.XDP(append([]tests.Conf{{"cniVersion": version, "name": "net"}}, overrides...)...)
	if prev != nil {
		c["prevResult"] = prev
	}
	data, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// vethPod makes a pod with a veth, and the prevResult of a plugin that would have made it.
func vethPod(t *testing.T, n *tests.Node, name, version string) (*tests.Pod, *tests.Veth, map[string]any) {
	t.Helper()
	pod := tests.MustPod(t, n, name)
	veth, err := tests.MakeVeth(t.Context(), n, pod, tests.VethOptions{})
	if err != nil {
		t.Fatal(err)
	}
	address := map[string]any{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 1}
	if version < "1.0.0" {
		address["version"] = "4"
	}
	return pod, veth, map[string]any{
		"cniVersion": version,
		"interfaces": []any{
			map[string]any{"name": veth.HostName, "mac": veth.HostMAC.String()},
			map[string]any{"name": pod.IfName, "mac": veth.PodMAC.String(), "sandbox": pod.NetNS()},
		},
		"ips":    []any{address},
		"routes": []any{map[string]any{"dst": "0.0.0.0/0"}},
		"dns":    map[string]any{"nameservers": []any{"10.0.0.53"}},
	}
}

// TestVersions runs the verbs in each version of the protocol: the result comes out as prevResult
// went in, also with fields that no version knows.
func TestVersions(t *testing.T) {
	n := start(t)
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			pod, _, prev := vethPod(t, n, "pod", version)
			prev["x-vendor"] = map[string]any{"large": 9007199254740993}
			out, err := n.RunPlugin(t.Context(), "ADD", pod, pluginConf(n, version, prev))
			if err != nil {
				t.Fatalf("ADD: %v: %s", err, out.Stdout)
			}
			want, _ := json.Marshal(prev)
			var got, wanted any
			if err := json.Unmarshal(out.Stdout, &got); err != nil {
				t.Fatalf("standard output: %v: %s", err, out.Stdout)
			}
			_ = json.Unmarshal(want, &wanted)
			if !reflect.DeepEqual(got, wanted) || !strings.Contains(string(out.Stdout), "9007199254740993") {
				t.Errorf("ADD printed %s, want prevResult as it was: %s", out.Stdout, want)
			}
			if version != "0.3.1" {
				if out, err := n.RunPlugin(t.Context(), "CHECK", pod, pluginConf(n, version, prev)); err != nil {
					t.Errorf("CHECK: %v: %s", err, out.Stdout)
				}
			}
			if version == "1.1.0" {
				if out, err := n.RunPlugin(t.Context(), "STATUS", nil, pluginConf(n, version, nil)); err != nil || len(out.Stdout) > 0 {
					t.Errorf("STATUS: %v: %s", err, out.Stdout)
				}
			}
			if out, err := n.RunPlugin(t.Context(), "DEL", pod, pluginConf(n, version, prev)); err != nil || len(out.Stdout) > 0 {
				t.Errorf("DEL: %v: %s", err, out.Stdout)
			}
		})
	}
	out, err := n.RunPlugin(t.Context(), "VERSION", nil, `{"cniVersion":"1.1.0"}`)
	if err != nil || !strings.Contains(string(out.Stdout), `"0.3.1","0.4.0","1.0.0","1.1.0"`) {
		t.Errorf("VERSION: %v: %s", err, out.Stdout)
	}
}

// TestResultIsConverted: prevResult of an older version comes out in the version asked for.
func TestResultIsConverted(t *testing.T) {
	n := start(t)
	pod, _, prev := vethPod(t, n, "pod", "0.3.1")
	out, err := n.RunPlugin(t.Context(), "ADD", pod, pluginConf(n, "1.0.0", prev))
	if err != nil {
		t.Fatalf("ADD: %v: %s", err, out.Stdout)
	}
	if s := string(out.Stdout); !strings.Contains(s, `"1.0.0"`) || strings.Contains(s, `"version"`) {
		t.Errorf("ADD printed %s", s)
	}
	if out, err := n.RunPlugin(t.Context(), "DEL", pod, pluginConf(n, "1.0.0", nil)); err != nil {
		t.Errorf("DEL: %v: %s", err, out.Stdout)
	}
}

// TestRefusals: each thing that ADD cannot take, with its code and words, and nothing left behind.
func TestRefusals(t *testing.T) {
	for _, test := range []struct {
		name string
		code uint
		want []string
		// prepare changes the pod and returns what stdin and the environment are
		prepare func(t *testing.T, n *tests.Node, pod *tests.Pod, veth *tests.Veth, prev map[string]any) (string, []string)
	}{
		{"no prevResult", types.ErrInvalidNetworkConfig, []string{"prevResult"},
			func(_ *testing.T, n *tests.Node, _ *tests.Pod, _ *tests.Veth, _ map[string]any) (string, []string) {
				return pluginConf(n, "1.1.0", nil), nil
			}},
		{"unknown key", types.ErrInvalidNetworkConfig, []string{"mod", "mode"},
			func(_ *testing.T, n *tests.Node, _ *tests.Pod, _ *tests.Veth, prev map[string]any) (string, []string) {
				return pluginConf(n, "1.1.0", prev, tests.Conf{"mod": "native"}), nil
			}},
		{"unknown mode", types.ErrInvalidNetworkConfig, []string{"mode", "fast", "generic", "native", "tcx", "auto"},
			func(_ *testing.T, n *tests.Node, _ *tests.Pod, _ *tests.Veth, prev map[string]any) (string, []string) {
				return pluginConf(n, "1.1.0", prev, tests.Conf{"mode": "fast"}), nil
			}},
		{"missing netns", types.ErrInvalidNetNS, []string{"/run/netns/nowhere"},
			func(_ *testing.T, n *tests.Node, _ *tests.Pod, _ *tests.Veth, prev map[string]any) (string, []string) {
				return pluginConf(n, "1.1.0", prev), []string{"CNI_NETNS=/run/netns/nowhere"}
			}},
		{"netns that is a file", types.ErrInvalidNetNS, []string{"/etc/hostname"},
			func(_ *testing.T, n *tests.Node, _ *tests.Pod, _ *tests.Veth, prev map[string]any) (string, []string) {
				return pluginConf(n, "1.1.0", prev), []string{"CNI_NETNS=/etc/hostname"}
			}},
		{"missing interface", 100, []string{"eth7"},
			func(_ *testing.T, n *tests.Node, _ *tests.Pod, _ *tests.Veth, prev map[string]any) (string, []string) {
				return pluginConf(n, "1.1.0", prev), []string{"CNI_IFNAME=eth7"}
			}},
		{"loopback", 101, []string{"loopback", "veth"},
			func(_ *testing.T, n *tests.Node, _ *tests.Pod, _ *tests.Veth, prev map[string]any) (string, []string) {
				return pluginConf(n, "1.1.0", prev), []string{"CNI_IFNAME=lo"}
			}},
		{"macvlan", 101, []string{"macvlan", "veth"},
			func(t *testing.T, n *tests.Node, pod *tests.Pod, _ *tests.Veth, prev map[string]any) (string, []string) {
				inPod(t, pod, func() error {
					parent, err := netlink.LinkByName(pod.IfName)
					if err != nil {
						return err
					}
					return netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "mv0", ParentIndex: parent.Attrs().Index}})
				})
				return pluginConf(n, "1.1.0", prev), []string{"CNI_IFNAME=mv0"}
			}},
		{"host-device", 101, []string{"veth"},
			func(t *testing.T, n *tests.Node, pod *tests.Pod, _ *tests.Veth, prev map[string]any) (string, []string) {
				inPod(t, pod, func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "dev0"}}) })
				return pluginConf(n, "1.1.0", prev), []string{"CNI_IFNAME=dev0"}
			}},
		{"both veth ends in the pod", 101, []string{"not in the plugin's network namespace"},
			func(t *testing.T, n *tests.Node, pod *tests.Pod, _ *tests.Veth, prev map[string]any) (string, []string) {
				inPod(t, pod, func() error {
					return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "in0", TxQLen: -1}, PeerName: "in1"})
				})
				return pluginConf(n, "1.1.0", prev), []string{"CNI_IFNAME=in0"}
			}},
		{"host end in a third namespace", 101, []string{"not in the plugin's network namespace"},
			func(t *testing.T, n *tests.Node, pod *tests.Pod, veth *tests.Veth, prev map[string]any) (string, []string) {
				third := tests.MustPod(t, n, "third")
				file, err := os.Open(third.NetNS())
				if err != nil {
					t.Fatal(err)
				}
				defer file.Close()
				err = n.Do(func() error {
					return netlink.LinkSetNsFd(hostLink(t, n, veth.HostName), int(file.Fd()))
				})
				if err != nil {
					t.Fatal(err)
				}
				return pluginConf(n, "1.1.0", prev), nil
			}},
		{"prevResult of another interface", 102, []string{"vethother", "prevResult"},
			func(_ *testing.T, n *tests.Node, _ *tests.Pod, _ *tests.Veth, prev map[string]any) (string, []string) {
				prev["interfaces"].([]any)[0].(map[string]any)["name"] = "vethother"
				return pluginConf(n, "1.1.0", prev), nil
			}},
		{"prevResult with another MAC", 102, []string{"02:00:00:00:00:99"},
			func(_ *testing.T, n *tests.Node, _ *tests.Pod, _ *tests.Veth, prev map[string]any) (string, []string) {
				prev["interfaces"].([]any)[1].(map[string]any)["mac"] = "02:00:00:00:00:99"
				return pluginConf(n, "1.1.0", prev), nil
			}},
		{"prevResult of another sandbox", 102, []string{"/run/netns/other"},
			func(_ *testing.T, n *tests.Node, _ *tests.Pod, _ *tests.Veth, prev map[string]any) (string, []string) {
				prev["interfaces"].([]any)[1].(map[string]any)["sandbox"] = "/run/netns/other"
				return pluginConf(n, "1.1.0", prev), nil
			}},
		{"bad CNI_ARGS", types.ErrInvalidEnvironmentVariables, []string{"K8S_POD_NAME"},
			func(_ *testing.T, n *tests.Node, _ *tests.Pod, _ *tests.Veth, prev map[string]any) (string, []string) {
				return pluginConf(n, "1.1.0", prev), []string{"CNI_ARGS=K8S_POD_NAME=" + strings.Repeat("x", 300)}
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := start(t)
			pod, veth, prev := vethPod(t, n, "pod", "1.1.0")
			stdin, env := test.prepare(t, n, pod, veth, prev)
			out, err := n.RunPlugin(t.Context(), "ADD", pod, stdin, env...)
			if err == nil {
				t.Fatalf("ADD succeeded: %s", out.Stdout)
			}
			e := outputError(t, out)
			if e.Code != test.code {
				t.Errorf("code %d, want %d: %s", e.Code, test.code, e)
			}
			for _, want := range test.want {
				if !strings.Contains(e.Error(), want) {
					t.Errorf("error %q does not say %q", e, want)
				}
			}
			if tree := n.Tree(); len(tree) > 0 {
				t.Errorf("left in bpffs: %v", tree)
			}
		})
	}
}

func inPod(t *testing.T, pod *tests.Pod, fn func() error) {
	t.Helper()
	if err := pod.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// TestForeignProgram: somebody's XDP program on the host end stays, and ADD says whose it is.
func TestForeignProgram(t *testing.T) {
	n := start(t)
	pod, veth, prev := vethPod(t, n, "pod", "1.1.0")
	prog := foreignXDP(t, n, veth.HostName)
	out, err := n.RunPlugin(t.Context(), "ADD", pod, pluginConf(n, "1.1.0", prev))
	if err == nil {
		t.Fatal("ADD succeeded")
	}
	if e := outputError(t, out); e.Code != 103 || !strings.Contains(e.Error(), fmt.Sprintf("program %d (foreign)", prog)) {
		t.Errorf("error %d %q, want 103 that names program %d", e.Code, e, prog)
	}
	if now := hostLink(t, n, veth.HostName).Attrs().Xdp; now == nil || now.ProgId != prog {
		t.Errorf("the interface runs %+v, want program %d", now, prog)
	}
	if tree := n.Tree(); len(tree) > 0 {
		t.Errorf("left in bpffs: %v", tree)
	}
}

// TestDelNeedsNothing: no namespace, no prevResult, no veth, no bpffs, an invalid configuration,
// and again.
func TestDelNeedsNothing(t *testing.T) {
	n := start(t)
	pod, veth, prev := vethPod(t, n, "pod", "1.1.0")
	add := func() {
		t.Helper()
		if out, err := n.RunPlugin(t.Context(), "ADD", pod, pluginConf(n, "1.1.0", prev)); err != nil {
			t.Fatalf("ADD: %v: %s", err, out.Stdout)
		}
	}
	del := func(stdin string) {
		t.Helper()
		out, err := n.RunPlugin(t.Context(), "DEL", pod, stdin, "CNI_NETNS=")
		if err != nil || len(out.Stdout) > 0 {
			t.Errorf("DEL: %v: %s%s", err, out.Stdout, out.Stderr)
		}
		if tree := n.Tree(); len(tree) > 0 {
			t.Errorf("left in bpffs: %v", tree)
		}
		if xdp := hostLinkXDP(n, veth.HostName); xdp {
			t.Error("the interface still runs an XDP program after DEL")
		}
	}
	add()
	del(pluginConf(n, "1.1.0", nil))
	del(pluginConf(n, "1.1.0", nil))
	add()
	del(pluginConf(n, "1.1.0", nil, tests.Conf{"mode": "of the next release", "new": true}))
	add()
	if err := pod.Close(); err != nil {
		t.Fatal(err)
	}
	del(pluginConf(n, "1.1.0", nil))
	del(pluginConf(n, "1.1.0", nil, tests.Conf{"bpffs": filepath.Join(n.Dir, "no", "such", "place")}))
	if _, err := os.Stat(filepath.Join(n.Dir, "no")); err == nil {
		t.Error("DEL made a directory")
	}
}

func hostLinkXDP(n *tests.Node, name string) bool {
	on := false
	_ = n.Do(func() error {
		if host, err := netlink.LinkByName(name); err == nil && host.Attrs().Xdp != nil {
			on = host.Attrs().Xdp.Attached
		}
		return nil
	})
	return on
}

// TestGC: the list of valid attachments as runtimes give it; absent is not empty.
func TestGC(t *testing.T) {
	n := start(t)
	var pods []*tests.Pod
	for _, name := range []string{"a", "b", "c"} {
		pod, _, prev := vethPod(t, n, name, "1.1.0")
		if out, err := n.RunPlugin(t.Context(), "ADD", pod, pluginConf(n, "1.1.0", prev)); err != nil {
			t.Fatalf("ADD: %v: %s", err, out.Stdout)
		}
		pods = append(pods, pod)
	}
	gc := func(overrides ...tests.Conf) int {
		t.Helper()
		out, err := n.RunPlugin(t.Context(), "GC", nil, pluginConf(n, "1.1.0", nil, overrides...))
		if err != nil || len(out.Stdout) > 0 {
			t.Fatalf("GC: %v: %s", err, out.Stdout)
		}
		entries, err := os.ReadDir(filepath.Join(n.BPFFS, "v1", "pods"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return len(entries)
	}
	expect(t, "attachments after GC without a list", gc(), 3)
	expect(t, "attachments after GC of another network with an empty list",
		gc(tests.Conf{"name": "other", "cni.dev/valid-attachments": []any{}}), 3)
	expect(t, "attachments after GC with a list", gc(tests.Conf{"cni.dev/valid-attachments": []any{
		map[string]any{"containerID": pods[0].ContainerID, "ifname": "eth0"},
		map[string]any{"containerID": pods[1].ContainerID, "ifname": "eth1"},
		map[string]any{"containerID": pods[2].ContainerID, "ifname": "eth0"},
	}}), 2)
	if err := pods[0].Close(); err != nil {
		t.Fatal(err)
	}
	waitGone(t, n, pods[0])
	expect(t, "attachments after GC without a list when an interface is gone", gc(), 1)
	expect(t, "attachments after GC with an empty list", gc(tests.Conf{"cni.dev/valid-attachments": []any{}}), 0)
	if tree := n.Tree(); len(tree) > 0 {
		t.Errorf("left in bpffs: %v", tree)
	}
}

// TestBPFFSIsMounted: a root on no bpffs gets one, and STATUS says what is in the way of it.
func TestBPFFSIsMounted(t *testing.T) {
	n := start(t)
	root := filepath.Join(n.Dir, "own", "bpf")
	here := tests.Conf{"bpffs": root}
	if out, err := n.RunPlugin(t.Context(), "STATUS", nil, pluginConf(n, "1.1.0", nil, here)); err != nil {
		t.Errorf("STATUS: %v: %s", err, out.Stdout)
	}
	pod, _, prev := vethPod(t, n, "pod", "1.1.0")
	defer func() { _ = unix.Unmount(root, unix.MNT_DETACH) }()
	if out, err := n.RunPlugin(t.Context(), "ADD", pod, pluginConf(n, "1.1.0", prev, here)); err != nil {
		t.Fatalf("ADD: %v: %s", err, out.Stdout)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil || st.Type != unix.BPF_FS_MAGIC {
		t.Errorf("%s is on filesystem %x: %v", root, st.Type, err)
	}
	if out, err := n.RunPlugin(t.Context(), "DEL", pod, pluginConf(n, "1.1.0", nil, here)); err != nil {
		t.Errorf("DEL: %v: %s", err, out.Stdout)
	}

	full := filepath.Join(n.Dir, "full")
	if err := os.MkdirAll(filepath.Join(full, "precious"), 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := n.RunPlugin(t.Context(), "ADD", pod, pluginConf(n, "1.1.0", prev, tests.Conf{"bpffs": full}))
	if err == nil || !strings.Contains(outputError(t, out).Error(), "not empty") {
		t.Errorf("ADD that would have to hide files: %v: %s", err, out.Stdout)
	}
}

// TestPrivileges runs without the capabilities: the error names them, and STATUS has code 50.
func TestPrivileges(t *testing.T) {
	n := start(t)
	pod, _, prev := vethPod(t, n, "pod", "1.1.0")
	for _, test := range []struct {
		command string
		code    uint
	}{{"ADD", 105}, {"CHECK", 105}, {"STATUS", types.ErrPluginNotAvailable}} {
		cmd := n.PluginCommand(t.Context(), test.command, pod, pluginConf(n, "1.1.0", prev))
		dropCapabilities(cmd)
		out, err := n.Run(cmd)
		if err == nil {
			t.Fatalf("%s without capabilities succeeded", test.command)
		}
		e := outputError(t, out)
		if e.Code != test.code || !strings.Contains(e.Error(), "CAP_NET_ADMIN") || !strings.Contains(e.Error(), "CAP_BPF") {
			t.Errorf("%s without capabilities: %d %s", test.command, e.Code, e)
		}
	}
}

// TestLogFile: what is logged goes to the file, as JSON, and nothing but the result to stdout.
func TestLogFile(t *testing.T) {
	n := start(t)
	pod, _, prev := vethPod(t, n, "pod", "1.1.0")
	logFile := filepath.Join(n.Dir, "xdp.log")
	c := tests.Conf{"logFile": logFile, "logLevel": "debug"}
	for _, command := range []string{"ADD", "DEL"} {
		out, err := n.RunPlugin(t.Context(), command, pod, pluginConf(n, "1.1.0", prev, c))
		if err != nil || len(out.Stderr) > 0 {
			t.Fatalf("%s: %v: %s%s", command, err, out.Stdout, out.Stderr)
		}
	}
	data, err := os.ReadFile(logFile)
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Errorf("line %d: %v: %s", i, err, line)
		}
		if entry["containerID"] != pod.ContainerID {
			t.Errorf("line %d does not say which container: %s", i, line)
		}
	}
	for _, want := range []string{"attached", "detached"} {
		if !strings.Contains(string(data), `"msg":"`+want+`"`) {
			t.Errorf("the log does not say %q: %s", want, data)
		}
	}
}

// TestResultCannotBePrinted: a runtime that does not take the result gets no attachment.
func TestResultCannotBePrinted(t *testing.T) {
	n := start(t)
	pod, veth, prev := vethPod(t, n, "pod", "1.1.0")
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := read.Close(); err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for name, stdout := range map[string]*os.File{"closed pipe": write, "full": full} {
		cmd := n.PluginCommand(t.Context(), "ADD", pod, pluginConf(n, "1.1.0", prev))
		cmd.Stdout = stdout
		if err := n.Start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Errorf("%s: ADD succeeded", name)
		}
		if tree := n.Tree(); len(tree) > 0 || hostLinkXDP(n, veth.HostName) {
			t.Errorf("%s: left %v", name, tree)
		}
	}
}

// TestTutorialReadsStats does what the xdp-tutorial's xdp_stats does with a pinned xdp_stats_map:
// it checks the map's shape (check_map_fd_info() in common/common_user_bpf_xdp.c) and sums records
// of {rx_packets, rx_bytes} over all possible CPUs, for each action up to XDP_REDIRECT.
func TestTutorialReadsStats(t *testing.T) {
	n := start(t, tests.WithoutIPv6())
	pod := tests.MustPod(t, n, "pod")
	veth, err := tests.MakeVeth(t.Context(), n, pod, tests.VethOptions{})
	if err != nil {
		t.Fatal(err)
	}
	stdin := pluginConf(n, "1.1.0", map[string]any{"cniVersion": "1.1.0"}, tests.Conf{"mode": "native"})
	mustRun(t, n, "ADD", pod, stdin)
	frame := packets.Frame(packets.Ethernet{Dst: packets.MAC(veth.HostMAC), Src: packets.MAC(veth.PodMAC)},
		packets.IPv4{}, packets.UDP{}, packets.Data(100))
	for range 5 {
		if err := tests.SendFrame(pod, pod.IfName, frame); err != nil {
			t.Fatal(err)
		}
	}
	quiet(t, pod)
	pinned, err := filepath.Glob(filepath.Join(n.BPFFS, "v1", "pods", "*", "xdp_stats_map"))
	if err != nil || len(pinned) != 1 {
		t.Fatalf("xdp_stats_map: %v, %v", pinned, err)
	}
	m, err := ebpf.LoadPinnedMap(pinned[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Type() != ebpf.PerCPUArray || m.KeySize() != 4 || m.ValueSize() != 16 || m.MaxEntries() != 5 {
		t.Errorf("the map is %v", m)
	}
	const xdpPass = 2
	for action := range uint32(5) {
		var cpus [][2]uint64
		if err := m.Lookup(action, &cpus); err != nil {
			t.Fatal(err)
		}
		var packets, bytes uint64
		for _, c := range cpus {
			packets, bytes = packets+c[0], bytes+c[1]
		}
		wantPackets, wantBytes := uint64(0), uint64(0)
		if action == xdpPass {
			wantPackets, wantBytes = 5, 5*uint64(len(frame))
		}
		if packets != wantPackets || bytes != wantBytes {
			t.Errorf("action %d: %d packets, %d bytes; want %d, %d", action, packets, bytes, wantPackets, wantBytes)
		}
	}
	mustRun(t, n, "DEL", pod, stdin)
}
