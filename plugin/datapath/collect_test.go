package datapath_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

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
