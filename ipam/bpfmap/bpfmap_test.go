package bpfmap

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

func TestMain(m *testing.M) { tests.Main(m) }

type (
	key   [6]byte
	value struct{ A, B uint64 }
)

// TestMap goes through what can be done with a map, and the errors.
func TestMap(t *testing.T) {
	priv.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	pin := filepath.Join(dir, "map")
	if _, err := Load(pin, false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("load what is not there: %v", err)
	}
	const entries = 300
	spec := Spec{Name: "test_of_the_name", Type: unix.BPF_MAP_TYPE_HASH, KeySize: 6, ValueSize: 16, MaxEntries: entries, Flags: unix.BPF_F_NO_PREALLOC}
	made, err := New(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	if err := made.Pin(pin); err != nil {
		t.Fatal(err)
	}
	if err := made.Pin(pin); !errors.Is(err, fs.ErrExist) {
		t.Errorf("pin twice: %v", err)
	}
	m, err := Load(pin, false)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if spec.Name = "test_of_the_nam"; m.Spec != spec {
		t.Errorf("loaded %+v, want %+v", m.Spec, spec)
	}
	id, err := made.ID()
	if loaded, loadedErr := m.ID(); err != nil || loadedErr != nil || id == 0 || id != loaded {
		t.Errorf("IDs %d and %d: %v, %v", id, loaded, err, loadedErr)
	}
	want := map[key]value{}
	for i := range entries {
		k, v := key{byte(i), byte(i >> 8), 7}, value{uint64(i), ^uint64(i)}
		if err := Update(made, &k, &v, unix.BPF_NOEXIST); err != nil {
			t.Fatal(err)
		}
		want[k] = v
	}
	first, more, v := key{0, 0, 7}, key{1, 2, 3}, value{}
	if err := Lookup(m, &first, &v); err != nil || v != want[first] {
		t.Errorf("looked up %v, %v", v, err)
	}
	if err := Lookup(m, &more, &v); !errors.Is(err, ErrKeyNotExist) {
		t.Errorf("look up what is not there: %v", err)
	}
	if err := Update(m, &first, &value{}, unix.BPF_NOEXIST); !errors.Is(err, ErrKeyExist) {
		t.Errorf("take what is taken: %v", err)
	}
	if err := Update(m, &more, &v, unix.BPF_ANY); !errors.Is(err, unix.E2BIG) {
		t.Errorf("one too many: %v", err)
	}
	if err := Lookup(m, new(uint32), &v); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a key of another size: %v", err)
	}
	if err := Lookup(m, &first, new(uint32)); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a value of another size: %v", err)
	}
	if err := Delete(m, &first); err != nil {
		t.Error(err)
	}
	if err := Delete(m, &first); !errors.Is(err, ErrKeyNotExist) {
		t.Errorf("delete twice: %v", err)
	}
	delete(want, first)
	for _, batch := range []int{64, 1024} { // in several goes, and in one
		got := map[key]value{}
		if err := Each(m, batch, func(k *key, v *value) error { got[*k] = *v; return nil }); err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Errorf("%d entries, want %d", len(got), len(want))
		}
		for k, v := range got {
			if v != want[k] {
				t.Errorf("%v: %v, want %v", k, v, want[k])
			}
		}
	}
	stop := errors.New("stop")
	if err := Each(m, 64, func(*key, *value) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("stopped: %v", err)
	}
	if frozen, err := m.Frozen(); frozen || err != nil {
		t.Errorf("frozen: %v, %v", frozen, err)
	}
	if err := made.Freeze(); err != nil {
		t.Fatal(err)
	}
	if frozen, err := m.Frozen(); !frozen || err != nil {
		t.Errorf("frozen: %v, %v", frozen, err)
	}
	if err := Update(m, &more, &v, unix.BPF_ANY); !errors.Is(err, unix.EPERM) {
		t.Errorf("change what is frozen: %v", err)
	}
	readOnly, err := Load(pin, true)
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Close()
	if err := Delete(readOnly, &more); !errors.Is(err, unix.EPERM) {
		t.Errorf("change what is open for reading: %v", err)
	}
	if err := (*Map)(nil).Close(); err != nil {
		t.Error(err)
	}
}
