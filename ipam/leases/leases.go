// Package leases keeps who has which address of a network: in BPF maps pinned under the bpffs
// root, so that leases last exactly as long as pods can, until the node restarts.
//
// The map "leases" is the truth, and an address is taken by one insert into it that fails if it is
// there (BPF_NOEXIST): no two processes can take the same, whatever else goes wrong. The others
// are indexes of it, changed under the network's lock in such an order that a process may be
// killed at any point:
//
//   - owners: an attachment's entry names an address before that is taken, and is removed after
//     they are freed. What it names may be anybody's, and is looked up before it is believed.
//   - taken: an address's bit is set after it is taken and cleared before it is freed. Who finds
//     a free bit for a taken address sets it and goes on.
//
// So a bit too few costs one more insert that fails, and nothing costs more with more leases.
package leases

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/internal/pins"
)

// DefaultLockTimeout is how long an operation waits for others. Each holds the lock for less than
// a millisecond, or for some milliseconds where it has to look at all leases.
const DefaultLockTimeout = 15 * time.Second

// MaxLeases is how many leases a network can have: what the maps may grow to.
const MaxLeases = 1 << 20

var (
	// ErrExhausted: all addresses of a range set are leased.
	ErrExhausted = errors.New("no IP addresses available")
	// ErrFull: the network holds MaxLeases leases.
	ErrFull = errors.New("the lease map is full")
	// ErrTaken: the address is somebody else's.
	ErrTaken = errors.New("not available")
	// ErrReserved: the address must not be handed out, or is in no range.
	ErrReserved = errors.New("cannot be handed out")
	// ErrNotLeased: there is no such lease.
	ErrNotLeased = errors.New("no such lease")
	// ErrLayout: the maps were made by a release that reads them otherwise.
	ErrLayout = errors.New("made by an incompatible release")
	// ErrAlive: the attachment has an interface with the addresses that are leased to it.
	ErrAlive = errors.New("duplicate allocation is not allowed")
	// ErrRemoved: somebody removed the pins while they were in use.
	ErrRemoved = errors.New("the pins were removed meanwhile")
)

// Options say which network's leases, and how to treat them.
type Options struct {
	Root    pins.Root
	Network string
	// LockTimeout limits the wait for the lock; 0: DefaultLockTimeout.
	LockTimeout time.Duration
	// Survey finds out which addresses are in use, before the first is handed out of leases that
	// are new; and again where that decides whether a lease of unknown owner may go.
	Survey func() (Survey, error)
	// Configured returns the addresses that the interfaces of the attachment have, of which one
	// that is leased to it says that it is alive. Asked only for one that has leases; nil: it is not.
	Configured func() (map[netip.Addr]bool, error)
	// Log gets what is worth knowing but no error; nil: nothing is logged.
	Log *slog.Logger
	// Entries is how many leases new maps are made for. They grow.
	Entries uint32
	// Most is the limit of growth; 0: MaxLeases.
	Most uint32
	// BeforeStep is called with a name before each change. For tests of what is left when the
	// process ends there.
	BeforeStep func(step string)
}

// Survey is which addresses are in use, by other knowledge than that of the leases.
type Survey struct {
	// Attachments have these addresses in the network, by what the chained plugin noted.
	Attachments []Lease
	// InUse are the addresses that interfaces of pods have, of whatever network.
	InUse map[netip.Addr]bool
}

// Store is the leases of one network, with the network's lock held.
type Store struct {
	Options
	dir                   string
	lock                  *pins.Lock
	leases, owners, taken table
	stateMap              *ebpf.Map
	state                 state
	entries               uint32 // that new maps are made for
}

// Open takes the network's lock, makes its maps if need be, and repairs what was lost of them.
// It fails with pins.ErrBusy if others hold the lock for too long. Close releases it.
func Open(ctx context.Context, o Options) (*Store, error) { return open(ctx, o, true) }

// OpenExisting is Open without making anything: fs.ErrNotExist if the network has no leases.
func OpenExisting(ctx context.Context, o Options) (*Store, error) { return open(ctx, o, false) }

func open(ctx context.Context, o Options, make bool) (_ *Store, err error) {
	if o.LockTimeout == 0 {
		o.LockTimeout = DefaultLockTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Most == 0 {
		o.Most = MaxLeases
	}
	ctx, cancel := context.WithTimeout(ctx, o.LockTimeout)
	defer cancel()
	s := &Store{
		Options: o, dir: o.Root.Leases(o.Network), entries: min(max(o.Entries, 1), o.Most),
		leases: table{name: pinLeases}, owners: table{name: pinOwners}, taken: table{name: pinTaken},
	}
	if make {
		err = s.makeDir(ctx)
	} else {
		s.lock, err = pins.LockDir(ctx, s.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the leases of network %s: %w", o.Network, err)
	}
	if err := s.openMaps(); err != nil {
		s.Close()
		return nil, fmt.Errorf("opening the leases of network %s: %w", o.Network, err)
	}
	return s, nil
}

// makeDir makes and locks the network's directory, and mounts a bpffs if there is none.
func (s *Store) makeDir(ctx context.Context) error {
	for {
		lock, err := pins.LockDir(ctx, s.dir)
		if err == nil {
			s.lock = lock
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := s.Root.Mount(ctx); err != nil {
			return err
		}
		// the chained plugin removes empty directories under the same lock
		rootLock, err := s.Root.Lock(ctx)
		if err != nil {
			return err
		}
		err = os.MkdirAll(s.dir, 0o700)
		rootLock.Unlock()
		if err != nil {
			return fmt.Errorf("making the network's directory: %w", err)
		}
	}
}

// Close releases the lock and the maps. What was done is there to stay.
func (s *Store) Close() {
	for _, m := range []*ebpf.Map{s.leases.Map, s.owners.Map, s.taken.Map, s.stateMap} {
		_ = m.Close() // nil is none
	}
	s.lock.Unlock()
}

func (s *Store) pin(name string) string { return filepath.Join(s.dir, name) }

func (s *Store) step(name string) {
	if s.BeforeStep != nil {
		s.BeforeStep(name)
	}
}

// stillThere returns ErrRemoved if the directory whose lock is held is no longer the network's, or
// has the leases no longer: with the lock held nobody else pins others in their place.
func (s *Store) stillThere() error {
	if _, err := os.Lstat(s.pin(pinLeases)); err != nil || !s.lock.Holds(s.dir) {
		return fmt.Errorf("leases of network %s: %w", s.Network, ErrRemoved)
	}
	return nil
}
