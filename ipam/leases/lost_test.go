package leases

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/ipam/addrs"
)

// TestLostPins removes pins between random operations, one or several but never both maps that
// hold all leases: each attachment keeps its address, and no address is given to two.
func TestLostPins(t *testing.T) {
	o := newOptions(t)
	o.Entries = 4
	sets := []addrs.Set{set("10.9.0.0/26"), set("fd09::/64")}
	random := rand.New(rand.NewPCG(5, 6))
	has := map[string][]netip.Addr{}
	for i := range 600 {
		if random.IntN(8) == 0 {
			pins := []string{pinOwners, pinTaken, pinState}
			if random.IntN(2) == 0 {
				pins = []string{pinLeases, pinTaken, pinState}
			}
			for _, pin := range pins {
				if random.IntN(3) > 0 {
					if err := os.Remove(filepath.Join(o.Root.Leases(o.Network), pin)); err != nil && i > 20 {
						t.Fatal(err)
					}
				}
			}
		}
		name := fmt.Sprint(random.IntN(50))
		if random.IntN(3) == 0 {
			if got := release(t, o, name); !slices.Equal(sorted(got), sorted(has[name])) {
				t.Fatalf("step %d: released %v of %s, which has %v", i, got, name, has[name])
			}
			delete(has, name)
			continue
		}
		got := mustAllocate(t, o, name, sets)
		if had := has[name]; had != nil && !slices.Equal(sorted(got), sorted(had)) {
			t.Fatalf("step %d: %s has %v, and was given %v", i, name, had, got)
		}
		has[name] = got
		for other, list := range has {
			for _, a := range list {
				if other != name && slices.Contains(got, a) {
					t.Fatalf("step %d: %s and %s have %s", i, name, other, a)
				}
			}
		}
	}
	with(t, o, func(*Store) {})
	want := map[netip.Addr]Owner{}
	for name, list := range has {
		for _, a := range list {
			want[a] = owned(name)
		}
	}
	if got := leasesOf(t, o); !maps.Equal(got, want) {
		t.Errorf("leases: %v, want %v", got, want)
	}
}

func sorted(list []netip.Addr) []netip.Addr {
	return slices.SortedFunc(slices.Values(list), netip.Addr.Compare)
}

// TestAllLost: of what a survey finds nothing is handed out; what an attachment is known to have
// it has again, the rest is freed once it is not in use.
func TestAllLost(t *testing.T) {
	o := newOptions(t)
	sets := []addrs.Set{set("10.9.0.0/29")} // .2 to .6
	surveys := 0
	found := Survey{
		Attachments: []Lease{{addr("10.9.0.2"), owned("known"), time.Now()}},
		InUse:       map[netip.Addr]bool{addr("10.9.0.2"): true, addr("10.9.0.3"): true, addr("10.9.0.4"): true, addr("10.9.0.1"): true, addr("10.9.9.9"): true},
	}
	o.Survey = func() (Survey, error) { surveys++; return found, nil }
	if got := mustAllocate(t, o, "new", sets); got[0] != addr("10.9.0.5") {
		t.Errorf("given %v, which is in use", got)
	}
	if got := mustAllocate(t, o, "known", sets); got[0] != addr("10.9.0.2") {
		t.Errorf("given %v, had 10.9.0.2", got)
	}
	all := leasesOf(t, o)
	if len(all) != 4 || all[addr("10.9.0.3")].Known() || all[addr("10.9.0.5")] != owned("new") {
		t.Errorf("leases: %v", all)
	}
	if surveys != 1 {
		t.Errorf("%d surveys, want one", surveys)
	}
	mustAllocate(t, o, "last", sets)
	if _, err := allocate(t, o, "late", sets); !errors.Is(err, ErrExhausted) {
		t.Errorf("exhausted: %v", err)
	}
	// the pod with .3 goes: its runtime's DEL says that it had .3
	with(t, o, func(s *Store) {
		if freed, err := s.FreeUnknown([]netip.Addr{addr("10.9.0.3")}); err != nil || len(freed) > 0 {
			t.Errorf("freed what is in use: %v, %v", freed, err)
		}
		delete(found.InUse, addr("10.9.0.3"))
		if freed, err := s.FreeUnknown([]netip.Addr{addr("10.9.0.2"), addr("10.9.0.3")}); err != nil || len(freed) != 1 {
			t.Errorf("freed %v, %v", freed, err)
		}
	})
	if got := mustAllocate(t, o, "late", sets); got[0] != addr("10.9.0.3") {
		t.Errorf("given %v", got)
	}
	// the one with .4 goes without a word: at the end of the range that is looked into
	delete(found.InUse, addr("10.9.0.4"))
	if got := mustAllocate(t, o, "later", sets); got[0] != addr("10.9.0.4") {
		t.Errorf("given %v", got)
	}
}

// TestSurveyKilled: the index knows nothing of leases that a survey entered whose process was then
// killed, and DEL finds them nonetheless.
func TestSurveyKilled(t *testing.T) {
	o := newOptions(t)
	with(t, o, func(s *Store) {
		if err := s.enter(Lease{addr("10.9.0.2"), owned("known"), time.Now()}); err != nil {
			t.Fatal(err)
		}
	})
	if got := release(t, o, "known"); !slices.Equal(got, []netip.Addr{addr("10.9.0.2")}) {
		t.Errorf("released %v", got)
	}
}

// TestSurveyFails: without knowing what is in use nothing is handed out.
func TestSurveyFails(t *testing.T) {
	o := newOptions(t)
	o.Survey = func() (Survey, error) { return Survey{}, os.ErrPermission }
	sets := []addrs.Set{set("10.9.0.0/29")}
	if got, err := allocate(t, o, "a", sets); !errors.Is(err, os.ErrPermission) {
		t.Errorf("given %v, %v", got, err)
	}
	o.Survey = nil
	mustAllocate(t, o, "a", sets)
}

func TestImport(t *testing.T) {
	o := newOptions(t)
	sets := []addrs.Set{set("10.9.0.0/24")}
	o.Survey = func() (Survey, error) {
		return Survey{InUse: map[netip.Addr]bool{addr("10.9.0.3"): true}}, nil
	}
	mustAllocate(t, o, "mine", sets) // .2
	now := time.Now()
	list := []Lease{{addr("10.9.0.3"), owned("a"), now}, {addr("10.9.0.4"), owned("b"), now}, {addr("fd09::4"), owned("b"), now}, {addr("10.9.0.2"), owned("c"), now}}
	with(t, o, func(s *Store) {
		made, err := s.Import(list)
		if len(made) != 3 || !errors.Is(err, ErrTaken) {
			t.Errorf("imported %v, %v", made, err)
		}
		made, err = s.Import(list)
		if len(made) != 0 || !errors.Is(err, ErrTaken) {
			t.Errorf("again: imported %v, %v", made, err)
		}
		if l, err := s.ReleaseAddress(addr("10.9.0.4")); err != nil || l.Owner != owned("b") {
			t.Errorf("released %v, %v", l, err)
		}
		if _, err := s.ReleaseAddress(addr("10.9.0.4")); !errors.Is(err, ErrNotLeased) {
			t.Errorf("released again: %v", err)
		}
	})
	if got := release(t, o, "b"); !slices.Equal(got, []netip.Addr{addr("fd09::4")}) {
		t.Errorf("b had %v", got)
	}
	if got := mustAllocate(t, o, "a", sets); got[0] != addr("10.9.0.3") {
		t.Errorf("a was given %v", got)
	}
	if got := release(t, o, "c"); len(got) > 0 {
		t.Errorf("c had %v", got)
	}
}
