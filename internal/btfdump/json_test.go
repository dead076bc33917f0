package btfdump

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// bytesOf lays numbers out as they are in this machine's memory.
func bytesOf(t *testing.T, numbers ...any) []byte {
	t.Helper()
	var data []byte
	for _, n := range numbers {
		var err error
		if data, err = binary.Append(data, binary.NativeEndian, n); err != nil {
			t.Fatal(err)
		}
	}
	return data
}

var (
	u8      = &btf.Int{Name: "unsigned char", Size: 1}
	u16     = &btf.Int{Name: "unsigned short", Size: 2}
	u64     = &btf.Int{Name: "unsigned long long", Size: 8}
	s8      = &btf.Int{Name: "signed char", Size: 1, Encoding: btf.Signed}
	s32     = &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	s64     = &btf.Int{Name: "long long", Size: 8, Encoding: btf.Signed}
	char    = &btf.Int{Name: "char", Size: 1, Encoding: btf.Signed} // as clang has it
	boolean = &btf.Int{Name: "_Bool", Size: 1, Encoding: btf.Bool}
	color   = &btf.Enum{Name: "color", Size: 4, Values: []btf.EnumValue{{Name: "RED", Value: 0}, {Name: "BLUE", Value: 7}}}
	signed  = &btf.Enum{Name: "level", Size: 4, Signed: true, Values: []btf.EnumValue{
		{Name: "NONE", Value: math.MaxUint64}, {Name: "LOW", Value: 1},
	}}
	point = &btf.Struct{Name: "point", Size: 8, Members: []btf.Member{
		{Name: "x", Type: s32}, {Name: "y", Type: s32, Offset: 32},
	}}
	prefix = &btf.Struct{Name: "prefix", Size: 8, Members: []btf.Member{
		{Name: "prefixlen", Type: u32}, {Name: "data", Type: array(u8, 4), Offset: 32},
	}}
)

func array(of btf.Type, n uint32) *btf.Array { return &btf.Array{Index: u32, Type: of, Nelems: n} }

// bits is a struct of 16 bytes with bit-fields of clang's layout on little-endian machines; on the others the members'
// bits are counted from the other end, so that the same values come out of other bytes.
func bits() (btf.Type, []byte) {
	members := []btf.Member{
		{Name: "a", Type: u32, BitfieldSize: 3},
		{Name: "b", Type: s32, Offset: 3, BitfieldSize: 5},
		{Name: "across", Type: u32, Offset: 8, BitfieldSize: 13},
		{Name: "", Type: u32, Offset: 21, BitfieldSize: 3}, // unused
		{Name: "is", Type: boolean, Offset: 24, BitfieldSize: 1},
		{Name: "c", Type: color, Offset: 25, BitfieldSize: 3},
		{Name: "l", Type: signed, Offset: 28, BitfieldSize: 2},
		{Name: "wide", Type: u64, Offset: 64, BitfieldSize: 63},
		{Name: "top", Type: s64, Offset: 127, BitfieldSize: 1},
	}
	values := []uint64{5, 0b11110, 0x1abc, 0, 1, 7, 3, 1<<62 + 1, 1}
	data := make([]byte, 16)
	for i, m := range members {
		for bit := range int(m.BitfieldSize) {
			at, one := int(m.Offset)+bit, byte(values[i]>>bit&1)
			if !littleEndian {
				at = int(m.Offset) + int(m.BitfieldSize) - 1 - bit
				data[at/8] |= one << (7 - at%8)
				continue
			}
			data[at/8] |= one << (at % 8)
		}
	}
	return &btf.Struct{Name: "bits", Size: 16, Members: members}, data
}

