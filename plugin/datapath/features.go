package datapath

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Features are what the kernel has of what is not everywhere.
type Features struct {
	// TCX: BPF links at the tc hooks (6.6).
	TCX bool
	// XDPFrags: multi-buffer XDP, and with it jumbo frames and bpf_xdp_get_buff_len() (5.18).
	XDPFrags bool
	// CoarseClock: bpf_ktime_get_coarse_ns() (5.11).
	CoarseClock bool
}

// loopback has index 1 in every network namespace (LOOPBACK_IFINDEX in include/net/flow.h).
const loopback = 1

// ProbeFeatures asks the kernel, in a few milliseconds: for some of it a program is loaded.
func ProbeFeatures() (Features, error) {
	var f Features
	if err := liftMemlock(); err != nil {
		return f, err
	}
	var err error
	if f.TCX, err = probeTCX(); err != nil {
		return f, err
	}
	f.XDPFrags = probeXDPFrags()
	f.CoarseClock = probeCoarseClock()
	return f, nil
}

// probeTCX loads nothing: it takes microseconds.
func probeTCX() (bool, error) {
	// an unknown attach type is EINVAL (bpf_prog_query() in kernel/bpf/syscall.c)
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, unix.EPERM) {
		return false, fmt.Errorf("probing the kernel: %w: %w", ErrPrivileges, err)
	}
	return err == nil, nil
}

func probeXDPFrags() bool {
	return features.HaveProgramHelper(ebpf.XDP, asm.FnXdpGetBuffLen) == nil
}

func probeCoarseClock() bool {
	return features.HaveProgramHelper(ebpf.SchedCLS, asm.FnKtimeGetCoarseNs) == nil
}

// hasTCX and those below ask for one feature: an ADD that finds the programs loaded needs no other.
func (d *Datapath) hasTCX() (bool, error) {
	if d.Features != nil {
		return d.Features.TCX, nil
	}
	return probeTCX()
}

func (d *Datapath) hasXDPFrags() bool {
	if d.Features != nil {
		return d.Features.XDPFrags
	}
	return probeXDPFrags()
}

func (d *Datapath) hasCoarseClock() bool {
	if d.Features != nil {
		return d.Features.CoarseClock
	}
	return probeCoarseClock()
}

// liftMemlock takes away the limit of locked memory, to which kernels below 5.11 account the
// memory of maps and programs; it belongs to the process. A no-op since.
func liftMemlock() error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("lifting the limit of locked memory: %w", err)
	}
	return nil
}

// CheckKernel returns nil if the kernel has what every mode needs, else ErrUnsupported or
// ErrPrivileges with what is missing. It loads two programs, of two instructions each.
func CheckKernel() error {
	if err := CheckPrivileges(); err != nil {
		return err
	}
	if err := liftMemlock(); err != nil {
		return err
	}
	for _, kind := range []ebpf.ProgramType{ebpf.XDP, ebpf.SchedCLS} {
		err := features.HaveProgramType(kind)
		if errors.Is(err, ebpf.ErrNotSupported) {
			return fmt.Errorf("%w: the kernel has no %s programs", ErrUnsupported, kind)
		}
		if err != nil {
			return fmt.Errorf("probing %s programs: %w", kind, err)
		}
	}
	return nil
}

// CheckXDPLinks returns ErrUnsupported if the kernel cannot attach XDP programs by links (5.9).
func CheckXDPLinks() error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}, // XDP_PASS
	})
	if err != nil {
		return fmt.Errorf("probing XDP links: %w", err)
	}
	defer prog.Close()
	// loopback has no driver mode, which a kernel with XDP links says (EOPNOTSUPP, dev_xdp_attach() in
	// net/core/dev.c), and one without does not get to
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: loopback, Flags: link.XDPDriverMode})
	switch {
	case err == nil:
		return l.Close()
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
		return nil
	}
	return fmt.Errorf("%w: the kernel attaches no XDP programs by links (5.9 and later do): %w", ErrUnsupported, err)
}

// CheckPrivileges returns ErrPrivileges, naming them, if the process lacks capabilities: NET_ADMIN
// to attach, BPF (before 5.8 SYS_ADMIN) to load, SYS_ADMIN to enter the pods' network namespaces
// and to mount bpffs.
func CheckPrivileges() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("reading capabilities: %w", err)
	}
	has := func(capability int) bool {
		return data[capability/32].Effective&(1<<(capability%32)) != 0
	}
	var missing []string
	if !has(unix.CAP_NET_ADMIN) {
		missing = append(missing, "CAP_NET_ADMIN (attaches programs to interfaces)")
	}
	if !has(unix.CAP_BPF) && !has(unix.CAP_SYS_ADMIN) {
		missing = append(missing, "CAP_BPF (loads programs and makes maps)")
	}
	if !has(unix.CAP_SYS_ADMIN) {
		missing = append(missing, "CAP_SYS_ADMIN (enters network namespaces, mounts bpffs)")
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: %s", ErrPrivileges, strings.Join(missing, ", "))
	}
	return nil
}
