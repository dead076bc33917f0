package datapath

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// TestDigest: each composition has one of its own, which depends on instructions, constants and maps, and on nothing else.
func TestDigest(t *testing.T) {
	of := func(c composition, coarseClock bool, change func(*ebpf.CollectionSpec)) string {
		t.Helper()
		spec, err := bpf.LoadDatapath()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.reduce(spec, coarseClock); err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(spec)
		}
		return digest(spec)
	}
	seen := map[string]composition{}
	for _, c := range compositions() {
		d := of(c, true, nil)
		if other, there := seen[d]; there || d == "" {
			t.Errorf("%+v and %+v have one digest, %q", c, other, d)
		}
		seen[d] = c
		if again := of(c, true, nil); again != d {
			t.Errorf("%+v has two digests, %s and %s", c, d, again)
		}
		for name, change := range map[string]func(*ebpf.CollectionSpec){
			"an instruction": func(s *ebpf.CollectionSpec) {
				ins := s.Programs[c.function].Instructions
				ins[len(ins)-1] = asm.Mov.Imm(asm.R0, 7).WithMetadata(ins[len(ins)-1].Metadata)
			},
			"a flag of the program": func(s *ebpf.CollectionSpec) { s.Programs[c.function].Flags ^= 1 },
			"the values of a map":   func(s *ebpf.CollectionSpec) { s.Maps[bpf.DatapathMapSlots].ValueSize += 8 },
			"the name of a function": func(s *ebpf.CollectionSpec) {
				s.Programs[c.function+"2"] = s.Programs[c.function]
				delete(s.Programs, c.function)
			},
		} {
			if of(c, true, change) == d {
				t.Errorf("%+v has the same digest with %s changed", c, name)
			}
		}
		if of(c, false, nil) == d {
			t.Errorf("%+v has the same digest with another constant", c)
		}
		if of(c, true, func(s *ebpf.CollectionSpec) { s.Maps[bpf.DatapathMapSlots].MaxEntries = 1 }) != d {
			t.Errorf("%+v has another digest with another number of entries, which may be the configuration's", c)
		}
	}
}