func TestAppend(t *testing.T) {
	bitStruct, bitData := bits()
	anonymous := &btf.Struct{Name: "outer", Size: 12, Members: []btf.Member{
		{Type: &btf.Union{Size: 4, Members: []btf.Member{
			{Name: "word", Type: u32},
			{Type: &btf.Struct{Size: 4, Members: []btf.Member{{Name: "low", Type: u16}, {Name: "high", Type: u16, Offset: 16}}}},
		}}},
		{Name: "inner", Type: &btf.Struct{Size: 8, Members: []btf.Member{{Type: point}}}, Offset: 32},
	}}
	for _, test := range []struct {
		name string
		t    btf.Type
		data []byte
		want string
	}{
		{"u8", u8, []byte{200}, `200`},
		{"s8", s8, []byte{200}, `-56`},
		{"u16", u16, bytesOf(t, uint16(0xfffe)), `65534`},
		{"s32", s32, bytesOf(t, int32(-7)), `-7`},
		{"u64 past what a float holds", u64, bytesOf(t, uint64(math.MaxUint64)), `18446744073709551615`},
		{"s64", s64, bytesOf(t, int64(math.MinInt64)), `-9223372036854775808`},
		{"128 bits", &btf.Int{Name: "__int128", Size: 16}, wide(t, 0x12, 0xff), `"0x1200000000000000ff"`},
		{"128 bits, small", &btf.Int{Name: "__int128", Size: 16}, wide(t, 0, 0xff), `"0xff"`},
		{"bool", boolean, []byte{1}, `true`},
		{"char", &btf.Int{Name: "char", Size: 1, Encoding: btf.Char}, []byte{'x'}, `"x"`},
		{"char of clang", char, []byte{'x'}, `120`},
		{"enum", color, bytesOf(t, uint32(7)), `"BLUE"`},
		{"enum without a name for it", color, bytesOf(t, uint32(8)), `8`},
		{"signed enum", signed, bytesOf(t, int32(-1)), `"NONE"`},
		{"signed enum without a name for it", signed, bytesOf(t, int32(-2)), `-2`},
		{"enum of 64 bits", &btf.Enum{Size: 8, Values: []btf.EnumValue{{Name: "TOP", Value: 1 << 63}}},
			bytesOf(t, uint64(1<<63)), `"TOP"`},
		{"float", &btf.Float{Name: "float", Size: 4}, bytesOf(t, float32(0.1)), `0.1`},
		{"double", &btf.Float{Name: "double", Size: 8}, bytesOf(t, math.Inf(-1)), `"-Inf"`},
		{"pointer", &btf.Pointer{Target: u8}, bytesOf(t, uint64(4096)), `4096`},
		{"typedefs", &btf.Typedef{Name: "__be16", Type: &btf.Volatile{Type: &btf.Const{Type: u16}}},
			bytesOf(t, uint16(1)), `1`},
		{"array", array(u8, 4), []byte{10, 0, 0, 1}, `[10,0,0,1]`},
		{"no elements", array(u32, 0), nil, `[]`},
		{"nested arrays", array(array(u16, 3), 2), bytesOf(t, []uint16{1, 2, 3, 4, 5, 6}), `[[1,2,3],[4,5,6]]`},
		{"text", array(char, 8), []byte("a\"b\\<\x00\x00\x00"), `"a\"b\\<"`},
		{"bytes behind a NUL", array(char, 6), []byte("\x00\x16>\x01\x02\x03"), `[0,22,62,1,2,3]`},
		{"text in const", array(&btf.Const{Type: char}, 3), []byte("no\x00"), `"no"`},
		{"no text", array(char, 4), bytesOf(t, []int8{'a', -1, 0, 0}), `[97,-1,0,0]`},
		{"text without an end", array(char, 2), []byte("ab"), `[97,98]`},
		{"bytes that could be text", array(u8, 3), []byte("ab\x00"), `[97,98,0]`},
		{"texts", array(array(char, 4), 2), []byte("one\x00two\x00"), `["one","two"]`},
		{"struct", point, bytesOf(t, int32(1), int32(-1)), `{"x":1,"y":-1}`},
		{"more than it has", point, bytesOf(t, int32(1), int32(2), int32(3)), `{"x":1,"y":2}`},
		{"padding", &btf.Struct{Size: 8, Members: []btf.Member{{Name: "a", Type: u8}, {Name: "b", Type: u32, Offset: 32}}},
			bytesOf(t, uint8(1), uint8(9), uint16(9), uint32(2)), `{"a":1,"b":2}`},
		{"union", &btf.Union{Size: 4, Members: []btf.Member{{Name: "v4", Type: array(u8, 4)}, {Name: "first", Type: u8}}},
			[]byte{1, 2, 3, 4}, `{"v4":[1,2,3,4],"first":1}`},
		{"anonymous members", anonymous, bytesOf(t, []uint16{1, 1}, int32(3), int32(4)),
			`{"word":65537,"low":1,"high":1,"inner":{"x":3,"y":4}}`},
		{"empty struct", &btf.Struct{}, nil, `{}`},
		{"structs", array(point, 2), bytesOf(t, []int32{1, 2, 3, 4}), `[{"x":1,"y":2},{"x":3,"y":4}]`},
		{"bit-fields", bitStruct, bitData,
			`{"a":5,"b":-2,"across":6844,"is":true,"c":"BLUE","l":"NONE","wide":4611686018427387905,"top":-1}`},
		{"LPM key", prefix,
			bytesOf(t, uint32(24), []byte{10, 1, 2, 0}), `{"prefixlen":24,"data":[10,1,2,0]}`},
		{"section", &btf.Datasec{Name: ".bss", Size: 16, Vars: []btf.VarSecinfo{
			{Type: &btf.Var{Name: "seen", Type: u64}, Offset: 0, Size: 8},
			{Type: &btf.Var{Name: "name", Type: array(char, 4)}, Offset: 8, Size: 4},
		}}, bytesOf(t, uint64(1<<53+1), []byte("web\x00"), uint32(0)), `{".bss":[{"seen":9007199254740993},{"name":"web"}]}`},
	} {
		have, err := Append([]byte("to "), test.t, test.data)
		if err != nil || string(have) != "to "+test.want {
			t.Errorf("%s: %s, %v; want %s", test.name, have, err, test.want)
		}
		if !json.Valid([]byte(test.want)) {
			t.Errorf("%s is no JSON", test.want)
		}
	}
}

