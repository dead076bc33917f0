package integration

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
	"golang.org/x/sys/unix"
)

// TestPagedHeaders sends frames whose headers do not lie in the linear part of the socket buffer,
// which no test run can make: they are parsed and counted all the same, and arrive as they were.
func TestPagedHeaders(t *testing.T) {
	kernel, err := datapath.ProbeFeatures()
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"generic", "native", "tcx"} {
		if mode == "native" && !kernel.XDPFrags {
			continue // the frames are too large for it: TestPaths has ADD say so
		}
		for _, linear := range []int{14, 20, 34, 40} {
			n := start(t, tests.WithoutIPv6())
			pod := tests.MustPod(t, n, "pod")
			veth, err := tests.MakeVeth(t.Context(), n, pod, tests.VethOptions{MTU: 9000})
			if err != nil {
				t.Fatal(err)
			}
			stdin := pluginConf(n, "1.1.0", map[string]any{"cniVersion": "1.1.0"}, tests.Conf{"mode": mode})
			mustRun(t, n, "ADD", pod, stdin)
			frame := packets.Frame(
				packets.Ethernet{Dst: packets.MAC(veth.HostMAC), Src: packets.MAC(veth.PodMAC)},
				packets.IPv4{}, packets.UDP{}, packets.Data(8000))
			capture, err := tests.NewCapture(n, veth.HostName, func(frame []byte) bool { return len(frame) > 5000 })
			if err != nil {
				t.Fatal(err)
			}
			if err := tests.SendPaged(pod, pod.IfName, frame, linear, nil); err != nil {
				t.Fatal(err)
			}
			got, err := capture.Next(t.Context(), patience)
			if err != nil {
				t.Fatal(err)
			}
			_ = capture.Close()
			if !bytes.Equal(got, frame) {
				t.Errorf("%s, %d bytes linear: the frame of %d bytes arrived changed, with %d", mode, linear, len(frame), len(got))
			}
			s := readStats(t, n, pod)
			want := counter{1, uint64(len(frame))}
			expect(t, mode+" udp", s.Protocols.Egress["udp"], want)
			expect(t, mode+" all", total(s.Kinds.Egress), want)
			expect(t, mode+" ipv4", s.Kinds.Egress["ipv4"], want)
			mustRun(t, n, "DEL", pod, stdin)
		}
	}
}

// TestPodMadeGSO sends a GSO packet that a pod made itself: the kernel does not say of how many
// segments it is.
func TestPodMadeGSO(t *testing.T) {
	n := start(t, tests.WithoutIPv6())
	pod := tests.MustPod(t, n, "pod")
	veth, err := tests.MakeVeth(t.Context(), n, pod, tests.VethOptions{})
	if err != nil {
		t.Fatal(err)
	}
	stdin := pluginConf(n, "1.1.0", map[string]any{"cniVersion": "1.1.0"}, tests.Conf{"mode": "tcx"})
	mustRun(t, n, "ADD", pod, stdin)
	frame := packets.Frame(
		packets.Ethernet{Dst: packets.MAC(veth.HostMAC), Src: packets.MAC(veth.PodMAC)},
		packets.IPv4{}, packets.TCP{}, packets.Data(2500))
	gso := &tests.GSO{Type: unix.VIRTIO_NET_HDR_GSO_TCPV4, Size: 1000, ChecksumStart: 34, ChecksumOffset: 16}
	if err := tests.SendPaged(pod, pod.IfName, frame, 54, gso); err != nil {
		t.Fatal(err)
	}
	quiet(t, pod)
	got := readStats(t, n, pod).Protocols.Egress["tcp"]
	// 3 segments, if it is still one buffer at the host end, else as many buffers with headers each
	if got != (counter{3, uint64(len(frame))}) && got != (counter{3, uint64(len(frame) + 2*54)}) {
		t.Errorf("counted %v, want 3 packets", got)
	}
	mustRun(t, n, "DEL", pod, stdin)
}

// TestBigTCP sends TCP in buffers larger than an IP length field can say, or as large as the kernel has them: nothing is
// broken, and bytes and segments are all counted.
func TestBigTCP(t *testing.T) {
	const size, limit = 16 << 20, 196608
	big := haveBigTCP(t, start(t), tests.Conf{"mode": "tcx", "bigTCP": true})
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := start(t)
			pod := tests.MustPod(t, n, "pod")
			addresses := tests.VethOptions{
				HostAddress: netip.MustParsePrefix("10.0.0.1/24"), PodAddress: netip.MustParsePrefix("10.0.0.2/24"),
			}
			veth, err := tests.MakeVeth(t.Context(), n, pod, addresses)
			if err != nil {
				t.Fatal(err)
			}
			raise := func(ifname string) func() error {
				return func() error {
					l, err := netlink.LinkByName(ifname)
					if err != nil {
						return err
					}
					return errors.Join(netlink.LinkSetGSOMaxSize(l, limit), netlink.LinkSetGROMaxSize(l, limit),
						netlink.LinkSetGSOIPv4MaxSize(l, limit), netlink.LinkSetGROIPv4MaxSize(l, limit))
				}
			}
			if big {
				if err := errors.Join(n.Do(raise(veth.HostName)), pod.Do(raise(pod.IfName))); err != nil {
					t.Fatal(err)
				}
			}
			stdin := pluginConf(n, "1.1.0", map[string]any{"cniVersion": "1.1.0"}, tests.Conf{"mode": mode})
			mustRun(t, n, "ADD", pod, stdin)
			echo := tests.MustEcho(t, n, addresses.HostAddress.Addr())
			if err := tests.EchoTCP(t.Context(), pod, echo.TCP, size); err != nil {
				t.Fatal(err)
			}
			quiet(t, pod)
			s := readStats(t, n, pod)
			for name, d := range map[string]direction{"egress": s.Kinds.Egress, "ingress": s.Kinds.Ingress} {
				expect(t, name+" broken", counter{d["truncated"].Packets + d["malformed"].Packets, 0}, counter{})
			}
			for name, c := range map[string]counter{"egress": s.Protocols.Egress["tcp"], "ingress": s.Protocols.Ingress["tcp"]} {
				if c.Bytes < size {
					t.Errorf("%s: %d bytes of TCP, want at least %d", name, c.Bytes, size)
				}
			}
			// at the tc hook all are counted as segments of at most an MTU
			if ingress := s.Protocols.Ingress["tcp"]; ingress.Bytes/ingress.Packets > 1514 {
				t.Errorf("ingress: %d bytes a packet", ingress.Bytes/ingress.Packets)
			}
			if egress := s.Protocols.Egress["tcp"]; big && mode == "generic" && egress.Bytes/egress.Packets < 20000 {
				t.Errorf("egress: %d bytes a packet: there was no BIG TCP to count", egress.Bytes/egress.Packets)
			}
			mustRun(t, n, "DEL", pod, stdin)
		})
	}
}
