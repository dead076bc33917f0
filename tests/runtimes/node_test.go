package runtimes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/priv"
	"github.com/xdp-cni/xdp-cni/tests/runtimes/talk"
)

// runtimesVariable names the directory into which ./fetch has unpacked runtimes.
const (
	runtimesVariable = "XDP_CNI_RUNTIMES"
	runtimesDefault  = "/var/cache/xdp-cni-runtimes"
)

// The link between a node and the network outside, which has no route to pods.
var (
	nodeAddresses    = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")}
	outsideAddresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("2001:db8::2/64")}
)

// serverPort is that of all servers.
const serverPort = 80

// node is a node with the network that it is in.
type node struct {
	*tests.Node
	programs programs
	outside  *tests.Pod
	plugins  string // directory of plugins, each with a recorder before it
}

var buildOnce = sync.OnceValues(func() (programs, error) {
	binaries, err := tests.Build(context.Background())
	if err != nil {
		return programs{}, err
	}
	return build(context.Background(), filepath.Join(binaries.Dir, "runtimes"))
})

// newNode makes a node, and checks when the test ends, and the runtimes on it are gone, that nothing of them is left.
func newNode(t *testing.T) *node {
	t.Helper()
	priv.Root(t)
	programs, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	tests.MustObjects(t)
	n := &node{programs: programs}
	if n.Node, err = tests.NewNode(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close the node: %v", err)
		}
	})
	t.Cleanup(func() { n.nothingLeft(t) })
	n.plugins = filepath.Join(n.Dir, "plugins")
	if err := n.record(); err != nil {
		t.Fatal(err)
	}
	if err := n.connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

