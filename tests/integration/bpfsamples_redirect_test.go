package integration

import (
	"fmt"
	"net"
	"testing"

	"github.com/cilium/ebpf/features"

	"github.com/xdp-cni/xdp-cni/bpf/samples"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

func TestSampleSwitch(t *testing.T) {
	inXDPModes(t, func(t *testing.T, mode string) {
		r := newSampleRig(t, mode, (*tests.Node).Bridge, sampleProgram(t, "switch", "xdp_redirect_mac"))
		a, b := r.add(t, "a"), r.add(t, "b")
		quiet(t, a.Pod, b.Pod)
		to := packets.Ethernet{Src: a.mac, Dst: b.mac}
		frame := of(to, packets.VLAN{ID: 4}, packets.IPv6{}, packets.UDP{})
		// by the bridge, as long as it is not in the table
		a.send(t, frame)
		arrives(t, a.passed, frame)
		arrives(t, b.received, frame)

		r.put(t, "mac_ports", uint32(1), uint32(b.hostIndex))
		r.put(t, "mac_table", samples.SwitchMac{Bytes: b.mac}, samples.SwitchMacPort{Port: 1, MaxLength: 1514})
		before := readStats(t, r.Node, a.Pod)
		for range sent {
			a.send(t, frame)
			arrives(t, b.received, frame)
		}
		a.acted(t, before, "redirect", sent)
		a.passesNext(t, a.of(packets.IPv6{}, packets.UDP{})) // for a MAC that is not in the table
	})
}

func TestSampleRouter(t *testing.T) {
	inXDPModes(t, func(t *testing.T, mode string) {
		r := newSampleRig(t, mode, (*tests.Node).PTP, sampleProgram(t, "router", "xdp_route"))
		a, b := r.add(t, "a"), r.add(t, "b")
		for _, p := range []*samplePod{a, b} {
			for _, address := range families(p.Pod) {
				if err := r.Neighbour(p.hostName, address, net.HardwareAddr(p.mac[:])); err != nil {
					t.Fatal(err)
				}
			}
			r.put(t, "router_ports", uint32(p.hostIndex), uint32(p.hostIndex))
		}
		quiet(t, a.Pod, b.Pod)
		before := readStats(t, r.Node, a.Pod)
		routed := packets.Ethernet{Src: b.host, Dst: b.mac}
		for range sent {
			v4 := func(ttl uint8) packets.IPv4 { return packets.IPv4{Src: a.IPv4(), Dst: b.IPv4(), TTL: &ttl} }
			a.send(t, a.of(v4(64), packets.UDP{}))
			arrives(t, b.received, of(routed, v4(63), packets.UDP{}))
			v6 := func(limit uint8) packets.IPv6 {
				return packets.IPv6{Src: a.IPv6(), Dst: b.IPv6(), HopLimit: &limit}
			}
			a.send(t, a.of(v6(2), packets.TCP{}))
			arrives(t, b.received, of(routed, v6(1), packets.TCP{}))
		}
		a.acted(t, before, "redirect", 2*sent)
		// the stack gets what has expired, what the pod may not send, and what is for another MAC, and nothing else
		v4 := packets.IPv4{Src: a.IPv4(), Dst: b.IPv4()}
		expired, spoofed := v4, v4
		expired.TTL, spoofed.Src = new(uint8(1)), b.IPv4()
		a.passesNext(t, a.of(expired, packets.UDP{}))
		a.passesNext(t, a.of(spoofed, packets.UDP{}))
		a.passesNext(t, of(packets.Ethernet{Src: a.mac, Dst: b.mac}, v4, packets.UDP{}))
	})
}

// genericRedirectsToCPUs tells whether the kernel takes a redirect to a CPU in generic mode, as it does from 5.15 on
// (11941f8a8536, "bpf: cpumap: Implement generic cpumap").
func genericRedirectsToCPUs(t *testing.T) bool {
	t.Helper()
	version, err := features.LinuxVersionCode()
	if err != nil {
		t.Fatal(err)
	}
	return version >= 5<<16|15<<8
}

// TestSampleCPUs has one CPU with a queue and another without, on whose flows the program says pass. Where the kernel
// takes no such redirect it drops the flows of the first, as the sample says.
func TestSampleCPUs(t *testing.T) {
	const flows, without = 32, 63
	inXDPModes(t, func(t *testing.T, mode string) {
		r := newSampleRig(t, mode, (*tests.Node).Bridge, sampleProgram(t, "cpus", "xdp_spread_cpus"))
		p := r.add(t, "pod")
		r.put(t, "cpu_queues", uint32(0), uint32(256))
		r.put(t, "cpu_list", uint32(0), samples.CpusCpuList{Count: 2, Cpus: [64]uint32{0, without}})
		quiet(t, p.Pod)
		before := podPrograms(t, r.Node, p.Pod)
		if mode == "generic" && !genericRedirectsToCPUs(t) {
			frame := p.of(packets.IPv4{}, packets.UDP{})
			r.put(t, "cpu_list", uint32(0), samples.CpusCpuList{Count: 1, Cpus: [64]uint32{0}})
			for range sent {
				p.send(t, frame)
			}
			eventually(t, func() error {
				if runs := ran(before, podPrograms(t, r.Node, p.Pod))[0]; runs[xdpRedirect] != sent {
					return fmt.Errorf("%d frames were to go to the CPU, want %d", runs[xdpRedirect], sent)
				}
				return nil
			})
			r.put(t, "cpu_list", uint32(0), samples.CpusCpuList{Count: 1, Cpus: [64]uint32{without}})
			p.passesNext(t, p.of(packets.IPv6{}, packets.UDP{}))
			return
		}
		// of a queue the frames come in order; those of the next flow are sent when they are there
		for flow := range uint16(flows) {
			for _, ip := range []packets.Layer{packets.IPv4{}, packets.IPv6{}} {
				p.passesNext(t, p.of(ip, packets.UDP{SrcPort: 1000 + flow}))
			}
		}
		runs := ran(before, podPrograms(t, r.Node, p.Pod))[0]
		redirected, passed := runs[xdpRedirect], runs[xdpPass]
		if redirected+passed != 2*flows || min(redirected, passed) < 2*flows/3 {
			t.Errorf("of %d flows are %d on the CPU with a queue, %d on the other", 2*flows, redirected, passed)
		}
		r.put(t, "cpu_queues", uint32(1), uint32(256))
		r.put(t, "cpu_list", uint32(0), samples.CpusCpuList{Count: 2, Cpus: [64]uint32{0, 1}})
		if err := tests.Ping(t.Context(), p, p.GatewayIPv4(), 3); err != nil {
			t.Error(err)
		}
	})
}
