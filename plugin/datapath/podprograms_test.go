package datapath_test

import (
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

func othersObject(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../programs/testdata/others.bpf.o")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func someXDPPrograms(t *testing.T) []datapath.Program {
	object := othersObject(t)
	return []datapath.Program{
		{Object: object, Program: "third", After: true},
		{Object: object, Program: "xdp_first"},
		{Object: object, Program: "second", Name: "again"},
	}
}

// somePrograms are some that a mode takes.
func somePrograms(t *testing.T, mode datapath.Mode) []datapath.Program {
	if mode == datapath.ModeTCX {
		return someTCPrograms(t)
	}
	return someXDPPrograms(t)
}

func (r *rig) podPrograms() []datapath.PodProgram {
	r.t.Helper()
	var list []datapath.PodProgram
	a := r.attachment()
	if err := r.do(func(d *datapath.Datapath) (err error) { list, err = d.ReadPrograms(a); return err }); err != nil {
		r.t.Fatal(err)
	}
	return list
}

// TestUserPrograms sends packets that end at each program with each verdict, and compares every counter.
func TestUserPrograms(t *testing.T) {
	for _, mode := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeNative} {
		for _, redirect := range []bool{false, true} {
			name := mode.String()
			if redirect {
				name += " with redirect"
			}
			t.Run(name, func(t *testing.T) { testUserPrograms(t, mode, redirect) })
		}
	}
}

