package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/filter"
)

// fakeNode is a node in memory.
type fakeNode struct {
	*testing.T
	root        pins.Root
	bpffs       string
	attachments []datapath.Attachment
	policies    map[string]*datapath.PolicyState // by attachment
	stats       map[string]*datapath.Stats
	programs    map[string][]datapath.PodProgram
	fail        map[string]error // of what is done to an attachment
	calls       []string         // what was changed, and what was read but for counters
	// follow plays drops.
	follow func(ctx context.Context, with func(datapath.DropEvent) error) error
	in     string
	// What is known of redirect; ways are by destination.
	endpoints *datapath.Endpoints
	ways      map[string]*datapath.Way
	flows     []datapath.DirectFlow
	asked     []datapath.Packet
	mu        sync.Mutex // of what may be replaced at once
}

// newFakeNode has the made-up attachments; those of demo/client and demo/server have the sample filter.
func newFakeNode(t *testing.T) *fakeNode {
	n := &fakeNode{
		T: t, bpffs: t.TempDir(), policies: map[string]*datapath.PolicyState{}, stats: map[string]*datapath.Stats{},
		programs: map[string][]datapath.PodProgram{},
		fail:     map[string]error{}, endpoints: sampleEndpoints(), ways: map[string]*datapath.Way{}, flows: sampleFlows(),
	}
	n.root = pins.NewRoot(n.bpffs)
	for _, a := range sampleAttachments() {
		n.add(a)
	}
	n.policies[n.at("veth11111111").ID] = samplePolicy()
	n.policies[n.at("veth22222222").ID] = samplePolicy()
	n.stats[n.at("veth11111111").ID] = sampleReadings()[0].stats
	return n
}

// add makes an attachment; remove takes it away.
func (n *fakeNode) add(a datapath.Attachment) {
	n.Helper()
	n.attachments = append(n.attachments, a)
	if err := os.MkdirAll(n.root.Pod(a.ID), 0o700); err != nil {
		n.Fatal(err)
	}
}

func (n *fakeNode) remove(a datapath.Attachment) {
	n.Helper()
	n.attachments = slices.DeleteFunc(n.attachments, func(other datapath.Attachment) bool { return other.ID == a.ID })
	delete(n.policies, a.ID)
	if err := os.Remove(n.root.Pod(a.ID)); err != nil {
		n.Fatal(err)
	}
}

// at returns the attachment with a host end.
func (n *fakeNode) at(hostName string) datapath.Attachment {
	n.Helper()
	for _, a := range n.attachments {
		if a.Meta.HostName == hostName {
			return a
		}
	}
	n.Fatalf("no attachment at %s", hostName)
	return datapath.Attachment{}
}

func (n *fakeNode) List() ([]datapath.Attachment, error) {
	n.calls = append(n.calls, "list")
	return slices.Clone(n.attachments), n.fail[""]
}

func (n *fakeNode) ReadStats(a datapath.Attachment) (*datapath.Stats, error) {
	if s, ok := n.stats[a.ID]; ok {
		return s, nil
	}
	return &datapath.Stats{}, n.gone(a)
}

func (n *fakeNode) gone(a datapath.Attachment) error {
	if slices.ContainsFunc(n.attachments, func(other datapath.Attachment) bool { return other.ID == a.ID }) {
		return nil
	}
	return fs.ErrNotExist
}

func (n *fakeNode) ReadPolicy(a datapath.Attachment) (*datapath.PolicyState, error) {
	n.calls = append(n.calls, "read "+a.Meta.HostName)
	if err := n.gone(a); err != nil {
		return nil, err
	}
	if p, ok := n.policies[a.ID]; ok {
		return p, nil
	}
	return nil, datapath.ErrNoPolicy
}

func (n *fakeNode) ReplacePolicy(_ context.Context, a datapath.Attachment, p datapath.Policy) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = append(n.calls, "replace "+a.Meta.HostName)
	if err := n.fail[a.Meta.HostName]; err != nil {
		return err
	}
	if err := n.gone(a); err != nil {
		return err
	}
	state := &datapath.PolicyState{Generation: 1, Source: p.Source, Rules: make([]datapath.RuleStats, p.Compiled.RuleCount)}
	if before, ok := n.policies[a.ID]; ok {
		state.Generation = before.Generation + 1
	}
	n.policies[a.ID] = state
	return nil
}

func (n *fakeNode) FollowDrops(ctx context.Context, with func(datapath.DropEvent) error) error {
	return n.follow(ctx, with)
}

