package leases

import (
	"net/netip"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/ipam/addrs"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

func TestMain(m *testing.M) {
	if runChild() {
		return
	}
	tests.Main(m)
}

// newOptions are those of a network in a bpffs of its own.
func newOptions(t testing.TB) Options {
	t.Helper()
	priv.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mount a bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount the bpffs: %v", err)
		}
	})
	return Options{Root: pins.NewRoot(filepath.Join(dir, "root")), Network: "test.net"}
}

func set(subnet string) addrs.Set {
	p := netip.MustParsePrefix(subnet)
	last := addrs.LastOf(p)
	if last.Is4() {
		last = last.Prev()
	}
	return addrs.Set{{Subnet: p, First: p.Addr().Next(), Last: last, Gateway: p.Addr().Next()}}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func owned(name string) Owner { return Owner{ContainerID: name, IfName: "eth0"} }

// with runs f on the opened store.
func with(t *testing.T, o Options, f func(*Store)) {
	t.Helper()
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f(s)
}

func allocate(t *testing.T, o Options, name string, sets []addrs.Set, requested ...netip.Addr) ([]netip.Addr, error) {
	t.Helper()
	var (
		list []netip.Addr
		err  error
	)
	with(t, o, func(s *Store) {
		var result []Allocation
		result, err = s.Allocate(owned(name), sets, requested)
		if err == nil {
			list = addresses(result)
		}
	})
	return list, err
}

func mustAllocate(t *testing.T, o Options, name string, sets []addrs.Set, requested ...netip.Addr) []netip.Addr {
	t.Helper()
	list, err := allocate(t, o, name, sets, requested...)
	if err != nil {
		t.Fatalf("allocate for %s: %v", name, err)
	}
	return list
}

func release(t *testing.T, o Options, name string) []netip.Addr {
	t.Helper()
	var list []netip.Addr
	with(t, o, func(s *Store) {
		var err error
		if list, err = s.Release(owned(name)); err != nil {
			t.Fatal(err)
		}
	})
	return list
}

// leasesOf reads all leases, and checks that the indexes agree with them.
func leasesOf(t *testing.T, o Options) map[netip.Addr]Owner {
	t.Helper()
	v, err := NewView(o.Root, o.Network)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	list, err := v.Leases()
	if err != nil {
		t.Fatal(err)
	}
	all := map[netip.Addr]Owner{}
	for _, l := range list {
		all[l.Address] = l.Owner
	}
	err = each(v.taken, func(base key, b addrs.Block) error {
		for bit := range addrs.BlockSize {
			if _, leased := all[addrs.At(base, bit)]; b.Has(bit) && !leased {
				t.Errorf("%s is free, but the index says that it is taken", addrs.At(base, bit))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
