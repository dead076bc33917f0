package bpf_test

import (
	"encoding/binary"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

// verifierBudget is what the verifier may walk of a program. It gives up at 1,000,000 (kernel 5.2
// and later); some branch that multiplies the rest of the program is noticed long before that.
const verifierBudget = 100_000

// maxStack is what a program and the functions that it calls may have on the stack together
// (MAX_BPF_STACK), in bytes.
const maxStack = 512

// maxTailCallStack is what those may have on the stack, with what they call, who call a function that makes a tail call,
// in bytes (check_max_stack_depth() in kernel/bpf/verifier.c).
const maxTailCallStack = 256

// stackDepth returns the stack of a program with the two largest of its functions, more of which are
// never under way at once, as kernels before 6.8 reckon it: each rounded up to 32 bytes
// (check_max_stack_depth() in kernel/bpf/verifier.c). Newer ones round less.
func stackDepth(t *testing.T, log string) int {
	t.Helper()
	_, text, found := strings.Cut(log, "stack depth ")
	if !found {
		t.Fatalf("the verifier says no stack depth: %q", log)
	}
	text, _, _ = strings.Cut(text, "\n")
	var depths []int
	for _, field := range strings.Split(text, "+") {
		depth, err := strconv.Atoi(strings.Fields(field)[0])
		if err != nil {
			t.Fatal(err)
		}
		depths = append(depths, (depth+31)/32*32)
	}
	functions := depths[1:]
	slices.Sort(functions)
	slices.Reverse(functions)
	sum := depths[0]
	for _, depth := range functions[:min(2, len(functions))] {
		sum += depth
	}
	return sum
}

// TestVerifier loads every program on its own.
func TestVerifier(t *testing.T) {
	priv.Root(t)
	for _, variant := range []struct {
		name            string
		frags, redirect bool
	}{{"frags", true, false}, {"without frags", false, false}, {"redirect", true, true}, {"redirect without frags", false, true}} {
		if variant.frags && !needFrags(t) {
			continue
		}
		all := loadSpec(t, variant.frags)
		if variant.redirect {
			withRedirect(t, all)
		}
		for _, name := range sortedKeys(all.Programs) {
			t.Run(name+" "+variant.name, func(t *testing.T) {
				spec := all.Copy()
				maps.DeleteFunc(spec.Programs, func(other string, _ *ebpf.ProgramSpec) bool { return other != name })
				collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
					Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
				})
				if err != nil {
					t.Fatalf("%+v", err)
				}
				defer collection.Close()
				if depth := stackDepth(t, collection.Programs[name].VerifierLog); depth > maxStack {
					t.Errorf("%d bytes of stack, more than %d", depth, maxStack)
				} else if name == bpf.DatapathProgXdpEgressPrograms && depth >= maxTailCallStack {
					t.Errorf("%d bytes of stack, too many to call a function that makes a tail call", depth)
				}
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
