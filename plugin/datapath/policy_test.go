package datapath_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/filter"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// someFilter lets UDP to port 53 out and drops UDP to port 54 by a rule; the default drops all.
const someFilter = `{"stateful": false, "antiSpoof": false, "allowHost": false, "maxFlows": 256,
	"default": {"egress": "deny", "ingress": "deny"},
	"rules": [
		{"name": "dns", "direction": "egress", "action": "allow", "protocol": "udp", "ports": ["53"]},
		{"name": "no-54", "direction": "egress", "action": "deny", "to": ["10.0.0.0/8"], "protocol": "udp", "ports": ["54"]},
		{"name": "trial", "direction": "egress", "action": "audit", "protocol": "udp", "ports": ["55"]}
	]}`

// otherFilter lets no more than UDP to port 54 out.
const otherFilter = `{"stateful": false, "antiSpoof": false, "default": {"egress": "deny", "ingress": "deny"},
	"rules": [{"name": "only", "direction": "egress", "action": "allow", "protocol": "udp", "ports": ["54"]}]}`

func makePolicy(text string) (*datapath.Policy, error) {
	f, _, err := conf.ParseFilter([]byte(text))
	if err != nil {
		return nil, err
	}
	compiled, err := filter.Compile(f, []netip.Addr{netip.MustParseAddr("10.0.0.2")})
	if err != nil {
		return nil, err
	}
	return &datapath.Policy{Compiled: compiled, Source: []byte(text)}, nil
}

func mustPolicy(t testing.TB, text string) *datapath.Policy {
	t.Helper()
	policy, err := makePolicy(text)
	if err != nil {
		t.Fatal(err)
	}
	return policy
}

// attachment returns r's attachment.
func (r *rig) attachment() datapath.Attachment {
	r.t.Helper()
	var found datapath.Attachment
	err := r.do(func(d *datapath.Datapath) error {
		list, err := d.List()
		for _, a := range list {
			if a.Meta.ContainerID == r.opts.ContainerID {
				found = a
				return err
			}
		}
		return errors.Join(err, fs.ErrNotExist)
	})
	if err != nil {
		r.t.Fatalf("finding the attachment: %v", err)
	}
	return found
}

func (r *rig) readPolicy() (state *datapath.PolicyState, err error) {
	r.t.Helper()
	a := r.attachment()
	err = r.do(func(d *datapath.Datapath) error {
		state, err = d.ReadPolicy(a)
		return err
	})
	return state, err
}

func (r *rig) mustReadPolicy() *datapath.PolicyState {
	r.t.Helper()
	state, err := r.readPolicy()
	if err != nil {
		r.t.Fatalf("reading the policy: %v", err)
	}
	return state
}

func (r *rig) replace(text string, change ...func(*datapath.Options)) error {
	r.t.Helper()
	policy, a := mustPolicy(r.t, text), r.attachment()
	return r.do(func(d *datapath.Datapath) error { return d.ReplacePolicy(context.Background(), a, *policy) }, change...)
}

func (r *rig) mustReplace(text string) {
	r.t.Helper()
	if err := r.replace(text); err != nil {
		r.t.Fatalf("replacing the policy: %v", err)
	}
}

func (r *rig) stats() *datapath.Stats {
	r.t.Helper()
	a := r.attachment()
	var stats *datapath.Stats
	err := r.do(func(d *datapath.Datapath) (err error) {
		stats, err = d.ReadStats(a)
		return err
	})
	if err != nil {
		r.t.Fatalf("reading counters: %v", err)
	}
	return stats
}

