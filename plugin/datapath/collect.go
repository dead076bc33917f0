package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/xdp-cni/xdp-cni/internal/pins"
)

// Key names an attachment as CNI does.
type Key struct {
	ContainerID, IfName string
}

// CollectOptions say what Collect may remove.
type CollectOptions struct {
	// Network whose attachments are looked at; "": of every network.
	Network string
	// Valid attachments stay and all others go. nil: nothing is known of what is valid, and only
	// those go whose interface is gone.
	Valid *[]Key
	// DryRun only reports.
	DryRun bool
}

// Collect removes attachments that no container has any more, and what killed processes left. It
// goes on past errors; it returns what it removed, and the errors joined.
func (d *Datapath) Collect(ctx context.Context, opts CollectOptions) ([]Attachment, error) {
	ctx, cancel := d.limited(ctx)
	defer cancel()
	here, netns, hereErr := d.servesUs()
	attachments, errs := d.List()
	errs = errors.Join(errs, hereErr)
	var removed []Attachment
	for _, a := range attachments {
		if opts.Network != "" && a.Meta.Network != opts.Network {
			continue
		}
		stale, err := opts.stale(a, here, netns)
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		if !stale {
			continue
		}
		gone := opts.DryRun
		if !opts.DryRun {
			if err := d.removeLocked(ctx, a.dir, d.Root.Staged(a.ID), func() (bool, error) {
				// meanwhile it may have gone, and another ADD of the same name come
				now, err := readMeta(a.dir)
				if err != nil || now.owner != a.Meta.owner {
					return false, nil
				}
				gone, err = opts.stale(a, here, netns)
				return gone, err
			}); err != nil {
				errs = errors.Join(errs, fmt.Errorf("removing container %s, interface %s: %w", a.Meta.ContainerID, a.Meta.IfName, err))
				continue
			}
		}
		if gone {
			removed = append(removed, a)
		}
	}
	if opts.DryRun {
		return removed, errs
	}
	return removed, errors.Join(errs, d.collectStaged(ctx), d.collectSlots(ctx), d.collectShared(ctx), d.prune(ctx))
}

// collectShared removes shared programs and maps that nobody uses: a process that died may have left them.
func (d *Datapath) collectShared(ctx context.Context) error {
	return d.withNode(func(n *node) error {
		return d.locked(ctx, func() error { return d.pruneShared(n) })
	})
}

func (o CollectOptions) stale(a Attachment, here bool, netns uint64) (bool, error) {
	if o.Valid != nil {
		for _, key := range *o.Valid {
			if key.ContainerID == a.Meta.ContainerID && key.IfName == a.Meta.IfName {
				return false, nil
			}
		}
		return true, nil
	}
	alive, err := alive(a.dir, here, netns)
	return !alive, err
}

// collectStaged removes what is in staging and nobody works on: its process is dead.
func (d *Datapath) collectStaged(ctx context.Context) error {
	if ids, err := d.Root.StagedPods(); err != nil || len(ids) == 0 {
		return err
	}
	dead := map[string]*pins.Lock{}
	// under the node's lock no ADD is between making its directory and locking it
	errs := d.locked(ctx, func() error {
		ids, errs := d.Root.StagedPods()
		for _, id := range ids {
			lock, err := tryLockDir(d.Root.Staged(id))
			switch {
			case err == nil:
				dead[id] = lock
			case !errors.Is(err, pins.ErrBusy) && !errors.Is(err, fs.ErrNotExist):
				errs = errors.Join(errs, err)
			}
		}
		return errs
	})
	for id, lock := range dead {
		if err := d.removeDir(d.Root.Staged(id), d.locker(ctx)); err != nil {
			errs = errors.Join(errs, fmt.Errorf("removing what a killed process left of %s: %w", id, err))
		}
		lock.Unlock()
	}
	return errs
}

// collectAtOnce is how many slots are freed at a time: each takes a few threads while it waits.
const collectAtOnce = 64

// collectSlots frees slots whose attachment's pins somebody removed by hand.
func (d *Datapath) collectSlots(ctx context.Context) error {
	if pods, err := d.Root.Pods(); err != nil || len(pods) == 0 {
		return err // then the whole node goes
	}
	return d.locked(ctx, func() error { return d.withNode(d.freeUnowned) })
}

// freeUnowned frees the slots that no attachment owns. The caller holds the node's lock.
func (d *Datapath) freeUnowned(n *node) error {
	taken, err := n.takenSlots()
	if err != nil {
		return err
	}
	owners := map[uint64]bool{}
	dirs, err := d.allDirs()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		m, err := readMeta(dir)
		if errors.Is(err, ErrNotFound) {
			continue // goes; an ADD cannot publish meanwhile
		}
		if err != nil {
			return err // it may own any slot
		}
		owners[m.owner] = true
	}
	if err := n.removeEndpointsOf(owners); err != nil {
		return err
	}
	// each waits for an RCU grace period, in which many can wait at once
	var wait sync.WaitGroup
	turns := make(chan struct{}, collectAtOnce)
	errs := make([]error, len(taken))
	for i, slot := range taken {
		if owners[slot.Owner] {
			continue
		}
		turns <- struct{}{}
		wait.Go(func() {
			m := &Meta{HostIndex: int(slot.Ifindex), owner: slot.Owner}
			if errs[i] = n.leaveOwnMaps(m); errs[i] == nil {
				errs[i] = n.freeSlot(m.HostIndex, m.owner)
			}
			<-turns
		})
	}
	wait.Wait()
	return errors.Join(errs...)
}

// allDirs lists the directories of all attachments, those in staging first: what is published
// meanwhile is then found in its new place at least.
func (d *Datapath) allDirs() ([]string, error) {
	staged, err := d.Root.StagedPods()
	if err != nil {
		return nil, err
	}
	published, err := d.Root.Pods()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, id := range staged {
		dirs = append(dirs, d.Root.Staged(id))
	}
	for _, id := range published {
		dirs = append(dirs, d.Root.Pod(id))
	}
	return dirs, nil
}
