package main

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

// programPins makes a bpffs with the maps of a pod's programs, of the names "program/map".
func programPins(t *testing.T, specs map[string]*ebpf.MapSpec) (list []datapath.PodProgram) {
	t.Helper()
	priv.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		m, err := ebpf.NewMap(specs[name])
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := m.Pin(path); err != nil {
			t.Fatal(err)
		}
		program := filepath.Dir(name)
		if len(list) == 0 || list[len(list)-1].Name != program {
			list = append(list, datapath.PodProgram{Name: program})
		}
		last := &list[len(list)-1]
		last.Maps = append(last.Maps, path)
	}
	return list
}

// triesOf are tries with keys of the sizes given, or hash maps where that is too small for one.
func triesOf(keySizes map[string]uint32) map[string]*ebpf.MapSpec {
	specs := map[string]*ebpf.MapSpec{}
	for name, size := range keySizes {
		spec := &ebpf.MapSpec{Type: ebpf.LPMTrie, KeySize: size, ValueSize: 8, MaxEntries: 4, Flags: unix.BPF_F_NO_PREALLOC}
		if size < 5 {
			spec.Type, spec.Flags = ebpf.Hash, 0
		}
		specs[name] = spec
	}
	return specs
}

func TestProgramsLoad(t *testing.T) {
	programs := programPins(t, triesOf(map[string]uint32{"block/v4": 8, "block/v6": 20, "allow/v4": 8, "block/count": 4}))
	list := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}
	load := func(list []netip.Prefix, names ...string) (string, error) {
		loaded, err := loadMaps(t.Context(), programs, nil, names, list)
		return loadTable(&loadReport{Maps: loaded}, style{}), err
	}
	for _, test := range []struct {
		names []string
		says  string
	}{
		{[]string{"v4"}, `"v4" is ambiguous: several programs have a map of that name: allow/v4 or block/v4`},
		{[]string{"v5"}, `"v5"; there are allow/v4, block/count, block/v4, block/v6`},
		{[]string{"allow/v6"}, `"allow/v6"; there are`},
		{[]string{"block/v4"}, "1 prefixes of IPv6"},
		{[]string{"v6"}, "1 prefixes of IPv4"},
		{[]string{"v6", "block/count"}, "map count: not a trie"},
	} {
		if _, err := load(list, test.names...); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%v: %v, want %q", test.names, err, test.says)
		}
	}
	// what was refused has changed nothing
	for _, want := range []string{
		`PROGRAM  MAP  FAMILY  PREFIXES  ADDED  REMOVED
block    v4   ipv4           1      1        0
block    v6   ipv6           1      1        0
`,
		`PROGRAM  MAP  FAMILY  PREFIXES  ADDED  REMOVED
block    v4   ipv4           1      0        0
block    v6   ipv6           1      0        0
`,
	} {
		// a map that is named twice is one
		if got, err := load(list, "block/v4", "v6", "block/v6"); err != nil || got != want {
			t.Errorf("%v\n%s\nwant\n%s", err, got, want)
		}
	}
	if _, err := load(nil, "allow/v4"); err != nil {
		t.Errorf("an empty list: %v", err)
	}
	_, err := openProgramMaps(nil, []string{"v4"}, nil)
	if err == nil || !strings.Contains(err.Error(), "no maps of their own") {
		t.Errorf("a pod without programs: %v", err)
	}
}

// TestProgramsLoadUsage has what is wrong with a command line, or a file, before anything is looked up.
func TestProgramsLoadUsage(t *testing.T) {
	bad, empty := filepath.Join(t.TempDir(), "list"), filepath.Join(t.TempDir(), "empty")
	for file, text := range map[string]string{bad: "10.0.0.0/8\n10.0.0.0/99\n", empty: "# nothing\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		args   string
		status int
		says   string
	}{
		{"pod", exitUsage, "at least one MAP"},
		{"pod v4", exitUsage, "-f FILE is missing"},
		{"pod v4 -f " + bad, exitFailure, bad + ": line 2"},
		{"pod v4 -f /nonexistent", exitFailure, "/nonexistent"},
		{"pod v4 -f " + empty, exitFailure, empty + " has no prefixes; --empty removes"},
		{"pod v4 -f -", exitFailure, "standard input has no prefixes"},
		{"pod v4 --empty -f " + empty + " --bpffs " + t.TempDir(), exitFailure, `"pod"`}, // it goes on to look for the pod
	} {
		status, _, stderr := xdpctl(t.Context(), append([]string{"programs", "load"}, strings.Fields(test.args)...)...)
		if status != test.status || !strings.Contains(stderr, test.says) {
			t.Errorf("%s: status %d, %q; want %d, %q", test.args, status, stderr, test.status, test.says)
		}
	}
}

