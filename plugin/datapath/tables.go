package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// table is one table of counters of a pod.
type table struct {
	direction bpf.DatapathDirection
	kind      bpf.DatapathTable
	pin       string
}

// ofFilter tells whether only pods with a filter have the table.
func (t table) ofFilter() bool { return t.kind == bpf.DatapathTableTABLE_DROP }

// tables are those that a pod can have. The first is pinned as the xdp-tutorial's xdp_stats wants it.
var tables = []table{
	{bpf.DatapathDirectionDIRECTION_EGRESS, bpf.DatapathTableTABLE_VERDICT, "xdp_stats_map"},
	{bpf.DatapathDirectionDIRECTION_EGRESS, bpf.DatapathTableTABLE_PROTOCOL, "protocol_stats_map"},
	{bpf.DatapathDirectionDIRECTION_EGRESS, bpf.DatapathTableTABLE_KIND, "kind_stats_map"},
	{bpf.DatapathDirectionDIRECTION_EGRESS, bpf.DatapathTableTABLE_DROP, "drop_stats_map"},
	{bpf.DatapathDirectionDIRECTION_INGRESS, bpf.DatapathTableTABLE_VERDICT, "ingress_xdp_stats_map"},
	{bpf.DatapathDirectionDIRECTION_INGRESS, bpf.DatapathTableTABLE_PROTOCOL, "ingress_protocol_stats_map"},
	{bpf.DatapathDirectionDIRECTION_INGRESS, bpf.DatapathTableTABLE_KIND, "ingress_kind_stats_map"},
	{bpf.DatapathDirectionDIRECTION_INGRESS, bpf.DatapathTableTABLE_DROP, "ingress_drop_stats_map"},
}

// tableIndex is the table's entry in pod_tables for the pod in slot.
func (n *node) tableIndex(t table, slot uint32) uint32 {
	perPod := n.tables.MaxEntries() / n.slots.MaxEntries()
	return slot*perPod + uint32(t.direction)*uint32(bpf.DatapathTableTABLES) + uint32(t.kind)
}

// podMaps are the open maps of one pod, beside meta. Those that it does not have are nil.
type podMaps struct {
	tables []*ebpf.Map // in the order of tables
	peers  *ebpf.Map
	flows  *ebpf.Map
	policy *policyMaps
	// programs are the counters of user programs.
	programs *ebpf.Map
}

func (p *podMaps) close() {
	for _, m := range p.tables {
		_ = m.Close()
	}
	_ = p.peers.Close()
	_ = p.flows.Close()
	_ = p.programs.Close()
	p.policy.close()
}

// makePodMaps makes a pod's maps and pins them in dir.
func makePodMaps(spec *ebpf.CollectionSpec, dir string, peers uint32, policy *encodedPolicy) (_ *podMaps, err error) {
	maps := &podMaps{tables: make([]*ebpf.Map, len(tables))}
	defer func() {
		if err != nil {
			maps.close()
		}
	}()
	for i, t := range tables {
		if t.ofFilter() {
			continue
		}
		if maps.tables[i], err = makePinned(spec.Maps[bpf.DatapathMapXdpStatsMap], dir, t.pin); err != nil {
			return nil, err
		}
	}
	if peers > 0 {
		peersSpec := spec.Maps[bpf.DatapathMapPeers].Copy()
		peersSpec.MaxEntries = peers
		if maps.peers, err = makePinned(peersSpec, dir, pinPeers); err != nil {
			return nil, err
		}
	}
	if policy == nil {
		return maps, nil
	}
	if err := maps.makeForFilter(spec, dir, policy.flows); err != nil {
		return nil, err
	}
	maps.policy, err = makePolicyMaps(spec, policyDir(dir, 0), policy)
	return maps, err
}

// makeForFilter makes the maps that a filter needs whatever its policy, flows many of the one by flow.
func (p *podMaps) makeForFilter(spec *ebpf.CollectionSpec, dir string, flows uint32) (err error) {
	for i, t := range tables {
		if !t.ofFilter() {
			continue
		}
		if p.tables[i], err = makePinned(spec.Maps[bpf.DatapathMapXdpStatsMap], dir, t.pin); err != nil {
			return err
		}
	}
	flowsSpec := spec.Maps[bpf.DatapathMapFlows].Copy()
	if flows > 0 {
		flowsSpec.MaxEntries = flows
	}
	p.flows, err = makePinned(flowsSpec, dir, pinFlows)
	return err
}

func makePinned(spec *ebpf.MapSpec, dir, name string) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("making map %s: %w", name, err)
	}
	if err := m.Pin(filepath.Join(dir, name)); err != nil {
		_ = m.Close()
		return nil, fmt.Errorf("pinning map %s in %s: %w", name, dir, err)
	}
	return m, nil
}

// entries are those by which the programs know the pod's maps; the table that a pod does not have is
// the idle one, or what was left in the slot would count on.
func (n *node) entries(slot uint32, maps *podMaps) []entry {
	entries := n.tableEntries(slot, func(i int) *ebpf.Map { return maps.tables[i] })
	if maps.peers != nil {
		entries = append(entries, entry{n.peers, slot, maps.peers})
	}
	if maps.flows != nil {
		entries = append(entries, entry{n.flows, slot, maps.flows})
	}
	if maps.policy != nil {
		entries = append(entries, n.policyEntries(slot, 0, maps.policy)...)
	}
	return entries
}

// tableEntries are a pod's entries in pod_tables, to which with gives the maps.
func (n *node) tableEntries(slot uint32, with func(i int) *ebpf.Map) []entry {
	var entries []entry
	for i, t := range tables {
		m := with(i)
		if m == nil {
			m = n.idle
		}
		entries = append(entries, entry{n.tables, n.tableIndex(t, slot), m})
	}
	return entries
}

// leaveMaps lets go of all maps of the pod in slot, whose hooks are going too or gone: that a packet may
// be judged by half a policy meanwhile does not matter, the next one is judged by none.
func (n *node) leaveMaps(slot uint32) error {
	entries := append(n.tableEntries(slot, func(int) *ebpf.Map { return nil }),
		entry{n.peers, slot, nil}, entry{n.flows, slot, nil})
	counters, err := ebpf.LoadPinnedMap(filepath.Join(n.dir, bpf.DatapathMapPodProgramCounters), nil)
	if err == nil {
		defer counters.Close()
		entries = append(entries, entry{counters, slot, nil})
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("leaving slot %d: %w", slot, err)
	}
	for place := range uint32(policyPlaces) {
		entries = append(entries, n.policyEntries(slot, place, &policyMaps{})...)
	}
	if err := errors.Join(n.leavePrograms(slot), apply(entries)); err != nil {
		return fmt.Errorf("leaving slot %d: %w", slot, err)
	}
	return nil
}
