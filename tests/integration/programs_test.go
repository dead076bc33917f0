package integration

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// testObject is an object that plugin/programs is tested with.
func testObject(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "plugin", "programs", "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// programsOf are entries of a configuration: an order, then the programs of an object that run in it.
func programsOf(t *testing.T, object, order string, names ...string) (list []tests.Conf) {
	t.Helper()
	for _, name := range names {
		list = append(list, tests.Conf{"object": testObject(t, object), "order": order, "program": name})
	}
	return list
}

// podPrograms reads a pod's programs.
func podPrograms(t *testing.T, n *tests.Node, pod *tests.Pod) (list []datapath.PodProgram) {
	t.Helper()
	err := n.Do(func() error {
		d := datapath.New(datapath.Options{Root: pins.NewRoot(n.BPFFS)})
		all, err := d.List()
		if err != nil {
			return err
		}
		for _, a := range all {
			if a.Meta.ContainerID == pod.ContainerID {
				list, err = d.ReadPrograms(a)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// ran is how programs ended since they were read before, by XDP action.
func ran(before, now []datapath.PodProgram) (list [][5]uint64) {
	for i, p := range now {
		for verdict := range p.Runs {
			p.Runs[verdict] -= before[i].Runs[verdict]
		}
		list = append(list, p.Runs)
	}
	return list
}

// programsPair is a pod with programs and one without, which know each other.
func programsPair(t *testing.T, mode string, conf tests.Conf) (n *tests.Node, pod, peer *tests.Pod) {
	t.Helper()
	n = start(t)
	network := func(overrides ...tests.Conf) *tests.Network {
		return tests.MustNetwork(t, n, tests.Conflist("net", "1.1.0", n.Bridge(tests.DualStack),
			n.XDP(append(overrides, tests.Conf{"mode": mode})...)))
	}
	pod, peer = tests.MustPod(t, n, "pod"), tests.MustPod(t, n, "peer")
	tests.MustAdd(t, network(conf), pod)
	tests.MustAdd(t, network(), peer)
	if err := tests.Introduce(pod, peer); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*tests.Pod{pod, peer} {
		if err := tests.WaitAddress(t.Context(), p, p.IPv6()); err != nil {
			t.Fatal(err)
		}
	}
	quiet(t, pod, peer)
	return n, pod, peer
}

// TestProgramsOrder: programs before the policy see all that the pod sends, those after it what the policy passes, in
// order, and each frame is counted once, by what was said last.
func TestProgramsOrder(t *testing.T) {
	const many = 10
	inXDPModes(t, func(t *testing.T, mode string) {
		n, pod, peer := programsPair(t, mode, tests.Conf{
			"programs": append(programsOf(t, "several.bpf.o", "after", "pass"),
				programsOf(t, "several.bpf.o", "before", "count_own", "count_all")...),
			"filter": tests.Conf{"rules": []tests.Conf{{
				"name": "no-udp", "direction": "egress", "action": "deny", "protocol": "udp", "ports": []string{"9"},
			}}},
		})
		programs, stats := podPrograms(t, n, pod), readStats(t, n, pod)
		for _, to := range []netip.Addr{peer.IPv4(), peer.IPv6()} {
			if err := tests.Ping(t.Context(), pod, to, many); err != nil {
				t.Error(err)
			}
		}
		if _, err := tests.EchoUDPCount(t.Context(), pod, netip.AddrPortFrom(peer.IPv4(), 9), many, 64, loss); err != nil {
			t.Fatal(err)
		}
		now := podPrograms(t, n, pod)
		expect(t, "programs", []string{now[0].Name, now[1].Name, now[2].Name}, []string{"count_own", "count_all", "pass"})
		expect(t, "runs", ran(programs, now), [][5]uint64{{2: 3 * many}, {2: 3 * many}, {2: 2 * many}})
		counted := readStats(t, n, pod).since(stats)
		expect(t, "passed", counted.Egress["pass"].Packets, 2*many)
		expect(t, "dropped", counted.Egress["drop"].Packets, many)
		expect(t, "of UDP", counted.Protocols.Egress["udp"].Packets, many)
		expect(t, "all", total(counted.Egress).Packets, 3*many)
	})
}

// TestProgramsEnd: what a program drops goes no further, before the policy and after it, and is counted as dropped.
func TestProgramsEnd(t *testing.T) {
	const many = 5
	for _, order := range []string{"before", "after"} {
		t.Run(order, func(t *testing.T) {
			inXDPModes(t, func(t *testing.T, mode string) {
				n, pod, peer := programsPair(t, mode, tests.Conf{
					"programs": programsOf(t, "several.bpf.o", order, "drop", "count_own"),
				})
				programs, stats, at := podPrograms(t, n, pod), readStats(t, n, pod), readStats(t, n, peer)
				replies, err := tests.PingCount(t.Context(), pod, peer.IPv4(), many, loss)
				if err != nil || replies != 0 {
					t.Errorf("%d replies, %v", replies, err)
				}
				expect(t, "runs", ran(programs, podPrograms(t, n, pod)), [][5]uint64{{1: many}, {}})
				counted := readStats(t, n, pod).since(stats)
				expect(t, "counted as dropped", counted.Egress["drop"], times(many, frameLen(peer.IPv4(), tests.PingPayload)))
				expect(t, "counted at all", total(counted.Egress).Packets, many)
				expect(t, "came", readStats(t, n, peer).since(at).Ingress["pass"].Packets, 0)
			})
		})
	}
}

// mapOf opens the pin of a program's map.
func mapOf(t *testing.T, p datapath.PodProgram, name string) *ebpf.Map {
	t.Helper()
	i := slices.IndexFunc(p.Maps, func(path string) bool { return filepath.Base(path) == name })
	if i < 0 {
		t.Fatalf("program %s has no map %s: %v", p.Name, name, p.Maps)
	}
	m, err := ebpf.LoadPinnedMap(p.Maps[i], nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// countIn reads a number of 64 bits, the first of a value, summed over CPUs.
func countIn(t *testing.T, m *ebpf.Map, key uint32) (sum uint64) {
	t.Helper()
	var values [][]byte
	if m.Type() == ebpf.PerCPUArray {
		if err := m.Lookup(key, &values); err != nil {
			t.Fatal(err)
		}
	} else {
		value, err := m.LookupBytes(key)
		if err != nil {
			t.Fatal(err)
		}
		values = append(values, value)
	}
	for _, value := range values {
		sum += binary.NativeEndian.Uint64(value)
	}
	return sum
}

// TestProgramsMaps: a program's maps are the pod's own, or the node's where it asks for pinning by name; a program
// without own maps is loaded once. All of it goes with the pods.
func TestProgramsMaps(t *testing.T) {
	const many = 3
	inXDPModes(t, func(t *testing.T, mode string) {
		list := programsOf(t, "several.bpf.o", "before", "count_own", "count_all", "pass", "pass")
		list[3]["name"] = "again"
		r := newSampleRig(t, mode, (*tests.Node).Bridge, list...)
		pods := []*tests.Pod{tests.MustPod(t, r.Node, "one"), tests.MustPod(t, r.Node, "two")}
		for _, pod := range pods {
			tests.MustAdd(t, r.w, pod)
			if err := r.w.Check(t.Context(), pod); err != nil {
				t.Errorf("CHECK: %v", err)
			}
			if err := tests.WaitAddress(t.Context(), pod, pod.IPv6()); err != nil {
				t.Fatal(err)
			}
		}
		quiet(t, pods...)
		one, two := podPrograms(t, r.Node, pods[0]), podPrograms(t, r.Node, pods[1])
		for i, shared := range []bool{false, true, true, true} {
			if one[i].Shared != shared || (one[i].ID == two[i].ID) != shared {
				t.Errorf("%s: programs %d and %d, shared %v", one[i].Name, one[i].ID, two[i].ID, one[i].Shared)
			}
		}
		if one[2].ID != one[3].ID || one[2].Name != "pass" || one[3].Name != "again" {
			t.Errorf("the same program twice: %+v, %+v", one[2], one[3])
		}
		own := []*ebpf.Map{mapOf(t, one[0], "own_counters"), mapOf(t, two[0], "own_counters")}
		common, err := ebpf.LoadPinnedMap(filepath.Join(r.BPFFS, "v1", "node", "program_maps", "all_counters"), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer common.Close()
		before := []uint64{countIn(t, own[0], 2), countIn(t, own[1], 2), countIn(t, common, 0)}
		for i, pod := range pods {
			if err := tests.Ping(t.Context(), pod, pod.GatewayIPv4(), (i+1)*many); err != nil {
				t.Fatal(err)
			}
		}
		ones := ran(one, podPrograms(t, r.Node, pods[0]))[0][2]
		twos := ran(two, podPrograms(t, r.Node, pods[1]))[0][2]
		if ones < many || twos < 2*many { // ARP is there too
			t.Errorf("%d and %d runs, of pings alone %d and %d", ones, twos, many, 2*many)
		}
		for i, want := range []uint64{ones, twos, ones + twos} {
			if got := countIn(t, []*ebpf.Map{own[0], own[1], common}[i], []uint32{2, 2, 0}[i]) - before[i]; got != want {
				t.Errorf("map %d counted %d, want %d", i, got, want)
			}
		}
		// by the name that is shown
		table, err := r.RunXdpctl(t.Context(), "programs", pods[0].ContainerID)
		const shown = "all_counters(node)"
		if err != nil || !strings.Contains(string(table.Stdout), shown) {
			t.Errorf("xdpctl programs: %v\n%s%s", err, table.Stdout, table.Stderr)
		}
		dump, err := r.RunXdpctl(t.Context(), "programs", "dump", pods[0].ContainerID, shown)
		if want := fmt.Sprint(countIn(t, common, 0)); err != nil || !strings.Contains(string(dump.Stdout), want) {
			t.Errorf("xdpctl programs dump %s: %v, want %s in it\n%s%s", shown, err, want, dump.Stdout, dump.Stderr)
		}
		for _, pod := range pods {
			if err := r.w.Del(t.Context(), pod); err != nil {
				t.Errorf("DEL: %v", err)
			}
		}
		if left := r.Tree(); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// TestProgramsTutorial runs programs of an object in the xdp-tutorial's style, unchanged, on frames of a pod.
func TestProgramsTutorial(t *testing.T) {
	inXDPModes(t, func(t *testing.T, mode string) {
		const object = "tutorial.bpf.o"
		// by the names of functions and of sections; the last one drops ICMP
		list := append(
			programsOf(t, object, "before", "xdp_stats1", "xdp_count_globals", "xdp_fall", "xdp_nested", "xdp_version", "prog"),
			programsOf(t, object, "after", "xdp_print", "xdp_jump_icmp")...)
		r := newSampleRig(t, mode, (*tests.Node).Bridge, list...)
		p := r.add(t, "pod")
		if err := r.w.Check(t.Context(), p.Pod); err != nil {
			t.Errorf("CHECK: %v", err)
		}
		quiet(t, p.Pod)
		type at struct {
			program int
			name    string
			key     uint32
		}
		counts := map[at]uint64{ // what each counts of one frame
			{0, "xdp_stats_map", 2}: 1, {1, "_bss", 0}: 3, {2, "xdp_stats_map", 2}: 1, {3, "inner_map", 0}: 1,
			{5, "xdp_stats_map", 2}: 1,
		}
		programs, stats, had := podPrograms(t, r.Node, p.Pod), readStats(t, r.Node, p.Pod), map[at]uint64{}
		for a := range counts {
			had[a] = countIn(t, mapOf(t, programs[a.program], a.name), a.key)
		}
		udp, icmp := p.of(packets.IPv4{}, packets.UDP{}), p.of(packets.IPv4{}, packets.ICMP{})
		for range sent {
			p.send(t, icmp)
			p.send(t, udp)
			arrives(t, p.passed, udp)
		}
		p.counted(t, stats, "drop", sent)
		p.acted(t, stats, "pass", sent)
		all := [5]uint64{2: 2 * sent}
		expect(t, "runs", ran(programs, podPrograms(t, r.Node, p.Pod)),
			[][5]uint64{all, all, all, all, all, all, all, {1: sent, 2: sent}})
		for a, each := range counts {
			p := programs[a.program]
			expect(t, "in "+p.Name, countIn(t, mapOf(t, p, a.name), a.key)-had[a], 2*sent*each)
		}
	})
}

// TestProgramsTailCallInFunction: a program's own function may make a tail call, as ours do.
func TestProgramsTailCallInFunction(t *testing.T) {
	inXDPModes(t, func(t *testing.T, mode string) {
		r := newSampleRig(t, mode, (*tests.Node).Bridge,
			programsOf(t, "tutorial.bpf.o", "before", "xdp_call_icmp", "xdp_stats1")...)
		p := r.add(t, "pod")
		quiet(t, p.Pod)
		programs, stats := podPrograms(t, r.Node, p.Pod), readStats(t, r.Node, p.Pod)
		udp := p.of(packets.IPv4{}, packets.UDP{})
		for range sent {
			p.send(t, p.of(packets.IPv4{}, packets.ICMP{}))
			p.send(t, udp)
			arrives(t, p.passed, udp)
		}
		p.counted(t, stats, "drop", sent)
		now := podPrograms(t, r.Node, p.Pod)
		expect(t, "runs", ran(programs, now), [][5]uint64{{1: sent, 2: sent}, {2: sent}})
		expect(t, "counted by the caller", countIn(t, mapOf(t, now[0], "_bss"), 0) >= 2*sent, true)
	})
}

// TestProgramsSendBackGSO: a pod gets back what it sent as one buffer of several segments, as it was in mode generic; in
// mode native its driver sends each segment.
func TestProgramsSendBackGSO(t *testing.T) {
	const size, headers = 1000, 54
	inXDPModes(t, func(t *testing.T, mode string) {
		r := newSampleRig(t, mode, (*tests.Node).Bridge, tests.Conf{"object": testObject(t, "others.bpf.o"), "program": "tcp_back"})
		p := r.add(t, "pod")
		quiet(t, p.Pod)
		before, stats := podPrograms(t, r.Node, p.Pod), readStats(t, r.Node, p.Pod)
		frame := packets.Frame(p.ethernet(), packets.IPv4{}, packets.TCP{}, packets.Data(2500-len(sampleMark)), packets.Payload(sampleMark))
		gso := &tests.GSO{Type: unix.VIRTIO_NET_HDR_GSO_TCPV4, Size: size, ChecksumStart: 34, ChecksumOffset: 16}
		if err := tests.SendPaged(p, p.IfName, frame, headers, gso); err != nil {
			t.Fatal(err)
		}
		got, err := p.received.Next(t.Context(), tests.Patience(5*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		buffers := uint64(1)
		if mode == "native" {
			buffers = 3
			// the last, of which the kernel has made the IP and TCP headers
			if !bytes.Equal(got[:14], frame[:14]) || !bytes.Equal(got[headers:], frame[headers+2*size:]) {
				t.Errorf("got back %x, want the MACs and the data of the last segment of %x", got, frame)
			}
		} else if !bytes.Equal(got, frame) {
			t.Errorf("got back %d bytes, want all %d as they were\ngot  %x\nwant %x", len(got), len(frame), got[:headers], frame[:headers])
		}
		if runs := ran(before, podPrograms(t, r.Node, p.Pod))[0]; runs != [5]uint64{xdpTx: buffers} {
			t.Errorf("runs by verdict: %v, want %d sent back", runs, buffers)
		}
		p.counted(t, stats, "tx", buffers)
	})
}

// TestProgramsErrors: a pod whose program cannot be used is not added: the error, of bounded length, says which program
// of which object, and ends with what the verifier said; nothing is left. An optional one is left out, with a warning.
func TestProgramsErrors(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.o")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, mode, object, program string
		says                        []string
		verifier                    string // the end of its log says
	}{
		{"no object", "generic", "/nowhere/x.o", "x", []string{"no such file"}, ""},
		{"empty", "generic", empty, "", []string{"no ELF file"}, ""},
		{"a directory", "generic", dir, "", []string{"no regular file"}, ""},
		{"wrong name", "generic", "several.bpf.o", "nothing", []string{"count_own (section xdp)"}, ""},
		{"for this machine", "native", "x86_64.o", "", []string{"not for BPF"}, ""},
		{"other byte order", "native", "bigendian.o", "", []string{"byte order"}, ""},
		{"no BTF", "generic", "nobtf.o", "pass", []string{"no BTF"}, ""},
		{"legacy maps", "generic", "legacy.bpf.o", "only", []string{`legacy section "maps"`}, ""},
		{"rejected", "generic", "several.bpf.o", "unchecked", nil, "invalid access to packet"},
		{"rejected in the driver", "native", "several.bpf.o", "unchecked", nil, "invalid access to packet"},
		{"too large a stack", "generic", "deep.bpf.o", "deep", nil, "Too large"},
		{"too long a way", "generic", "endless.bpf.o", "endless", nil, "BPF program is too large"},
		{"no such member", "native", "kernel.bpf.o", "use_member", nil, "CO-RE"},
		{"no such kfunc", "native", "kernel.bpf.o", "use_kfunc", []string{"no_such_kfunc"}, ""},
		{"no map", "native", "several.bpf.o", "use_impossible", []string{"impossible"}, ""},
		{"in mode tcx", "tcx", "several.bpf.o", "pass", []string{"mode tcx has no XDP"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := start(t)
			pod, _, prev := vethPod(t, n, "pod", "1.1.0")
			object := test.object
			if !strings.HasPrefix(object, "/") {
				object = testObject(t, object)
			}
			program := tests.Conf{"object": object}
			if test.program != "" {
				program["program"] = test.program
			}
			run := func(command string) (tests.Output, error) {
				t.Helper()
				return n.RunPlugin(t.Context(), command, pod, pluginConf(n, "1.1.0", prev, tests.Conf{
					"mode": test.mode, "programs": []tests.Conf{program},
				}))
			}
			expectNothing := func() {
				t.Helper()
				if left := n.Tree(); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
			}
			out, err := run("ADD")
			if err == nil {
				t.Fatalf("ADD succeeded: %s", out.Stdout)
			}
			refused := outputError(t, out)
			says := append([]string{object, test.program}, test.says...)
			if refused.Code != 109 || !containsAll(refused.Msg, says) || !strings.Contains(refused.Details, test.verifier) ||
				(refused.Details != "") != (test.verifier != "") {
				t.Errorf("ADD: code %d, %q, details %q", refused.Code, refused.Msg, refused.Details)
			}
			if len(out.Stdout) > 16<<10 || len(out.Stderr) > 1<<20 {
				t.Errorf("%d bytes of output, %d of messages", len(out.Stdout), len(out.Stderr))
			}
			expectNothing()

			program["optional"] = true
			out, err = run("ADD")
			if err != nil {
				t.Fatalf("with an optional program: %v: %s", err, out.Stdout)
			}
			if warning := string(out.Stderr); !containsAll(warning, append(says, "level=WARN", "optional", test.verifier)) ||
				len(warning) > 16<<10 {
				t.Errorf("with an optional program the warning is %q", warning)
			}
			if out, err := run("CHECK"); err != nil {
				t.Errorf("CHECK: %v: %s", err, out.Stdout)
			}
			expect(t, "programs", len(podPrograms(t, n, pod)), 0)
			if out, err := run("DEL"); err != nil {
				t.Errorf("DEL: %v: %s", err, out.Stdout)
			}
			expectNothing()
		})
	}
}

func containsAll(text string, words []string) bool {
	for _, word := range words {
		// in a line of a log, quotes are quoted
		if !strings.Contains(text, word) && !strings.Contains(text, strings.ReplaceAll(word, `"`, `\"`)) {
			return false
		}
	}
	return true
}
