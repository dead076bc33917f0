package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/undo"
)

// ReplacePolicy puts a policy in force for an attachment in one step, in place of the one there, or
// as its first one. Until then, and on any error, the old one decides. The flows that the pod has
// stay, and are judged by the new policy with their next packet; their number (MaxFlows) is that
// of the first policy as long as the attachment lives.
//
// Errors: fs.ErrNotExist if the attachment is gone, ErrUnsupported, ErrLayout, ErrDamaged, pins.ErrBusy.
func (d *Datapath) ReplacePolicy(ctx context.Context, a Attachment, policy Policy) (err error) {
	ctx, cancel := d.limited(ctx)
	defer cancel()
	r := &replacing{Datapath: d, Attachment: a}
	wrap := func(doing string, err error) error {
		return fmt.Errorf("replacing the policy of container %s, interface %s: %s: %w", a.Meta.ContainerID, a.Meta.IfName, doing, err)
	}
	defer r.close()
	defer r.undo.OnFailure(&err)
	// refused before anything is touched
	if r.policy, err = encodePolicy(policy, a.Meta.PodMAC); err != nil {
		return wrap("encoding", err)
	}
	for _, step := range []replaceStep{
		{"reading what is in force", r.open},
		{"clearing leftovers", r.clearLeftovers},
		{"making maps", r.makeMaps},
		{"entering maps", r.enterMaps},
		{"putting it in force", r.putInForce},
	} {
		if err := r.run(ctx, step); err != nil {
			return wrap(step.name, err)
		}
	}
	// The new policy decides. What fails now, the next replacement or DEL catches up on.
	for _, step := range []replaceStep{
		{"renaming its directory", r.rename},
		{"waiting for packets under way", r.waitForPackets},
		{"clearing the old policy", r.clearOld},
	} {
		if err := r.run(ctx, step); err != nil {
			d.Log.Warn("leaving an old policy behind", "error", wrap(step.name, err))
			return nil
		}
	}
	return nil
}

type replaceStep struct {
	name string
	run  func(context.Context) error
}

// replacing is a ReplacePolicy under way.
type replacing struct {
	*Datapath
	Attachment
	policy *encodedPolicy
	undo   undo.Stack

	lock     *pins.Lock // on the attachment's directory
	spec     *ebpf.CollectionSpec
	node     *node
	old, now inForce  // before, and as the slot was left
	place    uint32   // of the new policy
	maps     *podMaps // those made
	entering *change
}

func (r *replacing) run(ctx context.Context, step replaceStep) error {
	if err := r.before(step.name); err != nil {
		return err
	}
	return step.run(ctx)
}

func (r *replacing) close() {
	if r.entering != nil {
		_ = r.entering.done() // said already
	}
	r.lock.Unlock()
	if r.node != nil {
		r.node.close()
	}
	if r.maps != nil {
		r.maps.close()
	}
}

func (r *replacing) open(ctx context.Context) (err error) {
	if err := liftMemlock(); err != nil {
		return err
	}
	if r.lock, err = pins.LockDir(ctx, r.dir); err != nil {
		return err
	}
	m, err := readMeta(r.dir)
	if err != nil {
		return err
	}
	if m.owner != r.Meta.owner {
		return fmt.Errorf("another attachment has its name: %w", fs.ErrNotExist)
	}
	if r.spec, err = r.Datapath.spec(); err != nil {
		return err
	}
	if r.node, err = openNode(r.Root.Node()); err != nil {
		return err
	}
	shared, err := r.node.meta()
	if err != nil {
		return err
	}
	if _, err := r.fits(r.node, shared); err != nil {
		return err
	}
	found := false
	if r.old, found, err = r.node.inForce(m); err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("%w: the programs do not know interface %s", ErrDamaged, m.HostName)
	}
	if r.old.filtered {
		r.place = 1 - r.old.place
	}
	r.now = r.old
	r.policy.value.Generation = max(1, r.old.policy.Generation+1)
	return nil
}

// own returns an error if the slot is not as it was left. The caller holds the node's lock.
func (r *replacing) own() error {
	now, found, err := r.node.inForce(r.Meta)
	if err != nil {
		return err
	}
	if !found || now != r.now {
		return fmt.Errorf("%w: the slot of interface %s was taken", ErrDamaged, r.Meta.HostName)
	}
	return nil
}

// clearLeftovers removes what a replacement whose process died left: its new policy, if it was not put in
// force yet, or else the old one.
func (r *replacing) clearLeftovers(ctx context.Context) error {
	if r.old.filtered {
		if err := rename(nextDir(r.dir, r.old.place), policyDir(r.dir, r.old.place)); err != nil {
			return err
		}
	}
	var left []entry
	for _, e := range r.leaving() {
		set, err := e.isSet()
		if err != nil {
			return err
		}
		if !set {
			left = append(left, e)
		}
	}
	if len(left) > 0 {
		// packets may still be judged by it: by all of it
		if err := r.waitForPackets(ctx); err != nil {
			return err
		}
		if err := r.changeAndWait(ctx, left); err != nil {
			return err
		}
	}
	return r.removePins()
}

