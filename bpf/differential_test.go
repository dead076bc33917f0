package bpf_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/filter"
	"github.com/xdp-cni/xdp-cni/plugin/filter/filtertest"
	"github.com/xdp-cni/xdp-cni/plugin/filter/model"
)

func nativeUint64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }

// A trial is one pod's filters, of which the first is replaced by the second and that by the first
// again, and the packets that they judge. Seed and length are all there is to it.
type trial struct {
	seed   uint64
	length int

	filters  [places]*conf.Filter
	policies [places]*policyMaps
	flows    *ebpf.Map
	slot     uint32
}

const (
	trialLength = 300
	trialFlows  = 2048
	firstSlot   = 1000 // of the trials; whichever is running has the loopback interface
	batchTrials = 64
)

// bench is a rig for trials.
type bench struct {
	*rig
	pod *pod // has the counters of all trials
}

func newBench(t testing.TB) *bench {
	b := &bench{rig: newFilterRig(t)}
	// the first slot to look in is another's, so that the overflow decides whose packet it is
	b.pod = b.addPod(t, firstSlot, loopback+maxPods, 0)
	var keys []uint32
	var inner []*ebpf.Map
	for i := range uint32(batchTrials) {
		for d := range b.pod.tables {
			for table, m := range b.pod.tables[d] {
				keys = append(keys, (firstSlot+i)*podTables+uint32(d)*uint32(tables)+uint32(table))
				inner = append(inner, m)
			}
		}
	}
	putMaps(t, b.PodTables, keys, inner)
	return b
}

// prepare makes the policies of trials and enters them, each in a slot of its own.
func (b *bench) prepare(t testing.TB, trials []*trial) {
	var (
		words, prefixes, counters, flows []*ebpf.Map
		place, slot                      []uint32
	)
	for i, tr := range trials {
		rng := rand.New(rand.NewPCG(tr.seed, 1))
		tr.slot = firstSlot + uint32(i)
		slot = append(slot, tr.slot)
		tr.flows = b.newInner(t, bpf.DatapathMapFlows, trialFlows, nil, nil)
		flows = append(flows, tr.flows)
		for p := range tr.filters {
			tr.filters[p] = filtertest.RandomFilter(rng)
			compiled, err := filter.Compile(tr.filters[p], filtertest.Pod().Addresses)
			if err != nil {
				t.Fatal(err)
			}
			policy := b.newPolicy(t, filtertest.Pod(), compiled, uint32(p)+1)
			tr.policies[p] = policy
			words = append(words, policy.words)
			prefixes = append(prefixes, policy.prefixes)
			counters = append(counters, policy.counters)
			place = append(place, tr.slot*places+uint32(p))
			put(t, b.Policies, tr.slot*places+uint32(p), policy.header)
		}
	}
	putMaps(t, b.PodPolicyWords, place, words)
	putMaps(t, b.PodPolicyPrefixes, place, prefixes)
	putMaps(t, b.PodRuleCounters, place, counters)
	putMaps(t, b.PodFlows, slot, flows)
}

func (tr *trial) close() {
	tr.flows.Close()
	for _, p := range tr.policies {
		p.close()
	}
}

// install makes the policy at place that of the loopback interface's packets.
func (b *bench) install(t testing.TB, tr *trial, place uint32) {
	flags := bpf.DatapathSlotFlagSLOT_FILTER
	if place == 1 {
		flags |= bpf.DatapathSlotFlagSLOT_POLICY
	}
	put(t, b.Slots, tr.slot, bpf.DatapathSlot{Ifindex: loopback, Flags: uint32(flags)})
	put(t, b.SlotOverflow, uint32(loopback), tr.slot)
}

