package datapath

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// scratchMaps hold nothing that one packet leaves to the next but a rate limit: where their layout is another
// one, a release has its own.
var scratchMaps = []string{bpf.DatapathMapViews, bpf.DatapathMapDropWindows}

// differences says in words how a map is not what this release would make by the spec, whatever its types say;
// nothing if it is.
func differences(spec *ebpf.MapSpec, m *ebpf.Map) []string {
	var found []string
	differ := func(what string, have, want any) {
		if have != want {
			found = append(found, fmt.Sprintf("%s %v, in this release %v", what, have, want))
		}
	}
	differ("type", m.Type(), spec.Type)
	differ("key size", m.KeySize(), spec.KeySize)
	differ("value size", m.ValueSize(), spec.ValueSize)
	// which the kernel sets in DEVMAPs (dev_map_init_map() in kernel/bpf/devmap.c)
	flags := m.Flags()
	if spec.Type == ebpf.DevMap || spec.Type == ebpf.DevMapHash {
		flags &^= unix.BPF_F_RDONLY_PROG
	}
	differ("flags", flags, spec.Flags)
	if fixedSize(spec) {
		differ("number of entries", m.MaxEntries(), spec.MaxEntries)
	}
	return found
}

// fixedSize tells whether the number of entries is part of the layout: the programs calculate with that of
// arrays. Of other maps it says how much there is room for, and of a pod's arrays that its policy is that long.
func fixedSize(spec *ebpf.MapSpec) bool {
	if spec.Flags&unix.BPF_F_INNER_MAP != 0 {
		return false
	}
	switch spec.Type {
	case ebpf.Array, ebpf.PerCPUArray, ebpf.ArrayOfMaps, ebpf.ProgramArray:
		return true
	}
	return false
}

// typeDifferences says in words how the structures in a map are not those of this release. A field where one of
// the two has padding is no difference: padding is zero, and a release that makes a field of it has to take 0 for
// what was before. In keys it is one, since entries would not be found.
func typeDifferences(spec *ebpf.MapSpec, m *ebpf.Map) ([]string, error) {
	wanted := map[string]btf.Type{"key": spec.Key, "value": spec.Value}
	var types *btf.Spec
	var found []string
	for _, part := range []string{"key", "value"} {
		want, ok := wanted[part].(*btf.Struct)
		if !ok {
			continue // a number, whose size was compared, or nothing
		}
		if types == nil {
			var err error
			if types, err = typesOf(m); err != nil || types == nil {
				return nil, err
			}
		}
		var have *btf.Struct
		if err := types.TypeByName(want.Name, &have); err != nil {
			if !errors.Is(err, btf.ErrNotFound) {
				return nil, fmt.Errorf("reading the types of %s: %w", m, err)
			}
			found = append(found, fmt.Sprintf("%s is no struct %s", part, want.Name))
			continue
		}
		for _, difference := range fieldDifferences(flatten(have), flatten(want), part == "key") {
			found = append(found, fmt.Sprintf("%s, struct %s: %s", part, want.Name, difference))
		}
	}
	return found, nil
}

// typesOf returns the types of a map, nil if the kernel knows none.
func typesOf(m *ebpf.Map) (*btf.Spec, error) {
	handle, err := m.Handle()
	if errors.Is(err, ebpf.ErrNotSupported) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the types of %s: %w", m, err)
	}
	defer handle.Close()
	types, err := handle.Spec(nil)
	if err != nil {
		return nil, fmt.Errorf("reading the types of %s: %w", m, err)
	}
	return types, nil
}

// field is a number, or an array of numbers, in a structure.
type field struct {
	name      string
	from, len uint32 // bits
	whole     bool   // an array of structures, whose fields are there too
}

// padding tells whether the field is there to align others.
func (f field) padding() bool {
	name := f.name[strings.LastIndexByte(f.name, '.')+1:]
	return strings.TrimRight(name, "0123456789") == "pad"
}

// flatten returns the fields of a structure and of those in it. Of an array of structures it is those of the
// first, behind which the whole array stands.
func flatten(s *btf.Struct) []field {
	return appendFields(nil, "", 0, s.Members)
}

func appendFields(fields []field, prefix string, base uint32, members []btf.Member) []field {
	for _, member := range members {
		name, from := prefix+member.Name, base+uint32(member.Offset)
		kind := btf.UnderlyingType(member.Type)
		size, err := btf.Sizeof(kind)
		if err != nil {
			size = 0 // a flexible array
		}
		bits := uint32(member.BitfieldSize)
		if bits == 0 {
			bits = uint32(size) * 8
		}
		switch kind := kind.(type) {
		case *btf.Struct:
			fields = appendFields(fields, name+".", from, kind.Members)
			continue
		case *btf.Union:
			fields = appendFields(fields, name+".", from, kind.Members)
			continue
		case *btf.Array:
			if element, ok := btf.UnderlyingType(kind.Type).(*btf.Struct); ok {
				fields = appendFields(fields, name+"[].", from, element.Members)
				fields = append(fields, field{name, from, bits, true})
				continue
			}
		}
		fields = append(fields, field{name, from, bits, false})
	}
	return fields
}

func fieldDifferences(have, want []field, strict bool) []string {
	var found []string
	for _, sides := range []struct {
		these, those []field
		none         string
	}{{have, want, "is not in this release"}, {want, have, "is only in this release"}} {
		for _, f := range sides.these {
			if f.padding() && !strict {
				continue
			}
			i := slices.IndexFunc(sides.those, func(o field) bool { return o.name == f.name })
			if i < 0 {
				if strict || slices.ContainsFunc(sides.those, func(o field) bool { return !o.padding() && !o.whole && o.overlaps(f) }) {
					found = append(found, fmt.Sprintf("%s (%s) %s", f.name, f.place(), sides.none))
				}
				continue
			}
			if other := sides.those[i]; other != f && sides.none == "is not in this release" {
				found = append(found, fmt.Sprintf("%s is %s, in this release %s", f.name, f.place(), other.place()))
			}
		}
	}
	return found
}

func (f field) overlaps(o field) bool { return f.from < o.from+o.len && o.from < f.from+f.len }

func (f field) place() string { return fmt.Sprintf("%d bytes at %d", f.len/8, f.from/8) }

// layoutError is ErrLayout with all differences of a pin.
func layoutError(pin, release string, differences []string) error {
	if len(differences) == 0 {
		return nil
	}
	return fmt.Errorf("%w: map %s was made by release %s with %s", ErrLayout, pin, release, strings.Join(differences, "; "))
}
