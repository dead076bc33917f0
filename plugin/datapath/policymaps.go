package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/filter"
)

// Names of the pins of a filter. The directory of the policy in force at place 0 of the slot is policy_0;
// next_0 is one that is made to be there, or that was put in force by a process that died just then.
const (
	pinFlows        = "flows"
	pinWords        = "words"
	pinPrefixes     = "prefixes"
	pinRuleCounters = "rule_counters"
	pinSource       = "source"

	policyPrefix = "policy_"
	nextPrefix   = "next_"
)

const (
	// policyPlaces is POLICY_PLACES in bpf/lib/policy.h.
	policyPlaces = 2
	// maxPolicyAddresses is POLICY_MAX_ADDRESSES there.
	maxPolicyAddresses = 32
)

func policyDir(dir string, place uint32) string {
	return filepath.Join(dir, policyPrefix+strconv.Itoa(int(place)))
}

func nextDir(dir string, place uint32) string {
	return filepath.Join(dir, nextPrefix+strconv.Itoa(int(place)))
}

// encodedPolicy is a policy as the maps hold it.
type encodedPolicy struct {
	value    bpf.DatapathPolicy
	words    []uint64
	prefixes []bpf.DatapathPolicyPrefix
	classes  []uint32 // of the prefixes
	source   []byte
	flows    uint32
}

// encodePolicy encodes a policy for the pod with that MAC. ErrUnsupported: the pod has too many addresses.
func encodePolicy(p Policy, mac net.HardwareAddr) (*encodedPolicy, error) {
	c := p.Compiled
	if len(p.Source) == 0 || bytes.IndexByte(p.Source, 0) >= 0 {
		return nil, errors.New("encoding a policy: its source is no JSON")
	}
	addresses := c.Addresses
	if len(addresses) > maxPolicyAddresses {
		if c.Flags&filter.FlagAntiSpoof != 0 {
			return nil, fmt.Errorf("%w: a filter with antiSpoof for a pod with %d addresses: at most %d",
				ErrUnsupported, len(addresses), maxPolicyAddresses)
		}
		addresses = addresses[:maxPolicyAddresses] // nobody asks for them
	}
	e := &encodedPolicy{
		value: bpf.DatapathPolicy{
			Flags:        c.Flags,
			Addresses:    uint32(len(c.Words)),
			AddressesLen: uint32(len(addresses)),
			RulesLen:     uint32(c.RuleCount),
		},
		words:    append(make([]uint64, 0, len(c.Words)+2*len(addresses)), c.Words...),
		prefixes: make([]bpf.DatapathPolicyPrefix, len(c.Prefixes)),
		classes:  make([]uint32, len(c.Prefixes)),
		source:   p.Source,
		flows:    c.MaxFlows,
	}
	copy(e.value.Mac[:], mac)
	for d, direction := range c.Directions {
		action := bpf.DatapathPolicyActionPOLICY_ALLOW
		if c.DefaultAction[d] == conf.Deny {
			action = bpf.DatapathPolicyActionPOLICY_DENY
		}
		e.value.Direction[d] = bpf.DatapathPolicyDirection{
			Protocols:   direction.Protocols,
			AddressRows: direction.AddressRows,
			Rules:       direction.Rules,
			RowWords:    direction.RowWords,
			Action:      uint32(action),
		}
	}
	for _, a := range addresses {
		// as they are in memory, in network byte order
		raw := a.As16()
		e.words = append(e.words, binary.NativeEndian.Uint64(raw[:8]), binary.NativeEndian.Uint64(raw[8:]))
	}
	for i, prefix := range c.Prefixes {
		e.prefixes[i] = bpf.DatapathPolicyPrefix{
			Prefixlen: 32 + uint32(prefix.Bits), // the direction's four bytes come first
			Direction: [4]uint8{uint8(prefix.Direction)},
			Address:   prefix.Address,
		}
		e.classes[i] = prefix.Class
	}
	return e, nil
}

// policyMaps are the open maps of a policy by which the programs decide.
type policyMaps struct {
	words, prefixes, ruleCounters *ebpf.Map
}