// wide is a number of 128 bits.
func wide(t *testing.T, high, low uint64) []byte {
	if littleEndian {
		return bytesOf(t, low, high)
	}
	return bytesOf(t, high, low)
}

// having and section return types of 4 bytes.
func having(m btf.Member) btf.Type { return &btf.Struct{Size: 4, Members: []btf.Member{m}} }

func section(v btf.VarSecinfo) btf.Type { return &btf.Datasec{Size: 4, Vars: []btf.VarSecinfo{v}} }

// TestAppendErrors has types of which there are no values, and too few bytes.
func TestAppendErrors(t *testing.T) {
	for name, test := range map[string]struct {
		t    btf.Type
		data []byte
	}{
		"short":            {u32, []byte{1, 2, 3}},
		"short array":      {array(u32, 2), make([]byte, 7)},
		"short struct":     {&btf.Struct{Size: 8}, make([]byte, 7)},
		"declared only":    {&btf.Fwd{Name: "later"}, make([]byte, 8)},
		"void":             {&btf.Void{}, nil},
		"member behind it": {having(btf.Member{Name: "a", Type: u32, Offset: 64}), make([]byte, 4)},
		"member too large": {having(btf.Member{Name: "a", Type: u64}), make([]byte, 4)},
		"bits behind it":   {having(btf.Member{Name: "a", Type: u8, Offset: 28, BitfieldSize: 5}), make([]byte, 4)},
		"bits of a struct": {having(btf.Member{Name: "a", Type: point, BitfieldSize: 5}), make([]byte, 4)},
		"half a float":     {&btf.Float{Size: 2}, make([]byte, 2)},
		"variable behind":  {section(btf.VarSecinfo{Type: &btf.Var{Type: u32}, Offset: 2, Size: 4}), make([]byte, 4)},
		"function in data": {section(btf.VarSecinfo{Type: &btf.Func{}, Size: 4}), make([]byte, 4)},
	} {
		if have, err := Append(nil, test.t, test.data); !errors.Is(err, ErrType) {
			t.Errorf("%s: %s, %v", name, have, err)
		}
	}
}

func TestName(t *testing.T) {
	for want, of := range map[string]btf.Type{
		"": nil, "int": s32, "struct point": point, "struct": &btf.Struct{}, "union u": &btf.Union{Name: "u"},
		"enum color": color, "__be32[4]": array(&btf.Typedef{Name: "__be32", Type: u32}, 4),
		".bss":          &btf.Datasec{Name: ".bss"},
		"unsigned char": &btf.Const{Type: &btf.Volatile{Type: u8}}, "void *": &btf.Pointer{Target: &btf.Void{}},
	} {
		if have := Name(of); have != want {
			t.Errorf("%q, want %q", have, want)
		}
	}
}
