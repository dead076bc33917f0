package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/xdp-cni/xdp-cni/tests"
)

// ipamRequests are the last bytes, from and to, of addresses to ask for that are of the ranges: of
// one that is not, host-local finds out after it has moved on in the range.
var ipamRequests = map[string][2]int{
	"one": {1, 14}, "gateway last": {1, 6}, "within": {250, 254}, "several": {1, 2}, "dual stack": {1, 14}, "legacy": {1, 6},
}

// ipamRanges are what the test configures.
var ipamRanges = map[string]tests.Conf{
	"one":          {"ranges": []any{[]tests.Conf{{"subnet": "10.9.0.0/28"}}}},
	"gateway last": {"ranges": []any{[]tests.Conf{{"subnet": "10.9.0.0/29", "gateway": "10.9.0.6"}}}},
	"within":       {"ranges": []any{[]tests.Conf{{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.250", "rangeEnd": "10.9.0.254", "gateway": "10.9.0.252"}}}},
	"several":      {"ranges": []any{[]tests.Conf{{"subnet": "10.9.0.0/30"}, {"subnet": "10.9.1.0/29"}, {"subnet": "10.9.2.0/29", "rangeStart": "10.9.2.3", "rangeEnd": "10.9.2.4"}}}},
	"dual stack":   {"ranges": []any{[]tests.Conf{{"subnet": "10.9.0.0/28"}}, []tests.Conf{{"subnet": "fd09::/125"}}}},
	"legacy":       {"subnet": "10.9.0.0/29", "routes": []tests.Conf{{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "gw": "10.9.0.3"}}},
}

// TestLikeHostLocal runs the same random sequences of ADD and DEL with host-local and xdp-ipam, in
// every version: the results are the same, byte for byte, addresses in the same order, and so is
// what happens when a range is exhausted or an address taken.
func TestLikeHostLocal(t *testing.T) {
	versions := []string{"", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}
	for name, ranges := range ipamRanges {
		t.Run(name, func(t *testing.T) {
			n := startLeases(t)
			resolv := filepath.Join(n.Dir, "resolv.conf")
			if err := os.WriteFile(resolv, []byte("nameserver 192.0.2.1\nsearch example.com\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			conf := tests.Conf{"dataDir": n.DataDir, "bpffs": n.BPFFS, "resolvConf": resolv}
			for key, value := range ranges {
				conf[key] = value
			}
			theirs := ipamRun{t, n, n.Binaries.Reference("host-local"), conf}
			ours := ipamRun{t, n, n.Binaries.IPAM(), conf}
			random := rand.New(rand.NewPCG(7, uint64(len(name))))
			added, request := map[string]bool{}, ipamRequests[name]
			exhausted := 0
			for i := range 90 {
				id := fmt.Sprintf("c%d", random.IntN(40))
				version := tests.Conf{"cniVersion": versions[random.IntN(len(versions))]}
				if added[id] || random.IntN(8) == 0 {
					theirs.must("DEL", id, version)
					ours.must("DEL", id, version)
					delete(added, id)
					continue
				}
				var env []string
				if random.IntN(5) == 0 {
					env = append(env, fmt.Sprintf("CNI_ARGS=IP=10.9.0.%d", request[0]+random.IntN(request[1]-request[0]+1)))
				}
				want, wantOK := theirs.run("ADD", id, version, env...)
				got, ok := ours.run("ADD", id, version, env...)
				if ok != wantOK {
					t.Fatalf("%d: ADD of %s %v: %s; host-local: %s", i, id, env, got.Stdout, want.Stdout)
				}
				if ok && !bytes.Equal(got.Stdout, want.Stdout) {
					t.Fatalf("%d: ADD of %s: %s; host-local: %s", i, id, got.Stdout, want.Stdout)
				}
				if !ok {
					says := outputError(t, want).Msg
					if got := outputError(t, got).Msg; !strings.HasPrefix(got, says) {
						t.Errorf("%d: %q; host-local: %q", i, got, says)
					}
					exhausted += strings.Count(says, "no IP addresses available in range set")
				}
				added[id] = ok
			}
			if exhausted == 0 {
				t.Error("no range was ever exhausted")
			}
		})
	}
}

// TestLeasesAtOnce runs 16 ADDs at once, over and over, some of them killed, on a network that is
// not there yet: no address is given to two, none leaks, and the last DEL leaves none.
func TestLeasesAtOnce(t *testing.T) {
	n := startLeases(t)
	r := ipamRun{t, n, n.Binaries.IPAM(), n.Leases(tests.DualStack)}
	random := rand.New(rand.NewPCG(8, 9))
	killed, has := 0, map[string][]netip.Addr{}
	for round := range 6 {
		var (
			wait sync.WaitGroup
			mu   sync.Mutex
		)
		for i := range 16 {
			id := fmt.Sprintf("c%d-%d", round, i)
			cmd := n.Command(t.Context(), r.path, "ADD", nil, r.stdin(nil), r.env(id)...)
			kill := round > 0 && i%3 == 0
			seed := random.Uint64()
			wait.Go(func() {
				if kill {
					wasKilled, err := runMaybeKilled(n, cmd, true, rand.New(rand.NewPCG(seed, 0)), 15*time.Millisecond)
					if err != nil {
						t.Error(err)
					}
					if wasKilled {
						mu.Lock()
						killed++
						mu.Unlock()
					}
					cmd = n.Command(t.Context(), r.path, "ADD", nil, r.stdin(nil), r.env(id)...) // as a runtime that tries again
				}
				out, err := n.Run(cmd)
				if err != nil {
					t.Errorf("ADD: %s", out.Stdout)
					return
				}
				list, err := resultAddresses(out.Stdout)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				has[id] = list
				mu.Unlock()
			})
		}
		wait.Wait()
	}
	if killed < 5 {
		t.Errorf("only %d processes were killed before they were done", killed)
	}
	all := leasesOf(t, n, "net")
	if len(all) != 2*len(has) || len(has) != 96 {
		t.Errorf("%d leases for %d attachments", len(all), len(has))
	}
	for id, list := range has {
		for _, a := range list {
			if all[a].ContainerID != id {
				t.Errorf("%s was given to %s, and is leased to %s", a, id, all[a].ContainerID)
			}
		}
	}
	var wait sync.WaitGroup
	for id := range has {
		cmd := n.Command(t.Context(), r.path, "DEL", nil, r.stdin(nil), r.env(id)...)
		wait.Go(func() {
			if out, err := n.Run(cmd); err != nil {
				t.Errorf("DEL: %s", out.Stdout)
			}
		})
	}
	wait.Wait()
	if all := leasesOf(t, n, "net"); len(all) > 0 {
		t.Errorf("leases that leaked: %v", all)
	}
}

// TestLeaseVerbs goes through the verbs, with what each is to say.
func TestLeaseVerbs(t *testing.T) {
	n := startLeases(t)
	r := ipamRun{t, n, n.Binaries.IPAM(), n.Leases(tests.DualStack, tests.Conf{"ranges": []any{
		[]tests.Conf{{"subnet": "10.9.0.0/29"}}, []tests.Conf{{"subnet": "fd09::/64"}}}})}
	fails := func(code uint, says, command, id string, more tests.Conf, env ...string) {
		t.Helper()
		out, ok := r.run(command, id, more, env...)
		if ok {
			t.Errorf("%s of %s succeeded", command, id)
			return
		}
		if e := outputError(t, out); e.Code != code || !strings.Contains(e.Error(), says) {
			t.Errorf("%s of %s: %v, want code %d and %q", command, id, e, code, says)
		}
	}
	// nothing is there yet
	r.must("STATUS", "", nil)
	r.must("DEL", "a", nil)
	r.must("GC", "", nil)
	fails(106, "Failed to find address added by container a", "CHECK", "a", nil)

	first := r.must("ADD", "a", nil)
	if again := r.must("ADD", "a", nil); !bytes.Equal(again.Stdout, first.Stdout) {
		t.Errorf("ADD again: %s, first %s", again.Stdout, first.Stdout)
	}
	var prev any
	if err := json.Unmarshal(first.Stdout, &prev); err != nil {
		t.Fatal(err)
	}
	r.must("CHECK", "a", tests.Conf{"prevResult": prev})
	moved := bytes.Replace(first.Stdout, []byte("10.9.0.2"), []byte("10.9.0.3"), 1)
	fails(106, "10.9.0.3", "CHECK", "a", tests.Conf{"prevResult": json.RawMessage(moved)})
	fails(106, "range set fd08::1", "CHECK", "a", tests.Conf{"runtimeConfig": tests.Conf{"ipRanges": []any{[]tests.Conf{{"subnet": "fd08::/64"}}}}})
	fails(122, "10.9.0.2 is not available in range set 10.9.0.1-10.9.0.6", "ADD", "b", nil, "CNI_ARGS=IP=10.9.0.2")
	fails(123, "10.9.0.1 is subnet's gateway", "ADD", "b", nil, "CNI_ARGS=IP=10.9.0.1")
	fails(123, "10.8.0.1", "ADD", "b", tests.Conf{"runtimeConfig": tests.Conf{"ips": []string{"10.8.0.1"}}})
	fails(7, "gateway 10.8.0.1", "ADD", "b", tests.Conf{"ipam": tests.Conf{"subnet": "10.9.0.0/24", "gateway": "10.8.0.1"}})
	for _, id := range []string{"b", "c", "d"} {
		r.add(id)
	}
	r.must("STATUS", "", nil)
	r.add("e", "CNI_ARGS=IP=10.9.0.6")
	fails(51, "no IP addresses available in range set: 10.9.0.1-10.9.0.6", "STATUS", "", nil)
	fails(120, "no IP addresses available in range set: 10.9.0.1-10.9.0.6", "ADD", "f", nil)
	if all := leasesOf(t, n, "net"); len(all) != 10 {
		t.Errorf("%d leases, want 10", len(all))
	}

	// DEL and GC do with a configuration that nobody can ADD with
	broken := tests.Conf{"ipam": tests.Conf{"type": "xdp-ipam", "bpffs": n.BPFFS, "subnet": "?"}}
	r.must("DEL", "b", broken)
	r.must("STATUS", "", nil)
	valid := []types.GCAttachment{{ContainerID: "a", IfName: "eth0"}, {ContainerID: "c", IfName: "eth0"}}
	r.must("GC", "", broken)
	if all := leasesOf(t, n, "net"); len(all) != 8 {
		t.Errorf("%d leases after GC without a list, want 8", len(all))
	}
	broken["cni.dev/valid-attachments"] = valid
	r.must("GC", "", broken)
	all := leasesOf(t, n, "net")
	for a, owner := range all {
		if owner.ContainerID != "a" && owner.ContainerID != "c" {
			t.Errorf("%s is leased to %v after GC", a, owner)
		}
	}
	if len(all) != 4 {
		t.Errorf("%d leases after GC, want 4", len(all))
	}

	// a bpffs that cannot be had
	file := filepath.Join(n.Dir, "full")
	if err := os.MkdirAll(filepath.Join(file, "precious"), 0o700); err != nil {
		t.Fatal(err)
	}
	r.conf["bpffs"] = file
	fails(50, "not empty", "STATUS", "", nil)
	fails(5, "not empty", "ADD", "a", nil)
}

// TestLeasePrivileges: without them there is an error that says so.
func TestLeasePrivileges(t *testing.T) {
	n := startLeases(t)
	r := ipamRun{t, n, n.Binaries.IPAM(), n.Leases(tests.IPv4)}
	cmd := n.Command(t.Context(), r.path, "ADD", nil, r.stdin(nil), r.env("a")...)
	dropCapabilities(cmd)
	out, err := n.Run(cmd)
	if err == nil {
		t.Fatal("an ADD without privileges succeeded")
	}
	if e := outputError(t, out); e.Code != 105 && e.Code != 5 {
		t.Errorf("%v", e)
	}
}
