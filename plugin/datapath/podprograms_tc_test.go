package datapath_test

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/programs"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

// haveTCX is whether the kernel has tcx. Where it has not, there is something else to test: that the plugin refuses tc
// programs.
func haveTCX(t *testing.T) bool {
	t.Helper()
	priv.Root(t) // to know what the kernel has takes it too
	if kernel().TCX {
		return true
	}
	expectTCProgramsRefused(t, nil)
	return false
}

// soon waits until it is so, and tells whether it is.
func soon(is func() bool) bool {
	for deadline := time.Now().Add(tests.Patience(2 * time.Second)); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if is() {
			return true
		}
	}
	return false
}

// someTCPrograms run as first, again, third, fourth.
func someTCPrograms(t *testing.T) []datapath.Program {
	object := othersObject(t)
	return []datapath.Program{
		{Object: object, Program: "tc_third", Name: "third", After: true},
		{Object: object, Program: "tc_first", Name: "first"},
		{Object: object, Program: "tc_fourth", Name: "fourth", After: true},
		{Object: object, Program: "tc_second", Name: "again"},
	}
}

// countOf reads the counter in a program's map.
func countOf(t *testing.T, m *ebpf.Map) uint64 {
	t.Helper()
	var count uint64
	if err := m.Lookup(uint32(0), &count); err != nil {
		t.Fatal(err)
	}
	return count
}

// seenBy is how many packets each of r's programs has seen.
func (r *rig) seenBy() (seen []uint64) {
	r.t.Helper()
	for _, p := range r.podPrograms() {
		i := slices.IndexFunc(p.Maps, func(path string) bool { return filepath.Base(path) == "seen" })
		if i < 0 {
			r.t.Fatalf("%s has no map: %v", p.Name, p.Maps)
		}
		m, err := ebpf.LoadPinnedMap(p.Maps[i], nil)
		if err != nil {
			r.t.Fatal(err)
		}
		seen = append(seen, countOf(r.t, m))
		_ = m.Close()
	}
	return seen
}

// foreignTC attaches a program of somebody else to the tc ingress hook, behind all others, and returns it and its
// counter.
func (r *rig) foreignTC() (*ebpf.Program, *ebpf.Map) {
	r.t.Helper()
	object, err := programs.Read(othersObject(r.t))
	if err != nil {
		r.t.Fatal(err)
	}
	picked, err := object.Program("tc_second")
	if err != nil {
		r.t.Fatal(err)
	}
	prog, maps, err := picked.Load(programs.LoadOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		prog.Close()
		for _, m := range maps {
			m.Close()
		}
	})
	err = r.node.Do(func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: r.veth.HostIndex, Program: prog, Attach: ebpf.AttachTCXIngress})
		if err == nil {
			r.t.Cleanup(func() { l.Close() })
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return prog, maps["seen"]
}

// atTCIngress are the programs there, in the order in which they run.
func (r *rig) atTCIngress() (ids []ebpf.ProgramID) {
	r.t.Helper()
	_ = r.node.Do(func() error {
		for _, prog := range tcxPrograms(r.t, r.veth.HostIndex, ebpf.AttachTCXIngress) {
			ids = append(ids, prog.ID)
		}
		return nil
	})
	return ids
}

