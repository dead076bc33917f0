package leases

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/ipam/addrs"
)

// View reads the leases of one network, without a lock: what changes meanwhile may be missing or
// be there already.
type View struct {
	// Network is its name.
	Network string
	// Sets are the ranges as configured with the last ADD; none before the first.
	Sets []addrs.Set

	last                  [16]key
	leases, owners, taken *ebpf.Map
}

// NewView opens a network's leases for reading: fs.ErrNotExist if it has none.
func NewView(root pins.Root, network string) (*View, error) { return newView(root.Leases(network)) }

// Views opens the leases of all networks there are. It goes on past those that cannot be opened.
func Views(root pins.Root) ([]*View, error) {
	dirs, err := root.LeaseDirs()
	if err != nil {
		return nil, err
	}
	var (
		views []*View
		errs  []error
	)
	for _, dir := range dirs {
		v, err := newView(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // being made
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		views = append(views, v)
	}
	return views, errors.Join(errs...)
}

func newView(dir string) (_ *View, err error) {
	v := &View{}
	defer func() {
		if err != nil {
			v.Close()
		}
	}()
	var stateMap *ebpf.Map
	for _, pin := range []struct {
		name string
		to   **ebpf.Map
	}{{pinState, &stateMap}, {pinLeases, &v.leases}, {pinOwners, &v.owners}, {pinTaken, &v.taken}} {
		path := filepath.Join(dir, pin.name)
		if *pin.to, err = ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true}); err != nil {
			return nil, fmt.Errorf("opening %s: %w", path, err)
		}
	}
	defer stateMap.Close()
	var s state
	if err := stateMap.Lookup(uint32(0), &s); err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(dir, pinState), err)
	}
	if s.Version != layoutVersion {
		return nil, fmt.Errorf("reading %s: %w: version %d, want %d", dir, ErrLayout, s.Version, layoutVersion)
	}
	v.Network, v.Sets, v.last = cString(s.Network[:]), s.sets(), s.Last
	return v, nil
}

// Close closes the maps.
func (v *View) Close() {
	for _, m := range []*ebpf.Map{v.leases, v.owners, v.taken} {
		_ = m.Close() // nil is none
	}
}

// Leases lists all leases, sorted by address.
func (v *View) Leases() ([]Lease, error) {
	var list []Lease
	err := each(v.leases, func(k key, l lease) error {
		list = append(list, l.lease(k.addr()))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("leases of network %s: %w", v.Network, err)
	}
	slices.SortFunc(list, func(a, b Lease) int { return cmp.Or(a.Address.Compare(b.Address)) })
	return list, nil
}

// Lookup returns the lease of an address: ErrNotLeased if there is none.
func (v *View) Lookup(a netip.Addr) (Lease, error) { return lookup(v.leases, a) }

// Conflict is an address that an attachment has and that is leased to another one, or to nobody: the
// zero Owner.
type Conflict struct {
	Network string
	Address netip.Addr
	Owner   Owner
}

// String says whose the address is.
func (c Conflict) String() string {
	if !c.Owner.Known() {
		return fmt.Sprintf("leased to nobody in network %s", c.Network)
	}
	return fmt.Sprintf("leased to container %s, interface %s in network %s", c.Owner.ContainerID, c.Owner.IfName, c.Network)
}

// NotLeased returns which of an attachment's addresses are not leased to it, as far as they are of
// the ranges: others are another IPAM plugin's. A lease of unknown owner may be its.
func (v *View) NotLeased(o Owner, list []netip.Addr) ([]Conflict, error) {
	var wrong []Conflict
	for _, a := range list {
		if !slices.ContainsFunc(v.Sets, func(set addrs.Set) bool { _, in := set.RangeOf(a); return in }) {
			continue
		}
		l, err := v.Lookup(a)
		switch {
		case errors.Is(err, ErrNotLeased):
			wrong = append(wrong, Conflict{Network: v.Network, Address: a})
		case err != nil:
			return wrong, err
		case l.Owner.Known() && l.Owner != o:
			wrong = append(wrong, Conflict{v.Network, a, l.Owner})
		}
	}
	return wrong, nil
}

// Held returns the addresses that are leased to an attachment.
func (v *View) Held(o Owner) ([]netip.Addr, error) { return held(v.owners, v.leases, o) }

// Last returns the address of a set that was handed out last; the zero Addr if none was.
func (v *View) Last(set int) netip.Addr {
	if set >= len(v.last) || v.last[set] == (key{}) {
		return netip.Addr{}
	}
	return v.last[set].addr()
}

// Used counts the leases in each of the sets, in no more time for many than for few.
func (v *View) Used(sets []addrs.Set) ([]uint64, error) {
	used := make([]uint64, len(sets))
	err := each(v.taken, func(base key, b addrs.Block) error {
		for i, set := range sets {
			used[i] += b.CountIn(base, set)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("leases of network %s: %w", v.Network, err)
	}
	return used, nil
}

// Room returns nil if each of the sets has an address to hand out, as far as the index knows, else
// ErrExhausted or ErrFull.
func (v *View) Room(sets []addrs.Set) error {
	used, err := v.Used(sets)
	if err != nil {
		return err
	}
	var all uint64
	for i, set := range sets {
		if used[i] >= set.Usable() {
			return fmt.Errorf("%w in range set: %s", ErrExhausted, set)
		}
		all += used[i]
	}
	if all+uint64(len(sets)) > MaxLeases {
		return fmt.Errorf("network %s has %d leases: %w", v.Network, all, ErrFull)
	}
	return nil
}

// EntriesFor returns how many entries new maps of a network of these sets are made for: as many as
// there can be leases, within limits; beyond them the maps grow.
func EntriesFor(sets []addrs.Set) uint32 {
	const least, most = 1 << 8, 1 << 16
	attachments := uint64(math.MaxUint64)
	for _, set := range sets {
		attachments = min(attachments, set.Usable())
	}
	if len(sets) == 0 {
		return least // the configuration is not known
	}
	if attachments > most {
		return most
	}
	return uint32(min(max(attachments*uint64(len(sets)), least), most))
}
