package leases

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/ipam/addrs"
)

const childEnv = "XDP_IPAM_TEST_CHILD" // "<root> <operation> <owner> <step>"

// runChild tells whether this process is a child of TestKilled: one that does an operation and
// kills itself before the change of that number.
func runChild() bool {
	var (
		root, operation, name string
		at                    int
	)
	if n, _ := fmt.Sscan(os.Getenv(childEnv), &root, &operation, &name, &at); n != 4 {
		return false
	}
	if err := child(root, operation, name, at); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

func child(root, operation, name string, at int) error {
	o := killOptions(pins.NewRoot(root))
	steps := 0
	o.BeforeStep = func(string) {
		if steps == at {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
		steps++
	}
	s, err := Open(context.Background(), o)
	if err != nil {
		return err
	}
	defer s.Close()
	switch operation {
	case "ADD":
		_, err = s.Allocate(owned(name), killSets(), nil)
	case "DEL":
		_, err = s.Release(owned(name))
	case "GC":
		_, err = s.Collect(&[]Owner{owned("a"), owned("b")})
	}
	return err
}

func killOptions(root pins.Root) Options {
	return Options{Root: root, Network: "test.net", Entries: 2, Survey: func() (Survey, error) {
		return Survey{InUse: map[netip.Addr]bool{addr("10.9.0.3"): true}}, nil
	}}
}

func killSets() []addrs.Set {
	four, six := netip.MustParsePrefix("10.9.0.0/28"), netip.MustParsePrefix("fd09::/64")
	return []addrs.Set{
		{{Subnet: four, First: addr("10.9.0.1"), Last: addr("10.9.0.14"), Gateway: addr("10.9.0.1")}},
		{{Subnet: six, First: addr("fd09::1"), Last: addrs.LastOf(six), Gateway: addr("fd09::1")}},
	}
}

// runKilled runs an operation in a process that kills itself before a step, and tells whether it
// came to that.
func runKilled(t *testing.T, root pins.Root, operation, name string, at int) bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s %s", childEnv, root, operation, name, strconv.Itoa(at)))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		t.Fatalf("%s: %v: %s", operation, err, out)
	}
	return false
}

// TestKilled kills ADD, DEL and GC before each change that they make: of fresh maps, maps that
// have to grow (they are made for two leases), and with an address in use. After each, whatever
// a runtime does next comes out right and nothing leaks.
func TestKilled(t *testing.T) {
	for _, test := range []struct {
		operation, name string
		before          []string // attachments that there are
		least           int      // steps
	}{
		{"ADD", "new", nil, 20},
		{"ADD", "new", []string{"a"}, 7},
		{"ADD", "new", []string{"a", "b"}, 6},
		{"DEL", "b", []string{"a", "b"}, 5},
		{"GC", "-", []string{"a", "b", "c", "d"}, 10},
	} {
		steps := 0
		for killed := true; killed; steps++ {
			for _, next := range []string{"retry", "remove"} {
				o := newOptions(t)
				o = killOptions(o.Root)
				has := map[string][]netip.Addr{}
				for _, name := range test.before {
					has[name] = mustAllocate(t, o, name, killSets())
				}
				killed = runKilled(t, o.Root, test.operation, test.name, steps)
				what := fmt.Sprintf("%s beside %v, killed before step %d, then %s", test.operation, test.before, steps, next)
				switch test.operation {
				case "ADD":
					if next == "retry" {
						has["new"] = mustAllocate(t, o, "new", killSets())
					} else {
						release(t, o, "new")
					}
				case "DEL":
					if next == "remove" {
						mustAllocate(t, o, "b", killSets())
					}
					release(t, o, "b")
					delete(has, "b")
				case "GC":
					with(t, o, func(s *Store) {
						if _, err := s.Collect(&[]Owner{owned("a"), owned("b")}); err != nil {
							t.Fatal(err)
						}
					})
					delete(has, "c")
					delete(has, "d")
				}
				has["later"] = mustAllocate(t, o, "later", killSets())
				checkLeases(t, what, o, has)
			}
		}
		if steps < test.least {
			t.Errorf("%s has %d steps: the test kills too few", test.operation, steps)
		}
		t.Logf("%s beside %v: killed at %d steps", test.operation, test.before, steps-1)
	}
}

// checkLeases: the leases are those of has and the one address in use, and the owners' index is
// right, with nothing of others.
func checkLeases(t *testing.T, what string, o Options, has map[string][]netip.Addr) {
	t.Helper()
	all := leasesOf(t, o)
	want := 1
	for name, list := range has {
		want += len(list)
		for _, a := range list {
			if all[a] != owned(name) {
				t.Errorf("%s: %s is leased to %v, want %s", what, a, all[a], name)
			}
		}
	}
	if len(all) != want || all[addr("10.9.0.3")].Known() {
		t.Errorf("%s: leases %v, want those of %v and 10.9.0.3", what, all, has)
	}
	with(t, o, func(s *Store) {
		err := each(s.owners.Map, func(who owner, h holding) error {
			if list := has[who.decode().ContainerID]; len(list) != int(h.Count) {
				t.Errorf("%s: the index says that %s has %v, want %v", what, who.decode().ContainerID, h.list(), list)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
