package podend

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/xdp-cni/xdp-cni/internal/ethtool"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

func TestMain(m *testing.M) { tests.Main(m) }

// all is every change.
const all = TxChecksumOff | GROOn | QueueAdded

// rig is a pod whose veth no plugin made.
type rig struct {
	t    *testing.T
	node *tests.Node
	pod  *tests.Pod
	veth *tests.Veth
}

func newRig(t *testing.T, veth tests.VethOptions) *rig {
	t.Helper()
	priv.Root(t)
	r := &rig{t: t, node: tests.MustNode(t, tests.WithoutIPv6())}
	r.addPod("pod", veth)
	return r
}

// addPod makes a pod the rig's pod.
func (r *rig) addPod(name string, options tests.VethOptions) {
	r.t.Helper()
	r.pod = tests.MustPod(r.t, r.node, name)
	var err error
	if r.veth, err = tests.MakeVeth(r.t.Context(), r.node, r.pod, options); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) options() Options {
	return Options{
		Netns: r.pod.NetNS(), IfName: r.pod.IfName, PodIndex: r.veth.PodIndex, HostIndex: r.veth.HostIndex,
	}
}

func (r *rig) open() *End {
	r.t.Helper()
	e, err := r.openAs(r.options())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(e.Close)
	return e
}

func (r *rig) openAs(o Options) (e *End, err error) {
	err = r.node.Do(func() (err error) {
		e, err = Open(o)
		return err
	})
	return e, err
}

