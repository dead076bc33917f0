package datapath_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
)

// expectCounted expects every packet of floods from and to the pod, which have ended, to be counted once.
func (r *rig) expectCounted(before *datapath.Stats, out, in *flood) {
	r.t.Helper()
	sum := func(now, then datapath.DirectionStats) (packets uint64) {
		for i := range now.Verdicts {
			packets += now.Verdicts[i].Packets - then.Verdicts[i].Packets
		}
		return packets
	}
	deadline := time.Now().Add(settle)
	for {
		now := r.stats()
		sent, got := sum(now.Egress, before.Egress), sum(now.Ingress, before.Ingress)
		egress, ingress := out.came(), in.came()
		if sent == egress && got == ingress {
			return
		}
		if time.Now().After(deadline) {
			r.t.Errorf("counted %d packets from the pod and %d to it, which were %d of %d and %d", sent, got, egress, out.sent.Load(), ingress)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (r *rig) nodeInfo() *datapath.NodeInfo {
	r.t.Helper()
	var info *datapath.NodeInfo
	err := r.do(func(d *datapath.Datapath) (err error) {
		info, err = d.NodeInfo()
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return info
}

// TestUpgradeUnderTraffic goes to another release and back, several times, while packets pass in both directions: each
// is counted once, and maps, links and policies are the same as before.
func TestUpgradeUnderTraffic(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			r := newUpgradeRig(t, v)
			world := r.world()
			r.mustAttach(r.opts)
			tree, programs := r.node.Tree(), r.nodeInfo().Programs
			before := r.stats()
			in, out := r.hostFlood(53), r.flood(53)
			wantPrograms := 2
			if v.programs && v.mode != datapath.ModeTCX {
				wantPrograms++ // the policy by itself
			}
			seen := map[string]bool{}
			for i := range 4 {
				release := []string{releaseNext, releaseSame}[i%2]
				u := r.mustUpgrade(release)
				if len(u.Attachments) != 1 || u.Attachments[0].Result != datapath.UpgradeDone || len(u.Maps) != 0 ||
					len(u.Programs) != wantPrograms {
					t.Errorf("upgrade to %s: %+v", release, u)
				}
				for j, p := range u.Programs {
					if p.Current || p.Old == p.New || p.New == 0 || p.Release != []string{releaseSame, releaseNext}[i%2] {
						t.Errorf("upgrade to %s: program %+v", release, p)
					}
					now := r.nodeInfo().Programs[j]
					if now.ID != p.New || now.Release != release {
						t.Errorf("after an upgrade to %s there is program %+v, want %d", release, now, p.New)
					}
					seen[now.Name+now.Tag] = true
				}
				for _, checking := range []string{releaseNext, releaseSame} {
					r.as(checking, func() {
						if err := r.check(r.opts); err != nil {
							t.Errorf("check by %s after an upgrade to %s: %v", checking, release, err)
						}
					})
				}
			}
			r.expectCounted(before, out.end(), in.end())
			if out.sent.Load() < 100 || in.sent.Load() < 100 {
				t.Errorf("only %d and %d packets", out.sent.Load(), in.sent.Load())
			}
			if len(seen) != 2*len(programs) {
				t.Errorf("the releases' programs have tags %v, want two of each", seen)
			}
			expectSame(t, "the pins", tree, r.node.Tree())
			if v.filter {
				r.expectDecides("some")
			}
			r.mustDetach(r.opts)
			r.expectUnchanged(world)
		})
	}
}

// TestUpgradeNeedless: a release with the same programs has nothing to do, and does it.
func TestUpgradeNeedless(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	if _, err := r.upgrade(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("upgrade of nothing: %v", err)
	}
	if left := r.node.Tree(); len(left) > 0 {
		t.Errorf("an upgrade of nothing made %v", left)
	}
	r.mustAttach(r.opts)
	before, programs := r.world(), r.nodeInfo().Programs
	for range 2 {
		r.as(releaseSame, func() {
			if u, err := r.upgrade(); err != nil || u.Needed() || len(u.Attachments) != 1 || u.Attachments[0].Result != datapath.UpgradeNone {
				t.Errorf("upgrade to the same programs: %+v, %v", u, err)
			}
		})
		r.expectUnchanged(before)
		for i, p := range r.nodeInfo().Programs {
			if p.ID != programs[i].ID {
				t.Errorf("program %s is %d, was %d", p.Name, p.ID, programs[i].ID)
			}
		}
	}
	if release := r.nodeInfo().Release; release != releaseSame {
		t.Errorf("the node's release is %s", release)
	}
	r.mustDetach(r.opts)
}

// upgradeSteps are the steps of an upgrade to releaseNext; from the first in the second list on it has changed something.
func (r *rig) upgradeSteps() (before, after []string) {
	r.t.Helper()
	steps := &before
	r.as(releaseNext, func() {
		_, err := r.upgrade(func(o *datapath.Options) {
			o.BeforeStep = func(step string) error {
				*steps = append(*steps, step)
				if strings.HasPrefix(step, "replacing pin") {
					steps = &after
				}
				return nil
			}
		})
		if err != nil || len(before) < 4 || len(after) < 6 {
			r.t.Fatalf("steps %v and %v: %v", before, after, err)
		}
	})
	return before, after
}

// TestUpgradeFailsOrDies makes each step of an upgrade fail, and kills its process at each. The pods go on, CHECK by
// either release finds nothing wrong, and the next upgrade, to or back, or DEL, leaves nothing of it.
func TestUpgradeFailsOrDies(t *testing.T) {
	for _, v := range variants(t) {
		if !slices.Contains([]string{"generic", "clsact", "native with redirect", "tcx with redirect", "native with redirect and programs"}, v.name) {
			continue
		}
		for _, pick := range [][2]string{{"fails", releaseNext}, {"dies", releaseNext}, {"dies", releaseSame}, {"dies", "DEL"}} {
			how, then := pick[0], pick[1]
			t.Run(v.name+", "+how+", then "+then, func(t *testing.T) {
				r := newUpgradeRig(t, v)
				world := r.world()
				r.mustAttach(r.opts)
				untouched, changed := r.upgradeSteps()
				r.mustDetach(r.opts)
				for _, step := range slices.Concat(untouched, changed) {
					r.mustAttach(r.opts)
					attached, before := r.world(), r.stats()
					in, out := r.hostFlood(53), r.flood(53)
					r.as(releaseNext, func() {
						if how == "dies" {
							r.runKilled(child{Options: r.opts, Upgrade: true}, step)
							return
						}
						_, err := r.upgrade(func(o *datapath.Options) {
							o.BeforeStep = func(now string) error {
								if now == step {
									return errInjected
								}
								return nil
							}
						})
						if !errors.Is(err, errInjected) {
							t.Errorf("at %q: %v", step, err)
						}
					})
					if how == "fails" && slices.Contains(untouched, step) {
						r.expectUnchanged(attached)
						r.expectRuns(releaseSame)
					}
					for _, checking := range []string{releaseNext, releaseSame} {
						r.as(checking, func() {
							if err := r.check(r.opts); err != nil {
								t.Errorf("check by %s after %q: %v", checking, step, err)
							}
						})
					}
					if v.redirect {
						expectSame(t, "the entries for redirect", attached.direct, r.directEntries())
					}
					if then != "DEL" {
						r.as(then, func() {
							if _, err := r.upgrade(); err != nil {
								t.Errorf("upgrade to %s after %q: %v", then, step, err)
							}
						})
						r.expectRuns(then)
						expectSame(t, "the pins", attached.tree, r.node.Tree())
						if v.programs {
							r.expectJudge()
						}
						if err := r.check(r.opts); err != nil {
							t.Errorf("check after %q and an upgrade to %s: %v", step, then, err)
						}
					}
					r.expectCounted(before, out.end(), in.end())
					r.mustDetach(r.opts)
					r.expectUnchanged(world)
					if t.Failed() {
						t.Fatalf("at %q", step)
					}
				}
			})
		}
	}
}

// TestUpgradeDiesTwice: an upgrade dies when it has swapped a program and not noted that, and the one back before it swaps:
// what runs then is neither what is noted nor what is pinned, and CHECK knows it as ours by what it says of itself.
func TestUpgradeDiesTwice(t *testing.T) {
	for _, v := range variants(t) {
		if v.features != nil || v.filter && !v.redirect {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			r := newUpgradeRig(t, v)
			before := r.world()
			r.mustAttach(r.opts)
			for _, link := range []string{"egress_link", "ingress_link"} {
				if link == "egress_link" && v.mode == datapath.ModeTCX && !kernel().TCX {
					continue
				}
				of := link + " of " + pins.ID(r.opts.ContainerID, r.opts.IfName)
				for _, dies := range []struct{ release, step string }{
					{releaseNext, "noting " + of}, {releaseSame, "swapping " + of},
				} {
					r.as(dies.release, func() { r.runKilled(child{Options: r.opts, Upgrade: true}, dies.step) })
				}
				if err := r.check(r.opts); err != nil {
					t.Errorf("check of %s: %v", link, err)
				}
				r.mustUpgrade(releaseSame)
				if err := r.check(r.opts); err != nil {
					t.Errorf("check after an upgrade: %v", err)
				}
			}
			r.mustDetach(r.opts)
			r.expectUnchanged(before)
		})
	}
}

// TestUpgradeLayout: what another release would read wrongly is refused, and nothing changed, by upgrade and ADD. DEL
// works, and when no pod is left the release has the node.
func TestUpgradeLayout(t *testing.T) {
	for _, test := range []struct{ release, says string }{
		{releaseLarger, "flows was made by release same with value size 32, in this release 40"},
		{releaseMoved, "value, struct flow: generation is 4 bytes at"},
		{releaseKeys, "key, struct flow_key: used"},
		{releaseSlots, "slots was made by release same with number of entries 4096, in this release 8192"},
		{releaseSlot, "slots was made by release same with value size 64, in this release 72"},
	} {
		t.Run(test.release, func(t *testing.T) {
			r := newRig(t, datapath.ModeTCX, vethDefault)
			r.release = releaseSame
			r.opts.Policy = mustPolicy(t, someFilter)
			world := r.world()
			r.mustAttach(r.opts)
			_, _, other := r.newPod("other", datapath.ModeTCX, vethDefault)
			before, info := r.world(), r.nodeInfo()
			r.as(test.release, func() {
				for name, upgrade := range map[string]func() (*datapath.Upgrade, error){
					"upgrade": func() (*datapath.Upgrade, error) { return r.upgrade() }, "dry run": r.wouldUpgrade,
				} {
					if _, err := upgrade(); !errors.Is(err, datapath.ErrLayout) || !strings.Contains(err.Error(), test.says) {
						t.Errorf("%s: %v, want %q", name, err, test.says)
					}
				}
				if err := r.attach(other); !errors.Is(err, datapath.ErrLayout) || !strings.Contains(err.Error(), test.says) {
					t.Errorf("ADD: %v", err)
				}
				err := r.do(func(d *datapath.Datapath) error { return d.Ready(datapath.ReadyOptions{Mode: datapath.ModeTCX}) })
				if !errors.Is(err, datapath.ErrLayout) || !strings.Contains(err.Error(), test.says) {
					t.Errorf("STATUS: %v", err)
				}
			})
			r.expectUnchanged(before)
			if now := r.nodeInfo(); !reflect.DeepEqual(now.Programs[0].ID, info.Programs[0].ID) || now.Release != releaseSame {
				t.Errorf("the node is %+v, was %+v", now, info)
			}
			if err := r.check(r.opts); err != nil {
				t.Errorf("check: %v", err)
			}
			r.as(test.release, func() { r.mustDetach(r.opts) })
			r.expectUnchanged(world)
		})
	}
	for _, release := range []string{releasePadding, releaseScratch} {
		t.Run(release, func(t *testing.T) {
			r := newRig(t, datapath.ModeTCX, vethDefault, tests.WithoutIPv6())
			r.release = releaseSame
			r.opts.Policy = mustPolicy(t, someFilter)
			r.mustAttach(r.opts)
			tree := r.node.Tree()
			u := r.mustUpgrade(release)
			if want := release == releaseScratch; slices.Contains(u.Maps, bpf.DatapathMapViews) != want || len(u.Maps) > 1 {
				t.Errorf("maps made: %v", u.Maps)
			}
			r.expectDecides("some")
			r.mustUpgrade(releaseSame)
			r.expectDecides("some")
			expectSame(t, "the pins", tree, r.node.Tree())
			// a composition that is loaded only now has its own scratch memory
			_, _, other := r.newPod("other", datapath.ModeGeneric, vethDefault)
			r.as(release, func() {
				r.mustAttach(other)
				if err := r.check(other); err != nil {
					t.Errorf("check: %v", err)
				}
			})
			r.mustDetach(other)
			r.mustDetach(r.opts)
		})
	}
}

// TestOtherLayout: a node whose maps this release cannot read at all. Upgrade and ADD say so, DEL works.
func TestOtherLayout(t *testing.T) {
	for _, pin := range []string{bpf.DatapathMapSlots, bpf.DatapathMapPolicies, bpf.DatapathMapNodeInfo} {
		r := newRig(t, datapath.ModeGeneric, vethDefault)
		world := r.world()
		r.mustAttach(r.opts)
		path := filepath.Join(pins.NewRoot(r.node.BPFFS).Node(), pin)
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 1000, MaxEntries: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Remove(path), m.Pin(path), m.Close()); err != nil {
			t.Fatal(err)
		}
		_, _, other := r.newPod("other", datapath.ModeGeneric, vethDefault)
		before := r.world()
		if _, err := r.upgrade(); !errors.Is(err, datapath.ErrLayout) || !strings.Contains(err.Error(), pin+" has values of 1000 bytes") {
			t.Errorf("upgrade: %v", err)
		}
		if err := r.attach(other); !errors.Is(err, datapath.ErrLayout) || !strings.Contains(err.Error(), pin+" has values of 1000 bytes") {
			t.Errorf("ADD: %v", err)
		}
		r.expectUnchanged(before)
		r.mustDetach(r.opts)
		r.expectUnchanged(world)
	}
}

