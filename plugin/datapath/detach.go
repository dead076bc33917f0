package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/podend"
)

// Detach takes an attachment down, whatever state it is in; one that is not there is no error.
// It needs neither the interface nor its namespace, goes on past errors and returns them joined;
// what failed can be tried again. When it returns nil no program of ours runs on the interface.
func (d *Datapath) Detach(ctx context.Context, containerID, ifname string) error {
	ctx, cancel := d.limited(ctx)
	defer cancel()
	if err := d.remove(ctx, pins.ID(containerID, ifname)); err != nil {
		return fmt.Errorf("detaching container %s, interface %s: %w", containerID, ifname, err)
	}
	return d.prune(ctx)
}

// remove takes an attachment down in staging and in its published place.
func (d *Datapath) remove(ctx context.Context, id string) error {
	staged, published := d.Root.Staged(id), d.Root.Pod(id)
	// the first may be held by an ADD still under way, which will publish it, or by another DEL
	return errors.Join(d.removeLocked(ctx, staged, staged, nil), d.removeLocked(ctx, published, staged, nil))
}

// removeLocked takes the attachment in dir down, under its lock and under the name staged: what
// is published is always whole. If there is a condition it is asked first, under the lock.
func (d *Datapath) removeLocked(ctx context.Context, dir, staged string, condition func() (bool, error)) error {
	lock, err := pins.LockDir(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Unlock()
	if condition != nil {
		if still, err := condition(); err != nil || !still {
			return err
		}
	}
	if dir != staged {
		err := os.Rename(dir, staged)
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w: another operation on this attachment", pins.ErrBusy)
		}
		if err != nil {
			return fmt.Errorf("moving %s to %s: %w", dir, staged, err)
		}
	}
	return d.removeDir(staged, d.locker(ctx))
}

// removeUnlocked takes down what is in dir, for callers that hold the node's lock.
func (d *Datapath) removeUnlocked(dir string) error {
	return d.removeDir(dir, lockHeld)
}

// removeDir takes down the attachment in dir, whose lock the caller holds.
func (d *Datapath) removeDir(dir string, locked locker) error {
	m, err := readMeta(dir)
	if err != nil && !errors.Is(err, ErrNotFound) {
		d.Log.Warn("removing an attachment without knowing what it is", "dir", dir, "error", err)
	}
	mode := ModeTCX
	if m != nil {
		mode = m.Mode
	}
	n, errs := openNode(d.Root.Node())
	if errors.Is(errs, fs.ErrNotExist) || errors.Is(errs, ErrDamaged) || errors.Is(errs, ErrLayout) {
		errs = nil // nothing is entered there, or nobody can say where
	}
	if n != nil {
		defer n.close()
	}

	if n != nil && m != nil && m.has(bpf.DatapathPodFlagPOD_REDIRECT) {
		// first: from then on nothing goes to it that the stack would not bring
		errs = errors.Join(errs, locked(func() error { return n.leaveEndpoint(m) }))
	}

	// Each of these waits for an RCU grace period or two. The hooks take turns anyway: the kernel
	// holds the RTNL mutex meanwhile.
	var (
		wait    sync.WaitGroup
		mapsErr error
	)
	if n != nil && m != nil {
		wait.Go(func() { mapsErr = n.leaveOwnMaps(m) })
	}
	errs = errors.Join(errs, detachPrograms(dir)) // the policy is there to the last
	for _, h := range hooks(mode) {
		errs = errors.Join(errs, h.detach(dir, m))
	}
	wait.Wait()
	errs = errors.Join(errs, mapsErr)
	if m != nil {
		var keep podend.Changes
		if d.PodsGoOn {
			keep = podend.QueueAdded
		}
		errs = errors.Join(errs, removeClsact(m), restorePodEnd(m, keep), restoreVeth(m))
	}
	if n != nil && m != nil && mapsErr == nil {
		errs = errors.Join(errs, locked(func() error { return n.freeSlot(m.HostIndex, m.owner) }))
	}
	if errs != nil {
		return errs
	}
	if err := pins.RemoveAll(dir, pinMeta); err != nil {
		return err
	}
	if n == nil || m == nil || !m.has(bpf.DatapathPodFlagPOD_PROGRAMS) {
		return nil
	}
	return locked(func() error { return d.pruneShared(n) })
}

// leave takes the attachment out of the node's maps, those of the slot first: who finds it free
// may enter its own.
func (d *Datapath) leave(n *node, m *Meta) error {
	if err := n.leaveOwnMaps(m); err != nil {
		return err
	}
	ctx, cancel := d.limited(context.Background())
	defer cancel()
	return d.locked(ctx, func() error { return n.freeSlot(m.HostIndex, m.owner) })
}

// leaveEndpoint takes the attachment out of the node's endpoints.
func (d *Datapath) leaveEndpoint(n *node, m *Meta) error {
	ctx, cancel := d.limited(context.Background())
	defer cancel()
	return d.locked(ctx, func() error { return n.leaveEndpoint(m) })
}

// leaveOwnMaps lets go of the attachment's maps, if the slot is its.
func (n *node) leaveOwnMaps(m *Meta) error {
	slot, entry, found, err := n.slotOf(m.HostIndex)
	if err != nil || !found || entry.Owner != m.owner {
		return err
	}
	return n.leaveMaps(slot)
}

// prune takes down what the attachments share if there is none left.
func (d *Datapath) prune(ctx context.Context) error {
	// a glance first: mostly there are some, and the lock need not be waited for
	pods, err := d.Root.Pods()
	if err != nil || len(pods) > 0 {
		return err
	}
	if _, err := os.Stat(d.Root.String()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if mounted, err := d.Root.Mounted(); err != nil || !mounted {
		return err
	}
	err = d.locked(ctx, d.pruneNode)
	if errors.Is(err, pins.ErrBusy) {
		d.Log.Info("left the node's objects to whoever is last", "error", err)
		return nil
	}
	return err
}
