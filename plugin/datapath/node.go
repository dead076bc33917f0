package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/plugin/undo"
)

// nodeMetaVersion is that of struct node_meta.
const nodeMetaVersion = 1

// pinIdleTable stands in pod_tables where a pod was: to replace many entries waits for one RCU
// grace period, to delete them for one each.
const pinIdleTable = "idle_table"

// sharedMaps are the maps that the programs refer to, and node_info; pinned under these names.
var sharedMaps = []string{
	bpf.DatapathMapSlots,
	bpf.DatapathMapSlotOverflow,
	bpf.DatapathMapPodTables,
	bpf.DatapathMapPodPeers,
	bpf.DatapathMapPodFlows,
	bpf.DatapathMapPolicies,
	bpf.DatapathMapPodPolicyWords,
	bpf.DatapathMapPodPolicyPrefixes,
	bpf.DatapathMapPodRuleCounters,
	bpf.DatapathMapViews,
	bpf.DatapathMapDropWindows,
	bpf.DatapathMapDropEvents,
	bpf.DatapathMapNodeInfo,
}

// node is the open handles of what all attachments share, but for what only programs use.
type node struct {
	dir          string
	slots        *ebpf.Map
	overflow     *ebpf.Map
	tables       *ebpf.Map
	peers        *ebpf.Map
	flows        *ebpf.Map
	policies     *ebpf.Map
	words        *ebpf.Map
	prefixes     *ebpf.Map
	ruleCounters *ebpf.Map
	info         *ebpf.Map
	idle         *ebpf.Map
	programStats *ebpf.Map // nil as long as no pod has had programs of its own
}

func (n *node) close() {
	for _, m := range []*ebpf.Map{
		n.slots, n.overflow, n.tables, n.peers, n.flows, n.policies, n.words, n.prefixes, n.ruleCounters, n.info, n.idle,
		n.programStats,
	} {
		_ = m.Close()
	}
}

// openNode opens the node's maps: fs.ErrNotExist if there are none, ErrDamaged if not all are there.
func openNode(dir string) (*node, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("opening the node's maps: %w", err)
	}
	n := &node{dir: dir}
	for _, shared := range []struct {
		name string
		to   **ebpf.Map
	}{
		{bpf.DatapathMapSlots, &n.slots},
		{bpf.DatapathMapSlotOverflow, &n.overflow},
		{bpf.DatapathMapPodTables, &n.tables},
		{bpf.DatapathMapPodPeers, &n.peers},
		{bpf.DatapathMapPodFlows, &n.flows},
		{bpf.DatapathMapPolicies, &n.policies},
		{bpf.DatapathMapPodPolicyWords, &n.words},
		{bpf.DatapathMapPodPolicyPrefixes, &n.prefixes},
		{bpf.DatapathMapPodRuleCounters, &n.ruleCounters},
		{bpf.DatapathMapNodeInfo, &n.info},
		{pinIdleTable, &n.idle},
	} {
		m, err := n.open(shared.name)
		if err != nil {
			n.close()
			return nil, err
		}
		*shared.to = m
	}
	if err := n.openProgramStats(); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// open opens one of the node's maps, with the errors of openNode.
func (n *node) open(name string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(n.dir, name), nil)
	if err == nil {
		return m, nil
	}
	if _, gone := os.Stat(n.dir); gone != nil {
		err = gone // taken down meanwhile
	} else if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s in %s; it is made anew when no pod is attached", ErrDamaged, name, n.dir)
	}
	return nil, fmt.Errorf("opening the node's map %s: %w", name, err)
}

// withNode runs fn with the node, if there is one.
func (d *Datapath) withNode(fn func(*node) error) error {
	n, err := openNode(d.Root.Node())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer n.close()
	return fn(n)
}

func (n *node) meta() (*bpf.DatapathNodeMeta, error) {
	var meta bpf.DatapathNodeMeta
	if err := n.info.Lookup(uint32(0), &meta); err != nil {
		return nil, fmt.Errorf("reading the node's info: %w", err)
	}
	if meta.Version != nodeMetaVersion {
		return nil, fmt.Errorf("%w: node info version %d, want %d", ErrLayout, meta.Version, nodeMetaVersion)
	}
	return &meta, nil
}