// leaving is the entries of the slot without the new policy, and without what was not there before it.
func (r *replacing) leaving() []entry {
	entries := r.node.policyEntries(r.old.slot, r.place, &policyMaps{})
	if r.old.filtered {
		return entries
	}
	for _, t := range tables {
		if t.ofFilter() {
			entries = append(entries, entry{r.node.tables, r.node.tableIndex(t, r.old.slot), r.node.idle})
		}
	}
	return append(entries, entry{r.node.flows, r.old.slot, nil})
}

// removePins removes what leaving takes out of the slot.
func (r *replacing) removePins() error {
	names := []string{nextDir(r.dir, r.place), policyDir(r.dir, r.place)}
	if !r.old.filtered {
		names = append(names, filepath.Join(r.dir, pinFlows))
		for _, t := range tables {
			if t.ofFilter() {
				names = append(names, filepath.Join(r.dir, t.pin))
			}
		}
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, os.RemoveAll(name))
	}
	return errors.Join(errs...)
}

func (r *replacing) makeMaps(context.Context) (err error) {
	r.maps = &podMaps{tables: make([]*ebpf.Map, len(tables))}
	r.undo.Push("removing the new policy", r.removePins)
	if !r.old.filtered {
		if err := r.maps.makeForFilter(r.spec, r.dir, r.policy.flows); err != nil {
			return err
		}
	}
	r.maps.policy, err = makePolicyMaps(r.spec, nextDir(r.dir, r.place), r.policy)
	return err
}

// enterMaps fills a place of the slot that no packet is judged by.
func (r *replacing) enterMaps(ctx context.Context) error {
	entries := r.node.policyEntries(r.old.slot, r.place, r.maps.policy)
	if !r.old.filtered {
		for i, t := range tables {
			if t.ofFilter() {
				entries = append(entries, entry{r.node.tables, r.node.tableIndex(t, r.old.slot), r.maps.tables[i]})
			}
		}
		entries = append(entries, entry{r.node.flows, r.old.slot, r.maps.flows})
	}
	r.undo.Push("leaving the node's maps", func() error {
		// that of the call may be over
		ctx, cancel := r.limited(context.Background())
		defer cancel()
		return r.changeAndWait(ctx, r.leaving())
	})
	var err error
	r.entering, err = r.change(ctx, func() ([]entry, error) {
		index := policyIndex(r.old.slot, r.place)
		if err := r.node.policies.Put(index, r.policy.value); err != nil {
			return nil, fmt.Errorf("entering policy %d: %w", index, err)
		}
		return entries, nil
	})
	return err
}

// putInForce is one write to the slot. All that it changes of the flags is in one byte, so no program sees half of
// the write.
func (r *replacing) putInForce(ctx context.Context) error {
	return r.locked(ctx, func() error {
		if err := r.own(); err != nil {
			return err
		}
		slot, err := r.node.slot(r.old.slot)
		if err != nil {
			return err
		}
		slot.Flags |= uint32(bpf.DatapathSlotFlagSLOT_FILTER)
		slot.Flags &^= uint32(bpf.DatapathSlotFlagSLOT_POLICY)
		if r.place != 0 {
			slot.Flags |= uint32(bpf.DatapathSlotFlagSLOT_POLICY)
		}
		if err := r.node.slots.Put(r.old.slot, slot); err != nil {
			return fmt.Errorf("changing slot %d: %w", r.old.slot, err)
		}
		r.now = inForce{slot: r.old.slot, place: r.place, filtered: true, policy: r.policy.value}
		return nil
	})
}

func (r *replacing) rename(context.Context) error {
	return rename(nextDir(r.dir, r.place), policyDir(r.dir, r.place))
}

// waitForPackets returns when no packet is under way any more that began before. The kernel lets who updates
// a map of maps wait for that, any one (maybe_wait_bpf_programs() in kernel/bpf/syscall.c, from 4.20 on).
func (r *replacing) waitForPackets(context.Context) error {
	outer, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "wait", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1,
		InnerMap: r.spec.Maps[bpf.DatapathMapXdpStatsMap],
	})
	if err != nil {
		return fmt.Errorf("making a map to wait by: %w", err)
	}
	defer outer.Close()
	return apply([]entry{{outer, 0, r.node.idle}})
}

func (r *replacing) clearOld(ctx context.Context) error {
	if !r.old.filtered {
		return nil
	}
	if err := r.changeAndWait(ctx, r.node.policyEntries(r.old.slot, r.old.place, &policyMaps{})); err != nil {
		return err
	}
	return os.RemoveAll(policyDir(r.dir, r.old.place))
}

// change makes entries of the attachment's slot, and returns when programs see them. Under the node's lock,
// because nobody else gets the slot then, which an attachment whose interface is gone may lose.
func (r *replacing) change(ctx context.Context, entries func() ([]entry, error)) (c *change, err error) {
	err = r.locked(ctx, func() error {
		if err := r.own(); err != nil {
			return err
		}
		list, err := entries()
		if err != nil {
			return err
		}
		c = begin(list)
		return c.visible()
	})
	return c, err
}

// changeAndWait returns when programs use nothing else.
func (r *replacing) changeAndWait(ctx context.Context, entries []entry) error {
	c, err := r.change(ctx, func() ([]entry, error) { return entries, nil })
	if err != nil {
		return err
	}
	return c.done()
}

// rename renames a directory if it is there.
func rename(from, to string) error {
	if err := os.Rename(from, to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
