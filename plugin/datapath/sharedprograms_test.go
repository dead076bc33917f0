package datapath_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// atOnce does something with each attachment at the same time.
func (r *rig) atOnce(list []datapath.AttachOptions, fn func(*datapath.Datapath, datapath.AttachOptions) error,
	change ...func(*datapath.Options)) {
	r.t.Helper()
	change = append(change, func(o *datapath.Options) { o.LockTimeout = time.Minute })
	errs := make([]error, len(list))
	var all sync.WaitGroup
	for i, opts := range list {
		all.Go(func() {
			errs[i] = r.do(func(d *datapath.Datapath) error { return fn(d, opts) }, change...)
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		r.t.Fatal(err)
	}
}

// TestProgramsLoadedOnce: pods that come at once with the same program, which keeps nothing of its own, share one
// loaded program; so does one that comes later, and the last to go takes it along.
func TestProgramsLoadedOnce(t *testing.T) {
	const pods = 16
	for _, mode := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeNative} {
		t.Run(mode.String(), func(t *testing.T) {
			r := newRig(t, mode, vethDefault)
			before := r.world()
			list := []datapath.AttachOptions{r.opts}
			for i := 1; i <= pods; i++ {
				_, _, opts := r.newPod(fmt.Sprintf("pod-%d", i), mode, vethDefault)
				list = append(list, opts)
			}
			for i := range list {
				list[i].Programs = []datapath.Program{
					{Object: othersObject(t), Program: "second"}, {Object: othersObject(t), Program: "first", After: true},
				}
			}
			late := list[pods]
			var loads atomic.Int32
			r.atOnce(list[:pods], func(d *datapath.Datapath, o datapath.AttachOptions) error {
				return d.Attach(context.Background(), o)
			}, func(o *datapath.Options) {
				o.BeforeStep = func(step string) error {
					if step == stepSharing {
						loads.Add(1)
					}
					return nil
				}
			})
			if n := loads.Load(); n != 1 {
				t.Errorf("the program without maps was loaded %d times", n)
			}
			r.mustAttach(late)
			shared, own := map[ebpf.ProgramID]bool{}, map[ebpf.ProgramID]bool{}
			for _, opts := range list {
				if err := r.check(opts); err != nil {
					t.Error(err)
				}
				r.opts = opts
				programs := r.podPrograms()
				if len(programs) != 2 || !programs[0].Shared || programs[1].Shared {
					t.Fatalf("programs %+v", programs)
				}
				shared[programs[0].ID], own[programs[1].ID] = true, true
			}
			if len(shared) != 1 || len(own) != len(list) {
				t.Errorf("%d pods have %d programs without maps, and %d with", len(list), len(shared), len(own))
			}
			if pinned, _ := filepath.Glob(filepath.Join(r.node.BPFFS, "v1", "node", "programs", "*")); len(pinned) != 1 {
				t.Errorf("pinned for the node: %v", pinned)
			}
			r.atOnce(list[:pods], func(d *datapath.Datapath, o datapath.AttachOptions) error {
				return d.Detach(context.Background(), o.ContainerID, o.IfName)
			})
			if err := r.check(late); err != nil {
				t.Errorf("the last: %v", err)
			}
			r.mustDetach(late)
			r.expectUnchanged(before)
		})
	}
}

// stepSharing comes when the program "second" is loaded, and the node does not have it yet.
const stepSharing = "sharing program second"

// TestSharingHasALimit: who waits for another attachment to load the same program gives up like who waits for any lock,
// and leaves nothing.
func TestSharingHasALimit(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	r.opts.Programs = []datapath.Program{{Object: othersObject(t), Program: "second"}}
	_, _, other := r.newPod("other", datapath.ModeGeneric, vethDefault)
	other.Programs = r.opts.Programs
	var waited error
	var before, after []string
	err := r.attach(r.opts, func(o *datapath.Options) {
		o.BeforeStep = func(step string) error {
			if step == stepSharing {
				before = r.node.Tree()
				waited = r.attach(other, func(o *datapath.Options) { o.LockTimeout = 300 * time.Millisecond })
				after = r.node.Tree()
			}
			return nil
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.mustDetach(r.opts)
	if !errors.Is(waited, pins.ErrBusy) {
		t.Errorf("an attachment with the same program meanwhile: %v, want ErrBusy", waited)
	}
	if len(before) == 0 || !slices.Equal(before, after) {
		t.Errorf("it left in %v\n%v", before, after)
	}
	if err := r.check(r.opts); err != nil {
		t.Error(err)
	}
}

// TestSharingOverLeftovers: a process that was killed while it pinned has left a map, or the directory goes by other
// hands while the program is loaded: what is shared then is whole.
func TestSharingOverLeftovers(t *testing.T) {
	object, err := filepath.Abs("../programs/testdata/several.bpf.o")
	if err != nil {
		t.Fatal(err)
	}
	for what, disturb := range map[string]func(dir string) error{
		"a map": func(dir string) error {
			m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
			if err != nil {
				return err
			}
			defer m.Close()
			return m.Pin(filepath.Join(dir, "_rodata"))
		},
		"no directory": os.RemoveAll,
	} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t, datapath.ModeGeneric, vethDefault)
			before := r.world()
			r.opts.Programs = []datapath.Program{{Object: object, Program: "drop", Name: "second"}}
			came := false
			err := r.attach(r.opts, func(o *datapath.Options) {
				o.BeforeStep = func(step string) error {
					if step != stepSharing {
						return nil
					}
					came = true
					dirs, err := filepath.Glob(filepath.Join(pins.NewRoot(r.node.BPFFS).Node(), "programs", "*"))
					if err != nil || len(dirs) != 1 {
						return fmt.Errorf("directories %v: %w", dirs, err)
					}
					return disturb(dirs[0])
				}
			})
			if err != nil || !came {
				t.Fatalf("attach: %v, came to %q: %v", err, stepSharing, came)
			}
			_, _, other := r.newPod("other", datapath.ModeGeneric, vethDefault)
			other.Programs = r.opts.Programs
			r.mustAttach(other)
			for _, opts := range []datapath.AttachOptions{r.opts, other} {
				if err := r.check(opts); err != nil {
					t.Error(err)
				}
				r.mustDetach(opts)
			}
			r.expectUnchanged(before)
		})
	}
}

