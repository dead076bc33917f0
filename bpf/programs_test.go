package bpf_test

import (
	"bytes"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/tests/packets"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

// Of lib/programs.h.
const (
	podPrograms   = 8 // MAX_POD_PROGRAMS
	programsShift = 12
	beforeShift   = 8
)

// XDP actions (include/uapi/linux/bpf.h).
const (
	xdpAborted = iota
	xdpDrop
	xdpPass
	xdpTx
	xdpRedirect
)

// returning is a program that returns an action.
func returning(action int32) asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, action), asm.Return()}
}

// writing is a program that sets the last byte of the destination's MAC and passes.
func writing(value int32) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // data
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word), // data_end
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, 14),
		asm.JGT.Reg(asm.R4, asm.R3, "out"),
		asm.StoreImm(asm.R2, 5, int64(value), asm.Byte),
		asm.Mov.Imm(asm.R0, xdpPass).WithSymbol("out"),
		asm.Return(),
	}
}

// growing is a program that puts n bytes in front of the frame and passes: the frame that follows has another start, and
// another length.
func growing(n int32) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Imm(asm.R2, -n),
		asm.FnXdpAdjustHead.Call(),
		asm.Mov.Imm(asm.R0, xdpPass),
		asm.Return(),
	}
}

// programsRig is a packet path with a pod that has programs.
type programsRig struct {
	*rig
	frags bool
	pod   *pod
	stats *ebpf.Map
}

func newProgramsRig(t *testing.T, frags bool) *programsRig {
	t.Helper()
	priv.Root(t)
	r := &programsRig{rig: &rig{spec: loadSpec(t, frags && haveFrags(t))}, frags: frags && haveFrags(t)}
	withPrograms(t, r.spec)
	if err := r.spec.LoadAndAssign(&r.DatapathObjects, nil); err != nil {
		t.Fatalf("loading the objects: %+v", err)
	}
	t.Cleanup(func() { r.Close() })
	r.pod = r.addPod(t, loopback, loopback, 0)
	var err error
	if r.stats, err = ebpf.NewMap(r.spec.Maps[bpf.DatapathMapProgramStatsMap]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.stats.Close() })
	put(t, r.PodProgramStats, uint32(loopback), r.stats)
	return r
}

// set gives the pod its programs; nil stands for one that is missing.
func (r *programsRig) set(t *testing.T, before, after []asm.Instructions) {
	t.Helper()
	xdp := r.spec.Programs[bpf.DatapathProgXdpEgress]
	for i, instructions := range append(before[:len(before):len(before)], after...) {
		index := uint32(loopback*podPrograms + i)
		if instructions == nil {
			_ = r.PodPrograms.Delete(index)
			continue
		}
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.XDP, AttachType: xdp.AttachType, Flags: xdp.Flags, Instructions: instructions, License: "GPL",
		})
		if err != nil {
			t.Fatalf("loading program %d: %v", i, err)
		}
		defer prog.Close() // the array keeps it
		put(t, r.PodPrograms, index, prog)
	}
	flags := uint32(len(before))<<beforeShift | uint32(len(before)+len(after))<<programsShift
	put(t, r.Slots, uint32(loopback), bpf.DatapathSlot{Ifindex: loopback, Flags: flags})
}

// counts are those of the pod's programs, by number and verdict.
func (r *programsRig) counts(t *testing.T) (sum [podPrograms][records]bpf.DatapathDatarec) {
	t.Helper()
	for number := range sum {
		for verdict := range sum[number] {
			var cpus []bpf.DatapathDatarec
			if err := r.stats.Lookup(uint32(number*records+verdict), &cpus); err != nil {
				t.Fatal(err)
			}
			for _, rec := range cpus {
				sum[number][verdict].Packets += rec.Packets
				sum[number][verdict].Bytes += rec.Bytes
			}
		}
	}
	return sum
}