// do runs f in the pod's network namespace, with the pod end.
func (r *rig) do(f func(pod netlink.Link) error) {
	r.t.Helper()
	err := r.pod.Do(func() error {
		pod, err := netlink.LinkByIndex(r.veth.PodIndex)
		if err != nil {
			return err
		}
		return f(pod)
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// state is what can be changed at a pod end, as the kernel has it.
type state struct {
	txChecksum, gro bool
	root            string
	handle          uint32
}

func (r *rig) state() (s state) {
	r.t.Helper()
	r.do(func(pod netlink.Link) (err error) {
		if s.txChecksum, err = ethtool.TxChecksum(pod.Attrs().Name); err != nil {
			return err
		}
		if s.gro, err = ethtool.GRO(pod.Attrs().Name); err != nil {
			return err
		}
		qdiscs, err := netlink.QdiscList(pod)
		for _, q := range qdiscs {
			if q.Attrs().Parent == netlink.HANDLE_ROOT {
				s.root, s.handle = q.Type(), q.Attrs().Handle
			}
		}
		return err
	})
	return s
}

// noNote is for tests that need no notes.
func noNote(Changes) error { return nil }

func (r *rig) mustPrepare(e *End) Changes {
	r.t.Helper()
	changes, err := e.PrepareNative(noNote)
	if err != nil {
		r.t.Fatal(err)
	}
	return changes
}

// fresh sets what a new veth has: GRO is on there below kernel 5.13.
func (r *rig) fresh() state {
	r.t.Helper()
	r.do(func(pod netlink.Link) error { return ethtool.SetGRO(pod.Attrs().Name, false) })
	before := r.state()
	if want := (state{txChecksum: true, root: "noqueue"}); before != want {
		r.t.Fatalf("a new pod end is %+v, want %+v", before, want)
	}
	return before
}

func TestPrepareAndRestore(t *testing.T) {
	for _, queues := range []int{1, 3} {
		r := newRig(t, tests.VethOptions{Queues: queues})
		before := r.fresh()
		e := r.open()
		err := e.CheckNative()
		if !errors.Is(err, ErrNotPrepared) {
			t.Fatalf("check: %v, want ErrNotPrepared", err)
		}
		missing := []string{"tx checksum offload is on", "no queueing discipline"}
		if e.groPolls {
			missing = append(missing, "GRO is off and no XDP program is attached")
		}
		for _, words := range missing {
			if !strings.Contains(err.Error(), words) {
				t.Errorf("check: %v, want also %q", err, words)
			}
		}
		var noted []Changes
		var then []state
		changes, err := e.PrepareNative(func(c Changes) error {
			noted, then = append(noted, c), append(then, r.state())
			return nil
		})
		if err != nil || changes != all {
			t.Fatalf("prepare: %b, %v", changes, err)
		}
		if !slices.Equal(noted, []Changes{TxChecksumOff, TxChecksumOff | GROOn, all}) {
			t.Errorf("noted %b", noted)
		}
		// each before it was done
		if !slices.Equal(then, []state{before, {root: "noqueue"}, {gro: true, root: "noqueue"}}) {
			t.Errorf("at the time of the notes it was %+v", then)
		}
		want := state{gro: true, root: "pfifo", handle: netlink.MakeHandle(0xc41, 0)}
		if after := r.state(); after != want {
			t.Errorf("prepared it is %+v, want %+v", after, want)
		}
		if err := e.Sends(); err != nil {
			t.Errorf("sends: %v", err)
		}
		if err := e.CheckNative(); e.groPolls && err != nil {
			t.Errorf("check: %v", err)
		}
		if again, err := e.PrepareNative(func(Changes) error { return errors.New("noted") }); again != 0 || err != nil {
			t.Errorf("prepare again: %b, %v", again, err)
		}
		for range 2 {
			if err := e.Restore(changes); err != nil {
				t.Errorf("restore: %v", err)
			}
			if after := r.state(); after != before {
				t.Errorf("restored it is %+v, was %+v", after, before)
			}
		}
	}
}

// TestPrepareKeeps: what is as wanted is neither changed nor restored, and another's qdisc does.
func TestPrepareKeeps(t *testing.T) {
	r := newRig(t, tests.VethOptions{})
	r.do(func(pod netlink.Link) error {
		tbf := &netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{
				LinkIndex: pod.Attrs().Index, Handle: netlink.MakeHandle(0xc41, 0), Parent: netlink.HANDLE_ROOT,
			},
			Rate: 1e6, Limit: 1e6, Buffer: 1e5,
		}
		return errors.Join(netlink.QdiscAdd(tbf), ethtool.SetTxChecksum(pod.Attrs().Name, false),
			ethtool.SetGRO(pod.Attrs().Name, true))
	})
	before := r.state()
	e := r.open()
	if err := e.Sends(); err != nil {
		t.Errorf("sends: %v", err)
	}
	changes, err := e.PrepareNative(func(Changes) error { return errors.New("noted") })
	if changes != 0 || err != nil {
		t.Fatalf("prepare: %b, %v", changes, err)
	}
	// even if it says so, the qdisc is not ours
	if err := e.Restore(QueueAdded); err != nil {
		t.Errorf("restore: %v", err)
	}
	if after := r.state(); after != before || after.root != "tbf" {
		t.Errorf("it is %+v, was %+v", after, before)
	}
}

// TestRestoreKeeps: what somebody changed after us stays.
func TestRestoreKeeps(t *testing.T) {
	r := newRig(t, tests.VethOptions{})
	r.fresh()
	e := r.open()
	changes := r.mustPrepare(e)
	r.do(func(pod netlink.Link) error {
		theirs := queue(pod)
		theirs.Handle = netlink.MakeHandle(7, 0) // a pfifo too
		return errors.Join(netlink.QdiscReplace(theirs), ethtool.SetTxChecksum(pod.Attrs().Name, true),
			ethtool.SetGRO(pod.Attrs().Name, false))
	})
	before := r.state()
	if err := e.Restore(changes); err != nil {
		t.Errorf("restore: %v", err)
	}
	if after := r.state(); after != before || after.handle != netlink.MakeHandle(7, 0) {
		t.Errorf("it is %+v, was %+v", after, before)
	}
}

// TestRestoreOnly: only what is asked for is restored.
func TestRestoreOnly(t *testing.T) {
	r := newRig(t, tests.VethOptions{})
	r.fresh()
	e := r.open()
	changes := r.mustPrepare(e)
	for _, step := range []struct {
		changes Changes
		want    state
	}{
		{GROOn, state{root: "pfifo", handle: netlink.MakeHandle(0xc41, 0)}},
		{QueueAdded, state{root: "noqueue"}},
		{TxChecksumOff, state{root: "noqueue", txChecksum: true}},
	} {
		if err := e.Restore(changes & step.changes); err != nil {
			t.Fatal(err)
		}
		if after := r.state(); after != step.want {
			t.Errorf("restored %b it is %+v, want %+v", step.changes, after, step.want)
		}
	}
}

// TestPrepareFails: what fails at any change is undone.
func TestPrepareFails(t *testing.T) {
	r := newRig(t, tests.VethOptions{})
	before := r.fresh()
	e := r.open()
	failure := errors.New("failure")
	for i := range 3 {
		calls := 0
		changes, err := e.PrepareNative(func(Changes) error {
			if calls++; calls > i {
				return failure
			}
			return nil
		})
		if changes != 0 || !errors.Is(err, failure) || calls != i+1 {
			t.Errorf("note %d fails: %b, %v, %d calls", i, changes, err, calls)
		}
		if after := r.state(); after != before {
			t.Errorf("note %d fails: it is %+v, was %+v", i, after, before)
		}
	}
	// noted, and killed before it was done
	if err := e.Restore(all); err != nil {
		t.Errorf("restore what was not done: %v", err)
	}
	if after := r.state(); after != before {
		t.Errorf("restored what was not done it is %+v, was %+v", after, before)
	}
	// what cannot be undone is told: the pod end goes while it is prepared
	changes, err := e.PrepareNative(func(c Changes) error {
		if c == all {
			r.do(netlink.LinkDel)
			return failure
		}
		return nil
	})
	if changes != TxChecksumOff|GROOn || !errors.Is(err, failure) || !errors.Is(err, ErrGone) {
		t.Errorf("the pod end goes: %b, %v", changes, err)
	}
}

func TestGone(t *testing.T) {
	r := newRig(t, tests.VethOptions{})
	file := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	first := r.options()
	// its link is the host end, as a veth's is its peer
	space, err := netns.GetFromPath(first.Netns)
	if err != nil {
		t.Fatal(err)
	}
	defer space.Close()
	err = r.node.Do(func() error {
		return netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{
			Name: "macvlan0", Index: 77, ParentIndex: first.HostIndex, Namespace: netlink.NsFd(space),
		}})
	})
	if err != nil {
		t.Fatal(err)
	}
	r.addPod("other", tests.VethOptions{})
	for name, change := range map[string]func(*Options){
		"no path":               func(o *Options) { o.Netns = "" },
		"nothing at the path":   func(o *Options) { o.Netns = file + "2" },
		"a plain file":          func(o *Options) { o.Netns = file },
		"no such process":       func(o *Options) { o.Netns = "/proc/4194305/ns/net" },
		"no such interface":     func(o *Options) { o.PodIndex = 1000 },
		"another's peer":        func(o *Options) { o.HostIndex++ },
		"no veth":               func(o *Options) { o.PodIndex = 77 },
		"another pod's netns":   func(o *Options) { o.Netns = r.pod.NetNS() },
		"the netns of the node": func(o *Options) { o.Netns = r.node.NetNS() },
		"loopback has no peer":  func(o *Options) { o.PodIndex, o.HostIndex = 1, 0 },
	} {
		o := first
		change(&o)
		if e, err := r.openAs(o); !errors.Is(err, ErrGone) {
			if err == nil {
				e.Close()
			}
			t.Errorf("%s: %v, want ErrGone", name, err)
		}
	}
	// not from the host end's namespace
	if e, err := Open(first); !errors.Is(err, ErrGone) {
		if err == nil {
			e.Close()
		}
		t.Errorf("from elsewhere: %v, want ErrGone", err)
	}
	e := r.open()
	r.do(netlink.LinkDel)
	_, err = e.PrepareNative(noNote)
	for _, err := range []error{err, e.CheckNative(), e.Restore(all)} {
		if !errors.Is(err, ErrGone) {
			t.Errorf("without the interface: %v, want ErrGone", err)
		}
	}
}

