package programs

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

func TestMain(m *testing.M) { tests.Main(m) }

const (
	several  = "testdata/several.bpf.o"
	tutorial = "testdata/tutorial.bpf.o"
	kernel   = "testdata/kernel.bpf.o"
)

// all is how errors list the programs of several.bpf.c.
const all = "it has classify (section tc), count_all (section xdp), count_own (section xdp), " +
	"drop (section xdp.frags), on_cpu (section xdp/cpumap), on_device (section xdp/devmap), " +
	"pass (section xdp_pass), unchecked (section xdp), use_impossible (section xdp)"

func pick(path, program string) (*Program, error) {
	o, err := Read(path)
	if err != nil {
		return nil, err
	}
	return o.Program(program)
}

func mustPick(t *testing.T, path, program string) *Program {
	t.Helper()
	p, err := pick(path, program)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// hugeBSS returns an object whose .bss takes 3 GiB.
func hugeBSS(t *testing.T, object []byte) []byte {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	object = bytes.Clone(object)
	sections := binary.NativeEndian.Uint64(object[40:]) // e_shoff
	for i, section := range f.Sections {
		if section.Name == ".bss" {
			binary.NativeEndian.PutUint64(object[sections+uint64(i)*64+32:], 3<<30) // sh_size
			return object
		}
	}
	t.Fatal("it has no .bss")
	return nil
}

// TestUnusable: what is wrong with an object, or with what is asked of it, is said in words, with its path.
func TestUnusable(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	whole, err := os.ReadFile(several)
	if err != nil {
		t.Fatal(err)
	}
	text, empty, half := file("text", []byte("#!/bin/sh\n")), file("empty", nil), file("half", whole[:len(whole)/2])
	// of the same length, in the string tables of ELF and BTF
	path := file("path", bytes.ReplaceAll(whole, []byte("count_own\x00"), []byte("../../own\x00")))
	dash := file("dash", bytes.ReplaceAll(whole, []byte("\x00own_counters\x00"), []byte("\x00own-counters\x00")))
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, object, program string
		is                    error
		says                  []string
	}{
		{"no file", "testdata/none.o", "", fs.ErrNotExist, nil},
		{"not in a directory", text + "/x.o", "", unix.ENOTDIR, nil},
		{"unreadable", loop, "", unix.ELOOP, nil},
		{"a directory", dir, "", ErrObject, []string{"no regular file"}},
		{"a device", "/dev/null", "", ErrObject, []string{"no regular file"}},
		{"empty", empty, "", ErrObject, []string{"no ELF file"}},
		{"no ELF file", text, "", ErrObject, []string{"no ELF file"}},
		{"cut off", half, "", ErrObject, nil},
		{"for this machine", "testdata/x86_64.o", "", ErrObject, []string{"EM_X86_64", "clang -target bpf"}},
		{"other byte order", "testdata/bigendian.o", "", ErrObject, []string{"other byte order"}},
		{"legacy maps", "testdata/legacy.bpf.o", "", ErrObject, []string{`legacy section "maps"`, `".maps"`}},
		{"no BTF", "testdata/nobtf.o", "pass", ErrObject, []string{"no BTF", "clang -g"}},
		{"a path for a name", path, "", ErrObject, []string{`"../../own"`, "no identifier"}},
		{"a dash in a map's name", dash, "", ErrObject, []string{`"own-counters"`, "no identifier"}},
		{"huge .bss", file("huge", hugeBSS(t, whole)), "", ErrObject, []string{"more than 67108864 bytes"}},
		{"weak option", "testdata/weak.bpf.o", "", ErrObject, []string{"CONFIG_NO_SUCH_OPTION", "WEAK"}},
		{"no name", several, "", ErrObject, []string{"must be said", all}},
		{"wrong name", several, "passs", ErrObject, []string{`no program or section "passs"`, all}},
		{"a section of many", several, "xdp", ErrObject, []string{`section "xdp" has more than one`, all}},
		{"for a CPUMAP", several, "on_cpu", ErrObject, []string{"on_cpu (section xdp/cpumap)", "not at an interface"}},
		{"for a DEVMAP", several, "xdp/devmap", ErrObject, []string{"on_device (section xdp/devmap)", "not at an interface"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := pick(test.object, test.program)
			if !errors.Is(err, test.is) {
				t.Fatalf("%v, want %v", err, test.is)
			}
			for _, words := range append(test.says, test.object) {
				if !strings.Contains(err.Error(), words) {
					t.Errorf("%q does not say %q", err, words)
				}
			}
		})
	}
}

