package leases

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/cni/pkg/types"
)

// Held returns the addresses that are leased to an attachment, by the owners' index.
func (s *Store) Held(o Owner) ([]netip.Addr, error) { return s.held(o) }

func (s *Store) held(o Owner) ([]netip.Addr, error) { return held(s.owners.Map, s.leases.Map, o) }

func held(owners, leases *ebpf.Map, o Owner) ([]netip.Addr, error) {
	who, err := o.encode()
	if err != nil {
		return nil, err
	}
	var h holding
	err = owners.Lookup(&who, &h)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the map %s: %w", pinOwners, err)
	}
	var list []netip.Addr
	for _, a := range h.list() {
		l, err := lookup(leases, a)
		if err != nil && !errors.Is(err, ErrNotLeased) {
			return nil, err
		}
		if err == nil && l.Owner == o {
			list = append(list, a)
		}
	}
	return list, nil
}

// free ends the leases of these addresses, those of them that are the owner's.
func (s *Store) free(o Owner, list []netip.Addr) error {
	for _, a := range list {
		l, err := s.lookup(a)
		if errors.Is(err, ErrNotLeased) || err == nil && l.Owner != o {
			continue
		}
		if err != nil {
			return err
		}
		if err := s.mark(a, false); err != nil {
			return err
		}
		if err := s.remove(&s.leases, keyOf(a)); err != nil {
			return err
		}
	}
	return nil
}

// hold notes in the index what the owner has.
func (s *Store) hold(who owner, list []netip.Addr) error {
	if len(list) == 0 {
		return s.remove(&s.owners, &who)
	}
	h, err := holdingOf(list, time.Now())
	if err != nil {
		return err
	}
	return s.put(&s.owners, &who, h, ebpf.UpdateAny)
}