// run sends a trial's packets, looks at their verdicts, and at the end, or after each packet if
// closely, at all counters. It returns what differs, "" for nothing, and what the model said.
func (b *bench) run(t testing.TB, tr *trial, closely bool, seen map[model.Verdict]int) (difference string) {
	rng := rand.New(rand.NewPCG(tr.seed, 2))
	program := b.XdpEgress
	if rng.IntN(2) == 0 {
		program = b.TcEgress
	}
	m := model.New(filtertest.Pod(), tr.filters[0])
	traffic := filtertest.NewTraffic(rng, tr.filters[0])
	place := uint32(0)
	b.install(t, tr, place)
	before := b.pod.counters(t)
	var drops [directions][records]uint64
	var rules [places][]uint64
	for p, f := range tr.filters {
		rules[p] = make([]uint64, max(len(f.Rules), 1))
	}
	compare := func() string {
		got := b.pod.counters(t).minus(before)
		for d := range drops {
			for reason, want := range drops[d] {
				if n := got[d][bpf.DatapathTableTABLE_DROP][reason].Packets; n != want {
					return fmt.Sprintf("direction %d: %d drops for reason %d, want %d", d, n, reason+1, want)
				}
			}
		}
		for p := range rules {
			if n := tr.policies[p].ruleCounts(t); !slices.Equal(n, rules[p]) {
				return fmt.Sprintf("the rules of filter %d decided\n%v, want\n%v", p, n, rules[p])
			}
		}
		return ""
	}
	for i := range tr.length {
		if i == tr.length/3 || i == tr.length*2/3 {
			place ^= 1
			m.Replace(tr.filters[place])
			header := tr.policies[place].header
			header.Generation = uint32(2 + i)
			put(t, b.Policies, tr.slot*places+place, header)
			b.install(t, tr, place)
		}
		p, d := traffic.Next()
		frame := filtertest.Frame(rng, p)
		if rng.IntN(5) == 0 {
			frame = mutate(rng, [][]byte{frame})
			if p = filtertest.Parse(frame, d); isJumbogram(frame) {
				continue
			}
		}
		pass, err := b.send(program, frame, d, p.FromHost)
		if err != nil {
			continue // refused by the kernel, before the program
		}
		want := m.Decide(p, d, 0)
		if want.Reason != model.ReasonNone {
			drops[d][want.Reason-1]++
		}
		if want.Rule >= 0 {
			rules[place][want.Rule]++
		}
		if seen != nil {
			seen[model.Verdict{Pass: want.Pass, Reason: want.Reason, Step: want.Step, WouldDeny: want.WouldDeny}]++
		}
		if pass != want.Pass {
			difference = fmt.Sprintf("passes: %v", pass)
		} else if closely {
			difference = compare()
		}
		if difference != "" {
			return fmt.Sprintf("packet %d, %s: %s\nwant %+v\nof %x\nwhich is %s\nfilter %s", i, d, difference,
				want, frame, asJSON(t, p), asJSON(t, tr.filters[place]))
		}
	}
	return compare()
}

// send runs a program on a frame and says whether it passed.
func (b *bench) send(egress *ebpf.Program, frame []byte, d conf.Direction, fromHost bool) (bool, error) {
	opts := ebpf.RunOptions{Data: frame, Repeat: 1}
	program := egress
	if d == conf.Ingress {
		program = b.TcIngress
		if !fromHost {
			opts.Context = skBuff{Mark: 1}
		}
	}
	verdict, err := program.Run(&opts)
	if err != nil {
		return false, err
	}
	if program.Type() == ebpf.XDP {
		return verdict == 2, nil // XDP_PASS
	}
	return int32(verdict) == -1, nil // TC_ACT_UNSPEC
}

// isJumbogram says whether the length of an IPv6 packet is perhaps in an option.
func isJumbogram(frame []byte) bool {
	for _, at := range []int{14, 18, 22} {
		if len(frame) > at+7 && binary.BigEndian.Uint16(frame[at-2:]) == 0x86dd &&
			frame[at+4] == 0 && frame[at+5] == 0 && frame[at+6] == 0 {
			return true
		}
	}
	return false
}

func asJSON(t testing.TB, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestModel compares the programs with the reference model: random filters, replaced twice, and
// random packets that have to do with each other, whole, in fragments, with options and extension
// headers, and broken.
func TestModel(t *testing.T) {
	pairs := 300_000
	b := newBench(t)
	if f, err := kernel(); err != nil || !f.TCX {
		pairs /= 10 // kernels without batches of maps of maps (5.18 and older) wait for each
	}
	seen := map[model.Verdict]int{}
	count := 0
	for seed := uint64(0); count < pairs; {
		trials := make([]*trial, batchTrials)
		for i := range trials {
			trials[i] = &trial{seed: seed, length: trialLength}
			seed++
		}
		b.prepare(t, trials)
		for _, tr := range trials {
			difference := b.run(t, tr, false, seen)
			count += tr.length
			if difference != "" {
				t.Errorf("trial %d: %s", tr.seed, difference)
				again := &trial{seed: tr.seed, length: tr.length}
				b.prepare(t, []*trial{again})
				t.Errorf("again, closely: %s", b.run(t, again, true, nil))
				again.close()
				return
			}
			tr.close()
		}
	}
	for v, n := range seen {
		t.Logf("%6d of %+v", n, v)
	}
}

// FuzzModel does the same with seeds that the fuzzer makes, for as long as it is let.
func FuzzModel(f *testing.F) {
	b := newBench(f)
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) {
		tr := &trial{seed: seed, length: trialLength}
		b.prepare(t, []*trial{tr})
		defer tr.close()
		if difference := b.run(t, tr, true, nil); difference != "" {
			t.Error(difference)
		}
	})
}