// TestListingEnds: an object may have more programs than an error can name.
func TestListingEnds(t *testing.T) {
	o := &Object{Path: "many.o", spec: &ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{}}}
	for i := range 100 {
		name := fmt.Sprintf("p%02d", i)
		o.spec.Programs[name] = &ebpf.ProgramSpec{Name: name, SectionName: "xdp"}
	}
	_, err := o.Program("none")
	if err == nil || !strings.HasSuffix(err.Error(), "p19 (section xdp), and 80 more") {
		t.Errorf("error %v", err)
	}
}

// TestDamaged reads objects that are cut off or have other bytes in them: whatever that is, it is an error and no more.
func TestDamaged(t *testing.T) {
	whole, err := os.ReadFile(tutorial)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "damaged.o")
	read := func(what string, data []byte) (err error) {
		t.Helper()
		defer func() {
			if r := recover(); r != nil {
				t.Errorf("%s: %v", what, r)
			}
		}()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		o, err := Read(path)
		if err != nil {
			return err
		}
		for name := range o.spec.Programs {
			if p, err := o.Program(name); err == nil {
				p.Maps()
			}
		}
		return nil
	}
	if err := read("whole", whole); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(whole); n += 211 {
		if err := read(fmt.Sprintf("%d bytes", n), whole[:n]); err == nil {
			t.Errorf("%d of %d bytes are taken", n, len(whole))
		}
	}
	refused := 0
	for i := 0; i < len(whole); i += 29 {
		for _, with := range []byte{0xff, 0x80} {
			damaged := bytes.Clone(whole)
			damaged[i] ^= with
			if read(fmt.Sprintf("byte %d by %#x", i, with), damaged) != nil {
				refused++
			}
		}
	}
	if refused == 0 {
		t.Error("no damage was noticed")
	}
}

// TestPick finds programs by function, by section, or alone, and knows whose maps theirs are.
func TestPick(t *testing.T) {
	for _, test := range []struct {
		object, name, function string
		shareable              bool
		maps                   []string // those of the node with a star
	}{
		{several, "count_own", "count_own", false, []string{".bss", "own_counters"}},
		{several, "count_all", "count_all", true, []string{"all_counters*"}},
		{several, "xdp.frags", "drop", true, []string{".rodata"}},
		{several, "xdp_pass", "pass", true, nil},
		{"testdata/single.bpf.o", "", "only", true, nil},
		{tutorial, "xdp_jump", "xdp_jump_icmp", false, []string{".rodata", "next", "xdp_stats_map"}},
		{tutorial, "prog", "default_section", false, []string{"xdp_stats_map"}},
		{tutorial, "xdp_count_nested", "xdp_count_nested", false, []string{"inner_map", "outer_map"}},
	} {
		p := mustPick(t, test.object, test.name)
		if p.Function != test.function || p.Object.Path != test.object || p.Type() != ebpf.XDP {
			t.Errorf("%s of %s: function %s, type %s", test.name, test.object, p.Function, p.Type())
		}
		var names []string
		for _, m := range p.Maps() {
			if m.Shared {
				m.Name += "*"
			}
			names = append(names, m.Name)
		}
		if p.Shareable() != test.shareable || !slices.Equal(names, test.maps) {
			t.Errorf("%s: shareable %v with maps %v, want %v with %v",
				test.name, p.Shareable(), names, test.shareable, test.maps)
		}
	}
	if kind := mustPick(t, several, "classify").Type(); kind != ebpf.SchedCLS {
		t.Errorf("classify is of type %s", kind)
	}
}