// TestTCPrograms sends packets that end at each program with each verdict of tc, and compares what each program has
// seen, ours and one of somebody else too.
func TestTCPrograms(t *testing.T) {
	if !haveTCX(t) {
		return
	}
	r := newRig(t, datapath.ModeTCX, vethDefault, tests.WithoutIPv6())
	foreign, foreignSeen := r.foreignTC()
	before := r.world()
	r.opts.Programs = someTCPrograms(t)
	// 8003 and 8010 end with TC_ACT_PIPE and TC_ACT_OK, before the policy
	r.opts.Policy = mustPolicy(t, `{"antiSpoof": false, "default": {"egress": "allow", "ingress": "allow"},
		"rules": [{"name": "no", "direction": "egress", "action": "deny", "protocol": "udp",
			"ports": ["7021", "8003", "8010"]}]}`)
	r.mustAttach(r.opts)
	if err := r.check(r.opts); err != nil {
		t.Errorf("check: %v", err)
	}
	list := r.podPrograms()
	var names []string
	for _, p := range list {
		names = append(names, p.Name)
		if !p.TC || p.Shared || p.After != (p.Name == "third" || p.Name == "fourth") ||
			slices.ContainsFunc(p.Maps, func(path string) bool { return filepath.Base(path) == "the-link" }) {
			t.Errorf("program %+v", p)
		}
	}
	if !slices.Equal(names, []string{"first", "again", "third", "fourth"}) {
		t.Fatalf("programs %v", names)
	}
	hook := r.atTCIngress()
	want := []ebpf.ProgramID{list[0].ID, list[1].ID, 0, list[2].ID, list[3].ID, programID(t, foreign)}
	if len(hook) == len(want) {
		want[2] = hook[2]
	}
	if !slices.Equal(hook, want) {
		t.Errorf("the hook runs %v, want %v with ours in the middle", hook, want)
	}

	// packets that got so far
	type state struct{ first, again, dropped, passed, third, fourth, foreign uint64 }
	now := func() state {
		stats, seen := r.stats().Egress.Verdicts, r.seenBy()
		return state{
			seen[0], seen[1], stats[bpf.DatapathVerdictVERDICT_DROP].Packets,
			stats[bpf.DatapathVerdictVERDICT_PASS].Packets, seen[2], seen[3], countOf(t, foreignSeen),
		}
	}
	total := now()
	first := state{first: 1}
	again := state{first: 1, again: 1}
	dropped := state{first: 1, again: 1, dropped: 1}
	third := state{first: 1, again: 1, passed: 1, third: 1}
	fourth := state{first: 1, again: 1, passed: 1, third: 1, fourth: 1}
	all := state{1, 1, 0, 1, 1, 1, 1}
	for _, c := range []struct {
		port uint16
		ends state
	}{
		{9, all},
		// before the policy nothing but a drop or a redirect ends the walk
		{8000, all}, {8001, all}, {8002, first}, {8003, dropped}, {8004, all}, {8005, all}, {8006, all}, {8007, first},
		{8008, all},
		{8010, dropped}, {8011, all}, {8012, again}, {8013, all}, {8017, again},
		{7021, dropped},
		// after it whatever is not TCX_NEXT does; what is dropped there the policy has passed
		{8020, third}, {8022, third}, {8023, third}, {8027, third}, {8030, fourth}, {8032, fourth},
	} {
		r.send(c.port)
		total.first += c.ends.first
		total.again += c.ends.again
		total.dropped += c.ends.dropped
		total.passed += c.ends.passed
		total.third += c.ends.third
		total.fourth += c.ends.fourth
		total.foreign += c.ends.foreign
		var have state
		if !soon(func() bool { have = now(); return have == total }) {
			t.Fatalf("port %d: seen %+v, want %+v", c.port, have, total)
		}
	}
	r.mustDetach(r.opts)
	if hook := r.atTCIngress(); !slices.Equal(hook, []ebpf.ProgramID{programID(t, foreign)}) {
		t.Errorf("after DEL the hook runs %v", hook)
	}
	r.opts.Programs, r.opts.Policy = nil, nil
	r.expectUnchanged(before)
}

// TestTCProgramTailCalls: what a program before the policy tail calls does not pass by the policy either.
func TestTCProgramTailCalls(t *testing.T) {
	if !haveTCX(t) {
		return
	}
	r := newRig(t, datapath.ModeTCX, vethDefault, tests.WithoutIPv6())
	r.opts.Programs = []datapath.Program{{Object: othersObject(t), Program: "tc_tail"}}
	r.opts.Policy = mustPolicy(t, `{"antiSpoof": false, "default": {"egress": "deny", "ingress": "allow"}}`)
	r.mustAttach(r.opts)
	defer r.mustDetach(r.opts)
	r.send(9, 9)
	var drops uint64
	if !soon(func() bool {
		drops = r.stats().Egress.Verdicts[bpf.DatapathVerdictVERDICT_DROP].Packets
		return drops == 2
	}) {
		t.Errorf("the policy dropped %d packets, want 2", drops)
	}
}

