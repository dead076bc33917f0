package datapath_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
)

func (r *rig) replace(text string, change ...func(*datapath.Options)) error {
	r.t.Helper()
	policy, a := mustPolicy(r.t, text), r.attachment()
	return r.do(func(d *datapath.Datapath) error { return d.ReplacePolicy(context.Background(), a, *policy) }, change...)
}

func (r *rig) mustReplace(text string) {
	r.t.Helper()
	if err := r.replace(text); err != nil {
		r.t.Fatalf("replacing the policy: %v", err)
	}
}

// flood is packets from the pod, one after the other.
type flood struct {
	stop, ended chan struct{}
	sent        atomic.Uint64
	// dropped is how many of them no program can have seen; nil if they meet one before anything may drop them
	dropped func() uint64
}

// flood sends what send does, to one port, until its end.
func (r *rig) flood(port uint16) *flood {
	r.t.Helper()
	var fd, index int
	err := r.pod.Do(func() error {
		link, err := netlink.LinkByName(r.pod.IfName)
		if err != nil {
			return err
		}
		index = link.Attrs().Index
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	before := r.podDropped()
	f := &flood{
		stop: make(chan struct{}), ended: make(chan struct{}),
		dropped: func() uint64 { return r.podDropped() - before },
	}
	go sendUntil(f, fd, index, r.frame(port))
	return f
}

// podDropped is how many packets the pod's end could not hand over. On a slow machine the ring (mode native) or the backlog
// that is in front of the host end's program gets full, and then the queue that a pod with redirect has.
func (r *rig) podDropped() (packets uint64) {
	r.t.Helper()
	err := r.pod.Do(func() error {
		link, err := netlink.LinkByName(r.pod.IfName)
		if err != nil {
			return err
		}
		packets = link.Attrs().Statistics.TxDropped
		qdiscs, err := netlink.QdiscList(link)
		for _, q := range qdiscs {
			if a := q.Attrs(); a.Parent == netlink.HANDLE_ROOT && a.Statistics != nil && a.Statistics.Queue != nil {
				packets += uint64(a.Statistics.Queue.Drops)
			}
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return packets
}

// end stops it.
func (f *flood) end() *flood {
	close(f.stop)
	<-f.ended
	return f
}

// came returns how many packets came as far as a program, or will if they are in a queue yet.
func (f *flood) came() uint64 {
	sent := f.sent.Load()
	if f.dropped != nil {
		sent -= f.dropped()
	}
	return sent
}

// TestReplacePolicy replaces policies to and fro, of attachments that began with and without one.
func TestReplacePolicy(t *testing.T) {
	for _, mode := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeTCX} {
		for _, first := range []string{"none", "some"} {
			t.Run(mode.String()+", first "+first, func(t *testing.T) {
				r := newRig(t, mode, vethDefault, tests.WithoutIPv6())
				before := r.world()
				if first == "some" {
					r.opts.Policy = mustPolicy(t, someFilter)
				}
				r.mustAttach(r.opts)
				r.expectDecides(first)
				generation := uint32(0)
				for range 2 {
					for name, text := range map[string]string{"some": someFilter, "other": otherFilter} {
						r.mustReplace(text)
						r.expectDecides(name)
						state := r.mustReadPolicy()
						if state.Generation <= generation || string(state.Source) != text {
							t.Errorf("generation %d after %d, of %s", state.Generation, generation, state.Source)
						}
						generation = state.Generation
						if err := r.check(r.opts); err != nil {
							t.Errorf("check: %v", err)
						}
						if got := r.policyPins(); len(got) != 4 {
							t.Errorf("pins are %v, want one policy", got)
						}
					}
				}
				r.mustDetach(r.opts)
				r.expectUnchanged(before)
			})
		}
	}
}

// replaceSteps are the steps of a replacement; from the first that is in the second list on, the new policy decides.
func (r *rig) replaceSteps() (before, after []string) {
	r.t.Helper()
	steps := &before
	err := r.replace(otherFilter, func(o *datapath.Options) {
		o.BeforeStep = func(step string) error {
			if step == "renaming its directory" {
				steps = &after
			}
			*steps = append(*steps, step)
			return nil
		}
	})
	if err != nil || len(before) < 5 || len(after) < 2 {
		r.t.Fatalf("steps %v and %v: %v", before, after, err)
	}
	return before, after
}

func (r *rig) replaceFails(step string) error {
	r.t.Helper()
	return r.replace(otherFilter, func(o *datapath.Options) {
		o.BeforeStep = func(now string) error {
			if now == step {
				return errInjected
			}
			return nil
		}
	})
}

// TestReplaceFailsOrDies makes each step of a replacement fail, and kills its process at each. The old policy
// decides, or from a step on the new one, and what is left disturbs neither CHECK, nor the next replacement, nor DEL.
func TestReplaceFailsOrDies(t *testing.T) {
	for i := range 8 {
		pick := func(bit int, options ...string) string { return options[i>>bit&1] }
		how, old, then := pick(0, "fails", "dies"), pick(1, "none", "some"), pick(2, "another", "DEL")
		t.Run(how+", old policy "+old+", then "+then, func(t *testing.T) {
			r := newRig(t, datapath.ModeGeneric, vethDefault, tests.WithoutIPv6())
			_, _, resident := r.newPod("resident", datapath.ModeGeneric, vethDefault)
			resident.Policy = mustPolicy(t, someFilter)
			r.mustAttach(resident)
			r.mustAttach(r.opts)
			failing, done := r.replaceSteps()
			r.mustDetach(r.opts)
			if old == "some" {
				r.opts.Policy = mustPolicy(t, someFilter)
			}
			// what a test of a filter made in between should not be
			world := r.world()
			for _, step := range slices.Concat(failing, done) {
				r.mustAttach(r.opts)
				attached := r.world()
				want := old
				if slices.Contains(done, step) {
					want = "other"
				}
				if how == "dies" {
					opts := r.opts
					opts.Policy = mustPolicy(t, otherFilter)
					r.replaceKilled(opts, step)
				} else {
					if err := r.replaceFails(step); errors.Is(err, errInjected) != (want == old) {
						t.Errorf("at %q: %v", step, err)
					}
					if want == old {
						r.expectUnchanged(attached)
					}
				}
				r.expectDecides(want)
				if state, err := r.readPolicy(); want == "none" && !errors.Is(err, datapath.ErrNoPolicy) ||
					want != "none" && (err != nil || string(state.Source) != map[string]string{"some": someFilter, "other": otherFilter}[want]) {
					t.Errorf("at %q: the policy reads as %+v, %v", step, state, err)
				}
				if err := r.check(r.opts); err != nil {
					t.Errorf("check after %q: %v", step, err)
				}
				if then == "DEL" {
					r.mustDetach(r.opts)
					r.expectUnchanged(world)
					continue
				}
				if err := r.replaceFails("making maps"); !errors.Is(err, errInjected) {
					t.Errorf("a replacement after one that %s at %q: %v", how, step, err)
				}
				if want == old { // what the first one left, the second one removed
					r.expectUnchanged(attached)
				}
				r.mustReplace(someFilter)
				r.expectDecides("some")
				if got := r.policyPins(); len(got) != 4 {
					t.Errorf("after %q and another replacement pins are %v, want one policy", step, got)
				}
				if err := r.check(r.opts); err != nil {
					t.Errorf("check after %q and another replacement: %v", step, err)
				}
				r.mustDetach(r.opts)
				r.expectUnchanged(world)
				if t.Failed() {
					t.Fatalf("at %q", step)
				}
			}
			if err := r.check(resident); err != nil {
				t.Errorf("the other pod: %v", err)
			}
			r.mustDetach(resident)
		})
	}
}

// TestReplaceUnderTraffic: two filters that let the same packets through, one by its last rule and one by its
// first, take turns under traffic. A packet judged by a part of each would meet a default, which drops.
func TestReplaceUnderTraffic(t *testing.T) {
	for _, mode := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeTCX} {
		t.Run(mode.String(), func(t *testing.T) {
			r := newRig(t, mode, vethDefault, tests.WithoutIPv6())
			rule := `{"name": "rule-%d", "direction": "egress", "action": "%s", "protocol": "udp", "to": ["%s"], "ports": ["%d"]}`
			var many []string
			for i := range 300 {
				many = append(many, fmt.Sprintf(rule, i, "deny", fmt.Sprintf("10.1.%d.0/24", i%256), 2000+i))
			}
			many = append(many, fmt.Sprintf(rule, 300, "allow", "10.0.0.0/24", 53))
			around := `{"stateful": false, "antiSpoof": false, "default": {"egress": "deny", "ingress": "deny"}, "rules": [%s]}`
			texts := []string{
				fmt.Sprintf(around, strings.Join(many, ",")),
				fmt.Sprintf(around, fmt.Sprintf(rule, 0, "allow", "10.0.0.1", 53)),
			}
			r.opts.Policy = mustPolicy(t, texts[0])
			r.mustAttach(r.opts)
			flood := r.flood(53)
			const enough = 20_000
			for i := 0; i < 40 || flood.sent.Load() < enough; i++ {
				if err := r.replace(texts[(i+1)%2]); err != nil {
					t.Fatal(err)
				}
			}
			packets := flood.end().came()
			stats := r.stats().Egress
			if passed := stats.Verdicts[bpf.DatapathVerdictVERDICT_PASS].Packets; passed != packets {
				t.Errorf("%d of %d packets passed", passed, packets)
			}
			if stats.Drops != [5]datapath.Counter{} {
				t.Errorf("drops: %+v", stats.Drops)
			}
			r.mustDetach(r.opts)
		})
	}
}
