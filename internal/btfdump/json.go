// Package btfdump writes what BPF maps hold as JSON, by the types that the kernel has of them (BTF). cilium/ebpf reads
// into types of Go only, which whoever dumps a map of others does not have.
//
// The form is that of `bpftool map dump`: objects and arrays as in C, text where a char array holds some, names of enum
// values, and all else numbers, of 64 bits exactly.
package btfdump

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/cilium/ebpf/btf"
)

// ErrType: the type is none of which there can be values, or the value is shorter.
var ErrType = errors.New("no value of its BTF type")

// Append appends the JSON of the value of a type that data begins with.
func Append(to []byte, t btf.Type, data []byte) ([]byte, error) {
	t = btf.UnderlyingType(t)
	size, err := btf.Sizeof(t)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrType, err)
	}
	if len(data) < size {
		return nil, fmt.Errorf("%w: %s has %d bytes, and there are %d", ErrType, Name(t), size, len(data))
	}
	data = data[:size]
	switch t := t.(type) {
	case *btf.Int:
		return appendInt(to, t, data)
	case *btf.Enum:
		return appendEnum(to, t, number(data)), nil
	case *btf.Float:
		return appendFloat(to, data)
	case *btf.Pointer:
		return strconv.AppendUint(to, number(data), 10), nil
	case *btf.Array:
		return appendArray(to, t, data)
	case *btf.Struct:
		return appendObject(to, t.Members, data)
	case *btf.Union:
		return appendObject(to, t.Members, data)
	case *btf.Datasec:
		return appendSection(to, t, data)
	}
	return nil, fmt.Errorf("%w: %s", ErrType, Name(t))
}

// number reads an unsigned number of 1, 2, 4 or 8 bytes. All others are 0: types of the kernel have none.
func number(data []byte) uint64 {
	switch len(data) {
	case 1:
		return uint64(data[0])
	case 2:
		return uint64(binary.NativeEndian.Uint16(data))
	case 4:
		return uint64(binary.NativeEndian.Uint32(data))
	case 8:
		return binary.NativeEndian.Uint64(data)
	}
	return 0
}

// extended returns a number of some bits with its sign in all 64.
func extended(v uint64, bits int) int64 {
	return int64(v<<(64-bits)) >> (64 - bits)
}

func appendInt(to []byte, t *btf.Int, data []byte) ([]byte, error) {
	if t.Size != 16 {
		return appendBits(to, t, number(data), int(t.Size)*8), nil
	}
	low, high := number(data[:8]), number(data[8:])
	if !littleEndian {
		low, high = high, low
	}
	// no reader of JSON has such numbers
	if high == 0 {
		return fmt.Appendf(to, `"%#x"`, low), nil
	}
	return fmt.Appendf(to, `"%#x%016x"`, high, low), nil
}

// appendBits appends an integer that has so many bits, all of its type or those of a bit-field.
func appendBits(to []byte, t *btf.Int, v uint64, bits int) []byte {
	switch t.Encoding {
	case btf.Signed:
		return strconv.AppendInt(to, extended(v, bits), 10)
	case btf.Bool:
		return strconv.AppendBool(to, v != 0)
	case btf.Char:
		return appendString(to, string(rune(v&0xff)))
	}
	return strconv.AppendUint(to, v, 10)
}

func appendEnum(to []byte, t *btf.Enum, v uint64) []byte {
	bits := int(t.Size) * 8
	for _, one := range t.Values {
		// of signed ones, as BTF has them and as they were read
		if uint64(extended(one.Value, bits)) == uint64(extended(v, bits)) {
			return appendString(to, one.Name)
		}
	}
	if t.Signed {
		return strconv.AppendInt(to, extended(v, bits), 10)
	}
	return strconv.AppendUint(to, v, 10)
}

func appendFloat(to, data []byte) ([]byte, error) {
	bits, v := 64, math.Float64frombits(number(data))
	switch len(data) {
	case 4:
		bits, v = 32, float64(math.Float32frombits(uint32(number(data))))
	case 8:
	default:
		return nil, fmt.Errorf("%w: a floating-point number of %d bytes", ErrType, len(data))
	}
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return appendString(to, strconv.FormatFloat(v, 'g', -1, bits)), nil
	}
	return strconv.AppendFloat(to, v, 'g', -1, bits), nil
}

func appendArray(to []byte, t *btf.Array, data []byte) ([]byte, error) {
	if text, is := textOf(t, data); is {
		return appendString(to, text), nil
	}
	to = append(to, '[')
	for i := range int(t.Nelems) {
		if i > 0 {
			to = append(to, ',')
		}
		var err error
		size := len(data) / int(t.Nelems)
		if to, err = Append(to, t.Type, data[i*size:]); err != nil {
			return nil, err
		}
	}
	return append(to, ']'), nil
}

