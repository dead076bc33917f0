// Package datapath makes, checks, reads and takes down what the kernel holds for each attachment:
// per-pod maps, the hooks on the host end, and the programs and maps that all attachments share.
// The kernel and the pins are its whole state.
package datapath

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
)

// DefaultLockTimeout is how long an operation waits for another one's lock. Under it a lock is
// held for a few milliseconds, for 100 or so when the programs are loaded.
const DefaultLockTimeout = 15 * time.Second

var (
	// ErrNotFound: there is no such attachment.
	ErrNotFound = errors.New("no such attachment")
	// ErrForeignProgram: the interface carries an XDP program that is not ours.
	ErrForeignProgram = errors.New("the interface carries another XDP program")
	// ErrUnsupported: the kernel or the interface cannot do what is asked.
	ErrUnsupported = errors.New("not supported here")
	// ErrFull: the node holds as many attachments as it can.
	ErrFull = errors.New("the node is full")
	// ErrPrivileges: the process lacks a capability.
	ErrPrivileges = errors.New("missing capabilities")
	// ErrCheck: an attachment is not as it was made.
	ErrCheck = errors.New("the attachment is not intact")
	// ErrOtherNetns: the pins belong to another network namespace's interfaces.
	ErrOtherNetns = errors.New("in use by another network namespace")
	// ErrLayout: the pins were made by a release that reads them otherwise.
	ErrLayout = errors.New("made by an incompatible release")
	// ErrDamaged: pins that belong together are not all there.
	ErrDamaged = errors.New("pins are missing")
)

// Options are what a Datapath works with.
type Options struct {
	// Root is where everything is pinned.
	Root pins.Root
	// Features of the kernel; nil: probed when needed.
	Features *Features
	// Version of the release, noted in what it makes.
	Version string
	// LockTimeout limits the wait for locks in one operation; 0: DefaultLockTimeout.
	LockTimeout time.Duration
	// Log gets what is worth knowing but no error; nil: nothing is logged.
	Log *slog.Logger
	// BeforeStep is called with the name of each step of Attach and ReplacePolicy before it is done; an
	// error fails the step. For tests of what a failure at each step leaves behind.
	BeforeStep func(step string) error
	// PodsGoOn: pods of which attachments are taken down go on, and lose no packet by it: the queueing discipline that
	// native redirect has given their ends stays. Taking it away, like adding it, deactivates the interface for a moment,
	// in which the kernel drops what is sent (qdisc_graft() in net/sched/sch_api.c, noop_qdisc).
	PodsGoOn bool
}

// Datapath is the way to one node's attachments. It holds nothing open between calls.
type Datapath struct {
	Options
	// spec reads the object, once; nobody changes what it returns
	spec func() (*ebpf.CollectionSpec, error)
}

// New returns a Datapath.
func New(opts Options) *Datapath {
	if opts.LockTimeout == 0 {
		opts.LockTimeout = DefaultLockTimeout
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Datapath{opts, sync.OnceValues(bpf.LoadDatapath)}
}

// Prepare begins, beside the caller, with what Attach will need and what takes a few milliseconds: reading
// the object. It need not be called.
func (d *Datapath) Prepare() { go func() { _, _ = d.spec() }() }

// limited returns the context of one operation: when it ends, locks are no longer waited for.
func (d *Datapath) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, d.LockTimeout)
}

// locked runs fn under the node's lock.
func (d *Datapath) locked(ctx context.Context, fn func() error) error {
	lock, err := d.Root.Lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	return fn()
}

// locker runs a function under the node's lock.
type locker func(func() error) error

// locker takes the lock for each function.
func (d *Datapath) locker(ctx context.Context) locker {
	return func(fn func() error) error { return d.locked(ctx, fn) }
}

// lockHeld is for those that hold the lock.
func lockHeld(fn func() error) error { return fn() }

// before announces a step.
func (d *Datapath) before(step string) error {
	if d.BeforeStep == nil {
		return nil
	}
	return d.BeforeStep(step)
}

// tryLockDir locks the directory of an attachment or of a shared program if nobody else does, else returns pins.ErrBusy.
func tryLockDir(dir string) (*pins.Lock, error) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return pins.LockDir(ctx, dir)
}
