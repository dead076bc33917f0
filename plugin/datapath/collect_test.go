package datapath_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

func (r *rig) collect(opts datapath.CollectOptions) []string {
	r.t.Helper()
	var names []string
	err := r.do(func(d *datapath.Datapath) error {
		removed, err := d.Collect(context.Background(), opts)
		for _, a := range removed {
			names = append(names, a.Meta.PodName)
		}
		return err
	})
	if err != nil {
		r.t.Errorf("collect: %v", err)
	}
	slices.Sort(names)
	return names
}

func (r *rig) deleteVeth(name string) {
	r.t.Helper()
	err := r.node.Do(func() error {
		host, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkDel(host)
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// TestCollect has three pods, of which one lost its interface, and one of another network.
func TestCollect(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			r := newVariantRig(t, v, vethDefault)
			before := r.node.Tree()
			_, _, second := r.newPod("second", v.mode, vethDefault)
			_, staleVeth, stale := r.newPod("stale", v.mode, vethDefault)
			_, _, elsewhere := r.newPod("elsewhere", v.mode, vethDefault)
			elsewhere.Network = "other"
			for _, opts := range []datapath.AttachOptions{r.opts, second, stale, elsewhere} {
				r.mustAttach(opts)
			}
			r.deleteVeth(staleVeth.HostName)

			if got := r.collect(datapath.CollectOptions{DryRun: true}); !slices.Equal(got, []string{"stale"}) {
				t.Errorf("dry run would remove %v", got)
			}
			if got := r.collect(datapath.CollectOptions{Network: "other"}); got != nil {
				t.Errorf("GC of another network without a list removed %v", got)
			}
			// an absent list: only what is dead goes
			if got := r.collect(datapath.CollectOptions{Network: "net"}); !slices.Equal(got, []string{"stale"}) {
				t.Errorf("GC without a list removed %v", got)
			}
			valid := []datapath.Key{{ContainerID: second.ContainerID, IfName: second.IfName}, {ContainerID: r.opts.ContainerID, IfName: "eth1"}}
			if got := r.collect(datapath.CollectOptions{Network: "net", Valid: &valid}); !slices.Equal(got, []string{"pod"}) {
				t.Errorf("GC with a list removed %v", got)
			}
			for _, opts := range []datapath.AttachOptions{second, elsewhere} {
				if err := r.check(opts); err != nil {
					t.Errorf("what should stay: %v", err)
				}
			}
			// an empty list: all of the network
			if got := r.collect(datapath.CollectOptions{Network: "net", Valid: &[]datapath.Key{}}); !slices.Equal(got, []string{"second"}) {
				t.Errorf("GC with an empty list removed %v", got)
			}
			r.mustDetach(elsewhere)
			if after := r.node.Tree(); !slices.Equal(before, after) {
				t.Errorf("left: %v", after)
			}
		})
	}
}

// TestCollectGoesOn: an attachment that cannot be read is reported, and the others go.
func TestCollectGoesOn(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	_, _, broken := r.newPod("broken", datapath.ModeGeneric, vethDefault)
	r.mustAttach(r.opts)
	r.mustAttach(broken)
	if err := os.Remove(filepath.Join(pins.NewRoot(r.node.BPFFS).Pod(pins.ID(broken.ContainerID, broken.IfName)), "meta")); err != nil {
		t.Fatal(err)
	}
	err := r.do(func(d *datapath.Datapath) error {
		removed, err := d.Collect(context.Background(), datapath.CollectOptions{Network: "net", Valid: &[]datapath.Key{}})
		if len(removed) != 1 || removed[0].Meta.PodName != "pod" {
			t.Errorf("removed %v", removed)
		}
		return err
	})
	if !errors.Is(err, datapath.ErrNotFound) {
		t.Errorf("collect: %v, want a word on what cannot be read", err)
	}
	r.mustDetach(broken)
	if left := r.node.Tree(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestCollectLeavesWhatLives: a host end that was renamed, or whose links somebody detached, is
// still there, and so is the container.
func TestCollectLeavesWhatLives(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *rig) {
		before := r.hostState(r.veth.HostName)
		r.mustAttach(r.opts)
		err := r.node.Do(func() error {
			host, err := netlink.LinkByName(r.veth.HostName)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetDown(host); err != nil { // below 6.2 a name changes only then
				return err
			}
			return errors.Join(netlink.LinkSetName(host, "renamed0"), netlink.LinkSetUp(host))
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, pin := range []string{"egress_link", "ingress_link"} {
			l, err := link.LoadPinnedLink(filepath.Join(r.podDir(), pin), nil)
			if errors.Is(err, os.ErrNotExist) {
				continue // a filter
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Detach(); err != nil {
				t.Fatal(err)
			}
			l.Close()
		}
		if got := r.collect(datapath.CollectOptions{Network: "net"}); got != nil {
			t.Errorf("GC without a list removed %v", got)
		}
		r.mustDetach(r.opts)
		if after := r.hostState("renamed0"); !after.equal(before) {
			t.Errorf("the host end was %+v and is %+v", before, after)
		}
	})
}

// TestCollectShared: GC removes shared programs and maps of the node that a process which died has left, and not those
// that a pod uses.
func TestCollectShared(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	_, _, stays := r.newPod("stays", datapath.ModeGeneric, vethDefault)
	stays.Programs = []datapath.Program{{Object: othersObject(t), Program: "third"}}
	r.mustAttach(stays)
	r.opts.Programs = []datapath.Program{{Object: othersObject(t), Program: "second"}, {Object: othersObject(t), Program: "first"}}
	r.mustAttach(r.opts)
	r.mustDetach(r.opts) // the directories stay as long as the node has pods
	before := r.world()
	r.mustAttach(r.opts)
	node := pins.NewRoot(r.node.BPFFS).Node()
	found, err := filepath.Glob(filepath.Join(node, "programs", "*-second", "the-program"))
	if err != nil || len(found) != 1 {
		t.Fatalf("pins of the shared program: %v, %v", found, err)
	}
	prog, err := ebpf.LoadPinnedProgram(found[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	shared := filepath.Join(node, "program_maps", "all_seen")
	m, err := ebpf.LoadPinnedMap(shared, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.mustDetach(r.opts)
	// as if it had died before it removed them
	err = errors.Join(os.MkdirAll(filepath.Dir(found[0]), 0o700), prog.Pin(found[0]), os.MkdirAll(filepath.Dir(shared), 0o700), m.Pin(shared))
	err = errors.Join(err, prog.Close(), m.Close())
	if err != nil {
		t.Fatal(err)
	}
	valid := []datapath.Key{{ContainerID: stays.ContainerID, IfName: stays.IfName}}
	if removed := r.collect(datapath.CollectOptions{Network: "net", Valid: &valid}); len(removed) > 0 {
		t.Errorf("GC removed %v", removed)
	}
	if err := r.check(stays); err != nil {
		t.Errorf("the pod that stays: %v", err)
	}
	r.expectUnchanged(before)
	r.mustDetach(stays)
}
