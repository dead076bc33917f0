package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/ipam/leases"
	"github.com/xdp-cni/xdp-cni/tests"
)

// network has as many leases with one plugin as with the other.
type network struct {
	name  string
	held  int
	stdin string // with the plugin's name, which neither of them reads
}

// subnet has room for all that is measured.
const subnet = "10.0.0.0/15"

func newNetwork(ctx context.Context, n *tests.Node, count int) (*network, error) {
	w := &network{name: fmt.Sprintf("bench%d", count), held: count}
	conf := tests.Conf{
		"cniVersion": "1.0.0", "name": w.name, "type": "bridge",
		"ipam": tests.Conf{"type": "either", "bpffs": n.BPFFS, "dataDir": n.DataDir, "ranges": []any{[]tests.Conf{{"subnet": subnet}}}},
	}
	text, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	w.stdin = string(text)
	list := make([]leases.Lease, count)
	a := netip.MustParsePrefix(subnet).Addr().Next()
	for i := range list {
		a = a.Next()
		// as long as those of container runtimes
		list[i] = leases.Lease{Address: a, Owner: leases.Owner{ContainerID: fmt.Sprintf("%064x", i), IfName: "eth0"}, Time: time.Now()}
	}
	if err := writeFiles(filepath.Join(n.DataDir, w.name), list); err != nil {
		return nil, fmt.Errorf("making host-local's leases: %w", err)
	}
	return w, makeLeases(ctx, n, w.name, list)
}

// writeFiles writes what host-local would have.
func writeFiles(dir string, list []leases.Lease) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, l := range list {
		text := l.Owner.ContainerID + "\r\n" + l.Owner.IfName
		if err := os.WriteFile(filepath.Join(dir, l.Address.String()), []byte(text), 0o600); err != nil {
			return err
		}
	}
	last := list[len(list)-1].Address.String()
	return os.WriteFile(filepath.Join(dir, "last_reserved_ip.0"), []byte(last), 0o600)
}

func makeLeases(ctx context.Context, n *tests.Node, name string, list []leases.Lease) error {
	// maps of the size that the first ADD of that range makes
	s, err := leases.Open(ctx, leases.Options{Root: pins.NewRoot(n.BPFFS), Network: name, Entries: 1 << 16})
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.Import(list); err != nil {
		return err
	}
	return s.SetLast(0, list[len(list)-1].Address)
}

// call runs a plugin on several attachments at once and returns how long that took.
func (w *network) call(ctx context.Context, n *tests.Node, path, command string, ids []string) (time.Duration, error) {
	var wait sync.WaitGroup
	errs := make([]error, len(ids))
	start := time.Now()
	for i, id := range ids {
		wait.Go(func() {
			cmd := n.Command(ctx, path, command, nil, w.stdin, "CNI_CONTAINERID="+id, "CNI_IFNAME=eth0", "CNI_NETNS=/nowhere")
			if out, err := n.Run(cmd); err != nil {
				errs[i] = fmt.Errorf("%s %s: %w: %s", filepath.Base(path), command, err, out.Stdout)
			}
		})
	}
	wait.Wait()
	took := time.Since(start)
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return took, nil
}
