package datapath

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// table is one table of counters of a pod.
type table struct {
	direction bpf.DatapathDirection
	kind      bpf.DatapathTable
	pin       string
}

// tables are those that each pod has. The first is pinned as the xdp-tutorial's xdp_stats wants it.
var tables = []table{
	{bpf.DatapathDirectionDIRECTION_EGRESS, bpf.DatapathTableTABLE_VERDICT, "xdp_stats_map"},
	{bpf.DatapathDirectionDIRECTION_EGRESS, bpf.DatapathTableTABLE_PROTOCOL, "protocol_stats_map"},
	{bpf.DatapathDirectionDIRECTION_EGRESS, bpf.DatapathTableTABLE_KIND, "kind_stats_map"},
	{bpf.DatapathDirectionDIRECTION_INGRESS, bpf.DatapathTableTABLE_VERDICT, "ingress_xdp_stats_map"},
	{bpf.DatapathDirectionDIRECTION_INGRESS, bpf.DatapathTableTABLE_PROTOCOL, "ingress_protocol_stats_map"},
	{bpf.DatapathDirectionDIRECTION_INGRESS, bpf.DatapathTableTABLE_KIND, "ingress_kind_stats_map"},
}

// tableIndex is the table's entry in pod_tables for the pod in slot.
func (n *node) tableIndex(t table, slot uint32) uint32 {
	perPod := n.tables.MaxEntries() / n.slots.MaxEntries()
	return slot*perPod + uint32(t.direction)*uint32(bpf.DatapathTableTABLES) + uint32(t.kind)
}

// podMaps are the open maps of one pod, beside meta.
type podMaps struct {
	tables []*ebpf.Map // in the order of tables
	peers  *ebpf.Map   // nil without per-peer counters
}

func (p *podMaps) close() {
	for _, m := range p.tables {
		_ = m.Close()
	}
	_ = p.peers.Close()
}

// makePodMaps makes a pod's maps and pins them in dir.
func makePodMaps(spec *ebpf.CollectionSpec, dir string, peers uint32) (_ *podMaps, err error) {
	maps := &podMaps{}
	defer func() {
		if err != nil {
			maps.close()
		}
	}()
	for _, t := range tables {
		m, err := makePinned(spec.Maps[bpf.DatapathMapXdpStatsMap], dir, t.pin)
		if err != nil {
			return nil, err
		}
		maps.tables = append(maps.tables, m)
	}
	if peers > 0 {
		peersSpec := spec.Maps[bpf.DatapathMapPeers].Copy()
		peersSpec.MaxEntries = peers
		if maps.peers, err = makePinned(peersSpec, dir, pinPeers); err != nil {
			return nil, err
		}
	}
	return maps, nil
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

// enterTables makes the pod's maps known to the programs.
func (n *node) enterTables(slot uint32, maps *podMaps) error {
	return n.replaceTables(slot, func(i int) *ebpf.Map { return maps.tables[i] }, func() error {
		if maps.peers == nil {
			return nil
		}
		return n.peers.Put(slot, maps.peers)
	})
}

// leaveTables undoes enterTables; it lets go of the pod's maps.
func (n *node) leaveTables(slot uint32) error {
	return n.replaceTables(slot, func(int) *ebpf.Map { return n.idle }, func() error {
		// seldom there, and a delete waits for a grace period also where there is nothing
		var id ebpf.MapID
		err := n.peers.Lookup(slot, &id)
		if err == nil {
			err = n.peers.Delete(slot)
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		return err
	})
}

// replaceTables sets a pod's entries in pod_tables to what with returns, and runs peers beside
// it: each of the two waits for an RCU grace period.
func (n *node) replaceTables(slot uint32, with func(i int) *ebpf.Map, peers func() error) error {
	var (
		wait     sync.WaitGroup
		peersErr error
	)
	wait.Go(func() { peersErr = peers() })
	keys := make([]uint32, len(tables))
	fds := make([]uint32, len(tables))
	for i, t := range tables {
		keys[i], fds[i] = n.tableIndex(t, slot), uint32(with(i).FD())
	}
	_, err := n.tables.BatchUpdate(keys, fds, nil)
	errs := make([]error, len(tables))
	if errors.Is(err, ebpf.ErrNotSupported) { // maps of maps have batches from 5.19 on
		err = nil
		for i := range tables {
			wait.Go(func() { errs[i] = n.tables.Put(keys[i], fds[i]) })
		}
	}
	wait.Wait()
	if err := errors.Join(append(errs, err, peersErr)...); err != nil {
		return fmt.Errorf("entering the maps of slot %d: %w", slot, err)
	}
	return nil
}

// checkEntry compares an entry of a map of maps, which reads as an ID, with a pin.
func checkEntry(outer *ebpf.Map, index uint32, dir, pin string) error {
	pinned, err := ebpf.LoadPinnedMap(filepath.Join(dir, pin), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("%w: pin %s: %w", ErrCheck, pin, err)
	}
	defer pinned.Close()
	info, err := pinned.Info()
	if err != nil {
		return fmt.Errorf("reading pin %s: %w", pin, err)
	}
	want, _ := info.ID()
	var have ebpf.MapID
	if err := outer.Lookup(index, &have); err != nil {
		return fmt.Errorf("%w: the programs do not know map %s: %w", ErrCheck, pin, err)
	}
	if have != want {
		return fmt.Errorf("%w: the programs count in map %d, pinned as %s is map %d", ErrCheck, have, pin, want)
	}
	return nil
}