// loaded is a program with the maps that it made.
type loaded struct {
	*ebpf.Program
	maps map[string]*ebpf.Map
}

func load(t *testing.T, object, name string, opts LoadOptions) *loaded {
	t.Helper()
	prog, made, err := mustPick(t, object, name).Load(opts)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		_ = prog.Close()
		for _, m := range made {
			_ = m.Close()
		}
	})
	return &loaded{prog, made}
}

// run gives the program a frame, and returns its verdict.
func (l *loaded) run(t *testing.T, frame []byte) uint32 {
	t.Helper()
	verdict, err := l.Run(&ebpf.RunOptions{Data: frame})
	if err != nil {
		t.Fatal(err)
	}
	return verdict
}

// count is a number in a map, summed over CPUs.
func (l *loaded) count(t *testing.T, name string, key uint32) uint64 {
	t.Helper()
	m := l.maps[name]
	if m == nil {
		t.Fatalf("no map %s in %v", name, l.maps)
	}
	if m.Type() == ebpf.PerCPUArray {
		var cpus [][]byte
		if err := m.Lookup(key, &cpus); err != nil {
			t.Fatal(err)
		}
		sum := uint64(0)
		for _, cpu := range cpus {
			sum += binary.NativeEndian.Uint64(cpu)
		}
		return sum
	}
	value, err := m.LookupBytes(key)
	if err != nil {
		t.Fatal(err)
	}
	return binary.NativeEndian.Uint64(value)
}

// XDP actions (include/uapi/linux/bpf.h).
const (
	xdpDrop = 1
	xdpPass = 2
)

// TestLoad: maps of its own are new ones each time, those that there are already are used, and what the program does
// not use is not loaded.
func TestLoad(t *testing.T) {
	priv.Root(t)
	frame := make([]byte, 64)
	one, two := load(t, several, "count_own", LoadOptions{}), load(t, several, "count_own", LoadOptions{})
	if verdict := one.run(t, frame); verdict != xdpPass {
		t.Errorf("verdict %d", verdict)
	}
	for i, l := range []*loaded{one, two} {
		if names := slices.Sorted(maps.Keys(l.maps)); !slices.Equal(names, []string{".bss", "own_counters"}) {
			t.Errorf("maps %v", names)
		}
		if own, bss := l.count(t, "own_counters", 2), l.count(t, ".bss", 0); own != uint64(1-i) || bss != own {
			t.Errorf("load %d counted %d, and %d in a variable", i, own, bss)
		}
	}
	first := load(t, several, "count_all", LoadOptions{})
	second := load(t, several, "count_all", LoadOptions{Maps: first.maps})
	first.run(t, frame)
	second.run(t, frame)
	if len(second.maps) != 0 {
		t.Errorf("it made maps %v", second.maps)
	}
	if got := first.count(t, "all_counters", 0); got != 2 {
		t.Errorf("both together counted %d", got)
	}
	if verdict := load(t, several, "drop", LoadOptions{}).run(t, frame); verdict != xdpDrop {
		t.Errorf("verdict %d, want what its constant says", verdict)
	}
}

// haveFrags tells whether the kernel has multi-buffer XDP (5.18).
func haveFrags() bool {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, Flags: unix.BPF_F_XDP_HAS_FRAGS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
	})
	_ = prog.Close()
	return err == nil
}

