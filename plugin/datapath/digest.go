package datapath

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// digestLen is how many bytes of the hash are kept.
const digestLen = 16

// digest says which program a spec of one composition is: by its instructions, its constants, and the shapes of
// the maps that it uses. The kernel's tag would not do: it leaves constants out, and how it is made differs by
// kernel (bpf_prog_calc_tag() in kernel/bpf/core.c, SHA-256 from 6.18 on). Nothing is noted in the spec yet.
func digest(spec *ebpf.CollectionSpec) string {
	hash := sha256.New()
	write := func(values ...any) {
		for _, value := range values {
			if s, ok := value.(string); ok {
				// a hash takes all
				_ = binary.Write(hash, binary.LittleEndian, uint32(len(s)))
				_, _ = io.WriteString(hash, s)
				continue
			}
			_ = binary.Write(hash, binary.LittleEndian, value)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Programs)) {
		prog := spec.Programs[name]
		write(name, uint32(prog.Type), uint32(prog.AttachType), prog.Flags)
		for i := range prog.Instructions {
			ins := &prog.Instructions[i]
			write(uint64(ins.OpCode), uint8(ins.Dst), uint8(ins.Src), ins.Offset, ins.Constant, ins.Reference(), ins.Symbol())
		}
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		m := spec.Maps[name]
		// the number of entries is often the configuration's
		write(name, uint32(m.Type), m.KeySize, m.ValueSize, m.Flags)
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Variables)) {
		write(name, spec.Variables[name].Offset, string(spec.Variables[name].Value))
	}
	return hex.EncodeToString(hash.Sum(nil)[:digestLen])
}

// note notes in a spec of one composition which release loads it, and what.
func note(spec *ebpf.CollectionSpec, release, digest string) error {
	for name, text := range map[string]string{
		bpf.DatapathVarBpfMetadataRelease: release, bpf.DatapathVarBpfMetadataDigest: digest,
	} {
		variable := spec.Variables[name]
		if variable == nil {
			return fmt.Errorf("the object has no variable %s", name)
		}
		value := make([]byte, variable.Size())
		copy(value[:len(value)-1], text) // a NUL ends it
		if err := variable.Set(value); err != nil {
			return err
		}
	}
	return nil
}

// noted is what a loaded program says of itself; empty where it says nothing.
type noted struct {
	release, digest string
}

// readNotes reads what the loader noted in a program.
func readNotes(prog *ebpf.Program) (noted, error) {
	info, err := prog.Info()
	if err != nil {
		return noted{}, fmt.Errorf("reading a program's maps: %w", err)
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return noted{}, fmt.Errorf("opening a program's map: %w", err)
		}
		notes, found, err := notesOf(m)
		_ = m.Close()
		if err != nil || found {
			return notes, err
		}
	}
	return noted{}, nil
}

// notesOf reads the notes if the map is a program's constants. Where they are, its types tell: another release's
// constants are others.
func notesOf(m *ebpf.Map) (notes noted, found bool, err error) {
	info, err := m.Info()
	if err != nil {
		return notes, false, fmt.Errorf("reading a program's map: %w", err)
	}
	if info.Type != ebpf.Array || info.MaxEntries != 1 || !info.Frozen() {
		return notes, false, nil
	}
	types, err := typesOf(m)
	if err != nil || types == nil {
		return notes, false, err
	}
	var section *btf.Datasec
	if err := types.TypeByName(sectionConstants, &section); err != nil {
		if errors.Is(err, btf.ErrNotFound) {
			return notes, false, nil
		}
		return notes, false, fmt.Errorf("reading the types of a program's map: %w", err)
	}
	value, err := m.LookupBytes(uint32(0))
	if err != nil {
		return notes, false, fmt.Errorf("reading a program's constants: %w", err)
	}
	for _, variable := range section.Vars {
		end := uint64(variable.Offset) + uint64(variable.Size)
		if end > uint64(len(value)) {
			continue
		}
		text := cString(value[variable.Offset:end])
		switch variable.Type.TypeName() {
		case bpf.DatapathVarBpfMetadataRelease:
			notes.release = text
		case bpf.DatapathVarBpfMetadataDigest:
			notes.digest = text
		}
	}
	return notes, notes.digest != "", nil
}

// sectionConstants is where a program has its constants.
const sectionConstants = ".rodata"
