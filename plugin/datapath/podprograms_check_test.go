package datapath_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// TestCheckProgramPins removes each pin of user programs in turn.
func TestCheckProgramPins(t *testing.T) {
	for _, mode := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeTCX} {
		t.Run(mode.String(), func(t *testing.T) {
			want := []string{"again/the-program", "first/all_seen", "first/seen", "first/the-program", "third/the-program"}
			if mode == datapath.ModeTCX {
				if !haveTCX(t) {
					return
				}
				want = []string{"again/the-link", "first/seen", "first/the-link", "first/the-program", "third/the-program"}
			}
			r := newRig(t, mode, vethDefault)
			before := r.world()
			r.opts.Programs = somePrograms(t, mode)
			r.mustAttach(r.opts)
			var pinned []string
			for _, pin := range r.pinsOf() {
				if pin, ok := strings.CutPrefix(pin, "programs/"); ok {
					pinned = append(pinned, pin)
				}
			}
			for _, pin := range want {
				if !slices.Contains(pinned, pin) {
					t.Errorf("pin %s is not among %v", pin, pinned)
				}
			}
			for _, pin := range pinned {
				r.mustAttach(r.opts)
				if err := r.check(r.opts); err != nil {
					t.Fatal(err)
				}
				if err := os.Remove(filepath.Join(r.podDir(), "programs", pin)); err != nil {
					t.Fatal(err)
				}
				if err := r.check(r.opts); !errors.Is(err, datapath.ErrCheck) || !strings.Contains(err.Error(), filepath.Dir(pin)) {
					t.Errorf("without pin %s: %v", pin, err)
				}
			}
			r.mustAttach(r.opts)
			pin := filepath.Join(r.podDir(), "programs", "again", "the-program")
			other := bareXDP(t)
			if err := errors.Join(os.Remove(pin), other.Pin(pin)); err != nil {
				t.Fatal(err)
			}
			if err := r.check(r.opts); !errors.Is(err, datapath.ErrCheck) || !strings.Contains(err.Error(), "program again") {
				t.Errorf("with another program pinned: %v", err)
			}
			r.mustDetach(r.opts)
			if err := other.Close(); err != nil {
				t.Fatal(err)
			}
			r.expectUnchanged(before)
		})
	}
}

// TestCheckEveryObject attaches each program that there is to test with, in each mode that takes it, and finds nothing
// wrong: not with maps that nobody can pin either.
func TestCheckEveryObject(t *testing.T) {
	objects, err := filepath.Glob("../programs/testdata/*.o")
	if err != nil {
		t.Fatal(err)
	}
	samples, err := filepath.Glob("../../bpf/samples/*_bpfel.o")
	if err != nil {
		t.Fatal(err)
	}
	for mode, enough := range map[datapath.Mode]int{datapath.ModeGeneric: 20, datapath.ModeNative: 20, datapath.ModeTCX: 5} {
		t.Run(mode.String(), func(t *testing.T) {
			if mode == datapath.ModeTCX && !haveTCX(t) {
				return
			}
			r := newRig(t, mode, vethDefault)
			before := r.world()
			attached := 0
			for _, object := range slices.Concat(objects, samples) {
				spec, err := ebpf.LoadCollectionSpec(object)
				if err != nil {
					continue // of another machine, or not fit for anything
				}
				path, err := filepath.Abs(object)
				if err != nil {
					t.Fatal(err)
				}
				for name := range spec.Programs {
					r.opts.Programs = []datapath.Program{{Object: path, Program: name}}
					err := r.attach(r.opts)
					if errors.Is(err, datapath.ErrProgram) {
						continue // of another type, or to be refused
					}
					if err != nil {
						t.Fatalf("attach %s of %s: %v", name, object, err)
					}
					attached++
					if err := r.check(r.opts); err != nil {
						t.Errorf("check of %s of %s: %v", name, object, err)
					}
					if pin := r.usedMap(); pin != "" {
						if err := os.Remove(pin); err != nil {
							t.Fatal(err)
						}
						if err := r.check(r.opts); !errors.Is(err, datapath.ErrCheck) {
							t.Errorf("check of %s of %s without pin %s: %v", name, object, pin, err)
						}
					}
					r.mustDetach(r.opts)
				}
			}
			if attached < enough {
				t.Errorf("only %d programs could be attached", attached)
			}
			r.expectUnchanged(before)
		})
	}
}

// usedMap is the pin of the last of the maps that the pod's only program uses itself, "" if it uses none.
func (r *rig) usedMap() (pin string) {
	r.t.Helper()
	p := r.podPrograms()[0]
	prog, err := ebpf.LoadPinnedProgram(filepath.Join(r.podDir(), "programs", p.Name, "the-program"), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		r.t.Fatal(err)
	}
	used, _ := info.MapIDs()
	for _, path := range p.Maps {
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			r.t.Fatal(err)
		}
		info, err := m.Info()
		_ = m.Close()
		if err != nil {
			r.t.Fatal(err)
		}
		if id, _ := info.ID(); slices.Contains(used, id) {
			pin = path
		}
	}
	return pin
}

// TestCheckJudge: CHECK finds that the policy which pods with user programs call is missing, or is not ours.
func TestCheckJudge(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	r.opts.Programs = someXDPPrograms(t)
	r.mustAttach(r.opts)
	defer r.mustDetach(r.opts)
	all, err := ebpf.LoadPinnedMap(filepath.Join(pins.NewRoot(r.node.BPFFS).Node(), bpf.DatapathMapPodPrograms), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	judge := uint32(bpf.DatapathProgramEntryPROGRAM_JUDGE)
	foreign := bareXDP(t)
	if err := all.Put(judge, foreign); err != nil {
		t.Fatal(err)
	}
	if err := r.check(r.opts); !errors.Is(err, datapath.ErrCheck) || !strings.Contains(err.Error(), "policy that is called") {
		t.Errorf("with another program in its place: %v", err)
	}
	if err := all.Delete(judge); err != nil {
		t.Fatal(err)
	}
	if err := r.check(r.opts); !errors.Is(err, datapath.ErrCheck) || !strings.Contains(err.Error(), "policy that is called") {
		t.Errorf("without it: %v", err)
	}
	_, _, other := r.newPod("other", datapath.ModeGeneric, vethDefault)
	other.Programs = r.opts.Programs
	r.mustAttach(other) // which enters it
	defer r.mustDetach(other)
	if err := r.check(r.opts); err != nil {
		t.Errorf("with the policy back: %v", err)
	}
}

// TestCheckProgramsWithoutInterface: an attachment whose interface is gone is not intact, in each mode with programs.
func TestCheckProgramsWithoutInterface(t *testing.T) {
	for _, mode := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeTCX} {
		t.Run(mode.String(), func(t *testing.T) {
			if mode == datapath.ModeTCX && !haveTCX(t) {
				return
			}
			r := newRig(t, mode, vethDefault)
			r.opts.Programs = somePrograms(t, mode)
			r.mustAttach(r.opts)
			defer r.mustDetach(r.opts)
			r.deleteVeth(r.veth.HostName)
			if err := r.check(r.opts); !errors.Is(err, datapath.ErrCheck) || !strings.Contains(err.Error(), r.veth.HostName) {
				t.Errorf("check: %v", err)
			}
		})
	}
}