func (p *policyMaps) close() {
	if p == nil {
		return
	}
	for _, m := range []*ebpf.Map{p.words, p.prefixes, p.ruleCounters} {
		_ = m.Close()
	}
}

// makePolicyMaps makes the directory dir and in it the maps of a policy, filled.
func makePolicyMaps(spec *ebpf.CollectionSpec, dir string, p *encodedPolicy) (_ *policyMaps, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making %s: %w", dir, err)
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("counting CPUs: %w", err)
	}
	maps := &policyMaps{}
	defer func() {
		if err != nil {
			maps.close()
		}
	}()
	for _, m := range []struct {
		to   **ebpf.Map
		name string
		pin  string
		size int
	}{
		{&maps.words, bpf.DatapathMapPolicyWords, pinWords, len(p.words)},
		{&maps.prefixes, bpf.DatapathMapPolicyPrefixes, pinPrefixes, len(p.prefixes)},
		{&maps.ruleCounters, bpf.DatapathMapRuleCounters, pinRuleCounters, cpus * int(p.value.RulesLen)},
	} {
		mapSpec := spec.Maps[m.name].Copy()
		mapSpec.MaxEntries = uint32(max(1, m.size))
		if *m.to, err = makePinned(mapSpec, dir, m.pin); err != nil {
			return nil, err
		}
	}
	if err := fill(maps.words, indexes(len(p.words)), p.words); err != nil {
		return nil, err
	}
	if err := fill(maps.prefixes, p.prefixes, p.classes); err != nil {
		return nil, err
	}
	return maps, pinText(filepath.Join(dir, pinSource), p.source)
}

// fill enters values by their keys, at once where the kernel has batches for such a map: arrays from 5.6
// on, tries from 5.13.
func fill[K, V any](m *ebpf.Map, keys []K, values []V) error {
	_, err := m.BatchUpdate(keys, values, nil)
	if errors.Is(err, ebpf.ErrNotSupported) {
		err = nil
		for i := range keys {
			if err = m.Put(keys[i], values[i]); err != nil {
				break
			}
		}
	}
	if err != nil {
		return fmt.Errorf("filling %s: %w", m, err)
	}
	return nil
}

func indexes(n int) []uint32 {
	list := make([]uint32, n)
	for i := range list {
		list[i] = uint32(i)
	}
	return list
}

// policyEntries are the entries of a policy's maps at a place of a slot.
func (n *node) policyEntries(slot, place uint32, maps *policyMaps) []entry {
	index := policyIndex(slot, place)
	return []entry{
		{n.words, index, maps.words},
		{n.prefixes, index, maps.prefixes},
		{n.ruleCounters, index, maps.ruleCounters},
	}
}

func policyIndex(slot, place uint32) uint32 { return slot*policyPlaces + place }

// textPage is as much as an entry of a text's map holds. Kernels below 5.14 want the memory of a value in
// one piece (map_update_elem() in kernel/bpf/syscall.c), so a text is not one value.
const textPage = 4096

// pinText pins a text: a map of its pages, of which the last ends with NULs. The text has none.
func pinText(pin string, text []byte) error {
	pages := make([][textPage]byte, (len(text)+textPage-1)/textPage)
	for i := range pages {
		copy(pages[i][:], text[i*textPage:])
	}
	m, err := makePinned(&ebpf.MapSpec{
		Name: mapNameSource, Type: ebpf.Array, KeySize: 4, ValueSize: textPage, MaxEntries: uint32(len(pages)),
	}, filepath.Dir(pin), filepath.Base(pin))
	if err != nil {
		return err
	}
	defer m.Close()
	return fill(m, indexes(len(pages)), pages)
}

// mapNameSource is what tools show of the map.
const mapNameSource = "policy_source"

// readText reads what pinText pinned.
func readText(pin string) ([]byte, error) {
	m, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("opening map %s: %w", pin, err)
	}
	defer m.Close()
	var text []byte
	for i := range m.MaxEntries() {
		page, err := m.LookupBytes(i)
		if err != nil {
			return nil, fmt.Errorf("reading map %s: %w", pin, err)
		}
		text = append(text, page...)
	}
	return bytes.TrimRight(text, "\x00"), nil
}
