// Package programs reads the user's own BPF programs from ELF object files, and loads each with the maps that it uses.
package programs

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Errors that others compare with. Each is wrapped with the names of object and program; an *ebpf.VerifierError, with
// the verifier's log, is in the chain where the verifier rejected a program.
var (
	// ErrObject: the file is no object that can be loaded.
	ErrObject = errors.New("unusable object")
	// ErrProgram: the object has no such program, or the hook does not take it.
	ErrProgram = errors.New("unusable program")
	// ErrRejected: the kernel does not load the program or its maps.
	ErrRejected = errors.New("program rejected")
)

// maxObject is how large an object file may be, in bytes: a cap on what a wrong path makes us read.
const maxObject = 16 << 20

// Options say which program is meant.
type Options struct {
	// Object is the path of the ELF object file.
	Object string
	// Name of the program's function or section; empty if the object has only one program.
	Name string
	// Type of the programs that the hook takes.
	Type ebpf.ProgramType
}

// Program is a program of an object, with the maps that it refers to. It is not loaded yet.
type Program struct {
	// Object is the path that it was read from.
	Object string
	// Function is its name.
	Function string
	// Digest stands for the object's bytes and the function.
	Digest string

	spec *ebpf.CollectionSpec
}

// Open reads an object and finds the program. Errors: ErrObject, with what the system says of the file, and ErrProgram.
func Open(o Options) (*Program, error) {
	raw, err := read(o.Object)
	if err != nil {
		return nil, fmt.Errorf("reading object %s: %w: %w", o.Object, ErrObject, err)
	}
	if err := inspect(raw); err != nil {
		return nil, fmt.Errorf("reading object %s: %w", o.Object, err)
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("reading object %s: %w: %w", o.Object, ErrObject, err)
	}
	prog, err := find(spec, o)
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", o.Object, err)
	}
	p := &Program{Object: o.Object, Function: prog.Name, spec: spec}
	sum := sha256.New()
	_, _ = sum.Write(raw) // never fails
	_, _ = io.WriteString(sum, prog.Name)
	p.Digest = hex.EncodeToString(sum.Sum(nil)[:16])
	if err := p.reduce(); err != nil {
		return nil, fmt.Errorf("program %s of object %s: %w", p.Function, p.Object, err)
	}
	return p, nil
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxObject+1))
	if err == nil && len(raw) > maxObject {
		err = fmt.Errorf("it is larger than %d MiB", maxObject>>20)
	}
	return raw, err
}

// inspect says in words what the loader would only trip over.
func inspect(raw []byte) error {
	f, err := elf.NewFile(bytes.NewReader(raw))
	if err != nil {
		return fmt.Errorf("%w: it is no ELF file: %w", ErrObject, err)
	}
	if f.Type != elf.ET_REL || f.Machine != elf.EM_BPF && f.Machine != elf.EM_NONE {
		return fmt.Errorf("%w: it is of type %s for %s, not a relocatable object for EM_BPF (clang -target bpf -c)", ErrObject, f.Type, f.Machine)
	}
	if native := nativeOrder(); f.Data != native {
		return fmt.Errorf("%w: it is for machines of another byte order (%s, here %s)", ErrObject, f.Data, native)
	}
	var btfMaps, types bool
	for _, section := range f.Sections {
		switch {
		case section.Name == "maps" || strings.HasPrefix(section.Name, "maps/"):
			return fmt.Errorf("%w: it has a legacy section %q: define its maps in SEC(\".maps\"), which describes them by BTF", ErrObject, section.Name)
		case section.Name == ".maps":
			btfMaps = true
		case section.Name == ".BTF":
			types = true
		}
	}
	if btfMaps && !types {
		return fmt.Errorf("%w: it has maps but no BTF, which describes them: compile it with -g", ErrObject)
	}
	return nil
}

func nativeOrder() elf.Data {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return elf.ELFDATA2LSB
	}
	return elf.ELFDATA2MSB
}

// find returns the program of a name, of function or section; without a name the only one there is.
func find(spec *ebpf.CollectionSpec, o Options) (*ebpf.ProgramSpec, error) {
	var found []*ebpf.ProgramSpec
	for _, prog := range spec.Programs {
		if o.Name == "" || prog.Name == o.Name || prog.SectionName == o.Name {
			found = append(found, prog)
		}
	}
	if len(found) != 1 {
		problem := "it has no program"
		switch {
		case len(found) > 1 && o.Name != "":
			problem = fmt.Sprintf("several programs are in section %s: name one", o.Name)
		case len(found) > 1:
			problem = "it has several programs: name one"
		case o.Name != "":
			problem = "it has no program " + o.Name
		}
		return nil, fmt.Errorf("%w: %s; there are: %s", ErrProgram, problem, listing(spec))
	}
	prog := found[0]
	// the tutorial's objects call their sections "xdp_pass" and such, of which libbpf made XDP programs below 1.0
	if prog.Type == ebpf.UnspecifiedProgram {
		prog.Type = o.Type
	}
	if prog.Type != o.Type {
		return nil, fmt.Errorf("%w: program %s (section %s) is of type %s, and this hook takes %s",
			ErrProgram, prog.Name, prog.SectionName, prog.Type, o.Type)
	}
	if prog.AttachType == ebpf.AttachXDPDevMap || prog.AttachType == ebpf.AttachXDPCPUMap {
		return nil, fmt.Errorf("%w: program %s (section %s) is to be in a DEVMAP or CPUMAP, not at an interface", ErrProgram, prog.Name, prog.SectionName)
	}
	return prog, nil
}

