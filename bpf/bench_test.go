package bpf_test

import (
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/tests/packets"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

// BenchmarkPacket measures what a packet costs in a program over one that only passes it. A round
// runs every variant in turn, so that whatever else the machine does falls on all of them alike;
// figures are the medians of the rounds, ns a packet. Those of the bare program are mostly the
// test run itself: only the differences say something of ours.
func BenchmarkPacket(b *testing.B) {
	priv.Root(b)
	r := newRig(b, true)
	hooks := r.hooks(r.addPod(b, loopback, loopback, 0))
	r.addPeers(b, loopback, 1024)

	frames := []packetCase{
		{"ipv4 udp 64", frame(packets.IPv4{}, packets.UDP{}, packets.Data(64-14-20-8)), udp4},
		{"ipv6 tcp", frame(packets.IPv6{}, packets.TCP{Options: make([]byte, 12)}, packets.Data(32)), tcp6},
		{"ipv6 extensions tcp", ext(packets.HopByHop(), packets.Fragment{}, packets.DestOptions()), tcp6},
	}
	for _, h := range hooks {
		bare := bareProgram(b, h)
		for _, test := range frames {
			b.Run(h.name+"/"+test.name, func(b *testing.B) { r.benchmark(b, h, bare, test.frame) })
		}
	}
}

// benchmark reports the cost of frame in the hook's program without a slot, with the counters, and
// with those of peers too.
func (r *rig) benchmark(b *testing.B, h hook, bare *ebpf.Program, frame []byte) {
	const (
		rounds = 11
		repeat = 1 << 16 // short, or the Go runtime's signals interrupt the run and it begins anew
	)
	variants := []struct {
		name    string
		program *ebpf.Program
		slot    bpf.DatapathSlot
	}{
		{"bare", bare, bpf.DatapathSlot{}},
		{"no-slot", h.program, bpf.DatapathSlot{}},
		{"stats", h.program, bpf.DatapathSlot{Ifindex: loopback}},
		{"peers", h.program, bpf.DatapathSlot{Ifindex: loopback, Flags: uint32(bpf.DatapathSlotFlagSLOT_PEERS)}},
	}
	costs := make([][]float64, len(variants))
	for b.Loop() {
		for i := range rounds * len(variants) {
			variant := variants[i%len(variants)]
			put(b, r.Slots, uint32(loopback), variant.slot)
			_, cost, err := variant.program.Benchmark(frame, repeat, nil)
			if err != nil {
				b.Fatal(err)
			}
			costs[i%len(variants)] = append(costs[i%len(variants)], float64(cost.Nanoseconds())) // of one packet
		}
	}
	bareCost := median(costs[0])
	b.ReportMetric(bareCost, "bare-ns/packet")
	for i, variant := range variants[1:] {
		cost := median(costs[i+1])
		b.ReportMetric(cost, variant.name+"-ns/packet")
		b.ReportMetric(cost-bareCost, variant.name+"-over-bare-ns")
	}
	b.ReportMetric(0, "ns/op") // all rounds: of no interest
}

// bareProgram returns a program for the same hook that does nothing but pass.
func bareProgram(b *testing.B, h hook) *ebpf.Program {
	b.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "bare",
		Type:         h.program.Type(),
		License:      "BSD",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, int32(h.pass())), asm.Return()},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { program.Close() })
	return program
}

func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}
