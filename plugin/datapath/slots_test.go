package datapath_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// TestSlotsCollide makes interfaces whose indexes want the same slot.
func TestSlotsCollide(t *testing.T) {
	r := newRig(t, datapath.ModeTCX, vethDefault)
	before := r.world()
	const slots = 4096
	var all []datapath.AttachOptions
	for i := range 3 {
		opts := r.opts
		opts.ContainerID = fmt.Sprintf("collide%d", i)
		opts.HostName = fmt.Sprintf("collide%d", i)
		opts.HostIndex = 77 + i*slots
		err := r.node.Do(func() error {
			return netlink.LinkAdd(&netlink.Veth{
				LinkAttrs: netlink.LinkAttrs{Name: opts.HostName, Index: opts.HostIndex, TxQLen: -1}, PeerName: opts.HostName + "p",
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		err = r.node.Do(func() error {
			host, err := netlink.LinkByIndex(opts.HostIndex)
			if err == nil {
				opts.PodIndex = host.Attrs().ParentIndex
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, opts)
		r.mustAttach(opts)
	}
	r.opts = all[0]
	for i, opts := range all {
		if err := r.check(opts); err != nil {
			t.Errorf("check of attachment %d: %v", i, err)
		}
	}
	r.mustDetach(all[0])
	for _, opts := range all[1:] {
		if err := r.check(opts); err != nil {
			t.Errorf("check after the first went: %v", err)
		}
		r.mustDetach(opts)
	}
	r.expectUnchanged(before)
}

// TestSameInterfaceTwice: one host end is one attachment's.
func TestSameInterfaceTwice(t *testing.T) {
	r := newRig(t, datapath.ModeTCX, vethDefault)
	r.mustAttach(r.opts)
	before := r.world()
	second := r.opts
	second.ContainerID = "second"
	if err := r.attach(second); !errors.Is(err, datapath.ErrForeignProgram) {
		t.Errorf("second attachment of one interface: %v", err)
	}
	r.expectUnchanged(before)
	r.mustDetach(r.opts)
}

// TestIndexUsedAgain: the index of an interface that went without a DEL is given to another one.
// What the first left, published or in staging, must not take what the second has.
func TestIndexUsedAgain(t *testing.T) {
	for _, killed := range []bool{false, true} {
		for _, v := range variants(t) {
			t.Run(fmt.Sprintf("%s, killed %v", v.name, killed), func(t *testing.T) {
				r := newVariantRig(t, v, vethDefault)
				before := r.node.Tree()
				if killed {
					r.attachKilled(r.opts, "publishing")
				} else {
					r.mustAttach(r.opts)
				}
				r.deleteVeth(r.veth.HostName)
				second := r.opts
				second.ContainerID, second.HostName = "second", "again0"
				space, err := os.Open(r.pod.NetNS())
				if err != nil {
					t.Fatal(err)
				}
				defer space.Close()
				err = r.node.Do(func() error {
					err := netlink.LinkAdd(&netlink.Veth{
						LinkAttrs: netlink.LinkAttrs{Name: second.HostName, Index: second.HostIndex, TxQLen: -1}, PeerName: "again1",
						PeerNamespace: netlink.NsFd(int(space.Fd())),
					})
					if err != nil {
						return err
					}
					host, err := netlink.LinkByName(second.HostName)
					if err == nil {
						second.PodIndex = host.Attrs().ParentIndex
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				r.mustAttach(second)
				r.mustDetach(r.opts)
				if err := r.check(second); err != nil {
					t.Errorf("after DEL of the first: %v", err)
				}
				r.collect(datapath.CollectOptions{})
				if err := r.check(second); err != nil {
					t.Errorf("after GC: %v", err)
				}
				r.mustDetach(second)
				if after := r.node.Tree(); !slices.Equal(before, after) {
					t.Errorf("left: %v", after)
				}
			})
		}
	}
}