func testUserPrograms(t *testing.T, mode datapath.Mode, redirect bool) {
	r := newRig(t, mode, vethDefault, tests.WithoutIPv6())
	if redirect {
		r.opts.Redirect = someRedirect
	}
	before := r.world()
	r.opts.Programs = someXDPPrograms(t)
	r.opts.Policy = mustPolicy(t, `{"antiSpoof": false, "default": {"egress": "allow", "ingress": "allow"},
		"rules": [{"name": "no", "direction": "egress", "action": "deny", "protocol": "udp", "ports": ["7021"]}]}`)
	r.mustAttach(r.opts)
	if err := r.check(r.opts); err != nil {
		t.Errorf("check: %v", err)
	}
	send := func(port uint16) {
		t.Helper()
		f := packets.Frame(packets.Ethernet{Src: packets.MAC(r.veth.PodMAC), Dst: packets.MAC(r.veth.HostMAC)},
			packets.IPv4{Src: netip.MustParseAddr("10.9.9.1"), Dst: netip.MustParseAddr("10.9.9.2")},
			packets.UDP{SrcPort: 1, DstPort: port}, packets.Data(32))
		if err := tests.SendFrame(r.pod, r.pod.IfName, f); err != nil {
			t.Fatal(err)
		}
	}
	type counts [5]uint64
	state := func() (verdicts counts, runs []counts) {
		stats := r.stats().Egress.Verdicts
		for i := range stats {
			verdicts[i] = stats[i].Packets
		}
		for _, p := range r.podPrograms() {
			runs = append(runs, p.Runs)
		}
		return verdicts, runs
	}
	names := []string{}
	for _, p := range r.podPrograms() {
		names = append(names, p.Name)
	}
	if !slices.Equal(names, []string{"first", "again", "third"}) {
		t.Fatalf("programs %v", names)
	}
	const aborted, drop, pass = 0, 1, 2
	for _, c := range []struct {
		port    uint16
		verdict int
		runs    []int // verdicts of the programs that run
	}{
		{9, pass, []int{pass, pass, pass}},
		{7000, aborted, []int{aborted}}, {7001, drop, []int{drop}}, {7002, pass, []int{pass, pass, pass}},
		{7003, 3, []int{3}}, {7004, 4, []int{4}}, {7005, aborted, []int{aborted}},
		{7010, aborted, []int{pass, aborted}}, {7011, drop, []int{pass, drop}}, {7013, 3, []int{pass, 3}},
		{7014, 4, []int{pass, 4}},
		{7020, aborted, []int{pass, pass, aborted}}, {7023, 3, []int{pass, pass, 3}}, {7024, 4, []int{pass, pass, 4}},
		{7021, drop, []int{pass, pass}}, // the policy drops it: those after it do not run
	} {
		verdicts, runs := state()
		send(c.port)
		wantVerdicts, wantRuns := verdicts, slices.Clone(runs)
		wantVerdicts[c.verdict]++
		for i, v := range c.runs {
			wantRuns[i][v]++
		}
		deadline := time.Now().Add(2 * time.Second)
		for {
			verdicts, runs = state()
			if verdicts == wantVerdicts && slices.Equal(runs, wantRuns) {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("port %d: verdicts %v, want %v; runs %v, want %v", c.port, verdicts, wantVerdicts, runs, wantRuns)
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	r.mustDetach(r.opts)
	r.opts.Programs, r.opts.Policy = nil, nil
	r.expectUnchanged(before)
}

// TestUserProgramsMaps: a map pinned by name is the node's, another each pod's; a program without maps is loaded once.
func TestUserProgramsMaps(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	r.opts.Programs = someXDPPrograms(t)
	_, _, other := r.newPod("other", datapath.ModeGeneric, vethDefault)
	other.Programs = r.opts.Programs
	_, _, plain := r.newPod("plain", datapath.ModeGeneric, vethDefault)
	r.mustAttach(plain)
	defer r.mustDetach(plain)
	shared := func() []string {
		left, err := filepath.Glob(filepath.Join(r.node.BPFFS, "v1", "node", "program*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return left
	}
	defer func() {
		if left := shared(); len(left) > 0 {
			t.Errorf("nobody uses %v any more", left)
		}
	}()
	r.mustAttach(r.opts)
	defer func() {
		if len(shared()) == 0 {
			t.Error("nothing was shared")
		}
		r.mustDetach(r.opts)
	}()
	first := r.podPrograms()
	r.mustAttach(other)
	defer r.mustDetach(other)
	own := r.opts
	r.opts = other
	second := r.podPrograms()
	r.opts = own
	id := func(p datapath.PodProgram, name string) ebpf.MapID {
		t.Helper()
		for _, path := range p.Maps {
			if filepath.Base(path) != name {
				continue
			}
			m, err := ebpf.LoadPinnedMap(path, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			info, err := m.Info()
			if err != nil {
				t.Fatal(err)
			}
			id, _ := info.ID()
			return id
		}
		t.Fatalf("%s has no map %s: %v", p.Name, name, p.Maps)
		return 0
	}
	if id(first[0], "all_seen") != id(second[0], "all_seen") {
		t.Error("the map pinned by name is not shared")
	}
	if id(first[0], "seen") == id(second[0], "seen") {
		t.Error("the pods share a map that is not pinned by name")
	}
	if first[1].ID != second[1].ID || !first[1].Shared || first[0].ID == second[0].ID || first[0].Shared {
		t.Errorf("programs %+v and %+v", first, second)
	}
}

// TestUserProgramsRefused: each mistake is an error that says what it is, and nothing is left.
func TestUserProgramsRefused(t *testing.T) {
	object := othersObject(t)
	for _, c := range []struct {
		name     string
		mode     datapath.Mode
		programs []datapath.Program
		is       error
		says     string
		atLoad   bool
	}{
		{"no such program", datapath.ModeGeneric, []datapath.Program{{Object: object, Program: "nine"}}, datapath.ErrProgram, "second (section xdp)", false},
		{"several in a section", datapath.ModeGeneric, []datapath.Program{{Object: object, Program: "xdp"}}, datapath.ErrProgram, "more than one", false},
		{"no file", datapath.ModeGeneric, []datapath.Program{{Object: "/nowhere.o"}}, datapath.ErrProgram, "/nowhere.o", false},
		{"no object", datapath.ModeGeneric, []datapath.Program{{Object: "/proc/self/exe"}}, datapath.ErrProgram, "not for BPF", false},
		{"XDP in tcx", datapath.ModeTCX, []datapath.Program{{Object: object, Program: "second"}}, datapath.ErrUnsupported, "mode tcx has no XDP", false},
		{"tc in generic", datapath.ModeGeneric, []datapath.Program{{Object: object, Program: "at_tc"}}, datapath.ErrUnsupported, "takes XDP programs: use mode tcx", false},
		{"the same name", datapath.ModeGeneric, []datapath.Program{{Object: object, Program: "second"}, {Object: object, Program: "second"}}, datapath.ErrProgram, "name", false},
		{"a filled map of the node", datapath.ModeGeneric, []datapath.Program{{Object: object, Program: "shared_tail"}}, datapath.ErrProgram, "map shared_tails is pinned by name and has programs", true},
		{"the verifier", datapath.ModeNative, []datapath.Program{{Object: object, Program: "refused"}}, datapath.ErrProgram, "refused", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.mode, vethDefault)
			before := r.world()
			opts := r.opts
			opts.Programs = c.programs
			err := r.attach(opts)
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want %v with %q", err, c.is, c.says)
			}
			var verifier *ebpf.VerifierError
			if errors.As(err, &verifier) != (c.name == "the verifier") {
				t.Errorf("verifier's error in %v", err)
			}
			r.expectUnchanged(before)
			ready := func() error {
				return r.do(func(d *datapath.Datapath) error {
					return d.Ready(datapath.ReadyOptions{Mode: c.mode, Programs: opts.Programs})
				})
			}
			// what only loading shows is not tried
			if err := ready(); c.atLoad && err != nil || !c.atLoad && (!errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("ready: %v", err)
			}
			for i := range opts.Programs {
				opts.Programs[i].Optional = true
			}
			if err := ready(); err != nil {
				t.Errorf("ready with optional programs: %v", err)
			}
			r.mustAttach(opts)
			if err := r.check(opts); err != nil {
				t.Errorf("check without the optional programs: %v", err)
			}
			r.mustDetach(opts)
			r.expectUnchanged(before)
		})
	}
}
