package datapath

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

// KernelProgram is what the kernel says of a loaded program.
type KernelProgram struct {
	Type ebpf.ProgramType
	// Runs that it counted while its statistics were on (sysctl kernel.bpf_stats_enabled), and how long they took
	// together. It counts where it enters a program, and not what that tail calls: so none of XDP programs, which ours call.
	Runs uint64
	Time time.Duration
}

// ReadKernel asks the kernel for what it says of the program, which for one that is shared is of all pods.
func (p *PodProgram) ReadKernel() (*KernelProgram, error) {
	prog, err := ebpf.NewProgramFromID(p.ID)
	if err != nil {
		return nil, fmt.Errorf("opening program %s (%d): %w", p.Name, p.ID, err)
	}
	defer prog.Close()
	stats, err := prog.Stats()
	if err != nil {
		return nil, fmt.Errorf("reading the kernel's statistics of program %s (%d): %w", p.Name, p.ID, err)
	}
	return &KernelProgram{prog.Type(), stats.RunCount, stats.Runtime}, nil
}

// CheckTailCalls tells whether this kernel can run user XDP programs: nil, or ErrUnsupported.
func CheckTailCalls() error {
	if !probeTailCalls() {
		return fmt.Errorf("%w: the kernel lets no function of a program make tail calls (x86-64: 5.10, arm64: 6.0)",
			ErrUnsupported)
	}
	return nil
}
