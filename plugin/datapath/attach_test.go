package datapath_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

func TestAttachIsWhole(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *rig) {
		before := r.world()
		r.mustAttach(r.opts)
		if err := r.check(r.opts); err != nil {
			t.Errorf("check: %v", err)
		}
		host := r.hostState(r.veth.HostName)
		if want := r.opts.Mode != datapath.ModeTCX; host.xdp != want {
			t.Errorf("XDP on the host end: %v, want %v", host.xdp, want)
		}
		if clsact := !r.tcx(); slices.Contains(host.qdiscs, "clsact") != clsact {
			t.Errorf("qdiscs of the host end are %v, clsact should be there: %v", host.qdiscs, clsact)
		}
		setsQueues := before.host.rxQueues != 0 // see rxQueues
		if r.opts.Mode == datapath.ModeNative && (!host.gro || setsQueues && host.rxQueues != 2) {
			t.Errorf("native: GRO %v and %d RX queues, want GRO and 2", host.gro, host.rxQueues)
		}
		err := r.do(func(d *datapath.Datapath) error {
			list, err := d.List()
			if err != nil || len(list) != 1 {
				t.Fatalf("list: %v, %v", list, err)
			}
			m := list[0].Meta
			if m.ContainerID != r.opts.ContainerID || m.PodName != "pod" || m.PodUID != "uid-1" || m.Mode != r.opts.Mode ||
				m.HostIndex != r.veth.HostIndex || m.PodMAC.String() != r.veth.PodMAC.String() ||
				!slices.Equal(m.Addresses, r.opts.Addresses) || m.Netns != r.opts.Netns || m.PluginVersion != "test" {
				t.Errorf("meta is %+v", m)
			}
			_, err = d.ReadStats(list[0])
			return err
		})
		if err != nil {
			t.Error(err)
		}
		for range 2 { // the second finds nothing to do
			if err := r.detach(r.opts); err != nil {
				t.Errorf("detach: %v", err)
			}
		}
		r.expectUnchanged(before)
	})
}

// TestEachStepFails makes each step of an attach fail in turn: on an empty node, and beside
// another pod.
func TestEachStepFails(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *rig) {
		tryAll := func() {
			t.Helper()
			for _, fail := range r.stepsOf(r.opts) { // fewer where another pod has loaded what is shared
				before := r.world()
				err := r.attach(r.opts, func(o *datapath.Options) {
					o.BeforeStep = func(step string) error {
						if step == fail {
							return errInjected
						}
						return nil
					}
				})
				if !errors.Is(err, errInjected) {
					t.Errorf("attach that should fail at %q: %v", fail, err)
				}
				r.expectUnchanged(before)
				if t.Failed() {
					t.Fatalf("after a failure at %q", fail)
				}
			}
		}
		tryAll()
		_, _, other := r.newPod("other", r.opts.Mode, vethDefault)
		other.Programs = r.opts.Programs // the node has what they need as long as it has pods
		r.mustAttach(other)
		tryAll()
		if err := r.check(other); err != nil {
			t.Errorf("the other pod: %v", err)
		}
		if err := r.detach(other); err != nil {
			t.Error(err)
		}
	})
}

// TestKilledAtEachStep kills a process that attaches before each of its steps, and lets DEL, GC or
// the next ADD find what it left: alone on the node in one mode, beside another pod in the others,
// which is quicker.
func TestKilledAtEachStep(t *testing.T) {
	var valid []datapath.Key
	for _, cleaner := range []struct {
		name string
		run  func(*rig) error
	}{
		{"DEL", func(r *rig) error { return r.detach(r.opts) }},
		{"GC", func(r *rig) error {
			return r.do(func(d *datapath.Datapath) error {
				_, err := d.Collect(context.Background(), datapath.CollectOptions{Network: "net", Valid: &valid})
				return err
			})
		}},
		{"ADD", func(r *rig) error {
			return errors.Join(r.attach(r.opts), r.check(r.opts), r.detach(r.opts))
		}},
	} {
		t.Run(cleaner.name, func(t *testing.T) {
			eachVariant(t, func(t *testing.T, r *rig) {
				if r.opts.Mode != datapath.ModeGeneric {
					mode := datapath.ModeTCX
					if r.opts.Programs != nil {
						mode = r.opts.Mode // which shares what it can of them
					}
					_, _, other := r.newPod("other", mode, vethDefault)
					other.Programs = r.opts.Programs
					r.mustAttach(other)
					defer r.mustDetach(other)
					valid = append(valid, datapath.Key{ContainerID: other.ContainerID, IfName: other.IfName})
				}
				for _, step := range r.stepsOf(r.opts) {
					before := r.world()
					r.attachKilled(r.opts, step)
					if err := cleaner.run(r); err != nil {
						t.Errorf("killed at %q: %v", step, err)
					}
					r.expectUnchanged(before)
					if t.Failed() {
						t.Fatalf("after a kill at %q", step)
					}
				}
			})
		})
	}
}

func TestAttachAgainReplaces(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *rig) {
		before := r.world()
		r.mustAttach(r.opts)
		r.mustAttach(r.opts)
		if err := r.check(r.opts); err != nil {
			t.Error(err)
		}
		if err := r.detach(r.opts); err != nil {
			t.Error(err)
		}
		r.expectUnchanged(before)
	})
}
