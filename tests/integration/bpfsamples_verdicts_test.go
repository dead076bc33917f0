package integration

import (
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// XDP actions (include/uapi/linux/bpf.h).
const (
	xdpAborted  = 0
	xdpPass     = 2
	xdpTx       = 3
	xdpRedirect = 4
)

// sent is how many frames tests send where the number does not matter.
const sent = 5

func TestSamplePass(t *testing.T) {
	inXDPModes(t, func(t *testing.T, mode string) {
		r := newSampleRig(t, mode, (*tests.Node).Bridge, sampleProgram(t, "verdicts", "xdp_pass"))
		p := r.add(t, "pod")
		quiet(t, p.Pod)
		before, programs := readStats(t, r.Node, p.Pod), podPrograms(t, r.Node, p.Pod)
		frame := p.of(packets.IPv4{}, packets.UDP{})
		for range sent {
			p.send(t, frame)
			arrives(t, p.passed, frame)
		}
		p.acted(t, before, "pass", sent)
		expect(t, "runs", ran(programs, podPrograms(t, r.Node, p.Pod)), [][5]uint64{{xdpPass: sent}})
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
		p.nothingPassed(t)
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

// nothingPassed: none of the frames sent to programs that let nothing pass has come. The next that does is one that is
// sent when they are detached.
func (p *samplePod) nothingPassed(t *testing.T) {
	t.Helper()
	if out, err := p.rig.RunXdpctl(t.Context(), "detach", p.ContainerID); err != nil {
		t.Fatalf("xdpctl detach: %v: %s", err, out.Stderr)
	}
	p.passesNext(t, p.of(packets.Payload("after the programs")))
}

// exceptions counts what the tracepoint xdp:xdp_exception says of an interface, by XDP action.
func exceptions(t *testing.T, ifindex int) *ebpf.Map {
	t.Helper()
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	var device *btf.Struct
	if err := kernel.TypeByName("net_device", &device); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(device.Members, func(m btf.Member) bool { return m.Name == "ifindex" })
	if i < 0 {
		t.Fatal("struct net_device has no ifindex")
	}
	counts, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "exceptions", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 8,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { counts.Close() })
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "exceptions", Type: ebpf.RawTracepoint, License: "GPL",
		Instructions: asm.Instructions{
			// TP_PROTO(dev, xdp, act) in include/trace/events/xdp.h
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMem(asm.R3, asm.R6, 0, asm.DWord),
			asm.Add.Imm(asm.R3, int32(device.Members[i].Offset.Bytes())),
			asm.Mov.Reg(asm.R1, asm.RFP),
			asm.Add.Imm(asm.R1, -8),
			asm.Mov.Imm(asm.R2, 4),
			asm.FnProbeReadKernel.Call(),
			asm.LoadMem(asm.R2, asm.RFP, -8, asm.Word),
			asm.JNE.Imm(asm.R2, int32(ifindex), "out"),
			asm.LoadMem(asm.R2, asm.R6, 16, asm.DWord),
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
		told := exceptions(t, p.hostIndex)
		before := readStats(t, r.Node, p.Pod)
		for range sent {
			p.send(t, p.of(packets.IPv4{}, packets.UDP{}))
		}
		p.counted(t, before, "aborted", sent)
		p.nothingPassed(t)
		var n uint64
		if err := told.Lookup(uint32(xdpAborted), &n); err != nil || n != sent {
			t.Errorf("%d exceptions, %v; want %d", n, err, sent)
		}
	})
}