// TestSharingWithoutTheLock: while a program is loaded for all, other attachments come and go, and what they remove of
// what nobody uses is not what is being loaded.
func TestSharingWithoutTheLock(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	before := r.world()
	programs := []datapath.Program{{Object: othersObject(t), Program: "second"}}
	r.opts.Programs = programs
	_, _, other := r.newPod("other", datapath.ModeGeneric, vethDefault)
	// with a program of its own, its DEL looks for what nobody uses
	other.Programs = []datapath.Program{{Object: othersObject(t), Program: "first"}}
	came := false
	err := r.attach(r.opts, func(o *datapath.Options) {
		o.BeforeStep = func(step string) error {
			if step == stepSharing {
				came = true
				return errors.Join(r.attach(other), r.check(other), r.detach(other))
			}
			return nil
		}
	})
	if err != nil || !came {
		t.Fatalf("attach: %v, came to %q: %v", err, stepSharing, came)
	}
	if err := r.check(r.opts); err != nil {
		t.Error(err)
	}
	id := r.podPrograms()[0].ID
	other.Programs = programs
	r.mustAttach(other)
	mine := r.opts
	r.opts = other
	if got := r.podPrograms()[0].ID; got != id {
		t.Errorf("the other pod has program %d, want %d", got, id)
	}
	r.opts = mine
	r.mustDetach(other)
	r.mustDetach(r.opts)
	r.expectUnchanged(before)
}

// TestOneProgramRefused: what was loaded before one that cannot be goes again; if that one is optional, the others run
// as if it were not in the list.
func TestOneProgramRefused(t *testing.T) {
	for _, beside := range []bool{false, true} {
		t.Run(fmt.Sprintf("beside another pod: %v", beside), func(t *testing.T) {
			r := newRig(t, datapath.ModeGeneric, vethDefault)
			object := othersObject(t)
			fine := []datapath.Program{{Object: object, Program: "second"}, {Object: object, Program: "first"}}
			if beside {
				_, _, other := r.newPod("other", datapath.ModeGeneric, vethDefault)
				other.Programs = fine
				r.mustAttach(other)
				defer r.mustDetach(other)
				defer func() {
					if err := r.check(other); err != nil {
						t.Errorf("the other pod: %v", err)
					}
				}()
			}
			before := r.world()
			refused := datapath.Program{Object: object, Program: "refused"}
			for place := range len(fine) + 1 {
				r.opts.Programs = slices.Insert(slices.Clone(fine), place, refused)
				if err := r.attach(r.opts); !errors.Is(err, datapath.ErrProgram) {
					t.Errorf("attach: %v", err)
				}
				r.expectUnchanged(before)
				r.opts.Programs[place].Optional = true
				r.mustAttach(r.opts)
				if err := r.check(r.opts); err != nil {
					t.Error(err)
				}
				if list := r.podPrograms(); len(list) != 2 || list[0].Name != "second" || list[1].Name != "first" {
					t.Errorf("programs %+v", list)
				}
				pinned, _ := filepath.Glob(filepath.Join(r.node.BPFFS, "v1", "pods", r.attachment().ID, "programs", "*"))
				if len(pinned) != 2 {
					t.Errorf("pinned are %v", pinned)
				}
				r.mustDetach(r.opts)
				r.expectUnchanged(before)
			}
		})
	}
}
