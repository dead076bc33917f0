package leases

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/xdp-cni/xdp-cni/ipam/addrs"
)

func TestAllocate(t *testing.T) {
	o := newOptions(t)
	sets := []addrs.Set{set("10.9.0.0/29"), set("fd09::/64")}
	for i := range 5 {
		want := []netip.Addr{addr(fmt.Sprintf("10.9.0.%d", i+2)), addr(fmt.Sprintf("fd09::%d", i+2))}
		if got := mustAllocate(t, o, fmt.Sprint(i), sets); !slices.Equal(got, want) {
			t.Errorf("ADD %d: %v, want %v", i, got, want)
		}
	}
	// the IPv4 set is exhausted, and nothing of the IPv6 one stays taken
	if _, err := allocate(t, o, "late", sets); !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "no IP addresses available in range set: 10.9.0.1-10.9.0.6") {
		t.Errorf("exhausted: %v", err)
	}
	if _, err := allocate(t, o, "late", slices.Concat(sets[1:], sets[:1])); !errors.Is(err, ErrExhausted) {
		t.Errorf("exhausted in the second set: %v", err)
	}
	if all := leasesOf(t, o); len(all) != 10 {
		t.Errorf("%d leases, want 10: %v", len(all), all)
	}
	if got := release(t, o, "late"); len(got) > 0 {
		t.Errorf("one that failed holds %v", got)
	}
	// an attachment gets its own again
	if got := mustAllocate(t, o, "3", sets); got[0] != addr("10.9.0.5") || got[1] != addr("fd09::5") {
		t.Errorf("again: %v", got)
	}
	// recovery: the only free ones
	release(t, o, "1")
	if got := release(t, o, "1"); len(got) > 0 {
		t.Errorf("released twice: %v", got)
	}
	if got := mustAllocate(t, o, "late", sets); got[0] != addr("10.9.0.3") || got[1] == addr("fd09::3") {
		t.Errorf("after a release: %v, want the one free IPv4 address and a new IPv6 one", got)
	}
}

// TestNotAtOnce: a freed address comes again only after all others.
func TestNotAtOnce(t *testing.T) {
	o := newOptions(t)
	sets := []addrs.Set{set("10.9.0.0/28")}
	var got []netip.Addr
	for range 26 {
		got = append(got, mustAllocate(t, o, "loop", sets)[0])
		release(t, o, "loop")
	}
	for i, a := range got[13:] {
		if a != got[i] || slices.Contains(got[i+1:i+13], a) {
			t.Fatalf("%s came again too early: %v", a, got)
		}
	}
}

func TestRequested(t *testing.T) {
	o := newOptions(t)
	sets := []addrs.Set{set("10.9.0.0/24"), set("fd09::/64")}
	if got := mustAllocate(t, o, "a", sets, addr("fd09::77"), addr("10.9.0.7")); !slices.Equal(got, []netip.Addr{addr("10.9.0.7"), addr("fd09::77")}) {
		t.Errorf("requested both: %v", got)
	}
	for _, test := range []struct {
		name string
		want error
		says string
		ask  []netip.Addr
	}{
		{"b", ErrTaken, "10.9.0.7 is not available in range set 10.9.0.1-10.9.0.254: not available: leased to container a", []netip.Addr{addr("10.9.0.7")}},
		{"b", ErrReserved, "10.9.0.1 is subnet's gateway", []netip.Addr{addr("10.9.0.1")}},
		{"b", ErrReserved, "failed to allocate all requested IPs: 10.8.0.1", []netip.Addr{addr("10.8.0.1")}},
		{"b", ErrReserved, "failed to allocate all requested IPs: 10.9.0.9", []netip.Addr{addr("10.9.0.8"), addr("10.9.0.9")}},
	} {
		_, err := allocate(t, o, test.name, sets, test.ask...)
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("asking for %v: %v", test.ask, err)
		}
	}
	// its own, then another: the first is freed
	mustAllocate(t, o, "a", sets, addr("10.9.0.7"))
	mustAllocate(t, o, "a", sets, addr("10.9.0.8"))
	all := leasesOf(t, o)
	if len(all) != 2 || all[addr("10.9.0.8")] != owned("a") || all[addr("fd09::77")] != owned("a") {
		t.Errorf("leases: %v", all)
	}
}

