package integration

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// Who the pod claims to be.
var (
	falseMAC  = packets.MAC{2, 0, 0, 0, 0xde, 0xad}
	false4    = netip.MustParseAddr("10.99.0.1")
	false6    = netip.MustParseAddr("fd00:99::1")
	falseLink = netip.MustParseAddr("fe80::dead")
	allNodes  = netip.MustParseAddr("ff02::1")
)

// falseFrame is a frame of the pod that claims what is not so.
type falseFrame struct {
	name   string
	frame  []byte
	routed bool // a router would pass it on
}

// falsePackets are those of IP to the peer.
func (r *filterRig) falsePackets() []falseFrame {
	r.t.Helper()
	udp := func(src, dst netip.Addr) []byte {
		return r.fromPod(src, dst, packets.UDP{SrcPort: 1000, DstPort: 2000}, packets.Data(64))
	}
	tagged := udp(false4, r.peer.IPv4())
	tagged = append(append(bytes.Clone(tagged[:12]), 0x81, 0x00, 0x00, 0x00), tagged[12:]...)
	otherMAC := udp(r.pod.IPv4(), r.peer.IPv4())
	copy(otherMAC[6:], falseMAC[:])
	otherMAC6 := udp(r.pod.IPv6(), r.peer.IPv6())
	copy(otherMAC6[6:], falseMAC[:])
	return []falseFrame{
		{"IPv4 source", udp(false4, r.peer.IPv4()), true},
		{"the peer's own IPv4 address", udp(r.peer.IPv4(), r.peer.IPv4()), true},
		{"the node's IPv4 address", udp(r.pod.GatewayIPv4(), r.peer.IPv4()), false},
		{"no IPv4 source", udp(netip.IPv4Unspecified(), r.peer.IPv4()), false},
		{"IPv6 source", udp(false6, r.peer.IPv6()), true},
		{"link-local source", udp(falseLink, r.peer.IPv6()), false},
		{"no IPv6 source", udp(netip.IPv6Unspecified(), r.peer.IPv6()), false},
		{"IPv4 source behind a VLAN tag", tagged, false},
		{"MAC, IPv4", otherMAC, true},
		{"MAC, IPv6", otherMAC6, true},
	}
}

// falseNeighbours are those of ARP and neighbour discovery, by which the pod would be the gateway.
func (r *filterRig) falseNeighbours() []falseFrame {
	r.t.Helper()
	podMAC, err := r.pod.MAC()
	if err != nil {
		r.t.Fatal(err)
	}
	peerMAC, err := r.peer.MAC()
	if err != nil {
		r.t.Fatal(err)
	}
	own, reply := packets.MAC(podMAC), uint16(2)
	arp := func(dst, senderMAC packets.MAC, sender netip.Addr) []byte {
		return packets.Frame(packets.Ethernet{Dst: dst, Src: own},
			packets.ARP{SenderMAC: senderMAC, SenderIP: sender, TargetIP: r.peer.IPv4(), Operation: &reply})
	}
	nd := func(icmpType uint8, src, dst netip.Addr, rest [4]byte, body ...[]byte) []byte {
		frame := packets.Frame(packets.Ethernet{Dst: packets.MAC{0x33, 0x33, 0, 0, 0, 1}, Src: own},
			packets.IPv6{Src: src, Dst: dst}, packets.ICMPv6{Type: &icmpType, Rest: &rest}, packets.Payload(bytes.Join(body, nil)))
		frame[ethernetLen+7] = 255 // as neighbour discovery has to have it (RFC 4861, 4)
		return frame
	}
	option := func(kind uint8, mac packets.MAC) []byte { return append([]byte{kind, 1}, mac[:]...) }
	gateway := r.peer.GatewayIPv6().AsSlice()
	override := [4]byte{0x20}
	return []falseFrame{
		{"ARP, the gateway's address", arp(packets.MAC(peerMAC), own, r.peer.GatewayIPv4()), false},
		{"ARP to all, the gateway's address", arp(packets.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, own, r.peer.GatewayIPv4()), false},
		{"ARP, another's MAC", arp(packets.MAC(peerMAC), falseMAC, r.pod.IPv4()), false},
		{"advertisement of the gateway's address", nd(136, r.pod.IPv6(), allNodes, override, gateway, option(2, own)), false},
		{"advertisement with another's MAC", nd(136, r.pod.IPv6(), allNodes, override, r.pod.IPv6().AsSlice(), option(2, falseMAC)), false},
		{"solicitation with another's MAC", nd(135, r.pod.IPv6(), allNodes, [4]byte{}, r.peer.IPv6().AsSlice(), option(1, falseMAC)), false},
		{"router advertisement", nd(134, r.pod.IPv6(), allNodes, [4]byte{64, 0, 0xff, 0xff}, make([]byte, 8), option(1, own)), false},
		{"redirect", nd(137, r.pod.IPv6(), allNodes, [4]byte{}, gateway, gateway, option(2, own)), false},
	}
}

