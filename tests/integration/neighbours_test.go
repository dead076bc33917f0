package integration

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

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
					asm.Mov.Imm(asm.R0, -1).WithSymbol("next"), // TCX_NEXT
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
			err = n.Do(func() error {
				l, err := link.AttachTCX(link.TCXOptions{Interface: host.Attrs().Index, Program: prog, Attach: ebpf.AttachTCXIngress})
				if err == nil {
					t.Cleanup(func() { l.Close() })
				}
				return err
			})
			if err != nil {
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