// TestTutorial runs each program of a file as the xdp-tutorial has them.
func TestTutorial(t *testing.T) {
	priv.Root(t)
	other := make([]byte, 64)
	icmp := make([]byte, 64)
	icmp[12], icmp[14], icmp[23] = 0x08, 0x45, 1 // EtherType of IPv4, version and length, protocol
	type count struct {
		in    string
		key   uint32
		wants uint64
	}
	for _, test := range []struct {
		program     string
		icmp, other uint32
		counts      []count // after one of either
	}{
		{"xdp_stats1", xdpPass, xdpPass, []count{{"xdp_stats_map", xdpPass, 2}}},
		{"xdp_icmp", xdpDrop, xdpPass, []count{{"xdp_stats_map", xdpPass, 1}, {"xdp_stats_map", xdpDrop, 1}}},
		{"xdp_globals", xdpPass, xdpPass, []count{{".bss", 0, 2 * 3}}},
		{"xdp_jump", xdpDrop, xdpPass, []count{{"xdp_stats_map", xdpPass, 1}, {"xdp_stats_map", xdpDrop, 1}}},
		{"xdp_fall", xdpPass, xdpPass, []count{{"xdp_stats_map", xdpPass, 2}}},
		{"xdp_call", xdpDrop, xdpPass, []count{{".bss", 0, 2}, {"xdp_stats_map", xdpPass, 1}, {"xdp_stats_map", xdpDrop, 1}}},
		{"xdp_nested", xdpPass, xdpPass, []count{{"inner_map", 0, 2}}},
		{"xdp_print", xdpPass, xdpPass, nil},
		{"xdp_version", xdpPass, xdpPass, nil},
		{"prog", xdpPass, xdpPass, []count{{"xdp_stats_map", xdpPass, 2}}},
	} {
		for _, frags := range []bool{false, true} {
			if frags && !haveFrags() {
				continue
			}
			t.Run(fmt.Sprintf("%s, frags %v", test.program, frags), func(t *testing.T) {
				l := load(t, tutorial, test.program, LoadOptions{Frags: frags})
				if got := l.run(t, icmp); got != test.icmp {
					t.Errorf("verdict %d of ICMP, want %d", got, test.icmp)
				}
				if got := l.run(t, other); got != test.other {
					t.Errorf("verdict %d of another, want %d", got, test.other)
				}
				for _, c := range test.counts {
					if got := l.count(t, c.in, c.key); got != c.wants {
						t.Errorf("%s has %d at %d, want %d", c.in, got, c.key, c.wants)
					}
				}
			})
		}
	}
}

// TestKernelHasNot: what the kernel has not, and the program can do without.
func TestKernelHasNot(t *testing.T) {
	priv.Root(t)
	for _, program := range []string{"has_member", "use_weak_kfunc"} {
		if verdict := load(t, kernel, program, LoadOptions{}).run(t, make([]byte, 64)); verdict != xdpPass {
			t.Errorf("%s: verdict %d", program, verdict)
		}
	}
}

// TestLoadErrors: what the kernel refuses, with the end of what it says.
func TestLoadErrors(t *testing.T) {
	priv.Root(t)
	for _, test := range []struct {
		object, program string
		verifier        bool
		says            string
	}{
		{several, "unchecked", true, "invalid access to packet"},
		{several, "use_impossible", false, "impossible"},
		{"testdata/deep.bpf.o", "deep", true, "Too large"},
		{"testdata/endless.bpf.o", "endless", true, "BPF program is too large"},
		{kernel, "use_member", true, "CO-RE"},
		{kernel, "use_kfunc", false, "no_such_kfunc"},
		{kernel, "use_symbol", false, "no_such_symbol"},
		{kernel, "use_option", false, "onfig"}, // there is no such option, or no file of them
	} {
		t.Run(test.program, func(t *testing.T) {
			prog, made, err := mustPick(t, test.object, test.program).Load(LoadOptions{})
			if err == nil || prog != nil || made != nil {
				t.Fatalf("it loads: %v, %v, error %v", prog, made, err)
			}
			for _, words := range []string{test.object, test.program, test.says} {
				if !strings.Contains(err.Error(), words) {
					t.Errorf("%q does not say %q", err, words)
				}
			}
			var verifier *ebpf.VerifierError
			if errors.As(err, &verifier) != test.verifier {
				t.Fatalf("%v: a verifier's error?", err)
			}
			switch {
			case test.program == "unchecked" && !strings.Contains(strings.Join(verifier.Log, "\n"), "*(u8 *)(r1 +0)"):
				t.Errorf("the log has not the last instruction: %q", verifier.Log)
			case test.program == "endless" && len(verifier.Log) > 100:
				t.Errorf("the log has %d lines", len(verifier.Log))
			}
		})
	}
}
