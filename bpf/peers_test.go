package bpf_test

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// peerCounters are the contents of a pod's map of peers, summed over the CPUs.
type peerCounters map[netip.Addr]bpf.DatapathPeerCounters

// addPeers gives the pod in slot a map for so many peers.
func (r *rig) addPeers(t testing.TB, slot, size uint32) *ebpf.Map {
	t.Helper()
	spec := r.spec.Maps[bpf.DatapathMapPeers].Copy()
	spec.MaxEntries = size
	m, err := ebpf.NewMap(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	put(t, r.PodPeers, slot, m)
	return m
}

func readPeers(t testing.TB, m *ebpf.Map) peerCounters {
	t.Helper()
	all := peerCounters{}
	var key bpf.DatapathPeer
	var values []bpf.DatapathPeerCounters
	entries := m.Iterate()
	for entries.Next(&key, &values) {
		var sum bpf.DatapathPeerCounters
		for _, value := range values {
			for d, rec := range value.Direction {
				sum.Direction[d].Packets += rec.Packets
				sum.Direction[d].Bytes += rec.Bytes
			}
		}
		all[netip.AddrFrom16(key.Address)] = sum
	}
	if err := entries.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestPeers sends each packet twice, so that its peer is new and then known: it must be counted
// under the address given, in its direction, and nowhere else.
func TestPeers(t *testing.T) {
	r := newRig(t, true)
	p := r.addPod(t, loopback, loopback, bpf.DatapathSlotFlagSLOT_PEERS)
	m := r.addPeers(t, loopback, 1024)

	var (
		src4, dst4 = netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("203.0.113.250")
		src6, dst6 = netip.MustParseAddr("fd00:1:2:3:4:5:6:7"), netip.MustParseAddr("2001:db8:8:9:a:b:c:d")
		v4, v6     = packets.IPv4{Src: src4, Dst: dst4}, packets.IPv6{Src: src6, Dst: dst6}
		later      = packets.IPv4{Src: src4, Dst: dst4, FragmentOffset: 5}
	)
	for _, test := range []struct {
		name     string
		frame    []byte
		want     class
		src, dst netip.Addr // as in the map; invalid: not counted
	}{
		{"ipv4 tcp", frame(v4, packets.TCP{}), tcp4, mapped(src4), mapped(dst4)},
		{"ipv4 sctp", frame(v4, packets.SCTP{}), other4, mapped(src4), mapped(dst4)},
		{"ipv4 fragment", frame(later, packets.Data(9)), other4, mapped(src4), mapped(dst4)},
		{"ipv4 tagged", frame(packets.VLAN{Service: true}, packets.VLAN{}, v4, packets.UDP{}), udp4, mapped(src4), mapped(dst4)},
		{"ipv6 udp", frame(v6, packets.UDP{}), udp6, src6, dst6},
		{"ipv6 extensions", frame(v6, packets.HopByHop(), packets.ICMPv6{}), icmp6, src6, dst6},
		{"ipv6 tagged", frame(packets.VLAN{}, v6, packets.TCP{}), tcp6, src6, dst6},
		{"ipv6 with a mapped address", frame(packets.IPv6{Src: src6, Dst: mapped(dst4)}, packets.UDP{}), udp6, src6, mapped(dst4)},
		{"ipv6 unspecified", frame(packets.IPv6{Src: netip.IPv6Unspecified(), Dst: dst6}, packets.ICMPv6{}), icmp6, netip.IPv6Unspecified(), dst6},
		{"arp", frame(packets.ARP{}), notIP, netip.Addr{}, netip.Addr{}},
		{"ipv4 truncated", frame(v4, packets.TCP{})[:50], truncated, netip.Addr{}, netip.Addr{}},
		{"ipv4 malformed", frame(v4, packets.TCP{DataOffset: new(uint8(1))}), malformed, netip.Addr{}, netip.Addr{}},
		{"ipv6 truncated", frame(v6, packets.TCP{})[:70], truncated, netip.Addr{}, netip.Addr{}},
		{"ipv6 malformed", frame(v6, packets.UDP{Len: new(uint16(1))}), malformed, netip.Addr{}, netip.Addr{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for key := range readPeers(t, m) {
				if err := m.Delete(bpf.DatapathPeer{Address: key.As16()}); err != nil {
					t.Fatal(err)
				}
			}
			want := peerCounters{}
			for _, h := range r.hooks(p) {
				for range 2 {
					h.check(t, input{frame: test.frame}, test.want, 1)
					peer := test.dst
					if h.direction == bpf.DatapathDirectionDIRECTION_INGRESS {
						peer = test.src
					}
					if peer.IsValid() {
						want.add(peer, h.direction, 1, uint64(len(test.frame)))
					}
					if got := readPeers(t, m); !maps.Equal(got, want) {
						t.Fatalf("%s: peers %v\nwant %v", h.name, got, want)
					}
				}
			}
		})
	}
}

func mapped(v4 netip.Addr) netip.Addr { return netip.AddrFrom16(v4.As16()) }

func (p peerCounters) add(peer netip.Addr, direction bpf.DatapathDirection, packets, bytes uint64) {
	c := p[peer]
	c.Direction[direction].Packets += packets
	c.Direction[direction].Bytes += bytes
	p[peer] = c
}

// TestPeersGSO: a GSO packet counts as its segments there too.
func TestPeersGSO(t *testing.T) {
	r := newRig(t, true)
	p := r.addPod(t, loopback, loopback, bpf.DatapathSlotFlagSLOT_PEERS)
	m := r.addPeers(t, loopback, 16)
	in := input{frame: frame(packets.IPv4{}, packets.TCP{}, packets.Data(300)), gsoSize: 100, gsoSegs: 3}
	r.hooks(p)[1].check(t, in, tcp4, 3)
	want := peerCounters{}
	want.add(mapped(packets.DestinationIPv4), bpf.DatapathDirectionDIRECTION_EGRESS, 3, uint64(len(in.frame)))
	if got := readPeers(t, m); !maps.Equal(got, want) {
		t.Errorf("peers %v, want %v", got, want)
	}
}

// TestPeersOff: a map of peers is not touched unless the slot's flag says so.
func TestPeersOff(t *testing.T) {
	r := newRig(t, true)
	p := r.addPod(t, loopback, loopback, 0)
	m := r.addPeers(t, loopback, 16)
	for _, h := range r.hooks(p) {
		h.check(t, input{frame: frame(packets.IPv4{}, packets.TCP{})}, tcp4, 1)
	}
	if got := readPeers(t, m); len(got) != 0 {
		t.Errorf("peers %v, want none", got)
	}
}

// TestPeersFull sends packets to more peers than the map holds: each is counted in the pod's
// tables, the newest peer always in the map too, and the map does not outgrow its size.
func TestPeersFull(t *testing.T) {
	const size, peers = 64, 1000
	r := newRig(t, true)
	p := r.addPod(t, loopback, loopback, bpf.DatapathSlotFlagSLOT_PEERS)
	m := r.addPeers(t, loopback, size)
	h := r.hooks(p)[0]
	peer := netip.MustParseAddr("2001:db8::")
	for range peers {
		peer = peer.Next()
		in := input{frame: frame(packets.IPv6{Dst: peer}, packets.UDP{})}
		h.check(t, in, udp6, 1)
		want := peerCounters{}
		want.add(peer, h.direction, 1, uint64(len(in.frame)))
		got := readPeers(t, m)
		if got[peer] != want[peer] {
			t.Fatalf("the newest peer, %v, has %v, want %v", peer, got[peer], want[peer])
		}
		if len(got) > size {
			t.Fatalf("%d peers in a map of %d", len(got), size)
		}
	}
}
