package hostlocal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/ipam/leases"
)

// TestRead reads what host-local's own code writes.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	store, err := disk.New("net", dir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for i, a := range []string{"10.0.0.2", "fd00::2"} {
		if ok, err := store.Reserve("container", "eth0", net.ParseIP(a), fmt.Sprint(i)); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	for name, text := range map[string]string{"10.0.0.9": "ancient\n", "last_reserved_ip.x": "10.0.0.1", "notes": "10.0.0.3"} {
		if err := os.WriteFile(filepath.Join(dir, "net", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "net", "10.0.0.8"), 0o700); err != nil {
		t.Fatal(err)
	}
	n, err := Read(t.Context(), dir, "net", "net1")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]leases.Owner{}
	for _, l := range n.Leases {
		got[l.Address.String()] = l.Owner
		if time.Since(l.Time) > time.Hour {
			t.Errorf("%s is of %s", l.Address, l.Time)
		}
	}
	want := map[string]leases.Owner{
		"10.0.0.2": {ContainerID: "container", IfName: "eth0"}, "fd00::2": {ContainerID: "container", IfName: "eth0"}, "10.0.0.9": {ContainerID: "ancient", IfName: "net1"},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("leases %v, want %v", got, want)
	}
	if len(n.Last) != 2 || n.Last[1] != netip.MustParseAddr("fd00::2") {
		t.Errorf("last: %v", n.Last)
	}
	// host-local waits meanwhile, and we for it
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Read(ctx, dir, "net", ""); !errors.Is(err, pins.ErrBusy) {
		t.Errorf("read twice at once: %v", err)
	}
	n.Close()
	if err := store.Lock(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Read(ctx, dir, "net", ""); !errors.Is(err, pins.ErrBusy) {
		t.Errorf("read what host-local has locked: %v", err)
	}
	if _, err := Read(t.Context(), dir, "none", ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such network: %v", err)
	}
}