// listing names all programs of an object, with their sections.
func listing(spec *ebpf.CollectionSpec) string {
	var all []string
	for _, prog := range spec.Programs {
		all = append(all, fmt.Sprintf("%s (section %s)", prog.Name, prog.SectionName))
	}
	if len(all) == 0 {
		return "none"
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// reduce leaves in the spec what the program uses: others of the object may need what is not here.
func (p *Program) reduce() error {
	programs, maps, used := map[string]*ebpf.ProgramSpec{}, map[string]*ebpf.MapSpec{}, map[string]bool{}
	var program func(string)
	var object func(*ebpf.MapSpec)
	program = func(name string) {
		prog := p.spec.Programs[name]
		if prog == nil || programs[name] != nil {
			return
		}
		programs[name] = prog
		for i := range prog.Instructions {
			if ref := prog.Instructions[i].Reference(); ref != "" {
				used[ref] = true
				if m := p.spec.Maps[ref]; m != nil && maps[ref] == nil {
					maps[ref] = m
					object(m)
				}
			}
		}
	}
	// what a map holds from the beginning: programs, or maps
	object = func(m *ebpf.MapSpec) {
		for _, kv := range m.Contents {
			name, ok := kv.Value.(string)
			if !ok {
				continue
			}
			program(name)
			if inner := p.spec.Maps[name]; inner != nil && maps[name] == nil {
				maps[name] = inner
				object(inner)
			}
		}
	}
	program(p.Function)
	for name, prog := range programs {
		if prog.Type == ebpf.UnspecifiedProgram {
			return fmt.Errorf("%w: it calls program %s, whose section %s says no type", ErrProgram, name, prog.SectionName)
		}
	}
	p.spec.Programs, p.spec.Maps = programs, maps
	for name, variable := range p.spec.Variables {
		if !used[variable.SectionName] {
			delete(p.spec.Variables, name)
		}
	}
	pins := map[string]string{}
	for name, m := range maps {
		if m.Pinning != ebpf.PinByName && !readOnly(m) {
			if other, taken := pins[PinName(name)]; taken {
				return fmt.Errorf("%w: its maps %s and %s would have one pin, %s", ErrProgram, other, name, PinName(name))
			}
			pins[PinName(name)] = name
		}
	}
	return nil
}

// readOnly tells whether a map is constant data (.rodata): it is one for all who load the object.
func readOnly(m *ebpf.MapSpec) bool { return m.Flags&unix.BPF_F_RDONLY_PROG != 0 }

// PinName is the name that a map is pinned by: that of a data section has a dot, which bpffs refuses.
func PinName(mapName string) string {
	return strings.ReplaceAll(strings.TrimPrefix(mapName, "."), ".", "_")
}

// HasOwnMaps tells whether the program has maps of which every pod needs its own. One without can be loaded once for all.
func (p *Program) HasOwnMaps() bool {
	for _, m := range p.spec.Maps {
		if m.Pinning != ebpf.PinByName && !readOnly(m) {
			return true
		}
	}
	return false
}

// LoadOptions say how a program is loaded.
type LoadOptions struct {
	// AttachType of the program that is to call it: the kernel wants the same.
	AttachType ebpf.AttachType
	// Frags: XDP with multi-buffer support, as the program has that is to call it.
	Frags bool
	// Shared is the directory in a bpffs for maps that the object asks to pin by name. It is made if need be.
	Shared string
}

// Loaded is a loaded program. Close it.
type Loaded struct {
	Program *ebpf.Program
	// Own are the maps of this one, by the names of their pins.
	Own map[string]*ebpf.Map

	collection *ebpf.Collection
}

// Close closes the program and its maps; what is pinned or used stays.
func (l *Loaded) Close() {
	if l != nil {
		l.collection.Close()
	}
}

// Load loads the program with its maps. Errors: ErrRejected, with an *ebpf.VerifierError if it was the verifier.
func (p *Program) Load(o LoadOptions) (*Loaded, error) {
	spec := p.spec.Copy()
	for _, prog := range spec.Programs {
		if prog.Type != ebpf.XDP {
			continue
		}
		prog.AttachType = o.AttachType
		prog.Flags &^= unix.BPF_F_XDP_HAS_FRAGS
		if o.Frags {
			prog.Flags |= unix.BPF_F_XDP_HAS_FRAGS
		}
	}
	fail := func(err error) (*Loaded, error) {
		return nil, fmt.Errorf("loading program %s of object %s: %w: %w", p.Function, p.Object, ErrRejected, err)
	}
	if slices.ContainsFunc(mapsOf(spec), func(m *ebpf.MapSpec) bool { return m.Pinning == ebpf.PinByName }) {
		if err := os.MkdirAll(o.Shared, 0o700); err != nil {
			return fail(err)
		}
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: o.Shared}})
	if err != nil {
		if errors.Is(err, ebpf.ErrMapIncompatible) {
			err = fmt.Errorf("a map of the same name that another object shares is of another kind: %w", err)
		}
		return fail(err)
	}
	l := &Loaded{Program: collection.Programs[p.Function], Own: map[string]*ebpf.Map{}, collection: collection}
	for name, m := range p.spec.Maps {
		if m.Pinning != ebpf.PinByName && !readOnly(m) {
			l.Own[PinName(name)] = collection.Maps[name]
		}
	}
	return l, nil
}

func mapsOf(spec *ebpf.CollectionSpec) []*ebpf.MapSpec {
	var all []*ebpf.MapSpec
	for _, m := range spec.Maps {
		all = append(all, m)
	}
	return all
}