// TestTCProgramsShared: a program without maps of its own is loaded once for all pods, once for each order; its runs
// are known while the kernel counts them.
func TestTCProgramsShared(t *testing.T) {
	if !haveTCX(t) {
		return
	}
	r := newRig(t, datapath.ModeTCX, vethDefault, tests.WithoutIPv6())
	before := r.world()
	object := othersObject(t)
	r.opts.Programs = []datapath.Program{
		{Object: object, Program: "at_tc", Name: "one"}, {Object: object, Program: "at_tc", Name: "two", After: true},
	}
	_, _, other := r.newPod("other", datapath.ModeTCX, vethDefault)
	other.Programs = r.opts.Programs
	r.mustAttach(r.opts)
	r.mustAttach(other)
	mine, own := r.podPrograms(), r.opts
	r.opts = other
	theirs := r.podPrograms()
	r.opts = own
	if mine[0].ID != theirs[0].ID || mine[1].ID != theirs[1].ID || mine[0].ID == mine[1].ID || !mine[0].Shared {
		t.Errorf("programs %+v and %+v", mine, theirs)
	}
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		t.Fatal(err)
	}
	defer stats.Close()
	read := func() *datapath.KernelProgram {
		k, err := r.podPrograms()[1].ReadKernel()
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	had := read().Runs
	r.send(9, 9, 9)
	soon(func() bool { return read().Runs >= had+3 })
	if k := read(); k.Runs != had+3 || k.Time == 0 {
		t.Errorf("%d runs took %s, want %d", k.Runs, k.Time, had+3)
	}
	r.mustDetach(own)
	if err := r.check(other); err != nil {
		t.Errorf("the other pod: %v", err)
	}
	r.mustDetach(other)
	r.opts.Programs = nil
	r.expectUnchanged(before)
}

// TestTCProgramsRedirect: a pod with redirect stays fit with programs of its own.
func TestTCProgramsRedirect(t *testing.T) {
	if !haveTCX(t) {
		return
	}
	r := newRedirectRig(t, datapath.ModeTCX, someRedirect)
	r.opts.Programs = someTCPrograms(t)
	r.mustAttach(r.opts)
	defer r.mustDetach(r.opts)
	if !r.redirects(r.opts) {
		t.Error("redirect is not in force")
	}
	want := uint32(2<<bpf.DatapathSlotNumberSLOT_BEFORE | 2<<bpf.DatapathSlotNumberSLOT_AFTER)
	if slot := r.slotOf(r.opts); slot.Flags&^(1<<bpf.DatapathSlotNumberSLOT_BEFORE-1) != want {
		t.Errorf("the slot has flags %#x, want two programs before and two after, %#x", slot.Flags, want)
	}
	foreign, _ := r.foreignTC()
	r.refit()
	if r.redirects(r.opts) {
		t.Errorf("redirect jumps over program %d", programID(t, foreign))
	}
}

