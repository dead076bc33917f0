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
			r.opts.Programs = someXDPPrograms(t)
			if mode == datapath.ModeTCX {
				r.opts.Programs = someTCPrograms(t)
			}
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
			r.mustDetach(r.opts)
			r.expectUnchanged(before)
		})
	}
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
			programs := someXDPPrograms
			if mode == datapath.ModeTCX {
				if !haveTCX(t) {
					return
				}
				programs = someTCPrograms
			}
			r := newRig(t, mode, vethDefault)
			r.opts.Programs = programs(t)
			r.mustAttach(r.opts)
			defer r.mustDetach(r.opts)
			r.deleteVeth(r.veth.HostName)
			if err := r.check(r.opts); !errors.Is(err, datapath.ErrCheck) || !strings.Contains(err.Error(), r.veth.HostName) {
				t.Errorf("check: %v", err)
			}
		})
	}
}
