package integration

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
)

// TestOthersAtTC has somebody else's program at tc ingress of the host end, which drops whatever
// does not begin with the Ethernet header of IP or ARP: in each mode it must find packets as they
// are without us. (Multi-buffer XDP in generic mode would hide the Ethernet header from it.)
func TestOthersAtTC(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := start(t)
			prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
				Name: "foreign", Type: ebpf.SchedCLS, License: "GPL",
				Instructions: asm.Instructions{
					asm.Mov.Reg(asm.R6, asm.R1),
					asm.LoadAbs(12, asm.Half), // the EtherType
					asm.JEq.Imm(asm.R0, 0x0800, "next"),
					asm.JEq.Imm(asm.R0, 0x0806, "next"),
					asm.JEq.Imm(asm.R0, 0x86dd, "next"),
					asm.Mov.Imm(asm.R0, 2), // TC_ACT_SHOT
					asm.Return(),
					asm.Mov.Imm(asm.R0, -1).WithSymbol("next"), // TCX_NEXT, TC_ACT_UNSPEC
					asm.Return(),
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer prog.Close()
			w := tests.MustNetwork(t, n, tests.Conflist("net", "1.1.0", n.Bridge(tests.DualStack), n.XDP(tests.Conf{"mode": mode})))
			pod := tests.MustPod(t, n, "pod")
			tests.MustAdd(t, w, pod)
			host, err := pod.HostInterface()
			if err != nil {
				t.Fatal(err)
			}
			if err := n.Do(func() error { return attachBehind(t, host.Attrs().Index, prog) }); err != nil {
				t.Fatal(err)
			}
			if err := tests.Ping(t.Context(), pod, pod.GatewayIPv4(), 3); err != nil {
				t.Error(err)
			}
			echo := tests.MustEcho(t, n, pod.GatewayIPv4())
			if err := tests.EchoTCP(t.Context(), pod, echo.TCP, 1<<20); err != nil {
				t.Error(err)
			}
		})
	}
}

// attachBehind attaches a program at tc ingress behind ours: by a tcx link, or below 6.6 by a filter on the clsact qdisc
// that our plugin made.
func attachBehind(t *testing.T, ifindex int, prog *ebpf.Program) error {
	t.Helper()
	if !haveTCX(t) {
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: ifindex, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 0xfff0, Protocol: unix.ETH_P_ALL,
			},
			Fd: prog.FD(), Name: "foreign", DirectAction: true,
		})
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: ebpf.AttachTCXIngress})
	if err == nil {
		t.Cleanup(func() { l.Close() })
	}
	return err
}