// send sends a UDP packet from the pod to each port, each in a frame of 60 bytes.
func (r *rig) send(ports ...uint16) {
	r.t.Helper()
	for _, port := range ports {
		if err := tests.SendFrame(r.pod, r.pod.IfName, r.frame(port)); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) frame(port uint16) []byte {
	return packets.Frame(
		packets.Ethernet{Src: packets.MAC(r.veth.PodMAC), Dst: packets.MAC(r.veth.HostMAC)},
		packets.IPv4{Src: netip.MustParseAddr("10.0.0.2"), Dst: netip.MustParseAddr("10.0.0.1")},
		packets.UDP{SrcPort: 1000, DstPort: port}, packets.Data(18))
}

// flood is packets from the pod, one after the other.
type flood struct {
	stop, ended chan struct{}
	sent        atomic.Uint64
}

// flood sends what send does, to one port, until its end.
func (r *rig) flood(port uint16) *flood {
	r.t.Helper()
	var fd, index int
	err := r.pod.Do(func() error {
		link, err := netlink.LinkByName(r.pod.IfName)
		if err != nil {
			return err
		}
		index = link.Attrs().Index
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	f := &flood{stop: make(chan struct{}), ended: make(chan struct{})}
	frame := r.frame(port)
	go func() {
		defer close(f.ended)
		defer unix.Close(fd)
		for {
			select {
			case <-f.stop:
				return
			default:
			}
			// ENOBUFS: it was not sent
			if unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index}) == nil {
				f.sent.Add(1)
			}
		}
	}()
	return f
}

// end stops it, and returns how many packets were sent.
func (f *flood) end() uint64 {
	close(f.stop)
	<-f.ended
	return f.sent.Load()
}

// Keys of the drop counters.
const (
	dropRule    = bpf.DatapathDropReasonDROP_RULE - 1
	dropDefault = bpf.DatapathDropReasonDROP_DEFAULT - 1
)

// decides tells which filter judges the pod's packets, by sending some: "some", "other", or "none".
func (r *rig) decides() string {
	r.t.Helper()
	before := r.stats().Egress
	r.send(53, 54, 55, 56)
	after := r.stats().Egress
	passed := after.Verdicts[bpf.DatapathVerdictVERDICT_PASS].Packets - before.Verdicts[bpf.DatapathVerdictVERDICT_PASS].Packets
	byRule := after.Drops[dropRule].Packets - before.Drops[dropRule].Packets
	byDefault := after.Drops[dropDefault].Packets - before.Drops[dropDefault].Packets
	for name, want := range map[string][3]uint64{"some": {2, 1, 1}, "other": {1, 0, 3}, "none": {4, 0, 0}} {
		if [3]uint64{passed, byRule, byDefault} == want {
			return name
		}
	}
	return fmt.Sprintf("neither: %d passed, %d were dropped by a rule, %d by default", passed, byRule, byDefault)
}

func (r *rig) expectDecides(want string) {
	r.t.Helper()
	if got := r.decides(); got != want {
		r.t.Errorf("what decides is %s, want %s", got, want)
	}
}

// TestPolicyBeforeHook looks between the steps of an attach: before the first hook every map of the policy is
// where the programs look for it, and from the first hook on it decides.
func TestPolicyBeforeHook(t *testing.T) {
	for _, mode := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeNative, datapath.ModeTCX} {
		t.Run(mode.String(), func(t *testing.T) {
			r := newRig(t, mode, vethDefault, tests.WithoutIPv6())
			r.opts.Policy = mustPolicy(t, someFilter)
			steps := map[string]func(){
				"attaching egress":  func() { r.expectEntered(r.stagedDir()) },
				"attaching ingress": func() { r.send(53, 56, 56) }, // egress is hooked now
			}
			err := r.attach(r.opts, func(o *datapath.Options) {
				o.BeforeStep = func(step string) error {
					if look := steps[step]; look != nil {
						look()
						delete(steps, step)
					}
					return nil
				}
			})
			if err != nil || len(steps) > 0 {
				t.Fatalf("attach: %v; steps that did not come: %v", err, steps)
			}
			stats := r.stats().Egress
			if drops := stats.Drops[dropDefault]; drops != (datapath.Counter{Packets: 2, Bytes: 120}) {
				t.Errorf("dropped by default from the first hook on: %+v, want 2 packets of 60 bytes", drops)
			}
			if passed := stats.Verdicts[bpf.DatapathVerdictVERDICT_PASS]; passed.Packets != 1 {
				t.Errorf("passed %+v, want 1", passed)
			}
			r.mustDetach(r.opts)
		})
	}
}

func (r *rig) stagedDir() string {
	return pins.NewRoot(r.node.BPFFS).Staged(pins.ID(r.opts.ContainerID, r.opts.IfName))
}

