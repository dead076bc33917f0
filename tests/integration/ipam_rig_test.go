package integration

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/ipam/leases"
	"github.com/xdp-cni/xdp-cni/ipam/survey"
	"github.com/xdp-cni/xdp-cni/tests"
)

// startLeases is start for tests that leave leases: their maps stay until the node restarts.
func startLeases(t *testing.T, options ...tests.NodeOption) *tests.Node {
	t.Helper()
	n := start(t, options...)
	t.Cleanup(func() {
		if err := n.Purge(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// ipamRun is a plugin run without libcni, for attachments that are nothing but a name.
type ipamRun struct {
	t    *testing.T
	node *tests.Node
	path string
	conf tests.Conf
}

func (r ipamRun) stdin(more tests.Conf) string {
	conf := tests.Conf{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": r.conf}
	for key, value := range more {
		conf[key] = value
	}
	text, err := json.Marshal(conf)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(text)
}

func (r ipamRun) env(id string) []string {
	return []string{"CNI_CONTAINERID=" + id, "CNI_IFNAME=eth0", "CNI_NETNS=/nowhere"}
}

// run runs a command and returns what it printed; ok tells whether it succeeded.
func (r ipamRun) run(command, id string, more tests.Conf, env ...string) (out tests.Output, ok bool) {
	r.t.Helper()
	cmd := r.node.Command(r.t.Context(), r.path, command, nil, r.stdin(more), append(r.env(id), env...)...)
	out, err := r.node.Run(cmd)
	return out, err == nil
}

func (r ipamRun) must(command, id string, more tests.Conf, env ...string) tests.Output {
	r.t.Helper()
	out, ok := r.run(command, id, more, env...)
	if !ok {
		r.t.Fatalf("%s of %s: %s%s", command, id, out.Stdout, out.Stderr)
	}
	return out
}

// add returns the addresses that ADD gives.
func (r ipamRun) add(id string, env ...string) []netip.Addr {
	r.t.Helper()
	list, err := resultAddresses(r.must("ADD", id, nil, env...).Stdout)
	if err != nil {
		r.t.Fatal(err)
	}
	return list
}

func resultAddresses(text []byte) ([]netip.Addr, error) {
	var result types100.Result
	if err := json.Unmarshal(text, &result); err != nil {
		return nil, fmt.Errorf("result %q: %w", text, err)
	}
	var list []netip.Addr
	for _, ip := range result.IPs {
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		list = append(list, a.Unmap())
	}
	return list, nil
}

// leasesOf reads the leases of a network.
func leasesOf(t *testing.T, n *tests.Node, network string) map[netip.Addr]leases.Owner {
	t.Helper()
	v, err := leases.NewView(pins.NewRoot(n.BPFFS), network)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	list, err := v.Leases()
	if err != nil {
		t.Fatal(err)
	}
	all := map[netip.Addr]leases.Owner{}
	for _, l := range list {
		all[l.Address] = l.Owner
	}
	return all
}

// loseLeases removes all that is pinned of leases.
func loseLeases(t *testing.T, n *tests.Node) {
	t.Helper()
	dir := filepath.Join(n.BPFFS, pins.Version, "ipam")
	if _, err := os.Stat(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
}

type libcniRuntimeConf = libcni.RuntimeConf

// waitUnseen waits until no interface has the address: a namespace is taken down by a worker.
func waitUnseen(t *testing.T, n *tests.Node, a netip.Addr) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		seen := true
		err := n.Do(func() error {
			used, err := survey.InUse("")
			seen = used[a]
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if !seen {
			return
		}
	}
	t.Fatalf("%s is still there", a)
}