// TestRenamed: the pod end is known by its index.
func TestRenamed(t *testing.T) {
	r := newRig(t, tests.VethOptions{})
	before := r.fresh()
	e := r.open()
	r.do(func(pod netlink.Link) error {
		// kernels below 6.2 do not rename what is up
		return errors.Join(netlink.LinkSetDown(pod), netlink.LinkSetName(pod, "renamed"), netlink.LinkSetUp(pod))
	})
	changes := r.mustPrepare(e)
	if changes != all {
		t.Errorf("changed %b", changes)
	}
	if err := e.Restore(changes); err != nil {
		t.Error(err)
	}
	if after := r.state(); after != before {
		t.Errorf("it is %+v, was %+v", after, before)
	}
}

// TestReceives: GRO or an XDP program in the driver, and below 5.13 the program.
func TestReceives(t *testing.T) {
	r := newRig(t, tests.VethOptions{})
	r.fresh()
	e := r.open()
	expect := func(when string, fit bool, words string) {
		t.Helper()
		err := e.Receives()
		if fit && err != nil || !fit && (!errors.Is(err, ErrNotPrepared) || !strings.Contains(err.Error(), words)) {
			t.Errorf("%s: %v", when, err)
		}
	}
	pass := program(t, asm.Mov.Imm(asm.R0, 2))
	kernel := e.groPolls
	for _, polls := range []bool{true, false} {
		e.groPolls = polls
		words := "GRO is off and no XDP program is attached"
		if !polls {
			words = "kernels below 5.13"
		}
		expect("a new pod end", false, words)
		for flags, fit := range map[link.XDPAttachFlags]bool{link.XDPGenericMode: false, link.XDPDriverMode: true} {
			detach := attach(t, r.pod, r.veth.PodIndex, pass, flags)
			expect("with a program", fit, words)
			detach()
		}
		r.do(func(pod netlink.Link) error { return ethtool.SetGRO(pod.Attrs().Name, true) })
		expect("with GRO", polls, words)
		r.do(func(pod netlink.Link) error { return ethtool.SetGRO(pod.Attrs().Name, false) })
	}
	e.groPolls = kernel
}

