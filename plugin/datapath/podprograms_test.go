package datapath_test

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

const manyPrograms = "../programs/testdata/several.o"

// somePrograms are of every kind: with maps of their own, with one that is pinned by name, with none.
var somePrograms = []datapath.Program{
	{Object: manyPrograms, Name: "count_own"},
	{Object: manyPrograms, Name: "count_all", After: true},
	{Object: manyPrograms, Name: "pass"},
	{Object: manyPrograms, Name: "unchecked", Optional: true},
}

// programEntries is what the node's arrays of programs hold.
func (r *rig) programEntries() (ids []uint32) {
	r.t.Helper()
	for _, pin := range []string{"pod_programs", "pod_programs_frags"} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(r.node.BPFFS, "v1", "node", pin), nil)
		if err != nil {
			r.t.Fatal(err)
		}
		defer m.Close()
		var key, id uint32
		entries := m.Iterate()
		for entries.Next(&key, &id) {
			ids = append(ids, id)
		}
		if err := entries.Err(); err != nil {
			r.t.Fatal(err)
		}
	}
	return ids
}

func (r *rig) attachments() (list []datapath.Attachment) {
	r.t.Helper()
	err := r.do(func(d *datapath.Datapath) (err error) {
		list, err = d.List()
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return list
}

// TestProgramsAreEntered: in order, those before the policy first; a pod that goes takes its entries along.
func TestProgramsAreEntered(t *testing.T) {
	for _, mode := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeNative} {
		t.Run(mode.String(), func(t *testing.T) {
			r := newRig(t, mode, vethDefault)
			_, _, other := r.newPod("other", mode, vethDefault)
			r.opts.Programs = somePrograms
			other.Programs = somePrograms[2:3]
			before := r.world()
			r.mustAttach(other)
			beside := r.programEntries()
			r.mustAttach(r.opts)
			var names []string
			var ids []uint32
			for _, a := range r.attachments() {
				if a.Meta.ContainerID != r.opts.ContainerID {
					continue
				}
				all, err := a.Programs()
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range all {
					names, ids = append(names, p.Name), append(ids, uint32(p.ID))
				}
			}
			if want := []string{"count_own", "pass", "count_all"}; !slices.Equal(names, want) {
				t.Errorf("programs %v, want %v", names, want)
			}
			got := r.programEntries()
			for _, id := range ids {
				if !slices.Contains(got, id) {
					t.Errorf("program %d is not among %v", id, got)
				}
			}
			if len(got) != len(ids)+len(beside) {
				t.Errorf("%d programs entered, want %d and %d", len(got), len(ids), len(beside))
			}
			if err := r.detach(r.opts); err != nil {
				t.Fatal(err)
			}
			if got := r.programEntries(); !slices.Equal(got, beside) {
				t.Errorf("left of the programs: %v, want %v", got, beside)
			}
			if err := r.detach(other); err != nil {
				t.Fatal(err)
			}
			r.expectUnchanged(before)
		})
	}
}

// TestCheckPrograms: CHECK notices other programs in the configuration, and what was changed by hand.
func TestCheckPrograms(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	r.opts.Programs = somePrograms
	r.mustAttach(r.opts)
	if err := r.check(r.opts); err != nil {
		t.Fatal(err)
	}
	for name, programs := range map[string][]datapath.Program{
		"none":     nil,
		"one less": somePrograms[1:],
		"one more": append(slices.Clone(somePrograms), datapath.Program{Object: manyPrograms, Name: "drop", After: true}),
	} {
		opts := r.opts
		opts.Programs = programs
		if err := r.check(opts); !errors.Is(err, datapath.ErrCheck) {
			t.Errorf("%s in the configuration: %v, want %v", name, err, datapath.ErrCheck)
		}
	}
	array, err := ebpf.LoadPinnedMap(filepath.Join(r.node.BPFFS, "v1", "node", "pod_programs"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer array.Close()
	var key, id uint32
	if entries := array.Iterate(); !entries.Next(&key, &id) {
		t.Fatal("no program is entered")
	}
	if err := array.Delete(key); err != nil {
		t.Fatal(err)
	}
	if err := r.check(r.opts); !errors.Is(err, datapath.ErrCheck) || !strings.Contains(err.Error(), "programs") {
		t.Errorf("a program was taken out: %v, want %v", err, datapath.ErrCheck)
	}
}

// TestProgramsAfterGoByTheStack: what runs behind the policy may change a packet, which redirect has judged before.
func TestProgramsAfterGoByTheStack(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	r.opts.Redirect = someRedirect
	for _, after := range []bool{false, true} {
		r.opts.Programs = []datapath.Program{{Object: manyPrograms, Name: "pass", After: after}}
		r.mustAttach(r.opts)
		direct := r.slotFlags()&uint32(bpf.DatapathSlotFlagSLOT_REDIRECT) != 0
		if direct == after {
			t.Errorf("a program that runs after the policy: %v; packets go directly: %v", after, direct)
		}
		if err := r.detach(r.opts); err != nil {
			t.Fatal(err)
		}
	}
}

// slotFlags returns the flags of the rig's pod.
func (r *rig) slotFlags() uint32 {
	r.t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(r.node.BPFFS, "v1", "node", "slots"), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer m.Close()
	var slot bpf.DatapathSlot
	if err := m.Lookup(uint32(r.veth.HostIndex)&(m.MaxEntries()-1), &slot); err != nil {
		r.t.Fatal(err)
	}
	return slot.Flags
}