func (n *fakeNode) ReadPrograms(a datapath.Attachment) ([]datapath.PodProgram, error) {
	return n.programs[a.ID], errors.Join(n.gone(a), n.fail["programs "+a.Meta.HostName])
}

func (n *fakeNode) Endpoints() (*datapath.Endpoints, error) { return n.endpoints, n.fail["endpoints"] }

func (n *fakeNode) Way(a datapath.Attachment, p datapath.Packet) (*datapath.Way, error) {
	n.asked = append(n.asked, p)
	if way, ok := n.ways[p.Destination.Addr().String()]; ok {
		return way, nil
	}
	return &datapath.Way{}, n.gone(a)
}

func (n *fakeNode) DirectFlows(a datapath.Attachment, source, destination netip.Addr) ([]datapath.DirectFlow, error) {
	var flows []datapath.DirectFlow
	for _, f := range n.flows {
		if f.Source.Addr() == source && f.Destination.Addr() == destination {
			flows = append(flows, f)
		}
	}
	return flows, n.gone(a)
}

// replaced returns the host ends whose policies were replaced.
func (n *fakeNode) replaced() string {
	var hosts []string
	for _, c := range n.calls {
		if host, ok := strings.CutPrefix(c, "replace "); ok {
			hosts = append(hosts, host)
		}
	}
	return strings.Join(hosts, " ")
}

// xdpctl runs a command on the node.
func (n *fakeNode) xdpctl(ctx context.Context, args ...string) (status int, stdout, stderr string) {
	var out, err bytes.Buffer
	o := newOptions(streams{in: strings.NewReader(n.in), out: &out, err: &err})
	o.filters = func() filters { return n }
	o.redirects = func() redirects { return n }
	o.nodeAddresses = func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("10.88.0.1")}, nil }
	status = o.run(ctx, append(args, "--bpffs", n.bpffs))
	return status, out.String(), err.String()
}

// sampleFilter has a rule of each kind.
const sampleFilter = `{
  "default": {"ingress": "deny"},
  "rules": [
    {"name": "dns", "direction": "egress", "action": "allow", "to": ["10.96.0.10/32"], "protocol": "udp", "ports": ["53"]},
    {"name": "metrics", "direction": "ingress", "action": "allow", "from": ["10.0.0.0/8", "fd00::/8"], "except": ["10.9.0.0/16"],
     "protocol": "tcp", "ports": ["9100", "8000-8999", "443", "80"]},
    {"name": "no-http", "direction": "egress", "action": "deny", "to": ["10.0.0.0/8"], "protocol": "tcp", "ports": ["80"]},
    {"name": "ping", "direction": "ingress", "action": "allow", "protocol": "icmp", "icmp": {"type": 8}},
    {"name": "unreachable", "direction": "ingress", "action": "deny", "protocol": "icmp", "icmp": {"type": 3, "code": 4}},
    {"name": "trial", "direction": "egress", "action": "audit", "protocol": 47}
  ]
}`