// TestUpgradeUnknown: an attachment that has what this release does not know stays as it is.
func TestUpgradeUnknown(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	r.release = releaseSame
	r.mustAttach(r.opts)
	m, err := ebpf.LoadPinnedMap(filepath.Join(r.podDir(), "meta"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var meta bpf.DatapathPodMeta
	if err := errors.Join(m.Lookup(uint32(0), &meta), func() error { meta.Flags |= 1 << 31; return m.Put(uint32(0), meta) }()); err != nil {
		t.Fatal(err)
	}
	before := r.world()
	r.as(releaseNext, func() {
		if _, err := r.upgrade(); !errors.Is(err, datapath.ErrLayout) || !strings.Contains(err.Error(), "0x80000000") {
			t.Errorf("upgrade: %v", err)
		}
	})
	r.expectUnchanged(before)
	if release := r.nodeInfo().Release; release != releaseSame {
		t.Errorf("the node's release is %s", release)
	}
	r.mustDetach(r.opts)
}

// TestUpgradeNewMaps: maps that the release before did not have are made, by upgrade and by ADD; one that its programs
// use is missed.
func TestUpgradeNewMaps(t *testing.T) {
	for _, by := range []string{"upgrade", "ADD"} {
		r := newRig(t, datapath.ModeGeneric, vethDefault, tests.WithoutIPv6())
		r.release = releaseBare
		r.mustAttach(r.opts)
		pin := filepath.Join(pins.NewRoot(r.node.BPFFS).Node(), bpf.DatapathMapDropEvents)
		if err := os.Remove(pin); err != nil {
			t.Fatal(err)
		}
		_, _, other := r.newPod("other", datapath.ModeTCX, vethDefault)
		if by == "ADD" {
			r.as(releaseNext, func() { r.mustAttach(other) })
		} else if u := r.mustUpgrade(releaseNext); !slices.Equal(u.Maps, []string{bpf.DatapathMapDropEvents}) {
			t.Errorf("maps made: %v", u.Maps)
		}
		if _, err := os.Stat(pin); err != nil {
			t.Errorf("after %s: %v", by, err)
		}
		r.as(releaseNext, func() {
			if _, err := r.upgrade(); err != nil {
				t.Errorf("upgrade after %s: %v", by, err)
			}
		})
		if err := os.Remove(pin); err != nil {
			t.Fatal(err)
		}
		if _, err := r.upgrade(); !errors.Is(err, datapath.ErrDamaged) || !strings.Contains(err.Error(), bpf.DatapathMapDropEvents) {
			t.Errorf("upgrade without a map that programs use: %v", err)
		}
		r.mustDetach(other)
		r.mustDetach(r.opts)
	}
}

// TestUpgradeDuringADD: an ADD that opened the programs of before is waited for, and its attachment upgraded.
func TestUpgradeDuringADD(t *testing.T) {
	for _, step := range []string{"making maps", "attaching egress", "attaching ingress", "publishing"} {
		r := newRig(t, datapath.ModeTCX, vethDefault)
		r.release = releaseSame
		_, _, resident := r.newPod("resident", datapath.ModeTCX, vethDefault)
		r.mustAttach(resident)
		upgraded := make(chan error, 1)
		err := r.attach(r.opts, func(o *datapath.Options) {
			o.BeforeStep = func(now string) error {
				if now != step {
					return nil
				}
				swapped := make(chan struct{})
				go func() {
					upgraded <- r.node.Do(func() error {
						d := newDatapath(datapath.Options{
							Root: pins.NewRoot(r.node.BPFFS), Version: releaseNext, LockTimeout: settle,
							BeforeStep: func(step string) error {
								if step == "noting the release" {
									close(swapped)
								}
								return nil
							},
						})
						u, err := d.Upgrade(context.Background(), datapath.UpgradeOptions{})
						if err == nil && len(u.Attachments) != 2 {
							err = fmt.Errorf("upgraded %+v", u.Attachments)
						}
						return err
					})
				}()
				select {
				case <-swapped:
					return nil
				case <-time.After(settle):
					return errors.New("the upgrade does not come to it")
				}
			}
		})
		if err := errors.Join(err, <-upgraded); err != nil {
			t.Errorf("at %q: %v", step, err)
		}
		r.expectRuns(releaseNext)
		if err := r.check(r.opts); err != nil {
			t.Errorf("at %q: %v", step, err)
		}
		r.mustDetach(r.opts)
		r.mustDetach(resident)
	}
}

// TestUpgradeGoesOn: an attachment that cannot be upgraded does not keep others from it, and one whose interface is gone
// is left alone.
func TestUpgradeGoesOn(t *testing.T) {
	for _, tc := range []string{"tcx", "clsact"} {
		r := newRig(t, datapath.ModeTCX, vethDefault)
		if tc == "clsact" {
			r.features = &datapath.Features{}
		} else if !kernel().TCX {
			continue
		}
		r.release = releaseSame
		gone, _, stale := r.newPod("gone", datapath.ModeTCX, vethDefault)
		_, healthy, other := r.newPod("other", datapath.ModeTCX, vethDefault)
		for _, opts := range []datapath.AttachOptions{stale, r.opts, other} {
			r.mustAttach(opts)
		}
		if err := gone.Close(); err != nil {
			t.Fatal(err)
		}
		if tc == "clsact" {
			r.removeFilter(r.veth.HostIndex)
		} else if err := os.Remove(filepath.Join(r.podDir(), "egress_link")); err != nil {
			t.Fatal(err)
		}
		results := func() map[string]datapath.UpgradeResult {
			u, err := r.upgrade()
			if err == nil || !strings.Contains(err.Error(), r.opts.ContainerID) || strings.Contains(err.Error(), other.ContainerID) {
				t.Errorf("%s: %v", tc, err)
			}
			results := map[string]datapath.UpgradeResult{}
			for _, a := range u.Attachments {
				results[a.Meta.ContainerID] = a.Result
			}
			return results
		}
		want := map[string]datapath.UpgradeResult{
			stale.ContainerID: datapath.UpgradeStale, r.opts.ContainerID: datapath.UpgradeFailed, other.ContainerID: datapath.UpgradeDone,
		}
		r.as(releaseNext, func() {
			var have map[string]datapath.UpgradeResult
			// a namespace is taken down by a worker
			for deadline := time.Now().Add(settle); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
				if u, _ := r.wouldUpgrade(); u != nil && slices.ContainsFunc(u.Attachments, func(a datapath.AttachmentUpgrade) bool {
					return a.Result == datapath.UpgradeStale
				}) {
					break
				}
			}
			if have = results(); !reflect.DeepEqual(have, want) {
				t.Errorf("%s: %v, want %v", tc, have, want)
			}
			want[other.ContainerID] = datapath.UpgradeNone
			if have = results(); !reflect.DeepEqual(have, want) {
				t.Errorf("%s, again: %v, want %v", tc, have, want)
			}
			if err := r.check(other); err != nil {
				t.Errorf("%s: check of the other: %v", tc, err)
			}
		})
		_ = healthy
		for _, opts := range []datapath.AttachOptions{stale, r.opts, other} {
			r.mustDetach(opts)
		}
	}
}

// removeFilter removes the filters at tc ingress of an interface.
func (r *rig) removeFilter(ifindex int) {
	r.t.Helper()
	err := r.node.Do(func() error {
		host, err := netlink.LinkByIndex(ifindex)
		if err != nil {
			return err
		}
		filters, err := netlink.FilterList(host, netlink.HANDLE_MIN_INGRESS)
		if err != nil {
			return err
		}
		for _, f := range filters {
			if err := netlink.FilterDel(f); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// TestADDAcrossReleases: an ADD by another release runs the programs that are there, and DEL by either takes down what
// the other made.
func TestADDAcrossReleases(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *rig) {
		r.release = releaseSame
		world := r.world()
		_, _, resident := r.newPod("resident", r.opts.Mode, vethDefault)
		resident.Programs = r.opts.Programs
		r.mustAttach(resident)
		programs := r.nodeInfo().Programs
		r.as(releaseNext, func() {
			r.mustAttach(r.opts)
			if err := r.check(r.opts); err != nil {
				t.Errorf("check: %v", err)
			}
		})
		for i, p := range r.nodeInfo().Programs {
			if p.ID != programs[i].ID || p.Release != releaseSame {
				t.Errorf("program %+v, was %+v", p, programs[i])
			}
		}
		r.mustUpgrade(releaseNext)
		if err := r.check(r.opts); err != nil {
			t.Errorf("check: %v", err)
		}
		r.mustDetach(r.opts)
		r.as(releaseNext, func() { r.mustDetach(resident) })
		r.expectUnchanged(world)
	})
}
