package datapath_test

import (
	"net/netip"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// TestForwardedFragmentsAreNotTheHosts: connection tracking puts the fragments that it forwards together,
// and what the kernel then divides anew does not say where it came in (ip6_copy_metadata() in
// net/ipv6/ip6_output.c). That must not make it the node's own. The first fragment has headers for which
// there is no room in front of the second, or they would go on as they came (ip6_fragment()).
func TestForwardedFragmentsAreNotTheHosts(t *testing.T) {
	var (
		inside, host = netip.MustParsePrefix("fd00::2/64"), netip.MustParsePrefix("fd00::1/64")
		other, gate  = netip.MustParsePrefix("fd01::2/64"), netip.MustParsePrefix("fd01::1/64")
	)
	r := newRig(t, datapath.ModeGeneric, tests.VethOptions{HostAddress: host, PodAddress: inside})
	outside, veth, _ := r.newPod("outside", datapath.ModeGeneric, tests.VethOptions{HostAddress: gate, PodAddress: other})
	if err := r.node.Sysctl("net/ipv6/conf/all/forwarding", "1"); err != nil {
		t.Fatal(err)
	}
	if err := r.node.Do(func() error {
		return exec.Command("nft", "add table ip6 t; add chain ip6 t c { type filter hook forward priority 0; }; add rule ip6 t c ct state new accept").Run()
	}); err != nil {
		t.Fatal(err)
	}
	r.opts.Policy = mustPolicy(t, `{"allowHost": true, "antiSpoof": false, "default": {"egress": "allow", "ingress": "deny"}}`)
	r.mustAttach(r.opts)
	defer r.mustDetach(r.opts)

	ip := packets.IPv6{Src: other.Addr(), Dst: inside.Addr()}
	frame := func(layers ...packets.Layer) []byte {
		return packets.Frame(append([]packets.Layer{
			packets.Ethernet{Src: packets.MAC(veth.PodMAC), Dst: packets.MAC(veth.HostMAC)}, ip}, layers...)...)
	}
	id := new(uint32(77))
	long := packets.HopByHop(append([]byte{0x1e, 252}, make([]byte, 252)...)...) // an experimental option
	datagram := packets.Frame(packets.UDP{SrcPort: 1, DstPort: 9, Len: new(uint16(8 + 120))}, packets.Data(120))
	first := frame(long, packets.Fragment{ID: id, More: true, NextHeader: new(uint8(17))}, packets.Payload(datagram[:64]))
	second := frame(packets.Fragment{ID: id, Offset: 8, NextHeader: new(uint8(17))}, packets.Payload(datagram[64:]))
	capture, err := tests.NewCapture(r.pod, r.pod.IfName, func(frame []byte) bool {
		return len(frame) > 54 && slices.Equal(frame[22:38], other.Addr().AsSlice())
	})
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Close()
	dropped := func() uint64 { return r.stats().Ingress.Drops[bpf.DatapathDropReasonDROP_DEFAULT-1].Packets }
	for _, frames := range [][][]byte{{frame(packets.UDP{SrcPort: 1, DstPort: 9})}, {first, second}} {
		before := dropped()
		for _, f := range frames {
			if err := tests.SendFrame(outside, outside.IfName, f); err != nil {
				t.Fatal(err)
			}
		}
		for range 50 {
			if dropped() != before {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if dropped() == before {
			t.Errorf("nothing of %x was dropped", frames)
		}
	}
	if got, err := capture.Next(t.Context(), 100*time.Millisecond); err == nil {
		t.Errorf("the pod got %x", got)
	}
}