// TestPrograms runs programs of the user before and after our policy: their verdicts, what they leave of the frame, and
// that each frame is counted once, as it was when our policy saw it.
func TestPrograms(t *testing.T) {
	const absent = -1
	sent := frame(packets.IPv4{}, packets.UDP{}, packets.Data(100))
	written := bytes.Clone(sent)
	written[5] = 9
	pushed := append(make([]byte, 16), sent...) // the kernel leaves what was in the headroom: zeros, in a test run
	one := func(i ...asm.Instructions) []asm.Instructions { return i }
	tests := []struct {
		name          string
		before, after []asm.Instructions
		action        uint32
		frame         []byte // that comes out
		counted       int    // bytes that our tables have
		// what each program said, absent: it was not asked
		said []int
	}{
		{"none", nil, nil, xdpPass, sent, len(sent), nil},
		{"one before passes", one(returning(xdpPass)), nil, xdpPass, sent, len(sent), []int{xdpPass}},
		{"one after passes", nil, one(returning(xdpPass)), xdpPass, sent, len(sent), []int{xdpPass}},
		{"one before drops", one(returning(xdpDrop)), one(returning(xdpPass)), xdpDrop, sent, len(sent), []int{xdpDrop, absent}},
		{"one before sends back", one(returning(xdpTx), returning(xdpDrop)), nil, xdpTx, sent, len(sent), []int{xdpTx, absent}},
		{"one before redirects", one(returning(xdpRedirect)), nil, xdpRedirect, sent, len(sent), []int{xdpRedirect}},
		{"one before aborts", one(returning(xdpAborted)), nil, xdpAborted, sent, len(sent), []int{xdpAborted}},
		{"the second after ends it", one(returning(xdpPass)), one(returning(xdpPass), returning(xdpTx), returning(xdpDrop)),
			xdpTx, sent, len(sent), []int{xdpPass, xdpPass, xdpTx, absent}},
		{"one after redirects", nil, one(returning(xdpRedirect)), xdpRedirect, sent, len(sent), []int{xdpRedirect}},
		{"no action", one(returning(5)), nil, xdpAborted, sent, len(sent), []int{xdpAborted}},
		{"a negative number", one(returning(-1)), nil, xdpAborted, sent, len(sent), []int{xdpAborted}},
		{"a missing one", one(returning(xdpPass), nil), one(returning(xdpPass)), xdpAborted, sent, len(sent), []int{xdpPass, xdpAborted, absent}},
		{"written before", one(writing(9)), nil, xdpPass, written, len(sent), []int{xdpPass}},
		{"written after", nil, one(writing(9), returning(xdpTx)), xdpTx, written, len(sent), []int{xdpPass, xdpTx}},
		{"longer before", one(growing(16)), nil, xdpPass, pushed, len(pushed), []int{xdpPass}},
		{"longer after", nil, one(growing(16), returning(xdpPass)), xdpPass, pushed, len(sent), []int{xdpPass, xdpPass}},
		{"as many as there may be", one(returning(2), returning(2), returning(2), returning(2)), one(returning(2), returning(2), returning(2), returning(1)),
			xdpDrop, sent, len(sent), []int{2, 2, 2, 2, 2, 2, 2, 1}},
	}
	for _, frags := range []bool{true, false} {
		r := newProgramsRig(t, frags)
		for _, test := range tests {
			name := test.name
			if !frags {
				name += " without frags"
			}
			t.Run(name, func(t *testing.T) {
				r.set(t, test.before, test.after)
				before, saidBefore := r.pod.counters(t), r.counts(t)
				opts := ebpf.RunOptions{Data: sent, DataOut: make([]byte, len(sent)+256)}
				action, err := r.XdpEgress.Run(&opts)
				if err != nil {
					t.Fatal(err)
				}
				if action != test.action {
					t.Errorf("the action is %d, want %d", action, test.action)
				}
				if !bytes.Equal(opts.DataOut, test.frame) {
					t.Errorf("out came\n%x, want\n%x", opts.DataOut, test.frame)
				}
				rec := bpf.DatapathDatarec{Packets: 1, Bytes: uint64(test.counted)}
				counted := r.pod.counters(t).minus(before)[0]
				for verdict, got := range counted[bpf.DatapathTableTABLE_VERDICT] {
					want := bpf.DatapathDatarec{}
					if uint32(verdict) == test.action {
						want = rec
					}
					if got != want {
						t.Errorf("verdict %d is counted %v, want %v", verdict, got, want)
					}
				}
				kinds := bpf.DatapathDatarec{}
				for _, got := range counted[bpf.DatapathTableTABLE_KIND] {
					kinds.Packets += got.Packets
					kinds.Bytes += got.Bytes
				}
				if kinds != rec {
					t.Errorf("%v counted by kind, want %v", kinds, rec)
				}
				want, size := saidBefore, len(sent)
				for number, verdict := range test.said {
					if verdict == absent {
						continue
					}
					want[number][verdict].Packets++
					want[number][verdict].Bytes += uint64(size)
					size = len(test.frame) // the first one is the one that changes it
				}
				if got := r.counts(t); got != want {
					t.Errorf("the programs' counters are\n%v, want\n%v", got, want)
				}
			})
		}
	}
}
