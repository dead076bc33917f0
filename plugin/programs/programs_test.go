package programs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

func TestMain(m *testing.M) { tests.Main(m) }

const several = "testdata/several.o"

// all is how errors list the programs of several.c.
const all = "classify (section tc), count_all (section xdp), count_own (section xdp), drop (section xdp.frags), " +
	"on_cpu (section xdp/cpumap), pass (section xdp_pass), unchecked (section xdp), use_impossible (section xdp)"

func TestOpenErrors(t *testing.T) {
	noELF := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(noELF, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, object, program string
		want                  error
		says                  []string
	}{
		{"no file", "testdata/none.o", "", fs.ErrNotExist, []string{"testdata/none.o"}},
		{"no ELF file", noELF, "", ErrObject, []string{noELF, "no ELF file"}},
		{"of this machine", self, "", ErrObject, []string{self, "EM_BPF"}},
		{"other byte order", "testdata/bigendian.o", "", ErrObject, []string{"testdata/bigendian.o", "another byte order"}},
		{"legacy maps", "testdata/legacy.o", "", ErrObject, []string{"testdata/legacy.o", `legacy section "maps"`, `SEC(".maps")`}},
		{"no BTF", "testdata/nobtf.o", "pass", ErrObject, []string{"testdata/nobtf.o", "no BTF", "-g"}},
		{"no name", several, "", ErrProgram, []string{several, "several programs", all}},
		{"wrong name", several, "passs", ErrProgram, []string{several, "no program passs", all}},
		{"a section of many", several, "xdp", ErrProgram, []string{several, "in section xdp: name one", all}},
		{"other type", several, "classify", ErrProgram, []string{several, "classify (section tc)", "SchedCLS", "XDP"}},
		{"for a CPUMAP", several, "on_cpu", ErrProgram, []string{several, "on_cpu", "CPUMAP"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Open(Options{Object: test.object, Name: test.program, Type: ebpf.XDP})
			if !errors.Is(err, test.want) {
				t.Fatalf("%v, want %v", err, test.want)
			}
			for _, words := range test.says {
				if !strings.Contains(err.Error(), words) {
					t.Errorf("%q does not say %q", err, words)
				}
			}
		})
	}
}

func mustOpen(t *testing.T, object, name string) *Program {
	t.Helper()
	p, err := Open(Options{Object: object, Name: name, Type: ebpf.XDP})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestOpen finds programs by function, by section, or alone, and knows whose maps theirs are.
func TestOpen(t *testing.T) {
	digests := map[string]string{}
	for _, test := range []struct {
		object, name, function string
		own                    bool
	}{
		{several, "count_own", "count_own", true},
		{several, "count_all", "count_all", false},
		{several, "xdp.frags", "drop", false},
		{several, "xdp_pass", "pass", false},
		{"testdata/single.o", "", "only", false},
	} {
		p := mustOpen(t, test.object, test.name)
		if p.Function != test.function || p.Object != test.object || p.HasOwnMaps() != test.own {
			t.Errorf("%s of %s: function %s, own maps %v", test.name, test.object, p.Function, p.HasOwnMaps())
		}
		if other, taken := digests[p.Digest]; taken {
			t.Errorf("%s and %s have one digest", other, p.Function)
		}
		digests[p.Digest] = p.Function
	}
	if one, other := mustOpen(t, several, "drop"), mustOpen(t, several, "xdp.frags"); one.Digest != other.Digest {
		t.Error("the digest depends on how the program is named")
	}
}

// bpffs mounts one for a test.
func bpffs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// run gives the program a frame, and returns its verdict.
func run(t *testing.T, l *Loaded) uint32 {
	t.Helper()
	verdict, err := l.Program.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err != nil {
		t.Fatal(err)
	}
	return verdict
}

func counted(t *testing.T, m *ebpf.Map, key uint32) (n uint64) {
	t.Helper()
	if err := m.Lookup(key, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestLoad: maps of its own are new ones each time, those pinned by name are one, and what the program does not use is
// not loaded.
func TestLoad(t *testing.T) {
	priv.Root(t)
	shared := filepath.Join(bpffs(t), "a", "b")
	load := func(name string) *Loaded {
		t.Helper()
		l, err := mustOpen(t, several, name).Load(LoadOptions{AttachType: ebpf.AttachXDP, Shared: shared})
		if err != nil {
			t.Fatalf("%+v", err)
		}
		t.Cleanup(l.Close)
		return l
	}
	one, two := load("count_own"), load("count_own")
	if verdict := run(t, one); verdict != 2 {
		t.Errorf("verdict %d", verdict)
	}
	for i, l := range []*Loaded{one, two} {
		if len(l.Own) != 2 || l.Own["own_counters"] == nil || l.Own["bss"] == nil {
			t.Fatalf("own maps: %v", l.Own)
		}
		if got := counted(t, l.Own["own_counters"], 2); got != uint64(1-i) {
			t.Errorf("load %d counted %d", i, got)
		}
	}
	if _, err := os.Stat(shared); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory was made that nothing needs: %v", err)
	}
	one, two = load("count_all"), load("count_all")
	run(t, one)
	run(t, two)
	if len(one.Own) != 0 {
		t.Errorf("own maps: %v", one.Own)
	}
	pinned, err := ebpf.LoadPinnedMap(filepath.Join(shared, "all_counters"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer pinned.Close()
	if got := counted(t, pinned, 0); got != 2 {
		t.Errorf("both together counted %d", got)
	}
	if verdict := run(t, load("drop")); verdict != 1 {
		t.Errorf("verdict %d, want what its constant says", verdict)
	}
}

// TestLoadErrors: what the kernel refuses, with the end of what it says.
func TestLoadErrors(t *testing.T) {
	priv.Root(t)
	dir := bpffs(t)
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Pin(filepath.Join(dir, "all_counters")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		object, program string
		verifier        string // the end of its log says
		says            string
	}{
		{several, "unchecked", "invalid access to packet", ""},
		{"testdata/deep.o", "deep", "Too large", ""},
		{several, "use_impossible", "", "impossible"},
		{several, "count_all", "", "of another kind"},
	} {
		t.Run(test.program, func(t *testing.T) {
			_, err := mustOpen(t, test.object, test.program).Load(LoadOptions{AttachType: ebpf.AttachXDP, Shared: dir})
			if !errors.Is(err, ErrRejected) {
				t.Fatalf("%v, want %v", err, ErrRejected)
			}
			for _, words := range []string{test.object, test.program, test.says} {
				if !strings.Contains(err.Error(), words) {
					t.Errorf("%q does not say %q", err, words)
				}
			}
			var verifier *ebpf.VerifierError
			if errors.As(err, &verifier) != (test.verifier != "") {
				t.Fatalf("%v: a verifier's error?", err)
			}
			if verifier != nil && !strings.Contains(strings.Join(verifier.Log, "\n"), test.verifier) {
				t.Errorf("the verifier says %q", verifier.Log)
			}
		})
	}
}
