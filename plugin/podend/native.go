package podend

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/internal/ethtool"
	"github.com/xdp-cni/xdp-cni/plugin/undo"
)

// Changes is the set of what was changed at a pod end. It is stored: a bit keeps its meaning.
type Changes uint32

const (
	// TxChecksumOff: tx checksum offload was on. A frame that the host end redirects in the driver loses the
	// note that its checksum is still to be made.
	TxChecksumOff Changes = 1 << iota
	// GROOn: GRO was off.
	GROOn
	// QueueAdded: there was no queueing discipline. With one a full ring of the driver stops the sender;
	// without, it drops.
	QueueAdded
)

// queue is the queueing discipline that we add. Its handle tells it from one of others: it is that of our
// filters' priority, chosen freely.
func queue(pod netlink.Link) *netlink.GenericQdisc {
	return &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: pod.Attrs().Index, Handle: netlink.MakeHandle(0xc41, 0), Parent: netlink.HANDLE_ROOT,
		},
		QdiscType: "pfifo", // as many packets as the interface's txqueuelen
	}
}

// PrepareNative makes the pod end fit to send to, and to receive from, native redirect: tx checksum offload off,
// GRO on, a queueing discipline. It returns what it had to change, for Restore. note is called before each change
// with all changes up to that one, so that whoever finds the note of a killed process can undo them. On failure all
// is undone; changes returned with an error are those that could not be.
//
// Whether it is fit then, say Sends and Receives: below kernel 5.13 it receives only if it runs an XDP program.
func (e *End) PrepareNative(note func(Changes) error) (changes Changes, err error) {
	var done undo.Stack
	defer func() {
		if err == nil {
			return
		}
		if undoErr := done.Run(); undoErr != nil {
			err = errors.Join(err, undoErr)
			return
		}
		changes = 0
	}()
	for _, s := range settings {
		fit, err := s.fit(e)
		if err != nil {
			return changes, err
		}
		if fit {
			continue
		}
		if err := note(changes | s.change); err != nil {
			return changes, fmt.Errorf("noting what is changed at %s in %s: %w", e.IfName, e.Netns, err)
		}
		changes |= s.change
		done.Push("restoring "+s.what, func() error { return s.restore(e) })
		if err := s.make(e); err != nil {
			return changes, err
		}
	}
	return changes, nil
}

// Restore undoes changes, the last first. What is not as we set it any more is somebody else's, and stays; so it may
// be repeated, and what was noted but not done is no error. It goes on past errors and returns them joined.
func (e *End) Restore(changes Changes) error {
	var all undo.Stack
	for _, s := range settings {
		if changes&s.change != 0 {
			all.Push("restoring "+s.what, func() error { return s.restore(e) })
		}
	}
	return all.Run()
}

// CheckNative returns nil if the pod end is fit for native redirect both ways, else ErrNotPrepared with all that is
// missing.
func (e *End) CheckNative() error { return e.check(e.missingToSend, e.missingToReceive) }

// Sends returns nil if what the pod sends can be redirected in the driver, else ErrNotPrepared with all that is
// missing.
func (e *End) Sends() error { return e.check(e.missingToSend) }

// Receives returns nil if the pod end takes frames that are redirected to it in the driver, else ErrNotPrepared: it
// must poll (rq->napi in veth_xdp_xmit(), drivers/net/veth.c), which GRO or an XDP program in the driver makes it do.
func (e *End) Receives() error { return e.check(e.missingToReceive) }

func (e *End) check(parts ...func() ([]string, error)) error {
	var all []string
	for _, part := range parts {
		missing, err := part()
		if err != nil {
			return err
		}
		all = append(all, missing...)
	}
	if len(all) > 0 {
		return fmt.Errorf("%w (%s in %s): %s", ErrNotPrepared, e.IfName, e.Netns, strings.Join(all, "; "))
	}
	return nil
}

func (e *End) missingToSend() ([]string, error) {
	var missing []string
	for _, s := range []setting{txChecksum, rootQueue} {
		fit, err := s.fit(e)
		if err != nil {
			return nil, err
		}
		if !fit {
			missing = append(missing, s.missing)
		}
	}
	return missing, nil
}

