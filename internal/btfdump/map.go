package btfdump

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// ErrUnlisted: a map's type has no keys by which its entries could be listed.
var ErrUnlisted = errors.New("its type has no entries that can be listed")

// ErrChanging: entries came and went so fast that not all of them, or some of them twice, were seen.
var ErrChanging = errors.New("its entries change too fast to list them all")

// Types are those of a map's keys and values, nil where they are not known.
type Types struct {
	Key, Value btf.Type
}

// TypesOf returns what the kernel knows of a map's types, and of maps of which it knows none what their kind says.
func TypesOf(m *ebpf.Map) (Types, error) {
	ids, err := typeIDs(m)
	if err != nil {
		return Types{}, err
	}
	var t Types
	if ids.btf != 0 {
		handle, err := btf.NewHandleFromID(ids.btf)
		if err != nil {
			return Types{}, fmt.Errorf("opening its BTF: %w", err)
		}
		defer handle.Close()
		spec, err := handle.Spec(nil)
		if err != nil {
			return Types{}, fmt.Errorf("reading its BTF: %w", err)
		}
		if t.Key, err = typeOf(spec, ids.key); err != nil {
			return Types{}, err
		}
		if t.Value, err = typeOf(spec, ids.value); err != nil {
			return Types{}, err
		}
	}
	t.byKind(m)
	return t, nil
}

func typeOf(spec *btf.Spec, id btf.TypeID) (btf.Type, error) {
	if id == 0 {
		return nil, nil // void
	}
	t, err := spec.TypeByID(id)
	if err != nil {
		return nil, fmt.Errorf("reading type %d of its BTF: %w", id, err)
	}
	return t, nil
}

var (
	indexed = []ebpf.MapType{
		ebpf.Array, ebpf.PerCPUArray, ebpf.ProgramArray, ebpf.ArrayOfMaps, ebpf.DevMap, ebpf.DevMapHash, ebpf.CPUMap,
		ebpf.SockMap, ebpf.CGroupArray,
	}
	ofIDs = []ebpf.MapType{ebpf.ProgramArray, ebpf.ArrayOfMaps, ebpf.HashOfMaps}
	u32   = &btf.Int{Name: "__u32", Size: 4}
)

// byKind fills in what a map's kind says of types that are not known: indexes, IDs of what is in it, and the values of
// maps to which XDP redirects (struct bpf_devmap_val and bpf_cpumap_val in linux/bpf.h), of which the kernel takes no
// BTF.
func (t *Types) byKind(m *ebpf.Map) {
	if t.Key == nil && m.KeySize() == 4 && slices.Contains(indexed, m.Type()) {
		t.Key = u32
	}
	if t.Value != nil {
		return
	}
	redirect := func(name, first string) btf.Type {
		number := btf.Member{Name: first, Type: u32}
		if m.ValueSize() == 4 {
			return u32
		}
		program := &btf.Struct{Size: 4, Members: []btf.Member{{Name: "id", Type: u32}}}
		return &btf.Struct{Name: name, Size: 8, Members: []btf.Member{number, {Name: "bpf_prog", Type: program, Offset: 32}}}
	}
	switch {
	case slices.Contains(ofIDs, m.Type()):
		t.Value = u32
	case m.Type() == ebpf.DevMap || m.Type() == ebpf.DevMapHash:
		t.Value = redirect("bpf_devmap_val", "ifindex")
	case m.Type() == ebpf.CPUMap:
		t.Value = redirect("bpf_cpumap_val", "qsize")
	}
}

// mapInfo is the beginning of struct bpf_map_info in linux/bpf.h.
type mapInfo struct {
	kind, id, keySize, valueSize, maxEntries, flags uint32
	name                                            [16]byte
	ifindex, vmlinuxValueTypeID                     uint32
	netnsDev, netnsIno                              uint64
	btfID, btfKeyTypeID, btfValueTypeID             uint32
	_                                               uint32
}

type ids struct {
	btf        btf.ID
	key, value btf.TypeID
}

// typeIDs asks the kernel for what ebpf.MapInfo does not tell.
func typeIDs(m *ebpf.Map) (ids, error) {
	info := &mapInfo{}
	var pinner runtime.Pinner
	pinner.Pin(info)
	defer pinner.Unpin()
	attr := struct {
		fd, size uint32
		info     uint64
	}{uint32(m.FD()), uint32(unsafe.Sizeof(*info)), uint64(uintptr(unsafe.Pointer(info)))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET_INFO_BY_FD,
		uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return ids{}, fmt.Errorf("asking for the map's types: %w", errno)
	}
	return ids{btf.ID(info.btfID), btf.TypeID(info.btfKeyTypeID), btf.TypeID(info.btfValueTypeID)}, nil
}

// Entry is an entry of a map.
type Entry struct {
	Key []byte
	// Values has one, or that of each CPU (PerCPU).
	Values [][]byte
}

// PerCPU tells whether a map has a value for each CPU.
func PerCPU(m *ebpf.Map) bool {
	switch m.Type() {
	case ebpf.PerCPUHash, ebpf.PerCPUArray, ebpf.LRUCPUHash, ebpf.PerCPUCGroupStorage:
		return true
	}
	return false
}

// listed tells whether a map has entries that the kernel lists and lets be read.
func listed(m *ebpf.Map) bool {
	switch m.Type() {
	case ebpf.Queue, ebpf.Stack, ebpf.RingBuf, ebpf.UserRingbuf, ebpf.PerfEventArray, ebpf.BloomFilter, ebpf.Arena,
		ebpf.XSKMap:
		return false
	case ebpf.SockMap, ebpf.SockHash:
		return m.ValueSize() == 8 // the sockets' cookies
	}
	return true
}

// Each calls with for each entry of a map, in the order in which the kernel has them, holding one at a time.
// ErrUnlisted and ErrChanging, or what with returns.
func Each(m *ebpf.Map, with func(Entry) error) error {
	if !listed(m) {
		return fmt.Errorf("%w: %s", ErrUnlisted, m.Type())
	}
	var key []byte
	for seen := uint32(0); ; seen++ {
		// of a key that is gone meanwhile the next is the very first
		next, err := nextKey(m, key)
		if err != nil {
			return err
		}
		if next == nil {
			return nil
		}
		if seen == m.MaxEntries() {
			return ErrChanging
		}
		key = next
		value, err := m.LookupBytes(key)
		if err != nil {
			return fmt.Errorf("reading an entry: %w", err)
		}
		if value == nil {
			continue // it is gone, or an index without one
		}
		if err := with(Entry{key, split(m, value)}); err != nil {
			return err
		}
	}
}

func nextKey(m *ebpf.Map, after []byte) ([]byte, error) {
	var key any // what is no key must be nil itself
	if after != nil {
		key = after
	}
	next, err := m.NextKeyBytes(key)
	if err != nil {
		return nil, fmt.Errorf("listing its keys: %w", err)
	}
	return next, nil
}

// split returns the values of each CPU, which are 8 bytes apart or a multiple of it (bpf_percpu_hash_copy() in
// kernel/bpf/hashtab.c).
func split(m *ebpf.Map, value []byte) [][]byte {
	size := int(m.ValueSize())
	if !PerCPU(m) {
		return [][]byte{value}
	}
	var values [][]byte
	for chunk := range slices.Chunk(value, (size+7)&^7) {
		values = append(values, chunk[:size])
	}
	return values
}
