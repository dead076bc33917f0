package main

import (
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

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
		maps, err := openProgramMaps(programs, names, nil)
		defer closeProgramMaps(maps)
		if err != nil {
			return "", err
		}
		report := &loadReport{Maps: []loadedMap{}}
		err = loadPrefixes(report, maps, list)
		return loadTable(report, style{}), err
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
		if got, err := load(list, "block/v4", "v6"); err != nil || got != want {
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
	bad := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(bad, []byte("10.0.0.0/8\n10.0.0.0/99\n"), 0o600); err != nil {
		t.Fatal(err)
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
	} {
		status, _, stderr := xdpctl(t.Context(), append([]string{"programs", "load"}, strings.Fields(test.args)...)...)
		if status != test.status || !strings.Contains(stderr, test.says) {
			t.Errorf("%s: status %d, %q; want %d, %q", test.args, status, stderr, test.status, test.says)
		}
	}
}