// TestProgramsLoadAtOnce has many loads of two lists at once: each must find the maps as another left them.
func TestProgramsLoadAtOnce(t *testing.T) {
	specs := triesOf(map[string]uint32{"block/v4": 8, "node/all": 8})
	for _, spec := range specs {
		spec.MaxEntries = 10_000
	}
	// the pins of a map of the node, in three directories
	programs := programPins(t, specs)
	ofNode := map[string]string{}
	for i, name := range []string{"a", "b"} {
		programs = append(programs, pinnedAgain(t, programs[1], name))
		ofNode[programs[2+i].Maps[0]] = programs[1].Maps[0]
	}
	lists := make([][]netip.Prefix, 2)
	for i := range lists {
		for n := range 3000 {
			address := netip.AddrFrom4([4]byte{byte(10 + i), byte(n >> 8), byte(n), 1})
			lists[i] = append(lists[i], netip.PrefixFrom(address, 32))
		}
	}
	var wg sync.WaitGroup
	for round := range 8 {
		wg.Go(func() {
			// the same maps, by the pins of two pods
			of := []datapath.PodProgram{programs[0], programs[2+round%2]}
			loaded, err := loadMaps(t.Context(), of, ofNode, []string{"v4", "all"}, lists[round/2%2])
			if err != nil {
				t.Error(err)
			}
			for _, m := range loaded {
				if kept := m.Prefixes - m.Added; m.Prefixes != 3000 || kept != 0 && kept != 3000 || m.Removed%3000 != 0 {
					t.Errorf("%+v: it found a part of a list", m)
				}
			}
		})
	}
	wg.Wait()
	for _, name := range []string{"v4", "all"} {
		loaded, err := loadMaps(t.Context(), programs[:2], nil, []string{name}, lists[0])
		if err != nil || loaded[0].Removed%3000 != 0 || loaded[0].Added != loaded[0].Removed {
			t.Errorf("%+v, %v: it holds neither list", loaded, err)
		}
	}
}

// TestProgramsLoadBusy: who holds the locks of a load is waited for, and nothing else is.
func TestProgramsLoadBusy(t *testing.T) {
	programs := programPins(t, triesOf(map[string]uint32{"block/v4": 8}))
	lock, err := pins.LockDir(t.Context(), filepath.Dir(programs[0].Maps[0]))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	list := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	if _, err := loadMaps(ctx, programs, nil, []string{"v4"}, list); !errors.Is(err, pins.ErrBusy) {
		t.Errorf("a map that is being loaded: %v", err)
	}
	lock.Unlock()
	if _, err := loadMaps(ctx, programs, nil, []string{"v4"}, list); err != nil {
		t.Error(err)
	}
}

// pinnedAgain has the first map of a program as that of another, too.
func pinnedAgain(t *testing.T, of datapath.PodProgram, name string) datapath.PodProgram {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(of.Maps[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	clone, err := m.Clone() // to pin again what knows its pin would move that
	if err != nil {
		t.Fatal(err)
	}
	defer clone.Close()
	path := filepath.Join(filepath.Dir(filepath.Dir(of.Maps[0])), name, filepath.Base(of.Maps[0]))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := clone.Pin(path); err != nil {
		t.Fatal(err)
	}
	return datapath.PodProgram{Name: name, Maps: []string{path}}
}

// TestProgramsShareMap: a map that two programs have is not ambiguous, and is loaded once.
func TestProgramsShareMap(t *testing.T) {
	programs := programPins(t, triesOf(map[string]uint32{"block/v4": 8}))
	programs = append(programs, pinnedAgain(t, programs[0], "again"))
	list := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for _, names := range [][]string{{"v4"}, {"v4", "block/v4", "again/v4"}} {
		if loaded, err := loadMaps(t.Context(), programs, nil, names, list); err != nil || len(loaded) != 1 {
			t.Errorf("%v: %+v, %v", names, loaded, err)
		}
	}
}
