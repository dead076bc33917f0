package bpf_test

import (
	"bytes"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// Sizes and places, in the type that the tests reckon with.
const (
	podPrograms  = int(bpf.DatapathPodLimitMAX_POD_PROGRAMS)
	programJudge = int(bpf.DatapathProgramEntryPROGRAM_JUDGE)
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

// growing is a program that puts n bytes in front of the frame and passes: the frame that follows has another start,
// and another length.
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
	pod      *pod
	counters *ebpf.Map
}

func newProgramsRig(t *testing.T, frags bool) *programsRig {
	t.Helper()
	r := &programsRig{rig: newRig(t, frags)}
	r.pod = r.addPod(t, loopback, loopback, 0)
	var err error
	if r.counters, err = ebpf.NewMap(r.spec.Maps[bpf.DatapathMapProgramCountersMap]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.counters.Close() })
	put(t, r.PodProgramCounters, uint32(loopback), r.counters)
	put(t, r.PodPrograms, uint32(programJudge), r.XdpJudge)
	return r
}

// set gives the pod its programs; nil stands for one that is missing.
func (r *programsRig) set(t *testing.T, before, after []asm.Instructions) {
	t.Helper()
	xdp := r.spec.Programs[bpf.DatapathProgXdpEgressPrograms]
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
	put(t, r.Slots, uint32(loopback), bpf.DatapathSlot{
		Ifindex: loopback,
		Flags:   uint32(len(before))<<bpf.DatapathSlotNumberSLOT_BEFORE | uint32(len(after))<<bpf.DatapathSlotNumberSLOT_AFTER,
	})
}

// runs of the pod's programs, by place and verdict. Each is counted in all, and as it ended.
func (r *programsRig) runs(t *testing.T) (sum [podPrograms][records]uint64) {
	t.Helper()
	for place := range sum {
		var cpus []bpf.DatapathProgramCounters
		if err := r.counters.Lookup(uint32(place), &cpus); err != nil {
			t.Fatal(err)
		}
		all, ended := uint64(0), uint64(0)
		for _, cpu := range cpus {
			all += cpu.Runs
			for verdict, n := range cpu.Verdicts {
				sum[place][verdict] += n
				ended += n
			}
		}
		if all != ended {
			t.Errorf("program %d ran %d times, and ended %d times", place, all, ended)
		}
	}
	return sum
}

// run sends a frame, and returns the action and what came out.
func (r *programsRig) run(t *testing.T, sent []byte) (action uint32, out []byte) {
	t.Helper()
	opts := ebpf.RunOptions{Data: sent, DataOut: make([]byte, len(sent)+256)}
	action, err := r.XdpEgressPrograms.Run(&opts)
	if err != nil {
		t.Fatal(err)
	}
	return action, opts.DataOut
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
		{"one before drops", one(returning(xdpDrop)), one(returning(xdpPass)),
			xdpDrop, sent, len(sent), []int{xdpDrop, absent}},
		{"one before sends back", one(returning(xdpTx), returning(xdpDrop)), nil,
			xdpTx, sent, len(sent), []int{xdpTx, absent}},
		{"one before redirects", one(returning(xdpRedirect)), nil, xdpRedirect, sent, len(sent), []int{xdpRedirect}},
		{"one before aborts", one(returning(xdpAborted)), nil, xdpAborted, sent, len(sent), []int{xdpAborted}},
		{"the second after ends it", one(returning(xdpPass)), one(returning(xdpPass), returning(xdpTx), returning(xdpDrop)),
			xdpTx, sent, len(sent), []int{xdpPass, xdpPass, xdpTx, absent}},
		{"one after redirects", nil, one(returning(xdpRedirect)), xdpRedirect, sent, len(sent), []int{xdpRedirect}},
		{"no action", one(returning(5)), nil, xdpAborted, sent, len(sent), []int{xdpAborted}},
		{"a negative number", one(returning(-1)), nil, xdpAborted, sent, len(sent), []int{xdpAborted}},
		{"a missing one", one(returning(xdpPass), nil), one(returning(xdpPass)),
			xdpAborted, sent, len(sent), []int{xdpPass, xdpAborted, absent}},
		// which is as if the policy were not there to be called
		{"no tail call is left", one(returning(xdpPass)), one(returning(xdpPass)),
			xdpAborted, sent, len(sent), []int{xdpPass, absent}},
		{"dropped, and no tail call is left", one(returning(xdpDrop)), nil, xdpDrop, sent, len(sent), []int{xdpDrop}},
		{"written before", one(writing(9)), nil, xdpPass, written, len(sent), []int{xdpPass}},
		{"written after", nil, one(writing(9), returning(xdpTx)), xdpTx, written, len(sent), []int{xdpPass, xdpTx}},
		{"longer before", one(growing(16)), nil, xdpPass, pushed, len(pushed), []int{xdpPass}},
		{"longer after", nil, one(growing(16), returning(xdpPass)), xdpPass, pushed, len(sent), []int{xdpPass, xdpPass}},
		{"as many as there may be", one(returning(2), returning(2), returning(2), returning(2)),
			one(returning(2), returning(2), returning(2), returning(1)),
			xdpDrop, sent, len(sent), []int{2, 2, 2, 2, 2, 2, 2, 1}},
	}
	noPolicy := map[string]bool{"no tail call is left": true, "dropped, and no tail call is left": true}
	for _, frags := range []bool{true, false} {
		r := newProgramsRig(t, frags)
		for _, test := range tests {
			name := test.name
			if !frags {
				name += " without frags"
			}
			t.Run(name, func(t *testing.T) {
				r.set(t, test.before, test.after)
				if noPolicy[test.name] {
					if err := r.PodPrograms.Delete(uint32(programJudge)); err != nil {
						t.Fatal(err)
					}
					defer put(t, r.PodPrograms, uint32(programJudge), r.XdpJudge)
				}
				before, runsBefore := r.pod.counters(t), r.runs(t)
				action, out := r.run(t, sent)
				wantAction := test.action
				if wantAction == xdpTx && frags && haveFrags(t) {
					wantAction = xdpRedirect // to the interface itself, see xdp_egress_programs()
				}
				if action != wantAction {
					t.Errorf("the action is %d, want %d", action, wantAction)
				}
				if !bytes.Equal(out, test.frame) {
					t.Errorf("out came\n%x, want\n%x", out, test.frame)
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
				wantKinds := rec
				if noPolicy[test.name] {
					wantKinds = bpf.DatapathDatarec{} // the policy counts by kind
				}
				if kinds != wantKinds {
					t.Errorf("%v counted by kind, want %v", kinds, wantKinds)
				}
				said := runsBefore
				for place, verdict := range test.said {
					if verdict != absent {
						said[place][verdict]++
					}
				}
				if got := r.runs(t); got != said {
					t.Errorf("the programs' runs are\n%v, want\n%v", got, said)
				}
			})
		}
	}
}

// TestProgramsWithoutPolicy: as long as the policy is not where it is called, nothing passes.
func TestProgramsWithoutPolicy(t *testing.T) {
	r := newProgramsRig(t, true)
	r.set(t, []asm.Instructions{returning(xdpPass)}, []asm.Instructions{returning(xdpPass)})
	sent := frame(packets.IPv4{}, packets.UDP{}, packets.Data(100))
	if action, _ := r.run(t, sent); action != xdpPass {
		t.Errorf("with the policy: action %d", action)
	}
	if err := r.PodPrograms.Delete(uint32(programJudge)); err != nil {
		t.Fatal(err)
	}
	if action, _ := r.run(t, sent); action != xdpAborted {
		t.Errorf("without the policy: action %d", action)
	}
}