// RunsXDP tells whether the pod end runs an XDP program in the driver, as it is now.
func (e *End) RunsXDP() (bool, error) {
	pod, err := e.Link()
	if err != nil {
		return false, err
	}
	// one on socket buffers (XDP_ATTACHED_SKB) is not the driver's affair
	xdp := pod.Attrs().Xdp
	return xdp != nil && xdp.AttachMode == nl.XDP_ATTACHED_DRV, nil
}

func (e *End) missingToReceive() ([]string, error) {
	runs, err := e.RunsXDP()
	if err != nil || runs {
		return nil, err
	}
	if !e.groPolls {
		return []string{"no XDP program is attached, and on kernels below 5.13 GRO does not do"}, nil
	}
	fit, err := gro.fit(e)
	if err != nil || fit {
		return nil, err
	}
	return []string{gro.missing + " and no XDP program is attached"}, nil
}

// setting is one of the things that native redirect wants at a pod end.
type setting struct {
	change        Changes
	what, missing string
	// fit tells whether it is as wanted.
	fit func(*End) (bool, error)
	// make makes it so.
	make func(*End) error
	// restore undoes make, if it is still as make left it.
	restore func(*End) error
}

// settings in the order in which they are made.
var settings = []setting{txChecksum, gro, rootQueue}

var txChecksum = offload(TxChecksumOff, "tx checksum offload", ethtool.TxChecksum, ethtool.SetTxChecksum, false)

var gro = offload(GROOn, "GRO", ethtool.GRO, ethtool.SetGRO, true)

func offload(change Changes, what string, get func(string) (bool, error), set func(string, bool) error, want bool) setting {
	words := map[bool]string{false: "off", true: "on"}
	fit := func(e *End) (fit bool, err error) {
		err = e.do(func(name string) error {
			on, err := get(name)
			if err != nil {
				return fmt.Errorf("reading %s of %s in %s: %w", what, name, e.Netns, err)
			}
			fit = on == want
			return nil
		})
		return fit, err
	}
	turn := func(e *End, on bool) error {
		return e.do(func(name string) error {
			if err := set(name, on); err != nil {
				return fmt.Errorf("turning %s %s at %s in %s: %w", what, words[on], name, e.Netns, err)
			}
			return nil
		})
	}
	return setting{
		change: change, what: what, missing: what + " is " + words[!want],
		fit:  fit,
		make: func(e *End) error { return turn(e, want) },
		// it was one or the other: if somebody changed it since it is as it was
		restore: func(e *End) error { return turn(e, !want) },
	}
}

var rootQueue = setting{
	change: QueueAdded, what: "the queueing discipline", missing: "no queueing discipline",
	fit: func(e *End) (bool, error) {
		_, root, err := e.root()
		return root != nil && root.Type() != "noqueue", err
	},
	make: func(e *End) error {
		pod, err := e.Link()
		if err != nil {
			return err
		}
		// it takes the place of noqueue, which is no discipline that anybody made; one that somebody made
		// since has a handle, and is in the way (EEXIST)
		err = e.handle.QdiscAdd(queue(pod))
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("adding a pfifo qdisc to %s in %s: %w", pod.Attrs().Name, e.Netns, err)
		}
		return nil
	},
	restore: func(e *End) error {
		pod, root, err := e.root()
		if err != nil || root == nil {
			return err
		}
		ours := queue(pod)
		if root.Type() != ours.Type() || root.Attrs().Handle != ours.Handle {
			return nil
		}
		if err := e.handle.QdiscDel(ours); err != nil {
			return fmt.Errorf("removing the pfifo qdisc of %s in %s: %w", pod.Attrs().Name, e.Netns, err)
		}
		return nil
	},
}

// root returns the pod end and its root queueing discipline: nil while it was never up.
func (e *End) root() (netlink.Link, netlink.Qdisc, error) {
	pod, err := e.Link()
	if err != nil {
		return nil, nil, err
	}
	qdiscs, err := e.handle.QdiscList(pod)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the qdiscs of %s in %s: %w", pod.Attrs().Name, e.Netns, err)
	}
	for _, q := range qdiscs {
		if q.Attrs().Parent == netlink.HANDLE_ROOT {
			return pod, q, nil
		}
	}
	return pod, nil, nil
}