// textOf returns what an array holds if that is of char (not of a typedef of it), printable, and ends with NULs: where
// anything is behind the first of them, as of an address in chars, a string would not show it.
func textOf(t *btf.Array, data []byte) (string, bool) {
	element := t.Type
	for {
		switch of := element.(type) {
		case *btf.Const:
			element = of.Type
			continue
		case *btf.Volatile:
			element = of.Type
			continue
		case *btf.Int:
			// clang says of char only that it is signed, or nothing
			if of.Size != 1 || of.Encoding != btf.Char && of.Name != "char" {
				return "", false
			}
		default:
			return "", false
		}
		break
	}
	for i, c := range data {
		if c == 0 {
			return string(data[:i]), len(bytes.TrimRight(data[i:], "\x00")) == 0
		}
		if c < ' ' || c > '~' {
			return "", false
		}
	}
	return "", false
}

func appendObject(to []byte, members []btf.Member, data []byte) ([]byte, error) {
	to, err := appendMembers(append(to, '{'), members, data, true)
	return append(to, '}'), err
}

// appendMembers appends the members of a struct or union. Those of one without a name are, as in C, the outer one's
// (bpftool gives them the name "", which several may have).
func appendMembers(to []byte, members []btf.Member, data []byte, first bool) ([]byte, error) {
	for _, m := range members {
		if int(m.Offset/8) > len(data) {
			return nil, fmt.Errorf("%w: member %q begins behind its end", ErrType, m.Name)
		}
		inner := btf.UnderlyingType(m.Type)
		if m.Name == "" {
			var of []btf.Member
			switch inner := inner.(type) {
			case *btf.Struct:
				of = inner.Members
			case *btf.Union:
				of = inner.Members
			}
			if len(of) == 0 {
				continue // bits that nobody uses
			}
			before := len(to)
			var err error
			if to, err = appendMembers(to, of, data[m.Offset/8:], first); err != nil {
				return nil, err
			}
			first = first && len(to) == before
			continue
		}
		if !first {
			to = append(to, ',')
		}
		first = false
		to = append(appendString(to, m.Name), ':')
		var err error
		if to, err = appendMember(to, m, inner, data); err != nil {
			return nil, fmt.Errorf("%s: %w", m.Name, err)
		}
	}
	return to, nil
}

func appendMember(to []byte, m btf.Member, t btf.Type, data []byte) ([]byte, error) {
	if m.BitfieldSize == 0 {
		return Append(to, t, data[m.Offset/8:])
	}
	v, err := bitfield(data, int(m.Offset), int(m.BitfieldSize))
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case *btf.Int:
		return appendBits(to, t, v, int(m.BitfieldSize)), nil
	case *btf.Enum:
		if t.Signed {
			v = uint64(extended(v, int(m.BitfieldSize)))
		}
		return appendEnum(to, t, v), nil
	}
	return nil, fmt.Errorf("%w: a bit-field of %s", ErrType, Name(t))
}

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// bitfield reads bits, which may begin and end anywhere. Where the machine's first byte is the lowest one, so are a
// byte's first bits.
func bitfield(data []byte, offset, bits int) (uint64, error) {
	if bits > 64 || offset+bits > len(data)*8 {
		return 0, fmt.Errorf("%w: a bit-field of %d bits from bit %d on", ErrType, bits, offset)
	}
	var v uint64
	for i := range bits {
		at := offset + i
		if littleEndian {
			v |= uint64(data[at/8]>>(at%8)&1) << i
		} else {
			v = v<<1 | uint64(data[at/8]>>(7-at%8)&1)
		}
	}
	return v, nil
}

// appendSection appends the variables of a section (.data, .bss, .rodata), each as an object, as bpftool does.
func appendSection(to []byte, t *btf.Datasec, data []byte) ([]byte, error) {
	to = append(appendString(append(to, '{'), t.Name), ":["...)
	for i, in := range t.Vars {
		variable, is := in.Type.(*btf.Var)
		if !is || uint64(in.Offset)+uint64(in.Size) > uint64(len(data)) {
			return nil, fmt.Errorf("%w: %s in section %s", ErrType, Name(in.Type), t.Name)
		}
		if i > 0 {
			to = append(to, ',')
		}
		to = append(appendString(append(to, '{'), variable.Name), ':')
		var err error
		if to, err = Append(to, variable.Type, data[in.Offset:in.Offset+in.Size]); err != nil {
			return nil, fmt.Errorf("%s: %w", variable.Name, err)
		}
		to = append(to, '}')
	}
	return append(to, "]}"...), nil
}

// appendString appends a JSON string; those that are plain as they are, which json.Marshal does not do with < and &.
func appendString(to []byte, s string) []byte {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			quoted, _ := json.Marshal(s) // of strings it knows no error
			return append(to, quoted...)
		}
	}
	return strconv.AppendQuote(to, s)
}

// Name writes a type as in C; "" for none.
func Name(t btf.Type) string {
	named := func(kind, name string) string {
		if name == "" {
			return kind
		}
		return kind + " " + name
	}
	switch t := t.(type) {
	case nil:
		return ""
	case *btf.Const:
		return Name(t.Type)
	case *btf.Volatile:
		return Name(t.Type)
	case *btf.Struct:
		return named("struct", t.Name)
	case *btf.Union:
		return named("union", t.Name)
	case *btf.Enum:
		return named("enum", t.Name)
	case *btf.Array:
		return fmt.Sprintf("%s[%d]", Name(t.Type), t.Nelems)
	case *btf.Pointer:
		return Name(t.Target) + " *"
	case *btf.Void:
		return "void"
	}
	return t.TypeName()
}
