package datapath_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/ethtool"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// deletePodQueue removes the root qdisc of the pod's end.
func (r *rig) deletePodQueue() {
	r.t.Helper()
	err := r.pod.Do(func() error {
		pod, err := netlink.LinkByName(r.pod.IfName)
		if err != nil {
			return err
		}
		qdiscs, err := netlink.QdiscList(pod)
		if err != nil || len(qdiscs) != 1 {
			return fmt.Errorf("qdiscs %v: %w", qdiscs, err)
		}
		return netlink.QdiscDel(qdiscs[0])
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// TestCheckRedirect makes each thing of redirect wrong in turn, and expects CHECK to say which.
func TestCheckRedirect(t *testing.T) {
	all := []datapath.Mode{datapath.ModeGeneric, datapath.ModeNative, datapath.ModeTCX}
	native := []datapath.Mode{datapath.ModeNative}
	changeSlot := func(r *rig, change func(slot *bpf.DatapathSlot)) {
		slot := r.slotOf(r.opts)
		change(&slot)
		r.withNodeMap("slots", func(m *ebpf.Map) error { return m.Put(slot.Self.Slot, slot) })
	}
	faults := []struct {
		name   string
		modes  []datapath.Mode
		break_ func(r *rig)
		want   string // a regular expression
		stays  bool   // another CHECK finds it still
	}{
		{"IPv4 endpoint gone", all, func(r *rig) {
			r.withNodeMap("endpoints", func(m *ebpf.Map) error {
				return m.Delete(bpf.DatapathEndpointKey{Network: r.slotOf(r.opts).Self.Network, Address: r.opts.Addresses[0].Addr().As16()})
			})
		}, `do not find it at 10\.0\.0\.2`, true},
		{"IPv6 endpoint gone", all, func(r *rig) {
			r.withNodeMap("endpoints", func(m *ebpf.Map) error {
				return m.Delete(bpf.DatapathEndpointKey{Network: r.slotOf(r.opts).Self.Network, Address: r.opts.Addresses[1].Addr().As16()})
			})
		}, "do not find it at fd00::2", true},
		{"endpoint changed", all, func(r *rig) {
			r.withNodeMap("endpoints", func(m *ebpf.Map) error {
				self := r.slotOf(r.opts).Self
				key := bpf.DatapathEndpointKey{Network: self.Network, Address: r.opts.Addresses[0].Addr().As16()}
				self.Mac[5]++
				return m.Put(key, self)
			})
		}, `do not find it at 10\.0\.0\.2`, true},
		{"a map of the node gone", all, func(r *rig) {
			if err := os.Remove(filepath.Join(pins.NewRoot(r.node.BPFFS).Node(), "endpoints")); err != nil {
				t.Fatal(err)
			}
		}, "endpoints", true},
		{"port gone", all, func(r *rig) {
			r.withNodeMap("tx_ports", func(m *ebpf.Map) error { return m.Delete(uint32(r.opts.HostIndex)) })
		}, "nothing can be redirected", true},
		{"port of multi-buffer programs gone", all, func(r *rig) {
			r.withNodeMap("tx_ports_frags", func(m *ebpf.Map) error { return m.Delete(uint32(r.opts.HostIndex)) })
		}, "nothing can be redirected", true},
		{"the slot knows another endpoint", all, func(r *rig) {
			changeSlot(r, func(slot *bpf.DatapathSlot) { slot.Self.Owner++ })
		}, "does not say where", true},
		// what can be put right, CHECK puts right
		{"not in force", all, func(r *rig) {
			changeSlot(r, func(slot *bpf.DatapathSlot) { slot.Flags &^= uint32(bpf.DatapathSlotFlagSLOT_REDIRECT) })
		}, "", false},
		{"takes no frames", native, func(r *rig) { r.setTakesFrames(false) }, "no longer.*no XDP program is attached", true},
		{"tx checksum on", native, func(r *rig) { r.setPod(ethtool.SetTxChecksum, true) }, "no longer.*tx checksum offload is on", true},
		{"no qdisc", native, func(r *rig) { r.deletePodQueue() }, "no longer.*no queueing discipline", true},
		{"asked without redirect", all, func(r *rig) { r.opts.Redirect = nil }, "redirect true", true},
	}
	for _, test := range faults {
		for _, mode := range test.modes {
			t.Run(test.name+" "+mode.String(), func(t *testing.T) {
				r := newRedirectRig(t, mode, someRedirect)
				r.mustAttach(r.opts)
				if err := r.check(r.opts); err != nil {
					t.Fatalf("check before: %v", err)
				}
				test.break_(r)
				for range 2 {
					err := r.check(r.opts)
					if test.want == "" {
						if err != nil || !r.redirects(r.opts) {
							t.Errorf("check: %v, redirect is in force: %v", err, r.redirects(r.opts))
						}
					} else if !errors.Is(err, datapath.ErrCheck) || !regexp.MustCompile(test.want).MatchString(err.Error()) {
						t.Errorf("check: %v, want ErrCheck with %q", err, test.want)
					}
				}
				r.mustDetach(r.opts)
			})
		}
	}
}

// TestPodsGoOn: what takes down attachments of pods that go on leaves the queueing discipline at their ends, of which a
// change loses packets, and puts back all else. With one there already an attachment made anew has nothing to add.
func TestPodsGoOn(t *testing.T) {
	r := newRedirectRig(t, datapath.ModeNative, someRedirect)
	before := r.podState()
	for range 2 {
		r.mustAttach(r.opts)
		attached := r.podState()
		// below 5.13 GRO is on before
		if !strings.HasPrefix(attached.root, "pfifo ") || !attached.gro || before.gro == groPolls() || attached.txChecksum == before.txChecksum {
			t.Fatalf("attaching has changed %+v to %+v", before, attached)
		}
		detach := func(d *datapath.Datapath) error { return d.Detach(t.Context(), r.opts.ContainerID, r.opts.IfName) }
		if err := r.do(detach, func(o *datapath.Options) { o.PodsGoOn = true }); err != nil {
			t.Fatal(err)
		}
		want := before
		want.root = attached.root
		expectSame(t, "the pod's end", want, r.podState())
		before.root = attached.root
	}
}

// TestRefit turns off what a pod's end needs and on again, as its owner may: its packets go directly only while they can.
func TestRefit(t *testing.T) {
	for _, test := range []struct {
		name string
		off  func(r *rig)
		on   func(r *rig)
	}{
		{"takes frames", func(r *rig) { r.setTakesFrames(false) }, func(r *rig) { r.setTakesFrames(true) }},
		{"tx checksum", func(r *rig) { r.setPod(ethtool.SetTxChecksum, true) }, func(r *rig) { r.setPod(ethtool.SetTxChecksum, false) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRedirectRig(t, datapath.ModeNative, someRedirect)
			before := r.world()
			_, _, other := r.newPod("other", datapath.ModeNative, vethDefault)
			_, _, plain := r.newPod("plain", datapath.ModeNative, vethDefault)
			plain.Redirect = nil
			for _, opts := range []datapath.AttachOptions{r.opts, other, plain} {
				r.mustAttach(opts)
			}
			entered := r.directEntries()
			expectForce := func(when string, want bool) {
				t.Helper()
				r.refit()
				if got := r.redirects(r.opts); got != want {
					t.Errorf("%s: redirect is in force: %v", when, got)
				}
				if !r.redirects(other) || r.redirects(plain) {
					t.Errorf("%s: redirect of the others is in force: %v, %v", when, r.redirects(other), r.redirects(plain))
				}
				expectSame(t, when+": the entries", entered, r.directEntries())
			}
			expectForce("at first", true)
			for range 2 {
				test.off(r)
				expectForce("off", false)
				expectForce("off still", false)
				test.on(r)
				expectForce("on again", true)
			}
			// what its owner turned off is not ours to turn on
			test.off(r)
			expectForce("off at last", false)
			for _, opts := range []datapath.AttachOptions{r.opts, other, plain} {
				r.mustDetach(opts)
			}
			r.expectUnchanged(before)
		})
	}
	t.Run("pod end gone", func(t *testing.T) {
		r := newRedirectRig(t, datapath.ModeNative, someRedirect)
		_, _, other := r.newPod("other", datapath.ModeNative, vethDefault)
		r.mustAttach(r.opts)
		r.mustAttach(other)
		r.deleteVeth(r.veth.HostName)
		r.refit()
		if r.redirects(r.opts) || !r.redirects(other) {
			t.Errorf("redirect is in force: %v, for the other: %v", r.redirects(r.opts), r.redirects(other))
		}
		r.mustDetach(r.opts)
		r.mustDetach(other)
	})
}

// TestUnfitFromTheStart: a pod end that cannot be made fit is no reason to refuse the pod.
func TestUnfitFromTheStart(t *testing.T) {
	r := newRedirectRig(t, datapath.ModeNative, someRedirect)
	before := r.world()
	// between the preparation and the last look at it
	err := r.attach(r.opts, func(o *datapath.Options) {
		o.BeforeStep = func(step string) error {
			if step == "entering the endpoint" {
				r.setTakesFrames(false)
			}
			return nil
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.redirects(r.opts) {
		t.Error("redirect is in force")
	}
	if err := r.check(r.opts); err != nil {
		t.Errorf("check of a pod that was never fit: %v", err)
	}
	r.setTakesFrames(true)
	r.refit()
	if !r.redirects(r.opts) {
		t.Error("redirect is not in force once the pod is fit")
	}
	r.mustDetach(r.opts)
	r.expectUnchanged(before)
}