// TestFilterSpoof sends from the pod, by packet sockets and raw ones, what claims to be from others: the peer gets
// nothing of it and keeps its neighbours. Without antiSpoof it gets all of it, and takes the pod for its gateway.
func TestFilterSpoof(t *testing.T) {
	eachChain(t, mixedChains, `{}`, func(r *filterRig) {
		frames := append(r.falsePackets(), r.falseNeighbours()...)
		if r.shape == "ptp" {
			frames = slices.DeleteFunc(frames, func(f falseFrame) bool { return !f.routed })
		}
		gateways := r.learnGateways()
		for _, f := range frames {
			arrived := r.capture(r.peer, f.frame)
			arrived.send(f.frame)
			size := uint64(len(f.frame))
			if r.mode == "tcx" && f.frame[12] == 0x81 {
				size -= 4 // a tag is not in the frame there
			}
			r.expect(f.name, decisions{"egress spoof": times(1, size)})
			arrived.none(f.name)
		}
		for _, src := range []netip.Addr{false4, false6} {
			to := r.peer.IPv4()
			if src.Is6() {
				to = r.peer.IPv6()
			}
			packet := r.fromPod(src, to, packets.UDP{}, packets.Data(9))
			if err := tests.SendRawIP(r.pod, packet[ethernetLen:]); err != nil {
				r.t.Fatal(err)
			}
			r.expect("raw socket, "+src.String(), decisions{"egress spoof": times(1, uint64(len(packet)))})
		}
		expect(r.t, "the peer's gateways", r.gatewayMACs(), gateways)

		r.apply(`{"antiSpoof":false}`)
		for _, f := range frames {
			arrived := r.capture(r.peer, f.frame)
			arrived.send(f.frame)
			arrived.next(f.name + ", without antiSpoof")
		}
		r.expect("without antiSpoof", nil)
		if r.shape == "bridge" {
			pod, err := r.pod.MAC()
			if err != nil {
				r.t.Fatal(err)
			}
			expect(r.t, "the peer's gateways without antiSpoof", r.gatewayMACs(), []net.HardwareAddr{pod, pod})
		}
	})
}

// learnGateways has the peer find out the MACs of its gateways, which it then has.
func (r *filterRig) learnGateways() []net.HardwareAddr {
	r.t.Helper()
	// else a neighbour keeps its MAC for a second
	if err := r.peer.Sysctl("net/ipv4/neigh/"+r.peer.IfName+"/locktime", "0"); err != nil {
		r.t.Fatal(err)
	}
	for _, gateway := range []netip.Addr{r.peer.GatewayIPv4(), r.peer.GatewayIPv6()} {
		if err := tests.Ping(r.t.Context(), r.peer, gateway, 1); err != nil {
			r.t.Fatal(err)
		}
	}
	return r.gatewayMACs()
}

func (r *filterRig) gatewayMACs() (macs []net.HardwareAddr) {
	r.t.Helper()
	for _, gateway := range []netip.Addr{r.peer.GatewayIPv4(), r.peer.GatewayIPv6()} {
		mac, err := tests.NeighbourMAC(r.peer, r.peer.IfName, gateway)
		if err != nil || mac == nil {
			r.t.Fatalf("the peer has no MAC for %s: %v", gateway, err)
		}
		macs = append(macs, mac)
	}
	return macs
}