// expectEntered expects the node's maps to hold what is pinned in the attachment's directory, and the slot to
// ask for it.
func (r *rig) expectEntered(dir string) {
	r.t.Helper()
	slot := uint32(r.veth.HostIndex) & 4095
	var entry bpf.DatapathSlot
	r.nodeMap("slots", func(m *ebpf.Map) error { return m.Lookup(slot, &entry) })
	if entry.Ifindex != uint32(r.veth.HostIndex) || entry.Flags&uint32(bpf.DatapathSlotFlagSLOT_FILTER) == 0 {
		r.t.Errorf("the slot is %+v, want it to have a filter", entry)
	}
	var policy bpf.DatapathPolicy
	r.nodeMap("policies", func(m *ebpf.Map) error { return m.Lookup(2*slot, &policy) })
	if policy.Generation == 0 || policy.RulesLen != 3 {
		r.t.Errorf("the policy is %+v, want one of 3 rules", policy)
	}
	for _, e := range []struct {
		outer string
		index uint32
		pin   string
	}{
		{"pod_flows", slot, "flows"},
		{"pod_policy_words", 2 * slot, "policy_0/words"},
		{"pod_policy_prefixes", 2 * slot, "policy_0/prefixes"},
		{"pod_rule_counters", 2 * slot, "policy_0/rule_counters"},
		{"pod_tables", 8*slot + 3, "drop_stats_map"},
		{"pod_tables", 8*slot + 7, "ingress_drop_stats_map"},
		{"pod_tables", 8 * slot, "xdp_stats_map"},
	} {
		var id ebpf.MapID
		r.nodeMap(e.outer, func(m *ebpf.Map) error { return m.Lookup(e.index, &id) })
		pinned, err := ebpf.LoadPinnedMap(filepath.Join(dir, e.pin), nil)
		if err != nil {
			r.t.Fatal(err)
		}
		info, err := pinned.Info()
		_ = pinned.Close()
		if err != nil {
			r.t.Fatal(err)
		}
		if want, _ := info.ID(); id != want {
			r.t.Errorf("entry %d of %s is map %d, want %d, which is pinned as %s", e.index, e.outer, id, want, e.pin)
		}
	}
}

func (r *rig) nodeMap(name string, do func(*ebpf.Map) error) {
	r.t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(pins.NewRoot(r.node.BPFFS).Node(), name), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer m.Close()
	if err := do(m); err != nil {
		r.t.Fatalf("%s: %v", name, err)
	}
}

// TestReadPolicy: the filter is there to read as it was written, and each rule's counters are its own.
func TestReadPolicy(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault, tests.WithoutIPv6())
	before := r.world()
	r.mustAttach(r.opts)
	if _, err := r.readPolicy(); !errors.Is(err, datapath.ErrNoPolicy) {
		t.Errorf("without a filter: %v", err)
	}
	if stats := r.stats(); stats.Egress.Drops != [5]datapath.Counter{} {
		t.Errorf("drops without a filter: %v", stats.Egress.Drops)
	}
	// longer than a page, and than two
	long := strings.Replace(someFilter, "\n", "\n"+strings.Repeat(" ", 9000), 1)
	r.opts.Policy = mustPolicy(t, long)
	r.mustAttach(r.opts)
	begin := time.Now()
	r.send(53, 53, 53, 54, 54, 55, 56)
	state := r.mustReadPolicy()
	if string(state.Source) != long || state.Generation == 0 {
		t.Errorf("generation %d of a filter of %d bytes, want %d bytes:\n%q", state.Generation, len(state.Source), len(long), state.Source)
	}
	for i, want := range []datapath.Counter{{Packets: 3, Bytes: 180}, {Packets: 2, Bytes: 120}, {Packets: 1, Bytes: 60}} {
		if got := state.Rules[i]; got.Counter != want || got.Last.Sub(begin).Abs() > time.Minute {
			t.Errorf("rule %d decided %+v, want %+v about %s", i, got, want, begin)
		}
	}
	a := r.attachment()
	r.mustReplace(otherFilter)
	if state := r.mustReadPolicy(); len(state.Rules) != 1 || state.Rules[0] != (datapath.RuleStats{}) {
		t.Errorf("rules of a policy that has decided nothing: %+v", state.Rules)
	}
	r.mustDetach(r.opts)
	err := r.do(func(d *datapath.Datapath) error { _, err := d.ReadPolicy(a); return err })
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the attachment is gone: %v", err)
	}
	err = r.do(func(d *datapath.Datapath) error {
		return d.ReplacePolicy(context.Background(), a, *mustPolicy(t, someFilter))
	})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("replacing after the attachment is gone: %v", err)
	}
	r.expectUnchanged(before)
}

