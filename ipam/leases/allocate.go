package leases

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/ipam/addrs"
)

// Allocation is an address that was handed out, and the range that it is of.
type Allocation struct {
	Address netip.Addr
	Range   addrs.Range
}

// Allocate leases one address of each set to the owner: those requested where the set has one,
// else what it has already, else the next that is free, round robin. Addresses that it has beside
// these are freed. If it fails, the owner has no address that it had not before.
//
// An attachment that is alive keeps what it has: main plugins that ask for addresses before they
// find its interface (ptp) free them when they fail, had they been given any.
//
// Errors are ErrExhausted, ErrTaken, ErrReserved, ErrFull, ErrAlive and ErrRemoved, in host-local's
// words.
func (s *Store) Allocate(owner Owner, sets []addrs.Set, requested []netip.Addr) (_ []Allocation, err error) {
	who, err := owner.encode()
	if err != nil {
		return nil, err
	}
	want, err := assign(sets, requested)
	if err != nil {
		return nil, err
	}
	if err := s.survey(sets); err != nil {
		return nil, err
	}
	held, err := s.held(owner)
	if err != nil {
		return nil, err
	}
	if err := s.checkNotAlive(owner, held); err != nil {
		return nil, err
	}
	result, stale := keep(sets, want, held)
	if err := s.free(owner, stale); err != nil {
		return nil, err
	}
	before, kept := s.state, addresses(result)
	s.state.setRanges(sets)
	var fresh []netip.Addr
	defer func() {
		if err == nil {
			return
		}
		if freeErr := s.free(owner, fresh); freeErr != nil {
			err = errors.Join(err, freeErr) // and the index goes on naming them
		} else {
			err = errors.Join(err, s.hold(who, kept))
		}
		if s.state != before {
			// what was given out last stays noted: it is not to come again at once
			err = errors.Join(err, s.writeState())
		}
	}()
	for i, set := range sets {
		if result[i].Address.IsValid() {
			continue
		}
		a, err := s.take(who, i, set, want[i], addresses(result))
		if err != nil {
			return nil, fmt.Errorf("failed to allocate for range %d: %w", i, err)
		}
		fresh = append(fresh, a)
		r, _ := set.RangeOf(a)
		result[i] = Allocation{a, r}
		s.state.Last[i] = keyOf(a)
	}
	if s.state != before {
		if err := s.writeState(); err != nil {
			return nil, err
		}
	}
	return result, s.stillThere()
}

// checkNotAlive returns ErrAlive if an interface of the owner has an address that is leased to it.
func (s *Store) checkNotAlive(owner Owner, held []netip.Addr) error {
	if len(held) == 0 || s.Configured == nil {
		return nil
	}
	has, err := s.Configured()
	if err != nil {
		return fmt.Errorf("finding out whether container %s has its addresses already: %w", owner.ContainerID, err)
	}
	for _, a := range held {
		if has[a] {
			return fmt.Errorf("%s has been allocated to %s, whose interface has it: %w", a, owner.ContainerID, ErrAlive)
		}
	}
	return nil
}

// assign finds the set that each requested address is of, one for each set.
func assign(sets []addrs.Set, requested []netip.Addr) ([]netip.Addr, error) {
	want := make([]netip.Addr, len(sets))
	rest := slices.Clone(requested)
	for i, set := range sets {
		at := slices.IndexFunc(rest, func(a netip.Addr) bool { _, in := set.RangeOf(a); return in })
		if at < 0 {
			continue
		}
		want[i] = rest[at]
		rest = slices.Delete(rest, at, at+1)
		if what := set.Reserved(want[i]); what != "" {
			return nil, fmt.Errorf("failed to allocate for range %d: requested ip %s is subnet's %s: %w", i, want[i], what, ErrReserved)
		}
	}
	if len(rest) > 0 {
		var list, ranges []string
		for _, a := range rest {
			list = append(list, a.String())
		}
		for _, set := range sets {
			ranges = append(ranges, set.String())
		}
		return nil, fmt.Errorf("failed to allocate all requested IPs: %s: %w: a second one of a range set, or in none of %s",
			strings.Join(list, " "), ErrReserved, strings.Join(ranges, " "))
	}
	return want, nil
}

// keep divides what an attachment has into what it keeps, by set, and what goes.
func keep(sets []addrs.Set, want, held []netip.Addr) (result []Allocation, stale []netip.Addr) {
	result = make([]Allocation, len(sets))
	for _, a := range held {
		i := slices.IndexFunc(sets, func(set addrs.Set) bool { _, in := set.RangeOf(a); return in })
		if i < 0 || result[i].Address.IsValid() || want[i].IsValid() && want[i] != a || sets[i].Reserved(a) != "" {
			stale = append(stale, a)
			continue
		}
		r, _ := sets[i].RangeOf(a)
		result[i] = Allocation{a, r}
	}
	return result, stale
}