func mustFilter(t testing.TB, text string) *conf.Filter {
	t.Helper()
	f, _, err := parseFilter([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func samplePolicy() *datapath.PolicyState {
	f, _, err := conf.ParseFilter([]byte(sampleFilter))
	if err != nil {
		panic(err)
	}
	source, err := json.Marshal(f)
	if err != nil {
		panic(err)
	}
	hits := func(packets, bytes uint64, ago time.Duration) datapath.RuleStats {
		return datapath.RuleStats{Counter: datapath.Counter{Packets: packets, Bytes: bytes}, Last: now.Add(-ago)}
	}
	return &datapath.PolicyState{Generation: 7, Source: source, Rules: []datapath.RuleStats{
		hits(12, 900, time.Second), {}, hits(3, 450, 90*time.Second), hits(1, 98, time.Hour), {}, hits(1500, 2<<20, 49*time.Hour),
	}}
}

// sampleInForce is the sample filter as it is read.
func sampleInForce(t testing.TB) *inForce {
	p := samplePolicy()
	return &inForce{mustFilter(t, string(p.Source)), p.Generation, p.Rules, p.Addresses}
}

// sampleEvents are of each kind.
func sampleEvents() []datapath.DropEvent {
	addrPort := netip.MustParseAddrPort
	return []datapath.DropEvent{
		{Time: made, HostIndex: 10, Reason: bpf.DatapathDropReasonDROP_RULE, Rule: 2, Generation: 7, Len: 74, EtherType: 0x800,
			Protocol: 6, Source: addrPort("10.88.0.2:40000"), Destination: addrPort("10.0.0.1:80")},
		{Time: made.Add(1500 * time.Microsecond), HostIndex: 10, Reason: bpf.DatapathDropReasonDROP_RULE, Audit: true, Rule: 5, Generation: 7, Len: 66,
			EtherType: 0x800, Protocol: 47, Source: addrPort("10.88.0.2:0"), Destination: addrPort("192.0.2.1:0")},
		{Time: made.Add(time.Second), HostIndex: 12, Direction: bpf.DatapathDirectionDIRECTION_INGRESS, Reason: bpf.DatapathDropReasonDROP_DEFAULT,
			Rule: -1, Generation: 7, Len: 86, EtherType: 0x86dd, Protocol: 17, Source: addrPort("[fd00::9]:53"), Destination: addrPort("[fd00::3]:4000")},
		{Time: made.Add(time.Second), HostIndex: 12, Direction: bpf.DatapathDirectionDIRECTION_INGRESS, Reason: bpf.DatapathDropReasonDROP_RULE,
			Rule: 4, Generation: 6, Len: 98, EtherType: 0x800, Protocol: 1, Source: addrPort("10.0.0.9:0"), Destination: addrPort("10.88.0.3:0"), ICMPType: 8, ICMPCode: 1},
		{Time: made.Add(2 * time.Second), HostIndex: 10, Reason: bpf.DatapathDropReasonDROP_SPOOF, Rule: -1, Generation: 7, Len: 42, EtherType: 0x806},
		{Time: made.Add(2 * time.Second), HostIndex: 99, Reason: bpf.DatapathDropReasonDROP_MALFORMED, Rule: -1, Generation: 1, Len: 60, EtherType: 0x800,
			Source: addrPort("[::]:0"), Destination: addrPort("[::]:0")},
		{Time: made.Add(3 * time.Second), HostIndex: 10, Reason: bpf.DatapathDropReasonDROP_DEFAULT, Rule: -1, Generation: 7, Len: 60, EtherType: 0x88cc},
	}
}

// sampleTest is a packet that is denied, and would pass as an answer.
func sampleTest(t testing.TB) *testReport {
	f := mustFilter(t, sampleFilter)
	flags := packetFlags{ingress: true, protocol: "tcp", from: "10.9.0.1:443", to: "10.88.0.2:9100"}
	p, err := flags.parse()
	if err != nil {
		t.Fatal(err)
	}
	report, err := explain(f, compiled(t, f), *p, subjectPod{known: true, addresses: []netip.Addr{netip.MustParseAddr("10.88.0.2")}})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func compiled(t testing.TB, f *conf.Filter) *filter.Policy {
	p, err := filter.Compile(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// sampleApply has an attachment for each result.
func sampleApply(t testing.TB) *applyReport {
	f := mustFilter(t, sampleFilter)
	list := sampleAttachments()
	return &applyReport{
		DryRun:   true,
		Warnings: []conf.Warning{{Rule: 5, Name: "trial", Text: "never matches: so it is"}},
		Pods: []appliedTo{
			{newAttachment(list[0].Meta), resultUnchanged, "", []change{}},
			{newAttachment(list[1].Meta), resultPending, "", diffFilters(mustFilter(t, earlierFilter), f)},
			{newAttachment(list[2].Meta), resultFailed, "applying the filter to demo/client (veth11111112): broken", []change{}},
			{newAttachment(list[3].Meta), resultPending, "", diffFilters(nil, f)},
		},
	}
}

// earlierFilter differs from the sample filter in every way.
const earlierFilter = `{
  "antiSpoof": false,
  "rules": [
    {"name": "ping", "direction": "ingress", "action": "allow", "protocol": "icmp", "icmp": {"type": 8}},
    {"name": "dns", "direction": "egress", "action": "allow", "to": ["10.96.0.10/32", "10.96.0.11/32"], "protocol": "tcp", "ports": ["53"]},
    {"name": "old", "direction": "egress", "action": "deny", "to": ["192.0.2.0/24"], "except": ["192.0.2.1"], "protocol": "udp", "ports": ["1", "2", "3", "4", "5-7"]},
    {"name": "no-http", "direction": "egress", "action": "deny", "to": ["10.0.0.0/8"], "protocol": "tcp", "ports": ["80"]}
  ]
}`
