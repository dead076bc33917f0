package integration

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// sent is how many frames tests send where the number does not matter.
const sent = 5

func TestSamplePass(t *testing.T) {
	inXDPModes(t, func(t *testing.T, mode string) {
		r := newSampleRig(t, mode, (*tests.Node).Bridge, sampleProgram(t, "verdicts", "xdp_pass"))
		p := r.add(t, "pod")
		quiet(t, p.Pod)
		before := readStats(t, r.Node, p.Pod)
		frame := p.of(packets.IPv4{}, packets.UDP{})
		for range sent {
			p.send(t, frame)
			arrives(t, p.passed, frame)
		}
		p.acted(t, before, "pass", sent)
		for _, to := range []func() error{
			func() error { return tests.Ping(t.Context(), p, p.GatewayIPv4(), 3) },
			func() error { return tests.Ping(t.Context(), p, p.GatewayIPv6(), 3) },
		} {
			if err := to(); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestSampleDrop(t *testing.T) {
	inXDPModes(t, func(t *testing.T, mode string) {
		r := newSampleRig(t, mode, (*tests.Node).Bridge, sampleProgram(t, "verdicts", "xdp_drop"))
		p := r.add(t, "pod")
		quiet(t, p.Pod)
		before := readStats(t, r.Node, p.Pod)
		for range sent {
			p.send(t, p.of(packets.IPv4{}, packets.UDP{}))
			p.send(t, p.of(packets.IPv6{}, packets.TCP{}))
		}
		p.counted(t, before, "drop", 2*sent)
		p.acted(t, before, "pass", 0)
		nothing(t, p.passed)
	})
}

// counted waits until so many packets have ended in an action, and no more.
func (p *samplePod) counted(t *testing.T, before stats, action string, want uint64) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if readStats(t, p.rig.Node, p.Pod).since(before).Egress[action].Packets >= want {
			break
		}
	}
	p.acted(t, before, action, want)
}

// exceptions counts what the tracepoint xdp:xdp_exception says, of the whole machine, by XDP action.
func exceptions(t *testing.T) *ebpf.Map {
	t.Helper()
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Name: "exceptions", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 8})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { counts.Close() })
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "exceptions", Type: ebpf.RawTracepoint, License: "GPL",
		Instructions: asm.Instructions{
			// TP_PROTO(dev, xdp, act) in include/trace/events/xdp.h
			asm.LoadMem(asm.R2, asm.R1, 16, asm.DWord),
			asm.StoreMem(asm.RFP, -4, asm.R2, asm.Word),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, counts.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "xdp_exception", Program: prog})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return counts
}

func TestSampleAbort(t *testing.T) {
	inXDPModes(t, func(t *testing.T, mode string) {
		r := newSampleRig(t, mode, (*tests.Node).Bridge, sampleProgram(t, "verdicts", "xdp_abort"))
		p := r.add(t, "pod")
		quiet(t, p.Pod)
		told := exceptions(t)
		before := readStats(t, r.Node, p.Pod)
		for range sent {
			p.send(t, p.of(packets.IPv4{}, packets.UDP{}))
		}
		p.counted(t, before, "aborted", sent)
		nothing(t, p.passed)
		var n uint64
		if err := told.Lookup(uint32(0), &n); err != nil || n != sent { // XDP_ABORTED
			t.Errorf("%d exceptions, %v; want %d", n, err, sent)
		}
	})
}