// TestRaceWithoutLock: processes that hold no lock do not take one address twice.
func TestRaceWithoutLock(t *testing.T) {
	o := newOptions(t)
	sets := []addrs.Set{set("10.9.0.0/22")}
	const workers, each = 8, 120
	var (
		stores []*Store
		wait   sync.WaitGroup
		got    [workers][]netip.Addr
	)
	for range workers {
		s, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		s.lock.Unlock()
		stores = append(stores, s)
	}
	for i, s := range stores {
		wait.Go(func() {
			for n := range each {
				who, _ := owned(fmt.Sprintf("%d-%d", i, n)).encode()
				a, err := s.take(who, 0, sets[0], netip.Addr{}, nil)
				if err != nil {
					t.Error(err)
					return
				}
				got[i] = append(got[i], a)
			}
		})
	}
	wait.Wait()
	seen := map[netip.Addr]bool{}
	for _, list := range got {
		for _, a := range list {
			if seen[a] {
				t.Errorf("%s was handed out twice", a)
			}
			seen[a] = true
		}
	}
	if len(seen) != workers*each {
		t.Errorf("%d addresses, want %d", len(seen), workers*each)
	}
}

// TestGrows: a map made for few leases grows to the limit, and says when it is there.
func TestGrows(t *testing.T) {
	o := newOptions(t)
	o.Entries, o.Most = 2, 32
	sets := []addrs.Set{set("10.9.0.0/24")}
	for i := range 32 {
		mustAllocate(t, o, fmt.Sprint(i), sets)
	}
	if _, err := allocate(t, o, "more", sets); !errors.Is(err, ErrFull) {
		t.Errorf("over the limit: %v", err)
	}
	all := leasesOf(t, o)
	if len(all) != 32 {
		t.Errorf("%d leases, want 32", len(all))
	}
	for i := range 32 {
		if got := mustAllocate(t, o, fmt.Sprint(i), sets); all[got[0]] != owned(fmt.Sprint(i)) {
			t.Errorf("%d lost its address", i)
		}
	}
	release(t, o, "7")
	mustAllocate(t, o, "more", sets)
}