// record lays a directory of plugins: recorders, and what they stand for in "real" beside it.
func (n *node) record() error {
	real := filepath.Join(n.Dir, "real")
	if err := errors.Join(os.Mkdir(n.plugins, 0o755), os.Mkdir(real, 0o755)); err != nil {
		return err
	}
	for _, dir := range n.Binaries.CNIPath() {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if entry.IsDir() || entry.Name() == "xdpctl" {
				continue
			}
			err := errors.Join(
				os.Symlink(filepath.Join(dir, entry.Name()), filepath.Join(real, entry.Name())),
				os.Symlink(n.programs.recorder, filepath.Join(n.plugins, entry.Name())))
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// connect makes the network outside, with a server in it.
func (n *node) connect(ctx context.Context) (err error) {
	if n.outside, err = n.NewPod("outside"); err != nil {
		return err
	}
	if _, err := tests.MakeVeth(ctx, n, n.outside, tests.VethOptions{HostName: "uplink"}); err != nil {
		return err
	}
	return errors.Join(
		n.Do(func() error { return address("uplink", nodeAddresses) }),
		n.outside.Do(func() error { return address(n.outside.IfName, outsideAddresses) }))
}

func address(ifname string, addresses []netip.Prefix) error {
	l, err := netlink.LinkByName(ifname)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		parsed, err := netlink.ParseAddr(a.String())
		if err != nil {
			return err
		}
		parsed.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(l, parsed); err != nil {
			return fmt.Errorf("address %s on %s: %w", a, ifname, err)
		}
	}
	return nil
}

// serve starts a server at a place, which ends with the test.
func serve(t *testing.T, at tests.Place, name string) {
	t.Helper()
	err := at.Do(func() error {
		s, err := talk.Listen(name, netip.AddrPortFrom(netip.IPv6Unspecified(), serverPort))
		if err == nil {
			t.Cleanup(func() { _ = s.Close() })
			go s.Serve()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// calls are those that recorders have noted.
func (n *node) calls(t *testing.T) (list []call) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(n.Dir, "calls"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		var c call
		if err := json.Unmarshal(line, &c); err != nil {
			t.Fatal(err)
		}
		list = append(list, c)
	}
	return list
}

// call is a call of a plugin, as the command recorder notes it.
type call struct {
	Plugin, Command, ContainerID, IfName, NetNS, Args string

	Stdin, Stdout json.RawMessage
	Status        int
}

// count counts the calls of our chained plugin for a container, by command; those for no container with an empty ID.
func (n *node) count(t *testing.T, containerID string) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for _, c := range n.calls(t) {
		if c.Plugin == "xdp" && c.ContainerID == containerID {
			counts[c.Command]++
		}
	}
	return counts
}

// noCallFailed checks that every call of a plugin has succeeded.
func noCallFailed(t *testing.T, n *node) {
	t.Helper()
	for _, c := range n.calls(t) {
		if c.Status != 0 {
			t.Errorf("%s of %s for %.12s failed: %s", c.Command, c.Plugin, c.ContainerID, c.Stdout)
		}
	}
}

// nothingLeft checks that nothing is left of pods: leases, pins, interfaces, rules of NAT, results, mounts.
func (n *node) nothingLeft(t *testing.T) {
	t.Helper()
	for what, list := range map[string]func() ([]string, error){
		"leases of host-local": n.hostLocalLeases,
		"leases of xdp-ipam":   func() ([]string, error) { return n.leases(context.Background()) },
		"pins":                 func() ([]string, error) { return n.podPins(), nil },
		"interfaces":           n.podLinks,
		"rules of NAT":         func() ([]string, error) { return n.natRules(context.Background()) },
		"results":              results,
		"mounts":               n.mounts,
	} {
		err := eventually(patience, func() error {
			left, err := list()
			if err == nil && len(left) > 0 {
				err = fmt.Errorf("%q", left)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s left: %v", what, err)
		}
	}
	// The maps of leases stay when the last lease goes. The results are those of the next node too.
	if err := errors.Join(n.Purge(), os.RemoveAll("/var/lib/cni/results")); err != nil {
		t.Error(err)
	}
}

// hostLocalLeases are the addresses that host-local has given away.
func (n *node) hostLocalLeases() (list []string, err error) {
	paths, err := filepath.Glob(filepath.Join(n.DataDir, "*", "*"))
	for _, path := range paths {
		if _, err := netip.ParseAddr(filepath.Base(path)); err == nil {
			list = append(list, filepath.Base(path))
		}
	}
	return list, err
}

// leases are the addresses that xdp-ipam has given away.
func (n *node) leases(ctx context.Context) ([]string, error) {
	out, err := n.RunXdpctl(ctx, "ipam", "list", "-o", "json")
	if err != nil {
		return nil, fmt.Errorf("xdpctl ipam list: %w: %s", err, out.Stderr)
	}
	var leases []struct{ Address string }
	if err := json.Unmarshal(out.Stdout, &leases); err != nil {
		return nil, err
	}
	var list []string
	for _, l := range leases {
		list = append(list, l.Address)
	}
	return list, nil
}

func (n *node) podPins() []string {
	return slices.DeleteFunc(n.Pins(), func(path string) bool { return strings.Contains(path, "/ipam/") })
}

// podLinks are the interfaces of the node but those that stay: its bridges and its uplink.
func (n *node) podLinks() (names []string, err error) {
	err = n.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			name := l.Attrs().Name
			if _, bridge := l.(*netlink.Bridge); !bridge && name != "lo" && name != "uplink" {
				names = append(names, name)
			}
		}
		return err
	})
	return names, err
}

// natRules are those of portmap's hostPorts and of masquerading.
func (n *node) natRules(ctx context.Context) (rules []string, err error) {
	for _, command := range []string{"iptables-save", "ip6tables-save"} {
		out, err := n.Run(exec.CommandContext(ctx, command, "-t", "nat"))
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %s", command, err, out.Stderr)
		}
		for line := range strings.Lines(string(out.Stdout)) {
			// what names a pod: "-s 10.244.0.2/32 ...", CNI-DN-<hash>, "--comment name: ..."
			if strings.HasPrefix(line, "-A") && (strings.Contains(line, "CNI-DN-") || strings.Contains(line, "id: ")) {
				rules = append(rules, strings.TrimSpace(line))
			}
		}
	}
	return rules, nil
}

// results are libcni's cached ones.
func results() (list []string, err error) {
	return filepath.Glob("/var/lib/cni/results/*")
}

// mounts are those of pods and containers under the node's directory.
func (n *node) mounts() (list []string, err error) {
	data, err := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if strings.HasPrefix(fields[1], n.Dir+"/") && fields[1] != n.Mount {
			list = append(list, fields[1])
		}
	}
	return list, err
}

// eventually calls f until it succeeds, and returns its last error when that takes longer than the given time.
func eventually(limit time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}
