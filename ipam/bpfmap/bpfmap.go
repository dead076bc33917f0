// Package bpfmap makes, pins, reads and changes BPF maps by bpf(2). It knows what the IPAM plugin
// needs: maps of one value for each key, without BTF.
//
// The chained plugin uses cilium/ebpf. To start a process with all that this has for loading programs
// (BTF, ELF, DWARF, the kernel's symbols) takes 0.4 ms, a tenth of an ADD of the IPAM plugin.
package bpfmap

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

var (
	// ErrKeyNotExist: the map has no such key.
	ErrKeyNotExist = errors.New("key does not exist")
	// ErrKeyExist: the map has the key already.
	ErrKeyExist = errors.New("key already exists")
)

// Spec describes a map; see bpf(2).
type Spec struct {
	Name       string // of which the kernel keeps 15 bytes
	Type       uint32
	KeySize    uint32 // bytes
	ValueSize  uint32 // bytes
	MaxEntries uint32
	Flags      uint32
}

// Map is an open map. A nil one is none, and may be closed.
type Map struct {
	Spec
	fd int
}

// New makes a map. It fails with EPERM without privileges and, before 5.11, where RLIMIT_MEMLOCK is
// too low.
func New(spec Spec) (*Map, error) {
	// the members of union bpf_attr are in include/uapi/linux/bpf.h, here and below
	attr := struct {
		mapType, keySize, valueSize, maxEntries, flags, innerMapFD, numaNode uint32
		name                                                                 [unix.BPF_OBJ_NAME_LEN]byte
	}{mapType: spec.Type, keySize: spec.KeySize, valueSize: spec.ValueSize, maxEntries: spec.MaxEntries, flags: spec.Flags}
	copy(attr.name[:len(attr.name)-1], spec.Name)
	fd, err := call(unix.BPF_MAP_CREATE, &attr)
	if err != nil {
		return nil, err
	}
	return &Map{spec, fd}, nil
}

// Load opens the map that is pinned at path: fs.ErrNotExist if nothing is.
func Load(path string, readOnly bool) (*Map, error) {
	var flags uint32
	if readOnly {
		flags = unix.BPF_F_RDONLY
	}
	fd, err := object(unix.BPF_OBJ_GET, path, 0, flags)
	if err != nil {
		return nil, err
	}
	m := &Map{fd: fd}
	i, err := m.info()
	if err != nil {
		_ = m.Close()
		return nil, fmt.Errorf("asking what it is: %w", err)
	}
	name, _, _ := bytes.Cut(i.name[:], []byte{0})
	m.Spec = Spec{string(name), i.mapType, i.keySize, i.valueSize, i.maxEntries, i.flags}
	return m, nil
}

// Pin pins the map at path, in a bpffs: fs.ErrExist if something is there.
func (m *Map) Pin(path string) error {
	_, err := object(unix.BPF_OBJ_PIN, path, m.fd, 0)
	return err
}

// Close closes the map. What is pinned stays.
func (m *Map) Close() error {
	if m == nil {
		return nil
	}
	return unix.Close(m.fd)
}

// ID returns the number that the kernel has given the map.
func (m *Map) ID() (uint32, error) {
	i, err := m.info()
	return i.id, err
}

// Freeze keeps everybody from changing the map by bpf(2), for good. EBUSY: it is frozen, or somebody
// is changing it at this moment.
func (m *Map) Freeze() error {
	attr := struct{ fd uint32 }{uint32(m.fd)}
	_, err := call(unix.BPF_MAP_FREEZE, &attr)
	return err
}

// Frozen tells whether the map is. Only its file descriptor says so (bpf_map_show_fdinfo in
// kernel/bpf/syscall.c).
func (m *Map) Frozen() (bool, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", m.fd))
	return bytes.Contains(text, []byte("\nfrozen:\t1\n")), err
}

// Lookup reads the value of a key: ErrKeyNotExist if there is none.
func Lookup[K, V any](m *Map, key *K, value *V) error {
	if err := m.fits(unsafe.Sizeof(*key), unsafe.Sizeof(*value)); err != nil {
		return err
	}
	return element(unix.BPF_MAP_LOOKUP_ELEM, m, key, value, 0)
}