// TestGrowsUnderOthers: who has a map open that another process has replaced by a larger one changes
// nothing in the old one, were there room in it: what is taken there nobody would know of.
func TestGrowsUnderOthers(t *testing.T) {
	o := newOptions(t)
	o.Entries = 4
	sets := []addrs.Set{set("10.9.0.0/24")}
	var stores [2]*Store
	for i := range stores {
		s, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		s.lock.Unlock()
		defer s.Close()
		stores[i] = s
	}
	first, second := stores[0], stores[1]
	for i := range 5 {
		who, _ := owned(fmt.Sprint(i)).encode()
		if _, err := first.take(who, 0, sets[0], netip.Addr{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if freed, err := second.Release(owned("0")); err != nil || len(freed) != 1 {
		t.Fatalf("released %v, %v", freed, err)
	}
	want := addr("10.9.0.77")
	for i, s := range []*Store{second, first} {
		who, _ := owned(fmt.Sprint("late", i)).encode()
		if _, err := s.take(who, 0, sets[0], want, nil); (i == 0) != (err == nil) || i > 0 && !errors.Is(err, ErrTaken) {
			t.Errorf("%s for %d: %v", want, i, err)
		}
	}
	if all := leasesOf(t, o); len(all) != 5 || all[want] != owned("late0") {
		t.Errorf("leases: %v", all)
	}
}

func TestCollect(t *testing.T) {
	o := newOptions(t)
	sets := []addrs.Set{set("10.9.0.0/24"), set("fd09::/64")}
	for _, name := range []string{"a", "b", "c"} {
		mustAllocate(t, o, name, sets)
	}
	collect := func(valid *[]Owner) []Lease {
		t.Helper()
		var freed []Lease
		with(t, o, func(s *Store) {
			var err error
			if freed, err = s.Collect(valid); err != nil {
				t.Fatal(err)
			}
		})
		return freed
	}
	if freed := collect(nil); len(freed) > 0 {
		t.Errorf("without a list of the valid: freed %v", freed)
	}
	// the same container with another interface is not valid
	if freed := collect(&[]Owner{owned("b"), {"a", "net1"}}); len(freed) != 4 {
		t.Errorf("freed %v, want those of a and c", freed)
	}
	if all := leasesOf(t, o); len(all) != 2 || all[addr("10.9.0.3")] != owned("b") {
		t.Errorf("left: %v", all)
	}
	if freed := collect(&[]Owner{}); len(freed) != 2 || len(leasesOf(t, o)) != 0 {
		t.Errorf("with an empty list: freed %v", freed)
	}
}

func TestExisting(t *testing.T) {
	o := newOptions(t)
	if _, err := OpenExisting(t.Context(), o); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no leases: %v", err)
	}
	if _, err := os.Stat(o.Root.String()); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a directory was made")
	}
	with(t, o, func(*Store) {
		busy := o
		busy.LockTimeout = 1
		if _, err := Open(t.Context(), busy); err == nil {
			t.Error("opened twice")
		}
	})
}

// TestRemovedMeanwhile: who works on pins that somebody removes, with their directory or without,
// hands out nothing.
func TestRemovedMeanwhile(t *testing.T) {
	o := newOptions(t)
	sets := []addrs.Set{set("10.9.0.0/24")}
	dir := o.Root.Leases(o.Network)
	for _, gone := range [][]string{{dir}, {filepath.Join(dir, pinLeases)}, {filepath.Join(dir, pinLeases), filepath.Join(dir, pinOwners)}} {
		with(t, o, func(s *Store) {
			for _, path := range gone {
				if err := os.RemoveAll(path); err != nil {
					t.Fatal(err)
				}
			}
			if list, err := s.Allocate(owned("a"), sets, nil); !errors.Is(err, ErrRemoved) {
				t.Errorf("allocated %v from what is gone: %v", list, err)
			}
		})
		mustAllocate(t, o, "b", sets)
	}
}

// TestNotLeased: of an attachment's addresses those are named that are another's, or nobody's.
func TestNotLeased(t *testing.T) {
	o := newOptions(t)
	sets := []addrs.Set{set("10.9.0.0/24"), set("fd09::/64")}
	o.Survey = func() (Survey, error) {
		return Survey{InUse: map[netip.Addr]bool{addr("10.9.0.2"): true}}, nil
	}
	mustAllocate(t, o, "a", sets) // 10.9.0.3, fd09::2
	mustAllocate(t, o, "b", sets) // 10.9.0.4, fd09::3
	v, err := NewView(o.Root, o.Network)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for _, test := range []struct {
		has  []netip.Addr
		want []Conflict
	}{
		{[]netip.Addr{addr("10.9.0.3"), addr("fd09::2")}, nil},
		{[]netip.Addr{addr("10.9.0.2")}, nil}, // may be its
		{[]netip.Addr{addr("10.8.0.2")}, nil}, // another plugin's
		{[]netip.Addr{addr("10.9.0.3"), addr("fd09::3"), addr("10.9.0.9")}, []Conflict{{o.Network, addr("fd09::3"), owned("b")}, {o.Network, addr("10.9.0.9"), Owner{}}}},
	} {
		if got, err := v.NotLeased(owned("a"), test.has); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("of %v: %v, %v, want %v", test.has, got, err, test.want)
		}
	}
}
