package datapath

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Features are what the kernel has of what is not everywhere.
type Features struct {
	// TCX: BPF links at the tc hooks (6.6).
	TCX bool
	// XDPFrags: multi-buffer XDP, and with it jumbo frames and bpf_xdp_get_buff_len() (5.18).
	XDPFrags bool
}

// loopback has index 1 in every network namespace (LOOPBACK_IFINDEX in include/net/flow.h).
const loopback = 1

// ProbeFeatures asks the kernel, in well under a millisecond.
func ProbeFeatures() (Features, error) {
	var f Features
	// an unknown attach type is EINVAL (bpf_prog_query() in kernel/bpf/syscall.c)
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXIngress})
	switch {
	case err == nil:
		f.TCX = true
	case errors.Is(err, unix.EPERM):
		return f, fmt.Errorf("probing the kernel: %w: %w", ErrPrivileges, err)
	}
	f.XDPFrags = features.HaveProgramHelper(ebpf.XDP, asm.FnXdpGetBuffLen) == nil
	return f, nil
}

// CheckKernel returns nil if the kernel has what every mode needs, else ErrUnsupported or
// ErrPrivileges with what is missing. It takes well under a millisecond.
func CheckKernel() error {
	if err := CheckPrivileges(); err != nil {
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
