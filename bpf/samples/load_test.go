package samples

import (
	"encoding/binary"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// TestLoad loads every sample for frames in one buffer, and where the kernel has such for those in many.
func TestLoad(t *testing.T) {
	for name := range samples {
		t.Run(name, func(t *testing.T) {
			load(t, name)
			s := spec(t, name)
			linear(s)
			c, err := ebpf.NewCollection(s)
			if err != nil {
				t.Fatalf("%+v", err)
			}
			c.Close()
		})
	}
}

// TestObjects reads the object files that are handed out, of either byte order: each says what it is to any loader.
func TestObjects(t *testing.T) {
	for suffix, order := range map[string]binary.ByteOrder{"el": binary.LittleEndian, "eb": binary.BigEndian} {
		files, err := filepath.Glob("*_bpf" + suffix + ".o")
		if err != nil || len(files) != len(samples) {
			t.Fatalf("%d objects, %v; want %d", len(files), err, len(samples))
		}
		for _, file := range files {
			t.Run(file, func(t *testing.T) {
				s, err := ebpf.LoadCollectionSpec(file)
				if err != nil {
					t.Fatal(err)
				}
				if s.ByteOrder != order {
					t.Errorf("byte order %v, want %v", s.ByteOrder, order)
				}
				embedded, err := samples[strings.TrimSuffix(file, "_bpf"+suffix+".o")]()
				if err != nil {
					t.Fatal(err)
				}
				programs := slices.Sorted(maps.Keys(s.Programs))
				if want := slices.Sorted(maps.Keys(embedded.Programs)); len(want) == 0 || !slices.Equal(programs, want) {
					t.Errorf("programs %v, want %v", programs, want)
				}
				for _, p := range s.Programs {
					if p.Type != ebpf.XDP || p.SectionName != "xdp.frags" || p.Flags != unix.BPF_F_XDP_HAS_FRAGS {
						t.Errorf("%s is a program %s in section %s with flags %#x", p.Name, p.Type, p.SectionName, p.Flags)
					}
				}
			})
		}
	}
}
