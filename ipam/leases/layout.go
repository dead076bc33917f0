package leases

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/xdp-cni/xdp-cni/ipam/addrs"
	"github.com/xdp-cni/xdp-cni/ipam/config"
)

// What is pinned for a network. Numbers are in host byte order, addresses in network byte order,
// IPv4 as ::ffff:a.b.c.d; strings end with a NUL. No BPF program reads any of it, so the types
// are Go's alone: bpf2go generates types for what C and Go share. docs/pins.md has the layout for
// other readers. There is no padding in them, so that they are copied as they are.
const (
	pinLeases = "leases" // hash, key -> lease: the truth
	pinOwners = "owners" // hash, owner -> holding: which addresses an attachment may have
	pinTaken  = "taken"  // hash, first address of a block -> block: where not to look for free ones
	pinState  = "state"  // array of one state
)

// layoutVersion is that of struct state, and of the types here.
const layoutVersion = 1

type key [16]byte

type owner struct {
	ContainerID [256]byte
	IfName      [16]byte
}

type lease struct {
	Time  uint64 // nanoseconds since 1970
	Owner owner  // of unknown owner: zero
}

type holding struct {
	Time      uint64
	Count     uint64
	Addresses [config.MaxSets]key
}

type state struct {
	Version  uint32
	Surveyed uint32 // whether addresses in use were looked for before any was handed out
	Sets     uint32 // number of them
	Ranges   uint32 // number of them
	Network  [256]byte
	Last     [config.MaxSets]key // the address last handed out of each set
	Range    [config.MaxRanges]rangeRecord
}

// rangeRecord is a range as configured with the last ADD, for those who show it.
type rangeRecord struct {
	First, Last, Gateway, Subnet key
	Set                          uint32
	Bits                         uint32 // prefix length of the subnet, in its own family
}

// Owner is an attachment. The zero Owner stands for one that is not known.
type Owner struct {
	ContainerID, IfName string
}

// Known tells whether the owner is.
func (o Owner) Known() bool { return o != Owner{} }

func (o Owner) encode() (owner, error) {
	var e owner
	if len(o.ContainerID) >= len(e.ContainerID) {
		return e, fmt.Errorf("the container ID %q is longer than %d bytes", o.ContainerID, len(e.ContainerID)-1)
	}
	if len(o.IfName) >= len(e.IfName) {
		return e, fmt.Errorf("the interface name %q is longer than %d bytes", o.IfName, len(e.IfName)-1)
	}
	copy(e.ContainerID[:], o.ContainerID)
	copy(e.IfName[:], o.IfName)
	return e, nil
}

func (e *owner) decode() Owner {
	return Owner{ContainerID: cString(e.ContainerID[:]), IfName: cString(e.IfName[:])}
}

func cString(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

// Lease is an address that is taken.
type Lease struct {
	Address netip.Addr
	Owner   Owner
	Time    time.Time
}

func keyOf(a netip.Addr) key { return a.As16() }

func (k key) addr() netip.Addr { return netip.AddrFrom16(k).Unmap() }

func (h *holding) list() []netip.Addr {
	var list []netip.Addr
	for i := range min(int(h.Count), len(h.Addresses)) {
		list = append(list, h.Addresses[i].addr())
	}
	return list
}

func holdingOf(list []netip.Addr, at time.Time) (*holding, error) {
	h := &holding{Time: uint64(at.UnixNano()), Count: uint64(len(list))}
	if len(list) > len(h.Addresses) {
		return nil, fmt.Errorf("%d addresses for one attachment, of which %d can be noted", len(list), len(h.Addresses))
	}
	for i, a := range list {
		h.Addresses[i] = keyOf(a)
	}
	return h, nil
}

// setRanges notes the configuration and tells whether that changed anything.
func (s *state) setRanges(sets []addrs.Set) bool {
	before := *s
	s.Sets, s.Ranges, s.Range = uint32(len(sets)), 0, [config.MaxRanges]rangeRecord{}
	for i, set := range sets {
		for _, r := range set {
			s.Range[s.Ranges] = rangeRecord{
				First: keyOf(r.First), Last: keyOf(r.Last), Gateway: keyOf(r.Gateway),
				Subnet: keyOf(r.Subnet.Addr()), Set: uint32(i), Bits: uint32(r.Subnet.Bits()),
			}
			s.Ranges++
		}
	}
	return *s != before
}

// sets is the reverse of setRanges.
func (s *state) sets() []addrs.Set {
	sets := make([]addrs.Set, min(s.Sets, config.MaxSets))
	for _, r := range s.Range[:min(s.Ranges, config.MaxRanges)] {
		if int(r.Set) < len(sets) {
			sets[r.Set] = append(sets[r.Set], addrs.Range{
				Subnet: netip.PrefixFrom(r.Subnet.addr(), int(r.Bits)),
				First:  r.First.addr(), Last: r.Last.addr(), Gateway: r.Gateway.addr(),
			})
		}
	}
	return sets
}
