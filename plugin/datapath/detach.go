package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/xdp-cni/xdp-cni/plugin/pins"
)

// Detach takes an attachment down, whatever state it is in; one that is not there is no error.
// It needs neither the interface nor its namespace, goes on past errors and returns them joined;
// what failed can be tried again. When it returns nil no program of ours runs on the interface.
func (d *Datapath) Detach(ctx context.Context, containerID, ifname string) error {
	if err := d.remove(ctx, pins.ID(containerID, ifname)); err != nil {
		return fmt.Errorf("detaching container %s, interface %s: %w", containerID, ifname, err)
	}
	return d.prune(ctx)
}

// remove takes an attachment down in staging and in its published place.
func (d *Datapath) remove(ctx context.Context, id string) error {
	staged, published := d.Root.Staged(id), d.Root.Pod(id)
	// held by an ADD still under way, which will publish it, or by another DEL
	if err := d.removeLocked(ctx, staged, staged); err != nil {
		return err
	}
	return d.removeLocked(ctx, published, staged)
}

// removeLocked takes the attachment in dir down, under its lock and under the name staged: what
// is published is always whole.
func (d *Datapath) removeLocked(ctx context.Context, dir, staged string) error {
	lock, err := d.lockDir(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Unlock()
	if dir != staged {
		err := os.Rename(dir, staged)
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w: another operation on this attachment", pins.ErrBusy)
		}
		if err != nil {
			return fmt.Errorf("moving %s to %s: %w", dir, staged, err)
		}
	}
	return d.removeDir(staged)
}

// removeDir takes down the attachment in dir. The caller holds its lock, or the node's.
func (d *Datapath) removeDir(dir string) error {
	m, err := readMeta(dir)
	if err != nil && !errors.Is(err, ErrNotFound) {
		d.Log.Warn("removing an attachment without knowing what it is", "dir", dir, "error", err)
	}
	n, err := openNode(d.Root.Node())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if n != nil {
		defer n.close()
	}
	mode := ModeTCX
	if m != nil {
		mode = m.Mode
	}

	// Each of these waits for an RCU grace period or two. The hooks take turns anyway: the kernel
	// holds the RTNL mutex meanwhile.
	var (
		wait            sync.WaitGroup
		tablesErr, errs error
	)
	if n != nil && m != nil {
		wait.Go(func() { tablesErr = n.leave(m) })
	}
	for _, h := range hooks(mode) {
		errs = errors.Join(errs, h.detach(dir, m))
	}
	wait.Wait()
	errs = errors.Join(errs, tablesErr)
	if m != nil {
		errs = errors.Join(errs, removeClsact(m), restoreVeth(m))
	}
	if errs != nil {
		return errs
	}
	return pins.RemoveAll(dir, pinMeta)
}

// leave takes the attachment out of the node's maps.
func (n *node) leave(m *Meta) error {
	slot, found, err := n.slotOf(m.HostIndex)
	if err != nil {
		return err
	}
	if found {
		if err := n.leaveTables(slot); err != nil {
			return err
		}
	}
	return n.freeSlot(m.HostIndex)
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
