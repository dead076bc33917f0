package bpf_test

import (
	"encoding/binary"
	"maps"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/tests/priv"
)

// verifierBudget is what the verifier may walk of a program. It gives up at 1,000,000 (kernel 5.2
// and later); some branch that multiplies the rest of the program is noticed long before that.
const verifierBudget = 200_000

// TestVerifier loads every program on its own.
func TestVerifier(t *testing.T) {
	priv.Root(t)
	for _, variant := range []struct {
		name  string
		frags bool
	}{{"frags", true}, {"without frags", false}} {
		if variant.frags && !haveFrags(t) {
			t.Log("the kernel has no multi-buffer XDP (5.17 and older)")
			continue
		}
		all := loadSpec(t, variant.frags)
		for _, name := range sortedKeys(all.Programs) {
			t.Run(name+" "+variant.name, func(t *testing.T) {
				spec := all.Copy()
				maps.DeleteFunc(spec.Programs, func(other string, _ *ebpf.ProgramSpec) bool { return other != name })
				collection, err := ebpf.NewCollection(spec)
				if err != nil {
					t.Fatalf("%+v", err)
				}
				defer collection.Close()
				info, err := collection.Programs[name].Info()
				if err != nil {
					t.Fatal(err)
				}
				walked, ok := info.VerifiedInstructions()
				if !ok {
					t.Log("the kernel does not say what the verifier walked (5.15 and older)")
					return
				}
				t.Logf("the verifier walked %d instructions", walked)
				if walked > verifierBudget {
					t.Errorf("the verifier walked %d instructions, more than %d", walked, verifierBudget)
				}
			})
		}
	}
}

// TestObjects parses the object of either byte order: one of them is not embedded here.
func TestObjects(t *testing.T) {
	embedded := loadSpec(t, true)
	for _, object := range []struct {
		file  string
		order binary.ByteOrder
	}{
		{"datapath_bpfel.o", binary.LittleEndian},
		{"datapath_bpfeb.o", binary.BigEndian},
	} {
		t.Run(object.file, func(t *testing.T) {
			spec, err := ebpf.LoadCollectionSpec(object.file)
			if err != nil {
				t.Fatal(err)
			}
			if spec.ByteOrder != object.order {
				t.Errorf("byte order %v, want %v", spec.ByteOrder, object.order)
			}
			if got, want := sortedKeys(spec.Programs), sortedKeys(embedded.Programs); !slices.Equal(got, want) {
				t.Errorf("programs %v, want %v", got, want)
			}
			if got, want := sortedKeys(spec.Maps), sortedKeys(embedded.Maps); !slices.Equal(got, want) {
				t.Errorf("maps %v, want %v", got, want)
			}
		})
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