// Update changes a value, or adds one, as flags say: unix.BPF_ANY, or unix.BPF_NOEXIST, which returns
// ErrKeyExist if the key is there, and takes it in one step otherwise.
func Update[K, V any](m *Map, key *K, value *V, flags uint64) error {
	if err := m.fits(unsafe.Sizeof(*key), unsafe.Sizeof(*value)); err != nil {
		return err
	}
	return element(unix.BPF_MAP_UPDATE_ELEM, m, key, value, flags)
}

// Delete removes a key: ErrKeyNotExist if it is not there.
func Delete[K any](m *Map, key *K) error {
	if err := m.fits(unsafe.Sizeof(*key), uintptr(m.ValueSize)); err != nil {
		return err
	}
	return element[K, byte](unix.BPF_MAP_DELETE_ELEM, m, key, nil, 0)
}

// Each calls f with all entries of a hash map, of which it reads batch at a time: ENOSPC if there are
// more in one bucket. Those that come and go meanwhile may be missing.
func Each[K, V any](m *Map, batch int, f func(*K, *V) error) error {
	keys, values := make([]K, batch), make([]V, batch)
	if err := m.fits(unsafe.Sizeof(keys[0]), unsafe.Sizeof(values[0])); err != nil {
		return err
	}
	var (
		pinner runtime.Pinner
		cursor uint32
	)
	defer pinner.Unpin()
	at := pointer(&pinner, &cursor)
	attr := struct {
		in, out, keys, values uint64
		count, fd             uint32
		elemFlags, flags      uint64
	}{out: at, keys: pointer(&pinner, &keys[0]), values: pointer(&pinner, &values[0]), fd: uint32(m.fd)}
	for {
		attr.count = uint32(batch)
		_, err := call(unix.BPF_MAP_LOOKUP_BATCH, &attr)
		if err != nil && !errors.Is(err, unix.ENOENT) { // which is the end
			return fmt.Errorf("reading a map: %w", err)
		}
		for i := range attr.count {
			if err := f(&keys[i], &values[i]); err != nil {
				return err
			}
		}
		if err != nil {
			return nil
		}
		attr.in = at
	}
}

func (m *Map) fits(keySize, valueSize uintptr) error {
	if keySize != uintptr(m.KeySize) || valueSize != uintptr(m.ValueSize) {
		return fmt.Errorf("keys of %d and values of %d bytes in a map of %d and %d: %w", keySize, valueSize, m.KeySize, m.ValueSize, unix.EINVAL)
	}
	return nil
}

// info is the begin of struct bpf_map_info.
type info struct {
	mapType, id, keySize, valueSize, maxEntries, flags uint32
	name                                               [unix.BPF_OBJ_NAME_LEN]byte
}

func (m *Map) info() (info, error) {
	var (
		pinner runtime.Pinner
		i      info
	)
	defer pinner.Unpin()
	attr := struct {
		fd, size uint32
		info     uint64
	}{uint32(m.fd), uint32(unsafe.Sizeof(i)), pointer(&pinner, &i)}
	_, err := call(unix.BPF_OBJ_GET_INFO_BY_FD, &attr)
	return i, err
}

func object(command uintptr, path string, fd int, flags uint32) (int, error) {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return 0, err
	}
	var pinner runtime.Pinner
	defer pinner.Unpin()
	attr := struct {
		path      uint64
		fd, flags uint32
	}{pointer(&pinner, name), uint32(fd), flags}
	return call(command, &attr)
}

func element[K, V any](command uintptr, m *Map, key *K, value *V, flags uint64) error {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	attr := struct {
		fd, pad           uint32
		key, value, flags uint64
	}{fd: uint32(m.fd), key: pointer(&pinner, key), flags: flags}
	if value != nil {
		attr.value = pointer(&pinner, value)
	}
	_, err := call(command, &attr)
	switch {
	case errors.Is(err, unix.ENOENT):
		return ErrKeyNotExist
	case errors.Is(err, unix.EEXIST):
		return ErrKeyExist
	}
	return err
}

// pointer keeps what p points to where it is until pinner lets go of it, and returns its address.
func pointer[T any](pinner *runtime.Pinner, p *T) uint64 {
	pinner.Pin(p)
	return uint64(uintptr(unsafe.Pointer(p)))
}

// call is bpf(2). What attr has the addresses of is pinned.
func call[T any](command uintptr, attr *T) (int, error) {
	for {
		result, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
		switch errno {
		case 0:
			return int(result), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}