func addresses(result []Allocation) []netip.Addr {
	var list []netip.Addr
	for _, r := range result {
		if r.Address.IsValid() {
			list = append(list, r.Address)
		}
	}
	return list
}

// take leases an address of the set: want, or if that is none the next that is free. has are the
// owner's other addresses.
func (s *Store) take(who owner, i int, set addrs.Set, want netip.Addr, has []netip.Addr) (netip.Addr, error) {
	if want.IsValid() {
		taken, err := s.tryTake(who, want, has)
		if err == nil && !taken {
			err = fmt.Errorf("requested IP address %s is not available in range set %s: %w", want, set, s.takenBy(want))
		}
		return want, err
	}
	a, err := s.takeNext(who, set, s.state.Last[i].addr(), has)
	if err == nil && !a.IsValid() {
		// before saying so, be sure: the index may be behind, and leases without owner be over
		if _, err = s.FreeUnknown(nil); err == nil {
			err = s.index()
		}
		if err == nil {
			a, err = s.takeNext(who, set, s.state.Last[i].addr(), has)
		}
	}
	if err == nil && !a.IsValid() {
		err = fmt.Errorf("%w in range set: %s", ErrExhausted, set)
	}
	return a, err
}

func (s *Store) takenBy(a netip.Addr) error {
	l, err := s.lookup(a)
	if err != nil || !l.Owner.Known() {
		return ErrTaken
	}
	return fmt.Errorf("%w: leased to container %s, interface %s", ErrTaken, l.Owner.ContainerID, l.Owner.IfName)
}

// takeNext takes the first address after last that is free; the zero Addr if there is none.
func (s *Store) takeNext(who owner, set addrs.Set, last netip.Addr, has []netip.Addr) (netip.Addr, error) {
	for _, span := range set.SpansAfter(last) {
		for first := span.First; ; {
			end := addrs.EndOfBlock(first)
			if span.Last.Less(end) {
				end = span.Last
			}
			a, err := s.takeInBlock(who, set, first, end, has)
			if err != nil || a.IsValid() {
				return a, err
			}
			if end == span.Last {
				break
			}
			first = end.Next()
		}
	}
	return netip.Addr{}, nil
}

// takeInBlock takes the first free address of those from first to last, which are of one block.
func (s *Store) takeInBlock(who owner, set addrs.Set, first, last netip.Addr, has []netip.Addr) (netip.Addr, error) {
	base, from := addrs.BlockOf(first)
	_, to := addrs.BlockOf(last)
	taken, err := s.block(base)
	if err != nil {
		return netip.Addr{}, err
	}
	for bit := taken.NextClear(from, to); bit >= 0; bit = taken.NextClear(bit+1, to) {
		a := addrs.At(base, bit)
		if set.Reserved(a) != "" {
			continue
		}
		if ok, err := s.tryTake(who, a, has); ok || err != nil {
			return a, err
		}
	}
	return netip.Addr{}, nil
}

// tryTake takes an address unless it is taken, and indexes it in any case.
func (s *Store) tryTake(who owner, a netip.Addr, has []netip.Addr) (bool, error) {
	now := time.Now()
	h, err := holdingOf(append(slices.Clone(has), a), now)
	if err != nil {
		return false, err
	}
	if err := s.put(&s.owners, &who, h, ebpf.UpdateAny); err != nil {
		return false, err
	}
	err = s.put(&s.leases, keyOf(a), &lease{Time: uint64(now.UnixNano()), Owner: who}, ebpf.UpdateNoExist)
	exists := errors.Is(err, ebpf.ErrKeyExist)
	if err != nil && !exists {
		return false, err
	}
	return !exists, s.mark(a, true)
}

func (s *Store) block(base key) (*addrs.Block, error) {
	var b addrs.Block
	if err := s.taken.Lookup(base, &b); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, fmt.Errorf("reading the map %s of network %s: %w", pinTaken, s.Network, err)
	}
	return &b, nil
}

// mark notes in the index that an address is taken, or not.
func (s *Store) mark(a netip.Addr, taken bool) error {
	base, bit := addrs.BlockOf(a)
	b, err := s.block(base)
	if err != nil || b.Has(bit) == taken {
		return err
	}
	if taken {
		b.Set(bit)
	} else {
		b.Clear(bit)
	}
	if b.Empty() {
		return s.remove(&s.taken, key(base))
	}
	return s.put(&s.taken, key(base), b, ebpf.UpdateAny)
}
