package integration

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// smallMTU is that of the way beyond the router.
const smallMTU = 1300

// TestFilterPathMTU has a router with a smaller MTU in the pod's way: what the router says of that reaches the pod,
// which lets in nothing but replies, and TCP goes on with smaller packets. What it says of a flow that is not there
// does not.
func TestFilterPathMTU(t *testing.T) {
	eachChain(t, mixedChains, outOnly, func(r *filterRig) {
		router, servers := newRouter(r)
		for i, server := range servers {
			pod := families(r.pod)[i]
			tooBig := r.captureTooBig(router)
			echo := tests.MustEcho(r.t, server.Pod, server.address)
			r.streams(r.pod, echo.TCP)
			if _, err := tooBig.Next(r.t.Context(), patience); err != nil {
				r.t.Errorf("the router did not say that packets to %s are too big: %v", server.address, err)
			}
			r.expect("TCP to "+server.address.String(), nil)

			flow := echo.UDP
			client := r.udpClient(flow)
			about := func(port uint16) []byte {
				return r.tooBigFrame(router.addresses[i], pod, netip.AddrPortFrom(pod, client), netip.AddrPortFrom(flow.Addr(), port))
			}
			real, made := about(flow.Port()), about(flow.Port()+1)
			arrivedReal, arrivedMade := r.capture(r.pod, real), r.capture(r.pod, made)
			send := func(frame []byte) {
				if err := tests.SendFrame(router, router.IfName, frame); err != nil {
					r.t.Fatal(err)
				}
			}
			send(made)
			r.expect("about no flow", decisions{"ingress default": times(1, uint64(len(made)))})
			send(real)
			arrivedReal.next("about a flow")
			arrivedMade.none("about no flow")
			r.expect("about a flow", nil)
		}
	})
}

// server is a host in one family.
type server struct {
	*tests.Pod
	address netip.Addr
}

// newRouter makes a router beyond the node, and a host beyond that, to which it has only a way of a small MTU.
func newRouter(r *filterRig) (router outsideNet, servers []server) {
	r.t.Helper()
	router = newOutside(r)
	host := tests.MustPod(r.t, r.Node, "server")
	if _, err := tests.MakeVeth(r.t.Context(), router, host, tests.VethOptions{HostName: "server0"}); err != nil {
		r.t.Fatal(err)
	}
	for i, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := router.Sysctl(key, "1"); err != nil {
			r.t.Fatal(err)
		}
		address := netip.MustParseAddr([]string{"198.51.100.2", "2001:db8:2::2"}[i])
		gateway := netip.MustParseAddr([]string{"198.51.100.1", "2001:db8:2::1"}[i])
		bits := []int{24, 64}[i]
		addAddress(r.t, host, host.IfName, netip.PrefixFrom(address, bits))
		addAddress(r.t, router, "server0", netip.PrefixFrom(gateway, bits))
		addRoute(r.t, host, host.IfName, netip.PrefixFrom(anyOf(address), 0), gateway, 0)
		addRoute(r.t, router, "server0", netip.PrefixFrom(address, address.BitLen()), netip.Addr{}, smallMTU)
		addRoute(r.t, r.Node, "outside0", netip.PrefixFrom(address, bits).Masked(), router.addresses[i], 0)
		servers = append(servers, server{host, address})
	}
	return router, servers
}

// captureTooBig starts to look for what the router says to the pod of packets that are too big.
func (r *filterRig) captureTooBig(router outsideNet) *tests.Capture {
	r.t.Helper()
	capture, err := tests.NewCapture(r.pod, r.pod.IfName, func(frame []byte) bool {
		switch etherType := binary.BigEndian.Uint16(frame[12:]); {
		case etherType == packets.EtherTypeIPv4 && frame[23] == packets.ProtocolICMP:
			return netip.AddrFrom4([4]byte(frame[26:30])) == router.addresses[0] && frame[34] == 3 && frame[35] == 4
		case etherType == packets.EtherTypeIPv6 && frame[20] == packets.ProtocolICMPv6:
			return netip.AddrFrom16([16]byte(frame[22:38])) == router.addresses[1] && frame[54] == 2
		}
		return false
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = capture.Close() })
	return capture
}

// udpClient sends a datagram from the pod, which has to be answered, and returns the port that it is from.
func (r *filterRig) udpClient(to netip.AddrPort) uint16 {
	r.t.Helper()
	port, err := tests.EchoUDPFrom(r.t.Context(), r.pod, to, probeSize)
	if err != nil {
		r.t.Fatal(err)
	}
	return port
}

// tooBigFrame makes a frame for the node in which a router says that a UDP packet from the one to the other is too big.
func (r *filterRig) tooBigFrame(router, pod netip.Addr, from, to netip.AddrPort) []byte {
	r.t.Helper()
	mac := packets.MAC(hostLink(r.t, r.Node, "outside0").Attrs().HardwareAddr)
	udp := packets.UDP{SrcPort: from.Port(), DstPort: to.Port()}
	rest := [4]byte{2: smallMTU >> 8, 3: smallMTU & 0xff}
	if pod.Is6() {
		quoted := packets.Frame(packets.Ethernet{}, packets.IPv6{Src: from.Addr(), Dst: to.Addr()}, udp, packets.Data(probeSize))
		tooBig := uint8(2)
		return packets.Frame(packets.Ethernet{Dst: mac}, packets.IPv6{Src: router, Dst: pod},
			packets.ICMPv6{Type: &tooBig, Rest: &rest}, packets.Payload(quoted[ethernetLen:]))
	}
	quoted := packets.Frame(packets.Ethernet{}, packets.IPv4{Src: from.Addr(), Dst: to.Addr()}, udp, packets.Data(probeSize))
	unreachable := uint8(3)
	return packets.Frame(packets.Ethernet{Dst: mac}, packets.IPv4{Src: router, Dst: pod},
		packets.ICMP{Type: &unreachable, Code: 4, Rest: &rest}, packets.Payload(quoted[ethernetLen:]))
}
