package datapath_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
)

// TestDamagedNode: a pin of the node is gone. ADD and STATUS say so, DEL works, and once no pod is
// there the node is made anew.
func TestDamagedNode(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	_, _, other := r.newPod("other", datapath.ModeGeneric, vethDefault)
	for _, pin := range []string{"idle_table", "slots", "policies", "node_info"} {
		r.mustAttach(r.opts)
		if err := os.Remove(filepath.Join(pins.NewRoot(r.node.BPFFS).Node(), pin)); err != nil {
			t.Fatal(err)
		}
		before := r.world()
		if err := r.attach(other); !errors.Is(err, datapath.ErrDamaged) || !strings.Contains(err.Error(), pin) {
			t.Errorf("attach without %s: %v", pin, err)
		}
		r.expectUnchanged(before)
		err := r.do(func(d *datapath.Datapath) error { return d.Ready(datapath.ReadyOptions{Mode: datapath.ModeGeneric}) })
		if !errors.Is(err, datapath.ErrDamaged) {
			t.Errorf("ready without %s: %v", pin, err)
		}
		r.mustDetach(r.opts)
		if left := r.node.Tree(); len(left) > 0 {
			t.Errorf("left without %s: %v", pin, left)
		}
	}
}

// TestOtherNetns: interface indexes of another namespace are not ours.
func TestOtherNetns(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	r.mustAttach(r.opts)
	stranger := tests.MustNode(t)
	in := func(fn func(*datapath.Datapath) error) error {
		return stranger.Do(func() error {
			return fn(datapath.New(datapath.Options{Root: pins.NewRoot(r.node.BPFFS)}))
		})
	}
	pod := tests.MustPod(t, stranger, "pod")
	veth, err := tests.MakeVeth(t.Context(), stranger, pod, vethDefault)
	if err != nil {
		t.Fatal(err)
	}
	opts := r.opts
	opts.ContainerID, opts.HostName, opts.HostIndex = "stranger", veth.HostName, veth.HostIndex
	before := r.world()
	ready := func(d *datapath.Datapath) error { return d.Ready(datapath.ReadyOptions{Mode: datapath.ModeTCX}) }
	attach := func(d *datapath.Datapath) error { return d.Attach(context.Background(), opts) }
	if err := in(attach); !errors.Is(err, datapath.ErrOtherNetns) {
		t.Errorf("attach from another namespace: %v", err)
	}
	if err := in(ready); !errors.Is(err, datapath.ErrOtherNetns) {
		t.Errorf("ready in another namespace: %v", err)
	}
	r.expectUnchanged(before)
	// once its interfaces are gone, the pins are nobody's
	if err := r.pod.Close(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(settle)
	for err = in(ready); err != nil && time.Now().Before(deadline); err = in(ready) {
		time.Sleep(20 * time.Millisecond) // a namespace is taken down by a worker
	}
	if err != nil {
		t.Errorf("ready after the other namespace's pods are gone: %v", err)
	}
	if err := in(attach); err != nil {
		t.Errorf("attach after the other namespace's pods are gone: %v", err)
	}
	if err := in(func(d *datapath.Datapath) error { return d.Detach(context.Background(), "stranger", opts.IfName) }); err != nil {
		t.Error(err)
	}
}
