package btfdump

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests/priv"
)

func newMap(t *testing.T, spec ebpf.MapSpec) *ebpf.Map {
	t.Helper()
	m, err := ebpf.NewMap(&spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// dump writes the entries of a map, sorted: the kernel's order of a hash map is not ours.
func dump(t *testing.T, m *ebpf.Map) string {
	t.Helper()
	types, err := TypesOf(m)
	if err != nil {
		t.Fatal(err)
	}
	write := func(of btf.Type, data []byte) string {
		if of == nil {
			return fmt.Sprintf("% x", data)
		}
		text, err := Append(nil, of, data)
		if err != nil {
			t.Error(err)
		}
		return string(text)
	}
	var lines []string
	if err := Each(m, func(e Entry) error {
		line := write(types.Key, e.Key)
		for _, v := range e.Values {
			line += " " + write(types.Value, v)
		}
		lines = append(lines, line)
		return nil
	}); err != nil {
		t.Error(err)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestMaps dumps maps of the kernel, of each kind of key and value that there is.
func TestMaps(t *testing.T) {
	priv.Root(t)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	bss := &btf.Datasec{Name: ".bss", Size: 8, Vars: []btf.VarSecinfo{
		{Type: &btf.Var{Name: "seen", Type: u64, Linkage: btf.GlobalVar}, Size: 8},
	}}
	inner := newMap(t, ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	progInfo, err := prog.Info()
	if err != nil {
		t.Fatal(err)
	}
	progID, _ := progInfo.ID()
	innerInfo, err := inner.Info()
	if err != nil {
		t.Fatal(err)
	}
	innerID, _ := innerInfo.ID()
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		t.Fatal(err)
	}
	perCPU, zeroes := make([]uint32, cpus), ""
	for i := range perCPU {
		perCPU[i] = uint32(i) + 5
		zeroes += " 0"
	}
	spread := strings.Trim(strings.ReplaceAll(fmt.Sprint(perCPU), "]", ""), "[")
	for _, test := range []struct {
		name string
		spec ebpf.MapSpec
		put  map[any]any
		want string
	}{
		{"hash", ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 2, Key: u32, Value: point},
			map[any]any{uint32(7): []int32{-1, 2}, uint32(9): []int32{3, 4}},
			"7 {\"x\":-1,\"y\":2}\n9 {\"x\":3,\"y\":4}"}, // full
		{"LRU", ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 8, ValueSize: 8, MaxEntries: 2, Key: point, Value: u64},
			map[any]any{[2]int32{1, 2}: uint64(1 << 63)}, `{"x":1,"y":2} 9223372036854775808`},
		{"array", ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 2, Key: u32, Value: color},
			map[any]any{uint32(1): uint32(7)}, "0 \"RED\"\n1 \"BLUE\""},
		{"empty", ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 2, Key: u32, Value: u32}, nil, ""},
		{"trie", ebpf.MapSpec{Type: ebpf.LPMTrie, KeySize: 8, ValueSize: 4, MaxEntries: 2, Flags: unix.BPF_F_NO_PREALLOC,
			Key: prefix, Value: u32},
			map[any]any{struct {
				Bits uint32
				Of   [4]byte
			}{24, [4]byte{10, 1, 2, 0}}: uint32(1)}, `{"prefixlen":24,"data":[10,1,2,0]} 1`},
		{"of each CPU", ebpf.MapSpec{Type: ebpf.PerCPUHash, KeySize: 4, ValueSize: 4, MaxEntries: 2, Key: u32, Value: u32},
			map[any]any{uint32(3): perCPU}, "3 " + spread},
		{"each CPU's array", ebpf.MapSpec{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 4, MaxEntries: 2,
			Key: u32, Value: u32},
			map[any]any{uint32(1): perCPU}, "0" + zeroes + "\n1 " + spread},
		{"without BTF", ebpf.MapSpec{Type: ebpf.Hash, KeySize: 2, ValueSize: 3, MaxEntries: 2},
			map[any]any{[2]byte{1, 2}: []byte{0xff, 0, 16}}, "01 02 ff 00 10"},
		{"array without BTF", ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 1, MaxEntries: 1},
			map[any]any{uint32(0): []byte{10}}, "0 0a"},
		{"section", ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1, Key: &btf.Void{}, Value: bss},
			map[any]any{uint32(0): uint64(1<<53 + 1)}, `0 {".bss":[{"seen":9007199254740993}]}`},
		{"programs", ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 3},
			map[any]any{uint32(2): prog}, fmt.Sprintf("2 %d", progID)},
		{"maps", ebpf.MapSpec{Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 3,
			InnerMap: &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}},
			map[any]any{uint32(1): inner}, fmt.Sprintf("1 %d", innerID)},
		{"devices", ebpf.MapSpec{Type: ebpf.DevMap, KeySize: 4, ValueSize: 4, MaxEntries: 3},
			map[any]any{uint32(2): uint32(1)}, "2 1"},
		{"devices with programs", ebpf.MapSpec{Type: ebpf.DevMapHash, KeySize: 4, ValueSize: 8, MaxEntries: 3},
			map[any]any{uint32(77): []uint32{1, 0}}, `77 {"ifindex":1,"bpf_prog":{"id":0}}`},
		{"CPUs", ebpf.MapSpec{Type: ebpf.CPUMap, KeySize: 4, ValueSize: 8, MaxEntries: 1},
			map[any]any{uint32(0): []uint32{64, 0}}, `0 {"qsize":64,"bpf_prog":{"id":0}}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMap(t, test.spec)
			for key, value := range test.put {
				if err := m.Put(key, value); err != nil {
					t.Fatal(err)
				}
			}
			if have := dump(t, m); have != test.want {
				t.Errorf("%s\nwant %s", have, test.want)
			}
		})
	}
}

// TestUnlisted has a map without keys, and one that is never listed to its end: whoever lists removes what was listed,
// so that the kernel begins anew, and puts in another.
func TestUnlisted(t *testing.T) {
	priv.Root(t)
	queue := newMap(t, ebpf.MapSpec{Type: ebpf.Queue, ValueSize: 4, MaxEntries: 2})
	if err := Each(queue, func(Entry) error { return nil }); !errors.Is(err, ErrUnlisted) {
		t.Errorf("a queue: %v", err)
	}
	m := newMap(t, ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 4})
	if err := m.Put(uint32(0), uint32(0)); err != nil {
		t.Fatal(err)
	}
	listed := uint32(0)
	err := Each(m, func(e Entry) error {
		listed++
		return errors.Join(m.Delete(e.Key), m.Put(listed, uint32(0)))
	})
	if !errors.Is(err, ErrChanging) || listed != 4 {
		t.Errorf("%v after %d entries", err, listed)
	}
	broken := errors.New("broken")
	if err := Each(m, func(Entry) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("%v, want what the caller returned", err)
	}
}

// TestLarge: a value of some size is written as a whole, and read by whoever reads JSON.
func TestLarge(t *testing.T) {
	data := make([]byte, 8<<16)
	for i := range 1 << 16 {
		binary.NativeEndian.PutUint64(data[i*8:], uint64(i))
	}
	text, err := Append(nil, array(array(u64, 1<<8), 1<<8), data)
	if err != nil {
		t.Fatal(err)
	}
	var have [][]uint64
	if err := json.Unmarshal(text, &have); err != nil || len(have) != 1<<8 || have[255][255] != 1<<16-1 {
		t.Errorf("%v, %d rows", err, len(have))
	}
}