func program(t *testing.T, instructions ...asm.Instruction) *ebpf.Program {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL", AttachType: ebpf.AttachXDP, Instructions: append(instructions, asm.Return()),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	return prog
}

// attach attaches a program to an interface of a place until detach is called.
func attach(t *testing.T, place tests.Place, ifindex int, prog *ebpf.Program, flags link.XDPAttachFlags) (detach func()) {
	t.Helper()
	err := place.Do(func() error {
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: ifindex, Flags: flags})
		if err == nil {
			detach = func() { _ = errors.Join(l.Detach(), l.Close()) }
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return detach
}

// TestNativeRedirect sends datagrams between two pods whose host ends redirect to each other in the driver: those of
// sockets come back if both pod ends are prepared, and none does if either lacks what makes it send or receive.
func TestNativeRedirect(t *testing.T) {
	addresses := []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24"), netip.MustParsePrefix("10.0.0.3/24")}
	a := newRig(t, tests.VethOptions{PodAddress: addresses[0]})
	b := &rig{t: t, node: a.node}
	b.addPod("other", tests.VethOptions{PodAddress: addresses[1]})
	rigs := []*rig{a, b}
	var ends []*End
	for i, r := range rigs {
		other := rigs[1-i]
		if err := r.pod.Neighbour(addresses[1-i].Addr(), other.veth.PodMAC); err != nil {
			t.Fatal(err)
		}
		redirect := program(t, asm.Mov.Imm(asm.R1, int32(other.veth.HostIndex)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call())
		t.Cleanup(attach(t, r.node, r.veth.HostIndex, redirect, link.XDPDriverMode))
		ends = append(ends, r.open())
	}
	if !ends[0].groPolls {
		// the other test of what receives is there for these
		for _, r := range rigs {
			t.Cleanup(attach(t, r.pod, r.veth.PodIndex, program(t, asm.Mov.Imm(asm.R0, 2)), link.XDPDriverMode))
		}
	}
	echo := tests.MustEcho(t, b.pod, addresses[1].Addr())
	const sent = 5
	expect := func(when string, want int) {
		t.Helper()
		// only what is expected not to come is waited for in full
		got, err := tests.EchoUDPCount(t.Context(), a.pod, echo.UDP, sent, 100, 300*time.Millisecond)
		if err != nil || got != want {
			t.Errorf("%s: %d of %d came back, want %d, %v", when, got, sent, want, err)
		}
	}
	for _, e := range ends {
		if _, err := e.PrepareNative(noNote); err != nil {
			t.Fatal(err)
		}
		if err := e.CheckNative(); err != nil {
			t.Fatal(err)
		}
	}
	expect("prepared", sent)
	if err := tests.EchoTCP(t.Context(), a.pod, echo.TCP, 1<<20); err != nil {
		t.Errorf("prepared: %v", err)
	}
	for i, e := range ends {
		for _, change := range []Changes{TxChecksumOff, GROOn} {
			if change == GROOn && !e.groPolls {
				continue
			}
			if err := e.Restore(change); err != nil {
				t.Fatal(err)
			}
			if err := e.CheckNative(); !errors.Is(err, ErrNotPrepared) {
				t.Errorf("pod %d without %b: %v, want ErrNotPrepared", i, change, err)
			}
			expect("not prepared", 0)
			rigs[i].mustPrepare(e)
			expect("prepared again", sent)
		}
	}
}

func TestAtLeast(t *testing.T) {
	for release, want := range map[string]bool{
		"6.18.44": true, "5.13.0": true, "5.13": true, "5.14.0-362.el9.x86_64": true, "10.0.1": true,
		"5.12.19": false, "5.9.0-rc1": false, "4.18.0-553.el8": false, "": false, "none": false,
	} {
		if got := atLeast(release, 5, 13); got != want {
			t.Errorf("%q is at least 5.13: %v, want %v", release, got, want)
		}
	}
}
