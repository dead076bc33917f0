package leases

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/ipam/addrs"
)

func binarySize(v any) int { return binary.Size(v) }

// openMaps opens the maps and makes anew what is missing. Leases that are missing are made of the
// owners' index, which has all of them, and are surveyed again before an address is handed out.
func (s *Store) openMaps() error {
	if err := s.openState(); err != nil {
		return err
	}
	var err error
	indexed := true
	if s.leases.Map, err = s.load(pinLeases); errors.Is(err, fs.ErrNotExist) {
		indexed = false
		err = s.makeLeases()
	}
	if err != nil {
		return err
	}
	for _, t := range []*table{&s.owners, &s.taken} {
		if t.Map, err = s.load(t.name); errors.Is(err, fs.ErrNotExist) {
			indexed = false
		} else if err != nil {
			return err
		}
	}
	if !indexed {
		return s.index()
	}
	return nil
}

func (s *Store) openState() error {
	var err error
	if s.stateMap, err = s.load(pinState); err == nil {
		if err := s.stateMap.Lookup(uint32(0), &s.state); err != nil {
			return fmt.Errorf("reading %s: %w", s.pin(pinState), err)
		}
		if s.state.Version != layoutVersion {
			return fmt.Errorf("reading %s: %w: version %d, want %d", s.pin(pinState), ErrLayout, s.state.Version, layoutVersion)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if s.stateMap, err = s.newMap(pinState, 1); err != nil {
		return err
	}
	s.state = state{Version: layoutVersion}
	if copy(s.state.Network[:len(s.state.Network)-1], s.Network) < len(s.Network) {
		return fmt.Errorf("the network's name %q is longer than %d bytes", s.Network, len(s.state.Network)-1)
	}
	if err := s.writeState(); err != nil {
		return err
	}
	return s.publish(s.stateMap, pinState)
}

func (s *Store) writeState() error {
	s.step("change " + pinState)
	if err := s.stateMap.Put(uint32(0), &s.state); err != nil {
		return fmt.Errorf("changing the state of network %s: %w", s.Network, err)
	}
	return nil
}

func (s *Store) makeLeases() error {
	s.state.Surveyed = 0
	if err := s.writeState(); err != nil {
		return err
	}
	m, err := s.newMap(pinLeases, s.entries)
	if err != nil {
		return err
	}
	s.leases.Map = m
	owners, err := s.load(pinOwners)
	if errors.Is(err, fs.ErrNotExist) {
		return s.publish(m, pinLeases)
	}
	if err != nil {
		return err
	}
	defer owners.Close()
	all := map[key]lease{}
	err = each(owners, func(o owner, h holding) error {
		for _, a := range h.list() {
			l := lease{Time: h.Time, Owner: o}
			if _, conflict := all[keyOf(a)]; conflict {
				l.Owner = owner{} // one of them only meant to take it: neither may free it
			}
			all[keyOf(a)] = l
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(all) > 0 {
		s.Log.Warn("the map of leases was lost, and is made anew of the owners' index", "leases", len(all))
		_ = m.Close()
		if s.leases.Map, err = s.newMap(pinLeases, min(max(s.entries, 2*uint32(len(all))), s.Most)); err != nil {
			return err
		}
	}
	for k, l := range all {
		if err := retried(func() error { return s.leases.Put(k, &l) }); err != nil {
			return fmt.Errorf("making the leases anew: %w", err)
		}
	}
	return s.publish(s.leases.Map, pinLeases)
}

// index makes the indexes anew, of all leases.
func (s *Store) index() error {
	holdings := map[owner]*holding{}
	blocks := map[key]*addrs.Block{}
	err := each(s.leases.Map, func(k key, l lease) error {
		base, bit := addrs.BlockOf(k.addr())
		if blocks[base] == nil {
			blocks[base] = &addrs.Block{}
		}
		blocks[base].Set(bit)
		if l.Owner == (owner{}) {
			return nil
		}
		h := holdings[l.Owner]
		if h == nil {
			h = &holding{Time: l.Time}
			holdings[l.Owner] = h
		}
		if int(h.Count) < len(h.Addresses) {
			h.Addresses[h.Count] = k
			h.Count++
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := reindex(s, &s.owners, holdings, s.leases.MaxEntries()); err != nil {
		return err
	}
	// where leases lie close together, a few blocks have all of them
	return reindex(s, &s.taken, blocks, s.leases.MaxEntries()/(addrs.BlockSize/16))
}

// reindex puts a map of these entries in a table's place, with room for so many.
func reindex[K comparable, V any](s *Store, t *table, entries map[K]*V, room uint32) error {
	m, err := s.newMap(t.name, min(max(room, uint32(len(entries)), 1), s.Most))
	if err != nil {
		return err
	}
	for k, v := range entries {
		if err = retried(func() error { return m.Put(&k, v) }); err != nil {
			err = fmt.Errorf("indexing the leases: %w", err)
			break
		}
	}
	if err == nil {
		err = s.publish(m, t.name)
	}
	if err != nil {
		_ = m.Close()
		return err
	}
	_ = t.Close() // nil is none
	t.Map = m
	return nil
}

// survey enters the addresses that are in use though no lease says so: those of attachments that
// the chained plugin knows under their name, others of the sets under none. It does so once in the
// life of the map of leases: later all addresses in use have come from it.
func (s *Store) survey(sets []addrs.Set) error {
	if s.state.Surveyed != 0 || s.Survey == nil {
		return nil
	}
	found, err := s.Survey()
	if err != nil {
		return fmt.Errorf("finding out which addresses of network %s are in use: %w", s.Network, err)
	}
	for _, l := range found.Attachments {
		err := s.enter(l)
		if errors.Is(err, ErrTaken) {
			s.Log.Warn("an attachment has an address that is leased to another one", "address", l.Address, "containerID", l.Owner.ContainerID)
		} else if err != nil {
			return err
		}
	}
	for a := range found.InUse {
		inSets := slices.ContainsFunc(sets, func(set addrs.Set) bool {
			_, in := set.RangeOf(a)
			return in && set.Reserved(a) == ""
		})
		if !inSets {
			continue
		}
		err := s.put(&s.leases, keyOf(a), &lease{Time: uint64(time.Now().UnixNano())}, ebpf.UpdateNoExist)
		if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return err
		}
	}
	if err := s.index(); err != nil {
		return err
	}
	s.state.Surveyed = 1
	return s.writeState()
}

// enter makes a lease that somebody says there is: ErrTaken if another owner is known to have it.
func (s *Store) enter(l Lease) error {
	o, err := l.Owner.encode()
	if err != nil {
		return err
	}
	v := &lease{Time: uint64(l.Time.UnixNano()), Owner: o}
	err = s.put(&s.leases, keyOf(l.Address), v, ebpf.UpdateNoExist)
	if !errors.Is(err, ebpf.ErrKeyExist) {
		return err
	}
	have, err := s.lookup(l.Address)
	switch {
	case err != nil:
		return err
	case have.Owner == l.Owner:
		return nil
	case have.Owner.Known():
		return fmt.Errorf("%s is leased to container %s, interface %s: %w", l.Address, have.Owner.ContainerID, have.Owner.IfName, ErrTaken)
	}
	return s.put(&s.leases, keyOf(l.Address), v, ebpf.UpdateAny)
}

// lookup returns the lease of an address: ErrNotLeased if there is none.
func (s *Store) lookup(a netip.Addr) (Lease, error) { return lookup(s.leases.Map, a) }

func lookup(leases *ebpf.Map, a netip.Addr) (Lease, error) {
	var v lease
	err := leases.Lookup(keyOf(a), &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return Lease{}, fmt.Errorf("%s: %w", a, ErrNotLeased)
	}
	if err != nil {
		return Lease{}, fmt.Errorf("reading the lease of %s: %w", a, err)
	}
	return v.lease(a), nil
}

func (v *lease) lease(a netip.Addr) Lease {
	return Lease{Address: a, Owner: v.Owner.decode(), Time: time.Unix(0, int64(v.Time))}
}
