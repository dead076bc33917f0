package datapath_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

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

// ownAddresses are the pod's, as its policies have them.
var ownAddresses = []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fe80::102:3ff:fe04:506")}

func makePolicy(text string) (*datapath.Policy, error) {
	f, _, err := conf.ParseFilter([]byte(text))
	if err != nil {
		return nil, err
	}
	compiled, err := filter.Compile(f, ownAddresses)
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
	if !slices.Equal(state.Addresses, ownAddresses) {
		t.Errorf("the pod's own addresses are %v, want %v", state.Addresses, ownAddresses)
	}
	for i, want := range []datapath.Counter{{Packets: 3, Bytes: 180}, {Packets: 2, Bytes: 120}, {Packets: 1, Bytes: 60}} {
		if got := state.Rules[i]; got.Counter != want || got.Last.Sub(begin).Abs() > time.Minute {
			t.Errorf("rule %d decided %+v, want %+v about %s", i, got, want, begin)
		}
	}
	if err := os.Remove(filepath.Join(r.podDir(), "policy_0", "source")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.readPolicy(); !errors.Is(err, datapath.ErrDamaged) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without its source: %v", err)
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