// Release frees what is leased to an attachment and returns it. All leases are looked through only
// while the index may not know of some: a process that was killed in a survey has left it behind.
func (s *Store) Release(o Owner) ([]netip.Addr, error) {
	who, err := o.encode()
	if err != nil {
		return nil, nil // what cannot be noted has nothing
	}
	list, err := s.held(o)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 && s.state.Surveyed == 0 {
		err := each(s.leases.Map, func(k key, l lease) error {
			if l.Owner == who {
				list = append(list, k.addr())
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if err := s.free(o, list); err != nil {
		return nil, err
	}
	return list, s.hold(who, nil)
}

// ReleaseAddress frees one address, whoever has it, and returns its lease: ErrNotLeased if it has
// none.
func (s *Store) ReleaseAddress(a netip.Addr) (Lease, error) {
	l, err := s.lookup(a)
	if err != nil {
		return Lease{}, err
	}
	if err := s.free(l.Owner, []netip.Addr{a}); err != nil || !l.Owner.Known() {
		return l, err
	}
	rest, err := s.held(l.Owner)
	if err != nil {
		return l, err
	}
	who, err := l.Owner.encode()
	if err != nil {
		return l, err
	}
	return l, s.hold(who, rest)
}

// Collect does what CNI's GC asks for with the leases of a network: it frees those of all attachments
// that are not valid, and returns what it freed. valid is nil, not empty, where the runtime gave no
// list of them. A network without leases is no error.
func Collect(ctx context.Context, o Options, valid *[]types.GCAttachment) ([]Lease, error) {
	s, err := OpenExisting(ctx, o)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if valid == nil {
		return s.Collect(nil)
	}
	owners := []Owner{}
	for _, a := range *valid {
		owners = append(owners, Owner{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	return s.Collect(&owners)
}

// Collect frees the leases of all attachments but the valid ones, and those of unknown owner whose
// address no interface has. If valid is nil nothing is known of who lives, and only the latter go.
// It goes on past errors, and returns what it freed.
func (s *Store) Collect(valid *[]Owner) ([]Lease, error) {
	var (
		stale []Lease
		over  []owner // in the index
	)
	if valid != nil {
		lives := map[Owner]bool{}
		for _, o := range *valid {
			lives[o] = true
		}
		err := each(s.leases.Map, func(k key, l lease) error {
			if o := l.Owner.decode(); o.Known() && !lives[o] {
				stale = append(stale, l.lease(k.addr()))
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		err = each(s.owners.Map, func(o owner, _ holding) error {
			if !lives[o.decode()] {
				over = append(over, o)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	var (
		freed []Lease
		errs  []error
	)
	for _, l := range stale {
		if _, err := s.ReleaseAddress(l.Address); err != nil {
			errs = append(errs, err)
		} else {
			freed = append(freed, l)
		}
	}
	for _, o := range over {
		// what a killed process meant to take and did not
		if rest, err := s.held(o.decode()); err != nil {
			errs = append(errs, err)
		} else if len(rest) == 0 {
			errs = append(errs, s.hold(o, nil))
		}
	}
	unknown, err := s.FreeUnknown(nil)
	return append(freed, unknown...), errors.Join(append(errs, err)...)
}

// FreeUnknown frees leases of unknown owner whose address no interface has: of these addresses,
// or if it is nil of all. It returns what it freed.
func (s *Store) FreeUnknown(list []netip.Addr) ([]Lease, error) {
	unknown, err := s.unknown(list)
	if err != nil || len(unknown) == 0 || s.Survey == nil {
		return nil, err
	}
	found, err := s.Survey()
	if err != nil {
		return nil, fmt.Errorf("finding out which addresses of network %s are in use: %w", s.Network, err)
	}
	var freed []Lease
	for _, l := range unknown {
		noted := slices.ContainsFunc(found.Attachments, func(n Lease) bool { return n.Address == l.Address })
		if noted || found.InUse[l.Address] {
			continue
		}
		if err := s.free(Owner{}, []netip.Addr{l.Address}); err != nil {
			return freed, err
		}
		freed = append(freed, l)
	}
	return freed, nil
}

// unknown lists the leases of unknown owner: of these addresses, or if it is nil of all.
func (s *Store) unknown(list []netip.Addr) ([]Lease, error) {
	var unknown []Lease
	if list == nil {
		err := each(s.leases.Map, func(k key, l lease) error {
			if l.Owner == (owner{}) {
				unknown = append(unknown, l.lease(k.addr()))
			}
			return nil
		})
		return unknown, err
	}
	for _, a := range list {
		l, err := s.lookup(a)
		switch {
		case errors.Is(err, ErrNotLeased):
		case err != nil:
			return nil, err
		case !l.Owner.Known():
			unknown = append(unknown, l)
		}
	}
	return unknown, nil
}

// Import makes leases that another plugin noted, beside those there are, and returns those that
// are new. Leases of unknown owner become their owner's. An address that is leased to somebody
// else stays that: it goes on, and returns ErrTaken for each.
func (s *Store) Import(list []Lease) ([]Lease, error) {
	var (
		made []Lease
		errs []error
	)
	for _, l := range list {
		have, err := s.lookup(l.Address)
		if err == nil && have.Owner == l.Owner {
			continue
		}
		if err := s.importOne(l); err != nil {
			errs = append(errs, fmt.Errorf("importing the lease of container %s: %w", l.Owner.ContainerID, err))
			continue
		}
		made = append(made, l)
	}
	return made, errors.Join(errs...)
}

func (s *Store) importOne(l Lease) error {
	who, err := l.Owner.encode()
	if err != nil {
		return err
	}
	has, err := s.held(l.Owner)
	if err != nil {
		return err
	}
	if err := s.hold(who, append(slices.Clone(has), l.Address)); err != nil {
		return err
	}
	if err := s.enter(l); err != nil {
		return errors.Join(err, s.hold(who, has))
	}
	return s.mark(l.Address, true)
}

// SetLast notes which address of a set was handed out last, if none is noted yet.
func (s *Store) SetLast(set int, a netip.Addr) error {
	if set < 0 || set >= len(s.state.Last) || s.state.Last[set] != (key{}) {
		return nil
	}
	s.state.Last[set] = keyOf(a)
	return s.writeState()
}
