package bpf_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/plugin/filter"
	"github.com/xdp-cni/xdp-cni/plugin/filter/model"
)

const (
	places = 2 // POLICY_PLACES in lib/policy.h

	// Offsets in struct __sk_buff (include/uapi/linux/bpf.h).
	skBuffMark           = 8
	skBuffIngressIfindex = 36
)

// newFilterRig loads the objects so that a test run can say whether the node itself made a packet: see
// markFromHost.
func newFilterRig(t testing.TB) *rig {
	t.Helper()
	spec := loadSpec(t, haveFrags(t))
	markFromHost(t, spec, bpf.DatapathProgTcIngress)
	r := &rig{spec: spec}
	if err := spec.LoadAndAssign(&r.DatapathObjects, nil); err != nil {
		t.Fatalf("loading the objects: %+v", err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// markFromHost makes a program read from a packet's mark, and not where it came in, whether the node
// itself made it: then it is 0. A test run has no say in where the packet came in.
func markFromHost(t testing.TB, spec *ebpf.CollectionSpec, program string) {
	t.Helper()
	changed := 0
	instructions := spec.Programs[program].Instructions
	for i, ins := range instructions {
		if i > 0 && ins.Symbol() != "" {
			break // the next function
		}
		// other structs have something there, too
		line := ins.Source()
		if ins.OpCode == asm.LoadMemOp(asm.Word) && ins.Offset == skBuffIngressIfindex &&
			line != nil && strings.Contains(line.String(), "ingress_ifindex") {
			instructions[i].Offset = skBuffMark
			changed++
		}
	}
	if changed != 1 {
		t.Fatalf("%d instructions of %s read where a packet came in, want 1", changed, program)
	}
}

// policyMaps are the inner maps of one policy.
type policyMaps struct {
	header                    bpf.DatapathPolicy
	words, prefixes, counters *ebpf.Map
}

func (p *policyMaps) close() {
	p.words.Close()
	p.prefixes.Close()
	p.counters.Close()
}

// newPolicy makes the maps of a policy.
func (r *rig) newPolicy(t testing.TB, pod model.Pod, p *filter.Policy, generation uint32) *policyMaps {
	t.Helper()
	header := bpf.DatapathPolicy{
		Generation: generation, Flags: p.Flags, Addresses: uint32(len(p.Words)),
		AddressesLen: uint32(len(p.Addresses)), RulesLen: uint32(max(p.RuleCount, 1)), Mac: pod.MAC,
	}
	for d, head := range p.Directions {
		header.Direction[d] = bpf.DatapathPolicyDirection{
			Protocols: head.Protocols, AddressRows: head.AddressRows, Rules: head.Rules,
			RowWords: head.RowWords, Action: uint32(p.DefaultAction[d]),
		}
	}
	words := p.Words
	for _, a := range p.Addresses {
		b := a.As16()
		words = append(words, nativeUint64(b[:8]), nativeUint64(b[8:]))
	}
	return &policyMaps{
		header:   header,
		words:    r.newInner(t, bpf.DatapathMapPolicyWords, len(words), sequence(len(words)), words),
		prefixes: r.newPrefixes(t, p.Prefixes),
		counters: r.newInner(t, bpf.DatapathMapRuleCounters, int(header.RulesLen)*ebpf.MustPossibleCPU(), nil, nil),
	}
}

func (r *rig) newPrefixes(t testing.TB, prefixes []filter.PrefixClass) *ebpf.Map {
	keys := make([]bpf.DatapathPolicyPrefix, len(prefixes))
	classes := make([]uint32, len(prefixes))
	for i, p := range prefixes {
		keys[i] = bpf.DatapathPolicyPrefix{
			Prefixlen: 32 + uint32(p.Bits), Direction: [4]uint8{uint8(p.Direction)}, Address: p.Address,
		}
		classes[i] = p.Class
	}
	return r.newInner(t, bpf.DatapathMapPolicyPrefixes, len(keys), keys, classes)
}

// newInner makes an inner map with size entries, those of keys and values in it.
func (r *rig) newInner(t testing.TB, name string, size int, keys, values any) *ebpf.Map {
	t.Helper()
	spec := r.spec.Maps[name].Copy()
	spec.MaxEntries = uint32(size)
	m, err := ebpf.NewMap(spec)
	if err != nil {
		t.Fatal(err)
	}
	if keys == nil {
		return m
	}
	_, err = m.BatchUpdate(keys, values, nil)
	if errors.Is(err, ebpf.ErrNotSupported) { // tries have batches from 5.13 on
		for i := range reflect.ValueOf(keys).Len() {
			put(t, m, reflect.ValueOf(keys).Index(i).Interface(), reflect.ValueOf(values).Index(i).Interface())
		}
	} else if err != nil {
		t.Fatal(err)
	}
	return m
}

func sequence(n int) []uint32 {
	s := make([]uint32, n)
	for i := range s {
		s[i] = uint32(i)
	}
	return s
}

// putMaps enters inner maps in a map of maps; where the kernel has batches (5.19), with one wait for
// an RCU grace period.
func putMaps(t testing.TB, outer *ebpf.Map, keys []uint32, inner []*ebpf.Map) {
	t.Helper()
	fds := make([]uint32, len(inner))
	for i, m := range inner {
		fds[i] = uint32(m.FD())
	}
	_, err := outer.BatchUpdate(keys, fds, nil)
	if errors.Is(err, ebpf.ErrNotSupported) {
		for i := range keys {
			put(t, outer, keys[i], fds[i])
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
}

// ruleCounts are the packets that each rule decided, summed over the CPUs.
func (p *policyMaps) ruleCounts(t testing.TB) []uint64 {
	t.Helper()
	size := int(p.counters.MaxEntries())
	keys, values := make([]uint32, size), make([]bpf.DatapathRuleCounter, size)
	var cursor ebpf.MapBatchCursor
	n, err := p.counters.BatchLookup(&cursor, keys, values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) || n != size {
		t.Fatalf("reading the rules' counters: %d of %d, %v", n, size, err)
	}
	counts := make([]uint64, p.header.RulesLen)
	for i, v := range values {
		counts[int(keys[i])%len(counts)] += v.Packets
	}
	return counts
}
