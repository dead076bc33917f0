package prefixset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// Changes is what [Sync] did to a trie.
type Changes struct {
	Added, Removed, Kept int
}

// ErrNotPrefixes is returned for maps that hold no prefixes of IPv4 or IPv6.
var ErrNotPrefixes = errors.New("not a trie of IPv4 or IPv6 prefixes")

// lengthSize is that of a prefix's length in a key (struct bpf_lpm_trie_key in include/uapi/linux/bpf.h).
const lengthSize = 4

// AddressBits is 32 for a trie of IPv4 prefixes, and 128 for one of IPv6. Else the error is [ErrNotPrefixes].
func AddressBits(m *ebpf.Map) (int, error) {
	bits := 8 * (int(m.KeySize()) - lengthSize)
	if m.Type() != ebpf.LPMTrie || bits != 32 && bits != 128 {
		return 0, fmt.Errorf("%w: %s with keys of %d bytes", ErrNotPrefixes, m.Type(), m.KeySize())
	}
	return bits, nil
}

// Sync makes a trie hold the prefixes of its family that are on the list, and no others. Those that it holds already
// keep their values, and at no time is any of them missing; new ones get a value of zeroes. Prefixes of the other family
// are passed over. Nobody else may change the trie meanwhile. What was done before an error stays done.
func Sync(m *ebpf.Map, list []netip.Prefix) (Changes, error) {
	bits, err := AddressBits(m)
	if err != nil {
		return Changes{}, err
	}
	wanted := make(map[string]bool, len(list))
	for _, p := range list {
		if p.Addr().BitLen() == bits {
			wanted[string(key(p))] = true
		}
	}
	if len(wanted) > int(m.MaxEntries()) {
		return Changes{}, fmt.Errorf("%d prefixes are more than the %d that fit", len(wanted), m.MaxEntries())
	}
	held, err := keys(m)
	if err != nil {
		return Changes{}, err
	}
	var stale [][]byte
	for _, k := range held {
		if !wanted[string(k)] {
			stale = append(stale, k)
		}
		delete(wanted, string(k))
	}
	changes := Changes{Kept: len(held) - len(stale)}
	add := func() error {
		value := make([]byte, m.ValueSize())
		for k := range wanted {
			if err := m.Update([]byte(k), value, ebpf.UpdateNoExist); err != nil {
				return fmt.Errorf("adding %s: %w", prefix([]byte(k)), err)
			}
			changes.Added++
		}
		return nil
	}
	remove := func() error {
		for _, k := range stale {
			if err := m.Delete(k); err != nil {
				return fmt.Errorf("removing %s: %w", prefix(k), err)
			}
			changes.Removed++
		}
		return nil
	}
	// what is new first, so that no address is without one where a prefix takes the place of another
	steps := []func() error{add, remove}
	if len(held)+len(wanted) > int(m.MaxEntries()) {
		steps = []func() error{remove, add} // there is no room for both
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return changes, err
		}
	}
	return changes, nil
}

// keys are all of a trie.
func keys(m *ebpf.Map) (all [][]byte, err error) {
	var last []byte
	for {
		var previous any
		if last != nil {
			previous = last
		}
		next := make([]byte, m.KeySize())
		err := m.NextKey(previous, next)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the prefixes: %w", err)
		}
		// a key that went meanwhile makes the walk begin anew
		if len(all) > int(m.MaxEntries()) {
			return nil, errors.New("reading the prefixes: somebody else changes them")
		}
		all = append(all, next)
		last = next
	}
}

// key is a prefix as tries have it: its length in the machine's byte order, and its address in the network's.
func key(p netip.Prefix) []byte {
	return append(binary.NativeEndian.AppendUint32(nil, uint32(p.Bits())), p.Addr().AsSlice()...)
}

// prefix is the one that a key is of.
func prefix(key []byte) netip.Prefix {
	address, _ := netip.AddrFromSlice(key[lengthSize:])
	return netip.PrefixFrom(address, int(binary.NativeEndian.Uint32(key)))
}