// TestReplacePolicy replaces policies to and fro, of attachments that began with and without one.
func TestReplacePolicy(t *testing.T) {
	for _, mode := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeTCX} {
		for _, first := range []string{"none", "some"} {
			t.Run(mode.String()+", first "+first, func(t *testing.T) {
				r := newRig(t, mode, vethDefault, tests.WithoutIPv6())
				before := r.world()
				if first == "some" {
					r.opts.Policy = mustPolicy(t, someFilter)
				}
				r.mustAttach(r.opts)
				r.expectDecides(first)
				generation := uint32(0)
				for range 2 {
					for name, text := range map[string]string{"some": someFilter, "other": otherFilter} {
						r.mustReplace(text)
						r.expectDecides(name)
						state := r.mustReadPolicy()
						if state.Generation <= generation || string(state.Source) != text {
							t.Errorf("generation %d after %d, of %s", state.Generation, generation, state.Source)
						}
						generation = state.Generation
						if err := r.check(r.opts); err != nil {
							t.Errorf("check: %v", err)
						}
						if got := r.pinsOf(); len(got) != 17 {
							t.Errorf("pins are %v, want one policy", got)
						}
					}
				}
				r.mustDetach(r.opts)
				r.expectUnchanged(before)
			})
		}
	}
}

// replaceSteps are the steps of a replacement; from the first that is in the second list on, the new policy decides.
func (r *rig) replaceSteps() (before, after []string) {
	r.t.Helper()
	steps := &before
	err := r.replace(otherFilter, func(o *datapath.Options) {
		o.BeforeStep = func(step string) error {
			if step == "renaming its directory" {
				steps = &after
			}
			*steps = append(*steps, step)
			return nil
		}
	})
	if err != nil || len(before) < 5 || len(after) < 2 {
		r.t.Fatalf("steps %v and %v: %v", before, after, err)
	}
	return before, after
}

func (r *rig) replaceFails(step string) error {
	r.t.Helper()
	return r.replace(otherFilter, func(o *datapath.Options) {
		o.BeforeStep = func(now string) error {
			if now == step {
				return errInjected
			}
			return nil
		}
	})
}

// TestReplaceFailsOrDies makes each step of a replacement fail, and kills its process at each. The old policy
// decides, or from a step on the new one, and what is left disturbs neither CHECK, nor the next replacement, nor DEL.
func TestReplaceFailsOrDies(t *testing.T) {
	for i := range 8 {
		pick := func(bit int, options ...string) string { return options[i>>bit&1] }
		how, old, then := pick(0, "fails", "dies"), pick(1, "none", "some"), pick(2, "another", "DEL")
		t.Run(how+", old policy "+old+", then "+then, func(t *testing.T) {
			r := newRig(t, datapath.ModeGeneric, vethDefault, tests.WithoutIPv6())
			_, _, resident := r.newPod("resident", datapath.ModeGeneric, vethDefault)
			resident.Policy = mustPolicy(t, someFilter)
			r.mustAttach(resident)
			r.mustAttach(r.opts)
			failing, done := r.replaceSteps()
			r.mustDetach(r.opts)
			if old == "some" {
				r.opts.Policy = mustPolicy(t, someFilter)
			}
			// what a test of a filter made in between should not be
			world := r.world()
			for _, step := range slices.Concat(failing, done) {
				r.mustAttach(r.opts)
				attached := r.world()
				want := old
				if slices.Contains(done, step) {
					want = "other"
				}
				if how == "dies" {
					opts := r.opts
					opts.Policy = mustPolicy(t, otherFilter)
					r.replaceKilled(opts, step)
				} else {
					if err := r.replaceFails(step); errors.Is(err, errInjected) != (want == old) {
						t.Errorf("at %q: %v", step, err)
					}
					if want == old {
						r.expectUnchanged(attached)
					}
				}
				r.expectDecides(want)
				if state, err := r.readPolicy(); want == "none" && !errors.Is(err, datapath.ErrNoPolicy) ||
					want != "none" && (err != nil || string(state.Source) != map[string]string{"some": someFilter, "other": otherFilter}[want]) {
					t.Errorf("at %q: the policy reads as %+v, %v", step, state, err)
				}
				if err := r.check(r.opts); err != nil {
					t.Errorf("check after %q: %v", step, err)
				}
				if then == "DEL" {
					r.mustDetach(r.opts)
					r.expectUnchanged(world)
					continue
				}
				if err := r.replaceFails("making maps"); !errors.Is(err, errInjected) {
					t.Errorf("a replacement after one that %s at %q: %v", how, step, err)
				}
				if want == old { // what the first one left, the second one removed
					r.expectUnchanged(attached)
				}
				r.mustReplace(someFilter)
				r.expectDecides("some")
				if got := r.pinsOf(); len(got) != 17 {
					t.Errorf("after %q and another replacement pins are %v, want one policy", step, got)
				}
				if err := r.check(r.opts); err != nil {
					t.Errorf("check after %q and another replacement: %v", step, err)
				}
				r.mustDetach(r.opts)
				r.expectUnchanged(world)
				if t.Failed() {
					t.Fatalf("at %q", step)
				}
			}
			if err := r.check(resident); err != nil {
				t.Errorf("the other pod: %v", err)
			}
			r.mustDetach(resident)
		})
	}
}

