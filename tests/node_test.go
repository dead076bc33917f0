package tests

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

// footprint is what nodes and pods could leave on the machine.
func footprint(t *testing.T) (paths []string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		mountPoint := strings.Fields(line)[1]
		// The first namespace ever makes this one a mount point, as `ip netns add` does.
		if mountPoint != "/var/run/netns" && mountPoint != "/run/netns" {
			paths = append(paths, mountPoint)
		}
	}
	for _, glob := range []string{"/var/run/netns/*", filepath.Join(os.TempDir(), "xdp-cni-node-*")} {
		found, err := filepath.Glob(glob)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, found...)
	}
	slices.Sort(paths)
	return paths
}

func TestNodeLeavesNothing(t *testing.T) {
	priv.Root(t)
	before := footprint(t)
	n, err := NewNode()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		if _, err := n.NewPod(name); err != nil {
			t.Error(err)
		}
	}
	if during := footprint(t); len(during) < len(before)+3 {
		t.Errorf("a node and two pods show only as %d paths more", len(during)-len(before))
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if after := footprint(t); !slices.Equal(before, after) {
		t.Errorf("before: %v\nafter: %v", before, after)
	}
}

func TestNodeReportsPins(t *testing.T) {
	priv.Root(t)
	before := footprint(t)
	n, err := NewNode()
	if err != nil {
		t.Fatal(err)
	}
	if pins := n.Tree(); len(pins) != 0 {
		t.Errorf("a new node has %v in its bpffs", pins)
	}
	pin := filepath.Join(n.BPFFS, "v1", "map")
	if err := os.MkdirAll(filepath.Dir(pin), 0o700); err != nil {
		t.Fatal(err)
	}
	m := newMap(t)
	if err := m.Pin(pin); err != nil {
		t.Fatal(err)
	}
	if pins := n.Pins(); !reflect.DeepEqual(pins, []string{pin}) {
		t.Errorf("pins: %v, want %s", pins, pin)
	}
	want := []string{n.BPFFS + "/", filepath.Dir(pin) + "/", pin}
	if tree := n.Tree(); !reflect.DeepEqual(tree, want) {
		t.Errorf("tree: %v, want %v", tree, want)
	}
	if err := n.Close(); !errors.Is(err, ErrPinsLeft) || !strings.Contains(err.Error(), pin) {
		t.Errorf("Close: %v, want %v and the pin's name", err, ErrPinsLeft)
	}
	if after := footprint(t); !slices.Equal(before, after) {
		t.Errorf("before: %v\nafter: %v", before, after)
	}
}

func TestNodePurge(t *testing.T) {
	priv.Root(t)
	n := MustNode(t)
	if err := os.Mkdir(n.BPFFS, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := newMap(t).Pin(filepath.Join(n.BPFFS, "map")); err != nil {
		t.Fatal(err)
	}
	if err := n.Purge(); err != nil {
		t.Error(err)
	}
	if tree := n.Tree(); len(tree) != 0 {
		t.Errorf("left: %v", tree)
	}
}

func TestRunIsInTheNamespace(t *testing.T) {
	priv.Root(t)
	n := MustNode(t)
	p := MustPod(t, n, "pod")
	seen := map[string]string{}
	for name, run := range map[string]func(*exec.Cmd) (Output, error){"node": n.Run, "pod": p.Run} {
		output, err := run(exec.Command("readlink", "/proc/self/ns/net"))
		if err != nil {
			t.Fatal(err)
		}
		seen[name] = string(output.Stdout)
	}
	self, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if seen["node"] == seen["pod"] || seen["node"] == self+"\n" || seen["pod"] == self+"\n" {
		t.Errorf("processes ran in %v, the test in %s", seen, self)
	}
}

func TestObjectsSeesAMapComeAndGo(t *testing.T) {
	priv.Root(t)
	before, err := Objects()
	if err != nil {
		t.Fatal(err)
	}
	m := newMap(t)
	info, err := m.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	during, err := Objects()
	if err != nil {
		t.Fatal(err)
	}
	difference := before.Diff(during)
	if !slices.Contains(difference.Maps, id) || !strings.Contains(difference.String(), `"foreign"`) {
		t.Errorf("difference: %s, want map %d", difference, id)
	}
	if err := WaitNoNew(t.Context(), before, 50*time.Millisecond); err == nil {
		t.Error("WaitNoNew does not see the map")
	}
	m.Close()
	if err := WaitNoNew(t.Context(), before, 5*time.Second); err != nil {
		t.Error(err)
	}
}

func newMap(t *testing.T) *ebpf.Map {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "foreign", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func TestPluginErrorsComeThrough(t *testing.T) {
	priv.Root(t)
	MustBuildReference(t)
	n := MustNode(t)
	w := MustNetwork(t, n, Conflist("wrong", "1.1.0", Conf{"type": "ptp", "ipam": Conf{"type": "host-local"}}))
	_, err := w.Add(t.Context(), MustPod(t, n, "pod"))
	var cniError *types.Error
	if !errors.As(err, &cniError) {
		t.Errorf("%v (%T) holds no *types.Error", err, err)
	}
}