// TestTCProgramsCheck makes each thing wrong with the links that can be, and lets DEL find it so.
func TestTCProgramsCheck(t *testing.T) {
	if !haveTCX(t) {
		return
	}
	withLink := func(r *rig, name string, do func(l link.Link, pin string) error) {
		t.Helper()
		pin := filepath.Join(r.podDir(), "programs", name, "the-link")
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := r.node.Do(func() error { return do(l, pin) }); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name   string
		break_ func(r *rig, other *ebpf.Program)
		want   string
	}{
		{"detached", func(r *rig, _ *ebpf.Program) {
			withLink(r, "again", func(l link.Link, _ string) error { return l.Detach() })
		}, "again.*detached"},
		{"unpinned", func(r *rig, _ *ebpf.Program) {
			withLink(r, "fourth", func(_ link.Link, pin string) error { return os.Remove(pin) })
		}, "fourth.*not pinned"},
		{"another program", func(r *rig, other *ebpf.Program) {
			withLink(r, "first", func(l link.Link, _ string) error { return l.Update(other) })
		}, "first.*runs program"},
		{"out of order", func(r *rig, _ *ebpf.Program) {
			withLink(r, "third", func(l link.Link, pin string) error {
				info, err := l.Info()
				if err != nil {
					return err
				}
				prog, err := ebpf.NewProgramFromID(info.Program)
				if err != nil {
					return err
				}
				defer prog.Close()
				if err := errors.Join(l.Detach(), os.Remove(pin)); err != nil {
					return err
				}
				again, err := link.AttachTCX(link.TCXOptions{
					Interface: r.veth.HostIndex, Program: prog, Attach: ebpf.AttachTCXIngress, Anchor: link.Head(),
				})
				if err != nil {
					return err
				}
				defer again.Close()
				return again.Pin(pin)
			})
		}, "third out of its order"},
		{"egress detached", func(r *rig, _ *ebpf.Program) { r.unhook("egress") }, "egress.*detached"},
		{"not asked for", func(r *rig, _ *ebpf.Program) { r.opts.Programs = r.opts.Programs[1:] }, "third .*not asked for"},
		{"another order", func(r *rig, _ *ebpf.Program) {
			list := r.opts.Programs
			list[1], list[3] = list[3], list[1]
		}, "another order"},
		{"all links and pins gone", func(r *rig, _ *ebpf.Program) {
			if err := os.RemoveAll(filepath.Join(r.podDir(), "programs")); err != nil {
				t.Fatal(err)
			}
		}, "program"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, datapath.ModeTCX, vethDefault)
			foreign, _ := r.foreignTC()
			other := bareTC(t) // a hook takes a program once
			before := r.world()
			r.opts.Programs = someTCPrograms(t)
			r.mustAttach(r.opts)
			if err := r.check(r.opts); err != nil {
				t.Fatalf("check before: %v", err)
			}
			c.break_(r, other)
			err := r.check(r.opts)
			if !errors.Is(err, datapath.ErrCheck) || !regexp.MustCompile(c.want).MatchString(err.Error()) {
				t.Errorf("check: %v, want ErrCheck with %s", err, c.want)
			}
			for range 2 {
				r.mustDetach(r.opts)
			}
			if hook := r.atTCIngress(); !slices.Equal(hook, []ebpf.ProgramID{programID(t, foreign)}) {
				t.Errorf("after DEL the hook runs %v", hook)
			}
			r.opts.Programs = nil
			r.expectUnchanged(before)
		})
	}
}

// TestTCProgramTwice: one without maps of its own is one program, which a hook takes once.
func TestTCProgramTwice(t *testing.T) {
	if !haveTCX(t) {
		return
	}
	r := newRig(t, datapath.ModeTCX, vethDefault)
	before := r.world()
	opts := r.opts
	for _, name := range []string{"one", "two"} {
		one := datapath.Program{Object: othersObject(t), Program: "at_tc", Name: name, After: true}
		opts.Programs = append(opts.Programs, one)
	}
	err := r.attach(opts)
	if !errors.Is(err, datapath.ErrProgram) || !strings.Contains(err.Error(), "which the hook takes once") {
		t.Errorf("attach: %v", err)
	}
	r.expectUnchanged(before)
	opts.Programs[1].Optional = true
	r.mustAttach(opts)
	if list := r.podPrograms(); len(list) != 1 || list[0].Name != "one" {
		t.Errorf("programs %+v, want one", list)
	}
	r.mustDetach(opts)
	r.expectUnchanged(before)
}

// TestTCProgramsNeedTCX: without tcx a tc program is refused, and STATUS says so.
func TestTCProgramsNeedTCX(t *testing.T) {
	expectTCProgramsRefused(t, &datapath.Features{})
}

// expectTCProgramsRefused attaches tc programs on a kernel with these features, none of which is tcx.
func expectTCProgramsRefused(t *testing.T, features *datapath.Features) {
	t.Helper()
	r := newRig(t, datapath.ModeTCX, vethDefault)
	r.features = features
	before := r.world()
	opts := r.opts
	opts.Programs = []datapath.Program{{Object: othersObject(t), Program: "at_tc"}}
	for what, err := range map[string]error{
		"attach": r.attach(opts),
		"ready": r.do(func(d *datapath.Datapath) error {
			return d.Ready(datapath.ReadyOptions{Mode: datapath.ModeTCX, Programs: opts.Programs})
		}),
	} {
		if !errors.Is(err, datapath.ErrUnsupported) || !strings.Contains(err.Error(), "6.6") {
			t.Errorf("%s: %v, want ErrUnsupported that names kernel 6.6", what, err)
		}
	}
	r.expectUnchanged(before)
}
