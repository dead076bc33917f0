package datapath_test

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
)

// manyRules is a filter of so many rules as people write them: with a few networks of both families, a hole in one,
// and a few ports.
func manyRules(n int) string {
	rules := make([]string, n)
	for i := range rules {
		direction, key := "egress", "to"
		if i%2 == 1 {
			direction, key = "ingress", "from"
		}
		rules[i] = fmt.Sprintf(`{"name": "rule-%d", "direction": "%s", "action": "allow", "protocol": "tcp",
			"%s": ["10.%d.0.0/16", "172.16.%d.0/24", "fd00:%x::/32"], "except": ["10.%d.7.0/24"], "ports": ["%d", "8000-8999"]}`,
			i, direction, key, i%200, i%250, i, i%200, 1000+i)
	}
	return `{"default": {"egress": "deny", "ingress": "deny"}, "rules": [` + strings.Join(rules, ",") + `]}`
}

// TestMemory: what 250 pods with filters of 100 rules, and flow tables of the default size, take of the kernel's
// memory, as it says itself, with all that they and the node have besides.
func TestMemory(t *testing.T) {
	const (
		pods  = 250
		limit = 256 << 20
	)
	r := newRig(t, datapath.ModeTCX, vethDefault, tests.WithoutIPv6())
	before := r.world()
	policy := mustPolicy(t, manyRules(100))
	all := make([]datapath.AttachOptions, pods)
	for i := range all {
		opts := r.opts
		opts.ContainerID, opts.HostName = fmt.Sprintf("memory%d", i), fmt.Sprintf("memory%d", i)
		opts.Addresses, opts.Policy, opts.Peers = []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}, policy, 0
		err := r.node.Do(func() error {
			err := netlink.LinkAdd(&netlink.Veth{
				LinkAttrs: netlink.LinkAttrs{Name: opts.HostName, TxQLen: -1}, PeerName: opts.HostName + "p",
			})
			if err != nil {
				return err
			}
			host, err := netlink.LinkByName(opts.HostName)
			if err == nil {
				opts.HostIndex, opts.PodIndex = host.Attrs().Index, host.Attrs().ParentIndex
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		all[i] = opts
		r.mustAttach(opts)
	}
	kinds := map[string]uint64{}
	total := uint64(0)
	for _, pin := range r.node.Pins() {
		m, err := ebpf.LoadPinnedMap(pin, nil)
		if err != nil {
			continue // a program or a link
		}
		info, err := m.Info()
		_ = m.Close()
		if err != nil {
			t.Fatal(err)
		}
		bytes, ok := info.Memlock()
		if !ok {
			t.Fatalf("the kernel does not say what %s takes", pin)
		}
		kind := "pod: " + filepath.Base(pin)
		if filepath.Dir(pin) == pins.NewRoot(r.node.BPFFS).Node() {
			kind = "node: " + filepath.Base(pin)
		}
		kinds[kind] += bytes
		total += bytes
	}
	t.Logf("%d KiB: %d KiB a pod", total>>10, total>>10/pods)
	for kind, bytes := range kinds {
		t.Logf("%-30s %7d KiB", kind, bytes>>10)
	}
	if total > limit {
		t.Errorf("%d pods take %d MiB, want at most %d MiB", pods, total>>20, limit>>20)
	}
	if flows := kinds["pod: flows"]; flows < pods*4096*64 {
		t.Errorf("flow tables take %d bytes, which is not what they hold", flows)
	}
	for _, opts := range all {
		r.mustDetach(opts)
	}
	err := r.node.Do(func() error {
		for _, opts := range all {
			host, err := netlink.LinkByIndex(opts.HostIndex)
			if err == nil {
				err = netlink.LinkDel(host)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	r.expectUnchanged(before)
}
