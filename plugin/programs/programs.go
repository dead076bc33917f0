// Package programs reads user programs, XDP or tc, from ELF object files and loads them.
package programs

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ErrObject: the object file cannot be used, or has no such program.
var ErrObject = errors.New("unusable object file")

// maxSize of an object file, bytes: what is larger is none.
const maxSize = 64 << 20

// Object is an object file.
type Object struct {
	Path string
	// Digest is the SHA-256 of the file.
	Digest [sha256.Size]byte
	spec   *ebpf.CollectionSpec
}

// Read reads an object file: ErrObject, or the error of reading the file.
func Read(path string) (*Object, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading object: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxSize {
		return nil, fmt.Errorf("%w: %s is no regular file of at most %d bytes", ErrObject, path, maxSize)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading object: %w", err)
	}
	if err := checkELF(data); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrObject, path, err)
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrObject, path, err)
	}
	if err := checkNames(spec); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrObject, path, err)
	}
	return &Object{Path: path, Digest: sha256.Sum256(data), spec: spec}, nil
}

// Names as C has them, of programs and maps, and those of sections of global data. They become names of pins: an object
// that was not made from C may have any others, with slashes too.
var (
	identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,126}$`)
	section    = regexp.MustCompile(`^[A-Za-z_.][A-Za-z0-9_.]{0,126}$`)
)

// checkNames says which name of a program or map cannot be that of a pin, or would be that of two.
func checkNames(spec *ebpf.CollectionSpec) error {
	for name := range spec.Programs {
		if !identifier.MatchString(name) {
			return fmt.Errorf("a program has the name %q, which is no identifier of C of at most 127 characters", name)
		}
	}
	pins := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		if !section.MatchString(name) {
			return fmt.Errorf("a map has the name %q, which is no identifier of C of at most 127 characters", name)
		}
		if other, taken := pins[PinName(name)]; taken {
			return fmt.Errorf("maps %s and %s would have the same pin", other, name)
		}
		pins[PinName(name)] = name
	}
	return nil
}

// checkELF says what is wrong with an object in the words of whoever made it.
func checkELF(data []byte) error {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("it is no ELF file: %w", err)
	}
	if f.Machine != elf.EM_BPF {
		return fmt.Errorf("it is for %s, not for BPF: compile with clang -target bpf", f.Machine)
	}
	one := []byte{1, 0}
	if f.ByteOrder.Uint16(one) != binary.NativeEndian.Uint16(one) {
		return fmt.Errorf("it is for machines of the other byte order (%s)", f.ByteOrder)
	}
	hasMaps, size := false, uint64(0)
	for _, s := range f.Sections {
		if s.Flags&elf.SHF_ALLOC != 0 {
			// .bss is not in the file, and is made in memory; a sum of few sizes that were compared cannot overflow
			if size += min(s.Size, maxSize+1); size > maxSize {
				return fmt.Errorf("its programs and global data take more than %d bytes", maxSize)
			}
		}
		if s.Name == "maps" || strings.HasPrefix(s.Name, "maps/") {
			return fmt.Errorf("its maps are in a legacy section %q, as libbpf before 1.0 had them (struct bpf_map_def): "+
				"define them in \".maps\"", s.Name)
		}
		hasMaps = hasMaps || s.Name == ".maps"
	}
	if hasMaps && f.Section(".BTF") == nil {
		return errors.New("it has no BTF, which says what its maps are: compile with clang -g")
	}
	return nil
}

// Program is a program of an object.
type Program struct {
	Object   *Object
	Function string
	spec     *ebpf.ProgramSpec
}

// Program returns the program with a function's or a section's name, or the only one there is for
// "". Else ErrObject, with those that there are.
func (o *Object) Program(want string) (*Program, error) {
	var found []string
	for name, p := range o.spec.Programs {
		switch {
		case name == want:
			return o.program(name)
		case want == "" || p.SectionName == want:
			found = append(found, name)
		}
	}
	if len(found) == 1 {
		return o.program(found[0])
	}
	have := "it has " + o.listing()
	switch {
	case want == "":
		return nil, fmt.Errorf("%w: %s: which program is to run must be said: %s", ErrObject, o.Path, have)
	case len(found) > 1:
		return nil, fmt.Errorf("%w: %s: section %q has more than one program: %s", ErrObject, o.Path, want, have)
	}
	return nil, fmt.Errorf("%w: %s has no program or section %q: %s", ErrObject, o.Path, want, have)
}

func (o *Object) program(function string) (*Program, error) {
	p := o.spec.Programs[function]
	if p.AttachType == ebpf.AttachXDPDevMap || p.AttachType == ebpf.AttachXDPCPUMap {
		return nil, fmt.Errorf("%w: %s: program %s (section %s) is to be in a DEVMAP or CPUMAP, not at an interface",
			ErrObject, o.Path, function, p.SectionName)
	}
	return &Program{o, function, p}, nil
}

// maxListed is how many programs of an object an error names.
const maxListed = 20

// listing names the programs of an object with their sections.
func (o *Object) listing() string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(o.spec.Programs)) {
		if len(names) == maxListed {
			names = append(names, fmt.Sprintf("and %d more", len(o.spec.Programs)-maxListed))
			break
		}
		names = append(names, fmt.Sprintf("%s (section %s)", name, o.spec.Programs[name].SectionName))
	}
	if len(names) == 0 {
		return "no programs"
	}
	return strings.Join(names, ", ")
}

// Type is the program's type, as its section says: XDP where it says none, as with "prog" and others that were for
// loaders which set the type.
func (p *Program) Type() ebpf.ProgramType {
	if p.spec.Type == ebpf.UnspecifiedProgram {
		return ebpf.XDP
	}
	return p.spec.Type
}

// Map is a map that a program uses.
type Map struct {
	Name string
	// Shared: pinned by name, for all of the node (LIBBPF_PIN_BY_NAME).
	Shared bool
	// OfPrograms: the kernel binds it to multi-buffer programs or to others.
	OfPrograms bool
	Spec       *ebpf.MapSpec
}

// HoldsObjects tells whether the map is one of maps or of programs.
func (m Map) HoldsObjects() bool {
	switch m.Spec.Type {
	case ebpf.ProgramArray, ebpf.ArrayOfMaps, ebpf.HashOfMaps:
		return true
	}
	return false
}

// PinName is the map's name without what bpffs refuses: .rodata is _rodata.
func PinName(name string) string { return strings.ReplaceAll(name, ".", "_") }

// Maps returns the maps that the program uses, by name.
func (p *Program) Maps() []Map {
	spec := p.reduced()
	var list []Map
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		m := spec.Maps[name]
		kind := m.Type
		list = append(list, Map{
			Name: name, Shared: m.Pinning == ebpf.PinByName, Spec: m,
			OfPrograms: kind == ebpf.DevMap || kind == ebpf.DevMapHash || kind == ebpf.CPUMap || kind == ebpf.ProgramArray,
		})
	}
	return list
}

// Shareable tells whether one loaded program can serve all pods: it has no maps of its own but constants, which nobody
// can change.
func (p *Program) Shareable() bool {
	for _, m := range p.Maps() {
		if !m.Shared && !strings.HasPrefix(m.Name, ".rodata") && m.Name != ".kconfig" {
			return false
		}
	}
	return true
}

// reduced returns a copy of the object's spec with what the program needs.
func (p *Program) reduced() *ebpf.CollectionSpec {
	spec := p.Object.spec.Copy()
	keepMaps, keepPrograms := map[string]bool{}, map[string]bool{}
	var visit func(program string)
	visit = func(program string) {
		prog := spec.Programs[program]
		if prog == nil || keepPrograms[program] {
			return
		}
		keepPrograms[program] = true
		for i := range prog.Instructions {
			name := prog.Instructions[i].Reference()
			m := spec.Maps[name]
			if m == nil || keepMaps[name] {
				continue
			}
			keepMaps[name] = true
			// maps of maps and of programs name what is in them
			for _, entry := range m.Contents {
				if inner, ok := entry.Value.(string); ok {
					keepMaps[inner] = true
					visit(inner)
				}
			}
		}
	}
	visit(p.Function)
	maps.DeleteFunc(spec.Maps, func(name string, _ *ebpf.MapSpec) bool { return !keepMaps[name] })
	maps.DeleteFunc(spec.Programs, func(name string, _ *ebpf.ProgramSpec) bool { return !keepPrograms[name] })
	maps.DeleteFunc(spec.Variables, func(_ string, v *ebpf.VariableSpec) bool { return !keepMaps[v.SectionName] })
	return spec
}

// LoadOptions say how a program is loaded.
type LoadOptions struct {
	// Frags makes XDP programs multi-buffer ones, or not.
	Frags bool
	// GoesOn makes a tc program let all go on to the next at its hook that it does not drop or redirect.
	GoesOn bool
	// Maps that are there already, by name: the shared ones.
	Maps map[string]*ebpf.Map
}

// Load loads the program. The maps that it returns are those that it made. Its error names object and
// program, and holds an *ebpf.VerifierError if it was the verifier that refused.
func (p *Program) Load(opts LoadOptions) (*ebpf.Program, map[string]*ebpf.Map, error) {
	spec := p.reduced()
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	for _, prog := range spec.Programs {
		if prog.Type == ebpf.UnspecifiedProgram {
			prog.Type = p.Type() // as those that it hands on to
		}
		if prog.Type == ebpf.SchedCLS {
			// Sections say tc, tcx/ingress and more. A link does not ask for it (bpf_prog_attach_check_attach_type()
			// in kernel/bpf/syscall.c), but a map of programs does.
			prog.AttachType = ebpf.AttachNone
			if opts.GoesOn && prog.Name == p.Function {
				prog.Instructions = goesOn(prog.Instructions)
			}
		}
		if prog.Type != ebpf.XDP {
			continue
		}
		// the kernel compares these of who calls and who is called
		prog.Flags &^= unix.BPF_F_XDP_HAS_FRAGS
		if opts.Frags {
			prog.Flags |= unix.BPF_F_XDP_HAS_FRAGS
		}
		if prog.Name == p.Function {
			prog.AttachType = ebpf.AttachXDP
		}
	}
	collection, err := loadCollection(spec, opts.Maps)
	if err != nil {
		return nil, nil, fmt.Errorf("loading program %s of %s: %w", p.Function, p.Object.Path, err)
	}
	defer collection.Close()
	own := map[string]*ebpf.Map{}
	for name := range collection.Maps {
		if opts.Maps[name] == nil {
			own[name] = collection.DetachMap(name)
		}
	}
	return collection.DetachProgram(p.Function), own, nil
}

// loadCollection loads a collection. The verifier is first asked why it refuses a program, and only then what it walked
// before: of a program that it gives up at (E2BIG) that is more than a million lines, which say no more and took 8 to
// 24 s to make, in which whoever wants the same program waits.
func loadCollection(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map) (*ebpf.Collection, error) {
	load := func(level ebpf.LogLevel) (*ebpf.Collection, error) {
		return ebpf.NewCollectionWithOptions(spec.Copy(), ebpf.CollectionOptions{
			MapReplacements: maps, Programs: ebpf.ProgramOptions{LogLevel: level},
		})
	}
	collection, err := load(ebpf.LogLevelStats)
	var verifier *ebpf.VerifierError
	if !errors.As(err, &verifier) {
		return collection, err
	}
	if !errors.Is(err, unix.E2BIG) {
		return load(ebpf.LogLevelBranch)
	}
	// the reason is before what was asked for, and the error is to end with it; what wraps it has its text already
	verifier.Log = slices.DeleteFunc(verifier.Log, func(line string) bool {
		return strings.HasPrefix(line, "verification time ") || strings.HasPrefix(line, "stack depth ")
	})
	return nil, verifier
}