// TestReplaceUnderTraffic: two filters that let the same packets through, one by its last rule and one by its
// first, take turns under traffic. A packet judged by a part of each would meet a default, which drops.
func TestReplaceUnderTraffic(t *testing.T) {
	for _, mode := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeTCX} {
		t.Run(mode.String(), func(t *testing.T) {
			r := newRig(t, mode, vethDefault, tests.WithoutIPv6())
			rule := `{"name": "rule-%d", "direction": "egress", "action": "%s", "protocol": "udp", "to": ["%s"], "ports": ["%d"]}`
			var many []string
			for i := range 300 {
				many = append(many, fmt.Sprintf(rule, i, "deny", fmt.Sprintf("10.1.%d.0/24", i%256), 2000+i))
			}
			many = append(many, fmt.Sprintf(rule, 300, "allow", "10.0.0.0/24", 53))
			around := `{"stateful": false, "antiSpoof": false, "default": {"egress": "deny", "ingress": "deny"}, "rules": [%s]}`
			texts := []string{
				fmt.Sprintf(around, strings.Join(many, ",")),
				fmt.Sprintf(around, fmt.Sprintf(rule, 0, "allow", "10.0.0.1", 53)),
			}
			r.opts.Policy = mustPolicy(t, texts[0])
			r.mustAttach(r.opts)
			flood := r.flood(53)
			const enough = 20_000
			for i := 0; i < 40 || flood.sent.Load() < enough; i++ {
				if err := r.replace(texts[(i+1)%2]); err != nil {
					t.Fatal(err)
				}
			}
			packets := flood.end()
			stats := r.stats().Egress
			if passed := stats.Verdicts[bpf.DatapathVerdictVERDICT_PASS].Packets; passed != packets {
				t.Errorf("%d of %d packets passed", passed, packets)
			}
			if stats.Drops != [5]datapath.Counter{} {
				t.Errorf("drops: %+v", stats.Drops)
			}
			r.mustDetach(r.opts)
		})
	}
}