// ensureNode opens the node's maps, or makes and pins them. The caller holds the node's lock, and
// calls pruneNode if it fails afterwards.
func (d *Datapath) ensureNode(spec *ebpf.CollectionSpec) (*node, error) {
	netns, err := netnsInode()
	if err != nil {
		return nil, err
	}
	for {
		n, err := openNode(d.Root.Node())
		if errors.Is(err, fs.ErrNotExist) {
			return d.makeNode(spec, netns)
		}
		if errors.Is(err, ErrDamaged) {
			if dirs, listErr := d.allDirs(); listErr != nil || len(dirs) > 0 {
				return nil, errors.Join(err, listErr)
			}
			if err := d.removeNode(); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		meta, err := n.meta()
		if err == nil && meta.Netns == netns {
			return n, nil
		}
		n.close()
		if err != nil {
			return nil, err
		}
		if err := d.abandonNode(meta.Netns); err != nil {
			return nil, err
		}
	}
}

// abandonNode takes down a node whose network namespace is another one, if none of its
// interfaces is alive any more: an interface index means nothing without its namespace.
func (d *Datapath) abandonNode(netns uint64) error {
	if err := d.checkAbandoned(netns); err != nil {
		return err
	}
	dirs, err := d.allDirs()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := d.removeUnlocked(dir); err != nil {
			return err
		}
	}
	return d.removeNode()
}

// checkAbandoned returns ErrOtherNetns if an interface of an attachment is alive in the node's
// network namespace, which is not the caller's.
func (d *Datapath) checkAbandoned(netns uint64) error {
	dirs, err := d.allDirs()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		alive, err := alive(dir, false, netns)
		if err != nil {
			return err
		}
		if alive {
			return fmt.Errorf("using %s: %w (inode %d): name another \"bpffs\" in this one", d.Root, ErrOtherNetns, netns)
		}
	}
	return nil
}

// makeNode makes and pins what all attachments share, but for programs.
func (d *Datapath) makeNode(spec *ebpf.CollectionSpec, netns uint64) (_ *node, err error) {
	dir := d.Root.StagedNode()
	// what a killed process left
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("making the node's maps: %w", err)
	}
	var undo undo.Stack
	defer undo.OnFailure(&err)
	undo.Push("removing "+dir, func() error { return os.RemoveAll(dir) })
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the node's maps: %w", err)
	}
	specs := map[string]*ebpf.MapSpec{pinIdleTable: spec.Maps[bpf.DatapathMapXdpStatsMap]}
	for _, name := range sharedMaps {
		specs[name] = spec.Maps[name]
	}
	for name, mapSpec := range specs {
		m, err := ebpf.NewMap(mapSpec)
		if err != nil {
			return nil, fmt.Errorf("making the node's map %s: %w", name, err)
		}
		defer m.Close()
		if err := m.Pin(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("pinning the node's map %s: %w", name, err)
		}
		if name != bpf.DatapathMapNodeInfo {
			continue
		}
		meta := bpf.DatapathNodeMeta{
			Version: nodeMetaVersion, Netns: netns, Created: uint64(time.Now().UnixNano()),
		}
		if d.hasXDPFrags() {
			meta.XdpFrags = 1
		}
		copy(meta.PluginVersion[:len(meta.PluginVersion)-1], d.Version)
		if err := m.Put(uint32(0), meta); err != nil {
			return nil, fmt.Errorf("writing the node's info: %w", err)
		}
	}
	if err := os.Rename(dir, d.Root.Node()); err != nil {
		return nil, fmt.Errorf("publishing the node's maps: %w", err)
	}
	return openNode(d.Root.Node())
}

// pruneNode takes the node's objects and the layout down if there is no attachment left, nor one
// in the making. The caller holds the node's lock.
func (d *Datapath) pruneNode() error {
	pods, err := d.Root.Pods()
	if err != nil {
		return err
	}
	staged, err := d.Root.StagedPods()
	if err != nil {
		return err
	}
	if len(pods)+len(staged) > 0 {
		return nil
	}
	if err := d.removeNode(); err != nil {
		return err
	}
	d.Root.Prune()
	return nil
}

// removeNode takes the node's objects down. The caller holds the node's lock.
func (d *Datapath) removeNode() error {
	staged := d.Root.StagedNode()
	if err := os.RemoveAll(staged); err != nil {
		return fmt.Errorf("removing the node's objects: %w", err)
	}
	// so that nobody ever opens half of it
	err := os.Rename(d.Root.Node(), staged)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing the node's objects: %w", err)
	}
	if err := os.RemoveAll(staged); err != nil {
		return fmt.Errorf("removing the node's objects: %w", err)
	}
	return nil
}

// servesUs tells whether the node's interfaces are those of the calling thread's network
// namespace, and of which they are; no node serves everybody.
func (d *Datapath) servesUs() (here bool, netns uint64, err error) {
	own, err := netnsInode()
	if err != nil {
		return false, 0, err
	}
	here, netns = true, own
	err = d.withNode(func(n *node) error {
		meta, err := n.meta()
		if err == nil {
			here, netns = meta.Netns == own, meta.Netns
		}
		return err
	})
	return here && err == nil, netns, err
}

// netnsInode returns the inode of the calling thread's network namespace.
func netnsInode() (uint64, error) {
	info, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return 0, fmt.Errorf("reading the network namespace: %w", err)
	}
	return info.Sys().(*syscall.Stat_t).Ino, nil
}
