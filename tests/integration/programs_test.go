package integration

import (
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
)

// testObject is the object of several programs that plugin/programs is tested with.
func testObject(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "plugin", "programs", "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// programs is the key of a configuration: "before" or "after", then the program of several.o.
func (r *programsRig) programs(orderAndName ...string) tests.Conf {
	var list []tests.Conf
	for i := 0; i < len(orderAndName); i += 2 {
		list = append(list, tests.Conf{"object": r.object, "order": orderAndName[i], "program": orderAndName[i+1]})
	}
	return tests.Conf{"programs": list}
}

type programsRig struct {
	*tests.Node
	t      *testing.T
	mode   string
	object string
}

// eachProgramMode runs a test in each mode that takes XDP programs.
func eachProgramMode(t *testing.T, test func(r *programsRig)) {
	for _, mode := range []string{"generic", "native"} {
		t.Run(mode, func(t *testing.T) {
			test(&programsRig{start(t), t, mode, testObject(t, "several.o")})
		})
	}
}

// pair is a pod with programs and one without.
func (r *programsRig) pair(conf tests.Conf) (pod, peer *tests.Pod) {
	r.t.Helper()
	network := tests.MustNetwork(r.t, r.Node, tests.Conflist("net", "1.1.0", r.Bridge(tests.DualStack), r.XDP(tests.Conf{"mode": r.mode}, conf)))
	plain := tests.MustNetwork(r.t, r.Node, tests.Conflist("net", "1.1.0", r.Bridge(tests.DualStack), r.XDP(tests.Conf{"mode": r.mode})))
	pod, peer = tests.MustPod(r.t, r.Node, "pod"), tests.MustPod(r.t, r.Node, "peer")
	tests.MustAdd(r.t, network, pod)
	tests.MustAdd(r.t, plain, peer)
	if err := tests.Introduce(pod, peer); err != nil {
		r.t.Fatal(err)
	}
	if err := tests.WaitAddress(r.t.Context(), peer, peer.IPv6()); err != nil {
		r.t.Fatal(err)
	}
	quiet(r.t, pod, peer)
	return pod, peer
}

// readPrograms reads the pod's programs.
func (r *programsRig) readPrograms(pod *tests.Pod) []datapath.PodProgram {
	r.t.Helper()
	d := datapath.New(datapath.Options{Root: pins.NewRoot(r.BPFFS)})
	list, err := d.List()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, a := range list {
		if a.Meta.ContainerID == pod.ContainerID {
			all, err := a.Programs()
			if err != nil {
				r.t.Fatal(err)
			}
			return all
		}
	}
	r.t.Fatalf("pod %s is not attached", pod.Name)
	return nil
}

// said is what programs said: how often by XDP action.
func said(before, now []datapath.PodProgram) [][5]uint64 {
	var all [][5]uint64
	for i, p := range now {
		var sum [5]uint64
		for verdict, c := range p.Verdicts {
			sum[verdict] = c.Packets - before[i].Verdicts[verdict].Packets
		}
		all = append(all, sum)
	}
	return all
}

// TestProgramsOrder: programs before the policy see all that the pod sends, those after it what the policy passes, in
// order, and each frame is counted once, by what was said last.
func TestProgramsOrder(t *testing.T) {
	const n = 10
	eachProgramMode(t, func(r *programsRig) {
		conf := r.programs("after", "pass", "before", "count_own", "before", "count_all")
		conf["filter"] = tests.Conf{"rules": []tests.Conf{{
			"name": "no-udp", "direction": "egress", "action": "deny", "protocol": "udp", "ports": []string{"9"},
		}}}
		pod, peer := r.pair(conf)
		programs, stats := r.readPrograms(pod), readStats(r.t, r.Node, pod)
		if err := tests.Ping(r.t.Context(), pod, peer.IPv4(), n); err != nil {
			r.t.Error(err)
		}
		if err := tests.Ping(r.t.Context(), pod, peer.IPv6(), n); err != nil {
			r.t.Error(err)
		}
		if _, err := tests.EchoUDPCount(r.t.Context(), pod, netip.AddrPortFrom(peer.IPv4(), 9), n, 64, loss); err != nil {
			r.t.Fatal(err)
		}
		now := r.readPrograms(pod)
		expect(r.t, "programs", []string{now[0].Name, now[1].Name, now[2].Name}, []string{"count_own", "count_all", "pass"})
		expect(r.t, "said", said(programs, now), [][5]uint64{{0, 0, 3 * n}, {0, 0, 3 * n}, {0, 0, 2 * n}})
		counted := readStats(r.t, r.Node, pod).since(stats)
		expect(r.t, "passed", counted.Egress["pass"].Packets, 2*n)
		expect(r.t, "dropped", counted.Egress["drop"].Packets, n)
		expect(r.t, "of UDP", counted.Protocols.Egress["udp"].Packets, n)
		expect(r.t, "all", total(counted.Egress).Packets, 3*n)
	})
}

// TestProgramsEnd: what a program drops before the policy does not get on, and is counted as dropped; and a
// program that is no more there drops too.
func TestProgramsEnd(t *testing.T) {
	const n = 5
	for _, order := range []string{"before", "after"} {
		t.Run(order, func(t *testing.T) {
			eachProgramMode(t, func(r *programsRig) {
				pod, peer := r.pair(r.programs(order, "drop", order, "count_own"))
				programs, stats, at := r.readPrograms(pod), readStats(r.t, r.Node, pod), readStats(r.t, r.Node, peer)
				replies, err := tests.PingCount(r.t.Context(), pod, peer.IPv4(), n, loss)
				if err != nil || replies != 0 {
					r.t.Errorf("%d replies, %v", replies, err)
				}
				expect(r.t, "said", said(programs, r.readPrograms(pod)), [][5]uint64{{0, n}, {}})
				counted := readStats(r.t, r.Node, pod).since(stats)
				expect(r.t, "counted as dropped", counted.Egress["drop"], times(n, frameLen(peer.IPv4(), tests.PingPayload)))
				expect(r.t, "counted at all", total(counted.Egress).Packets, n)
				expect(r.t, "came", readStats(r.t, r.Node, peer).since(at).Ingress["pass"].Packets, 0)
			})
		})
	}
}

// TestProgramsMaps: a program's maps are the pod's own, or the node's where it asks for pinning by name; a program
// without own maps is loaded once. All of it goes with the pods.
func TestProgramsMaps(t *testing.T) {
	const n = 3
	eachProgramMode(t, func(r *programsRig) {
		network := tests.MustNetwork(r.t, r.Node, tests.Conflist("net", "1.1.0", r.Bridge(tests.IPv4),
			r.XDP(tests.Conf{"mode": r.mode}, r.programs("before", "count_own", "before", "count_all", "before", "pass", "after", "pass"))))
		pods := []*tests.Pod{tests.MustPod(r.t, r.Node, "one"), tests.MustPod(r.t, r.Node, "two")}
		for _, pod := range pods {
			tests.MustAdd(r.t, network, pod)
			if err := network.Check(r.t.Context(), pod); err != nil {
				r.t.Errorf("CHECK: %v", err)
			}
		}
		if err := tests.Introduce(pods[0], pods[1]); err != nil {
			r.t.Fatal(err)
		}
		quiet(r.t, pods...)
		one, two := r.readPrograms(pods[0]), r.readPrograms(pods[1])
		for i, shared := range []bool{false, true, true, true} {
			if one[i].Shared != shared || (one[i].ID == two[i].ID) != shared {
				r.t.Errorf("%s: programs %d and %d, shared %v", one[i].Name, one[i].ID, two[i].ID, one[i].Shared)
			}
		}
		if one[2].ID != one[3].ID || one[2].Dir == one[3].Dir || !strings.HasSuffix(one[3].Dir, "/pass-2") {
			r.t.Errorf("the same program twice: %+v, %+v", one[2], one[3])
		}
		read := func(pin string, key uint32) (value uint64) {
			r.t.Helper()
			m, err := ebpf.LoadPinnedMap(pin, nil)
			if err != nil {
				r.t.Fatal(err)
			}
			defer m.Close()
			if err := m.Lookup(key, &value); err != nil {
				r.t.Fatal(err)
			}
			return value
		}
		own := [2]uint64{read(filepath.Join(one[0].Dir, "own_counters"), 2), read(filepath.Join(two[0].Dir, "own_counters"), 2)}
		common := filepath.Join(r.BPFFS, "v1", "node", "pinned", "all_counters")
		all := read(common, 0)
		if err := tests.Ping(r.t.Context(), pods[0], pods[1].IPv4(), n); err != nil {
			r.t.Fatal(err)
		}
		if replies, err := tests.PingCount(r.t.Context(), pods[0], pods[1].GatewayIPv4(), n, loss); err != nil || replies != n {
			r.t.Errorf("%d replies from the node, %v", replies, err)
		}
		expect(r.t, "in the map of one", read(filepath.Join(one[0].Dir, "own_counters"), 2)-own[0] >= 2*n, true)
		expect(r.t, "in the map of two", read(filepath.Join(two[0].Dir, "own_counters"), 2)-own[1] >= n, true)
		ran := one[1].Runs() + two[1].Runs()
		expect(r.t, "in the map of all", read(common, 0)-all, r.readPrograms(pods[0])[1].Runs()+r.readPrograms(pods[1])[1].Runs()-ran)
		for _, pod := range pods {
			if err := network.Del(r.t.Context(), pod); err != nil {
				r.t.Errorf("DEL: %v", err)
			}
		}
		if left := r.Tree(); len(left) > 0 {
			r.t.Errorf("left: %v", left)
		}
	})
}

// TestProgramsErrors: a pod whose program cannot be loaded is not added, and nothing is left; an optional one is left out.
func TestProgramsErrors(t *testing.T) {
	for _, test := range []struct {
		name, mode, object, program string
		code                        uint
		says                        []string
	}{
		{"no object", "generic", "/nowhere/x.o", "x", 109, []string{"/nowhere/x.o"}},
		{"wrong name", "generic", "several.o", "nothing", 109, []string{"several.o", "nothing", "count_own (section xdp)"}},
		{"rejected", "generic", "several.o", "unchecked", 109, []string{"several.o", "unchecked", "invalid access to packet"}},
		{"rejected in the driver", "native", "several.o", "unchecked", 109, []string{"several.o", "unchecked", "invalid access to packet"}},
		{"other byte order", "native", "bigendian.o", "", 109, []string{"bigendian.o", "byte order"}},
		{"no map", "native", "several.o", "use_impossible", 109, []string{"use_impossible", "impossible"}},
		{"in mode tcx", "tcx", "several.o", "pass", 104, []string{"mode tcx", "generic and native"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := start(t)
			object := test.object
			if !strings.HasPrefix(object, "/") {
				object = testObject(t, object)
			}
			program := tests.Conf{"object": object}
			if test.program != "" {
				program["program"] = test.program
			}
			del := func(network *tests.Network, pod *tests.Pod) {
				t.Helper()
				if err := network.Del(t.Context(), pod); err != nil {
					t.Errorf("DEL: %v", err)
				}
				if left := n.Tree(); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
			}
			add := func(optional bool) (*tests.Network, *tests.Pod, error) {
				program["optional"] = optional
				network := tests.MustNetwork(t, n, tests.Conflist("net", "1.1.0", n.Bridge(tests.IPv4),
					n.XDP(tests.Conf{"mode": test.mode, "programs": []tests.Conf{program}})))
				pod := tests.MustPod(t, n, "pod")
				_, err := network.Add(t.Context(), pod)
				return network, pod, err
			}
			network, pod, err := add(false)
			var refused *types.Error
			if !errors.As(err, &refused) {
				t.Fatalf("ADD: %v, want a CNI error", err)
			}
			if refused.Code != test.code {
				t.Errorf("code %d, want %d: %v", refused.Code, test.code, err)
			}
			for _, words := range test.says {
				if !strings.Contains(refused.Msg+refused.Details, words) {
					t.Errorf("%v does not say %q", err, words)
				}
			}
			if left := n.Tree(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			del(network, pod)
			if test.mode == "tcx" {
				return // what is refused is the mode
			}
			network, pod, err = add(true)
			if err != nil {
				t.Fatalf("with an optional program: %v", err)
			}
			if err := network.Check(t.Context(), pod); err != nil {
				t.Errorf("CHECK: %v", err)
			}
			if err := tests.Ping(t.Context(), pod, pod.GatewayIPv4(), 2); err != nil {
				t.Error(err)
			}
			del(network, pod)
		})
	}
}