// TestFollowDrops: events say which packet was dropped, by what; those of before are not told, and there is one
// reader at a time.
func TestFollowDrops(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault, tests.WithoutIPv6())
	follow := func(ctx context.Context, with func(datapath.DropEvent) error) error {
		return r.do(func(d *datapath.Datapath) error { return d.FollowDrops(ctx, with) })
	}
	if err := follow(t.Context(), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without attachments: %v", err)
	}
	r.opts.Policy = mustPolicy(t, someFilter)
	r.mustAttach(r.opts)
	r.send(99) // before
	ctx, cancel := context.WithTimeout(t.Context(), settle)
	defer cancel()
	var (
		events   []datapath.DropEvent
		enough   = errors.New("enough")
		ended    = make(chan error)
		started  = make(chan struct{})
		announce = sync.OnceFunc(func() { close(started) })
	)
	go func() {
		ended <- follow(ctx, func(e datapath.DropEvent) error {
			announce()
			if e.Destination.Port() == 100 {
				return nil
			}
			if events = append(events, e); len(events) == 3 {
				return enough
			}
			return nil
		})
	}()
	for begun := false; !begun; { // until it tells of one
		r.send(100)
		select {
		case <-started:
			begun = true
		case err := <-ended:
			t.Fatalf("following ended: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	if err := follow(ctx, nil); !errors.Is(err, pins.ErrBusy) {
		t.Errorf("a second reader: %v", err)
	}
	r.send(54, 55, 56)
	if err := <-ended; !errors.Is(err, enough) {
		t.Errorf("following ended with %v", err)
	}
	for i, want := range []struct {
		port   uint16
		reason bpf.DatapathDropReason
		rule   int
		audit  bool
	}{
		{54, bpf.DatapathDropReasonDROP_RULE, 1, false},
		{55, bpf.DatapathDropReasonDROP_RULE, 2, true},
		{56, bpf.DatapathDropReasonDROP_DEFAULT, -1, false},
	} {
		got := events[i]
		if time.Since(got.Time).Abs() > time.Minute || got.Generation != 1 {
			t.Errorf("event %d is of %s, generation %d", i, got.Time, got.Generation)
		}
		got.Time, got.Generation = time.Time{}, 0
		if want := (datapath.DropEvent{
			HostIndex: r.veth.HostIndex, Direction: bpf.DatapathDirectionDIRECTION_EGRESS, Reason: want.reason, Audit: want.audit,
			Rule: want.rule, Len: 60, EtherType: packets.EtherTypeIPv4, Protocol: packets.ProtocolUDP,
			Source: netip.MustParseAddrPort("10.0.0.2:1000"), Destination: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), want.port),
		}); got != want {
			t.Errorf("event %d is %+v, want %+v", i, got, want)
		}
	}
	// a reader that nobody disturbs ends with its context, or with the node
	soon, cancelSoon := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancelSoon()
	if err := follow(soon, func(datapath.DropEvent) error { return nil }); err != nil {
		t.Errorf("at the end of its context: %v", err)
	}
	go func() { ended <- follow(ctx, func(datapath.DropEvent) error { return nil }) }()
	time.Sleep(50 * time.Millisecond)
	r.mustDetach(r.opts)
	if err := <-ended; !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("when the last attachment went: %v", err)
	}
}

// TestCheckPolicy makes each thing wrong that can be with a filter; a filter that came later is no fault.
func TestCheckPolicy(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	r.mustAttach(r.opts)
	r.mustReplace(someFilter)
	if err := r.check(r.opts); err != nil {
		t.Errorf("with a filter that ADD did not bring: %v", err)
	}
	r.mustDetach(r.opts)
	slot := uint32(r.veth.HostIndex) & 4095
	r.mustAttach(r.opts)
	r.opts.Policy = mustPolicy(t, someFilter)
	if err := r.check(r.opts); !errors.Is(err, datapath.ErrCheck) {
		t.Errorf("without the filter that ADD should have brought: %v", err)
	}
	flags := func(change func(flags uint32) uint32) func(*ebpf.Map) error {
		return func(slots *ebpf.Map) error {
			var entry bpf.DatapathSlot
			if err := slots.Lookup(slot, &entry); err != nil {
				return err
			}
			entry.Flags = change(entry.Flags)
			return slots.Put(slot, entry)
		}
	}
	remove := func(index uint32) func(*ebpf.Map) error {
		return func(m *ebpf.Map) error { return m.Delete(index) }
	}
	for _, test := range []struct {
		name, outer string
		wrong       func(*ebpf.Map) error
		want        string
	}{
		{"not asked", "slots", flags(func(f uint32) uint32 { return f &^ uint32(bpf.DatapathSlotFlagSLOT_FILTER) }), "ask none"},
		{"another place", "slots", flags(func(f uint32) uint32 { return f | uint32(bpf.DatapathSlotFlagSLOT_POLICY) }), "policy_1"},
		{"no flows", "pod_flows", remove(slot), "flows"},
		{"no words", "pod_policy_words", remove(2 * slot), "words"},
		{"no prefixes", "pod_policy_prefixes", remove(2 * slot), "prefixes"},
		{"no rule counters", "pod_rule_counters", remove(2 * slot), "rule_counters"},
		{"no drop counters", "pod_tables", remove(8*slot + 3), "drop_stats_map"},
	} {
		r.mustAttach(r.opts)
		if err := r.check(r.opts); err != nil {
			t.Fatalf("%s: check before: %v", test.name, err)
		}
		r.nodeMap(test.outer, test.wrong)
		for _, policy := range []*datapath.Policy{r.opts.Policy, nil} {
			opts := r.opts
			opts.Policy = policy
			if err := r.check(opts); !errors.Is(err, datapath.ErrCheck) || policy == nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: %v, want ErrCheck with %q", test.name, err, test.want)
			}
		}
	}
	r.mustDetach(r.opts)
}
