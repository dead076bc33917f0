package programs

import (
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// Verdicts at tcx (enum tcx_action_base in include/uapi/linux/bpf.h).
const (
	tcxNext     = -1
	tcxDrop     = 2
	tcxRedirect = 7
)

// Symbols of what goesOn puts in front, which no function of C can have.
const (
	entryOfTC = "xdp-cni/goes_on"
	labelEnd  = "xdp-cni/end"
)

// goesOn returns a tc program that drops and redirects what the given one does, and lets all else go on to the next
// program at the hook. By itself a program ends the walk there by whatever else than TCX_NEXT it returns, TC_ACT_OK
// and TC_ACT_PIPE too (tcx_run() in net/core/dev.c).
//
// The program becomes a function that is called, and not one with other exits: what it tail calls returns here too.
func goesOn(prog asm.Instructions) asm.Instructions {
	first := &prog[0]
	entry := asm.Instructions{
		// len of struct __sk_buff, of which the verifier knows nothing
		asm.LoadMem(asm.R6, asm.R1, 0, asm.Word).WithSymbol(entryOfTC).WithSource(first.Source()),
		asm.Call.Label(first.Symbol()),
		// Kernels before 6.19 believe that a function returns what it does where its tail call fails, and would
		// remove what other verdicts lead to (e40030a46acf, "bpf: properly verify tail call behavior"; seen on
		// 6.12.117, where TC_ACT_OK went past the policy). After this they know nothing of it.
		asm.Xor.Reg(asm.R0, asm.R6),
		asm.Xor.Reg(asm.R0, asm.R6),
		asm.JEq.Imm32(asm.R0, tcxDrop, labelEnd),
		asm.JEq.Imm32(asm.R0, tcxRedirect, labelEnd),
		asm.Mov.Imm(asm.R0, tcxNext),
		asm.Return().WithSymbol(labelEnd),
	}
	if fn := btf.FuncMetadata(first); fn != nil {
		entry[0] = btf.WithFuncMetadata(entry[0], &btf.Func{Name: fn.Name, Type: fn.Type, Linkage: btf.GlobalFunc})
		// of a global one the verifier would want to know its argument by its type
		*first = btf.WithFuncMetadata(*first, &btf.Func{Name: fn.Name, Type: fn.Type, Tags: fn.Tags, Linkage: btf.StaticFunc})
	}
	return append(entry, prog...)
}
