package integration

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// largeSize is that of a datagram of several fragments.
const largeSize = 8000

// fragmentsOf is what the fragments of a datagram of largeSize count at an MTU of 1500: in all, and the first.
func fragmentsOf(address netip.Addr) (all, first counter) {
	const mtu, fragmentHeader = 1500, 8
	headers, room := ethernetLen+ipv4Len, (mtu-ipv4Len)/8*8
	if address.Is6() {
		headers, room = ethernetLen+ipv6Len+fragmentHeader, (mtu-ipv6Len-fragmentHeader)/8*8
	}
	payload := udpLen + largeSize
	n := (payload + room - 1) / room
	return counter{uint64(n), uint64(payload + n*headers)}, counter{1, uint64(headers + room)}
}

// TestFilterFragments sends datagrams in fragments, of which the first alone has the ports that rules ask for: they
// come whole, or not at all. So they do where the node puts them together on the way, and makes others of them, as it
// does to track connections.
func TestFilterFragments(t *testing.T) {
	eachChain(t, mixedChains, `{}`, func(r *filterRig) {
		ways := r.ways()
		r.sub("as they were sent", `{}`, func(r *filterRig) { wholeDatagrams(r, ways, false) })
		r.sub("without a first one", `{}`, laterFragments)
		trackConnections(r)
		r.sub("made anew by the node", `{}`, func(r *filterRig) { wholeDatagrams(r, ways, true) })
		r.sub("flooded", outOnly, floodedFragments)
	})
}

// trackConnections has the node track connections, also those that it only bridges.
func trackConnections(r *filterRig) {
	r.t.Helper()
	for _, tool := range []string{"iptables", "ip6tables"} {
		rule := "-A FORWARD -m conntrack --ctstate INVALID -j ACCEPT"
		if out, err := r.Run(exec.CommandContext(r.t.Context(), tool, strings.Fields(rule)...)); err != nil {
			r.t.Fatalf("%s %s: %v: %s", tool, rule, err, out.Stderr)
		}
	}
}

func wholeDatagrams(r *filterRig, ways []way, madeAnew bool) {
	var rules []string
	for _, w := range ways {
		rules = append(rules, w.rule("udp", "allow", fmt.Sprintf(`"protocol":"udp","ports":["%d"]`, w.allowed.UDP.Port())))
	}
	r.apply(`{"default":{"egress":"deny","ingress":"deny"},"rules":[` + strings.Join(rules, ",") + `]}`)
	for _, w := range ways {
		all, first := fragmentsOf(w.to)
		if err := tests.EchoUDP(r.t.Context(), w.from, w.allowed.UDP, 3, largeSize); err != nil {
			r.t.Error(err)
		}
		r.expect("a flow, "+w.name, decisions{"rule udp-" + w.name: all})
		if came, err := tests.EchoUDPCount(r.t.Context(), w.from, w.denied.UDP, 1, largeSize, 0); err != nil || came > 0 {
			r.t.Errorf("%s: %d datagrams came back, %v", w.name, came, err)
		}
		dropped := decisions{w.direction + " default": first}
		// a router that makes fragments stops at the first that is dropped
		if later := minus(all, first); !madeAnew || r.shape != "ptp" || w.direction == "egress" {
			dropped[w.direction+" fragment"], dropped["rule udp-"+w.name] = later, later
		}
		r.expect("denied, "+w.name, dropped)
	}
}

// fragmentFrames makes a UDP datagram of size bytes from the peer, in two fragments.
func (r *filterRig) fragmentFrames(to netip.Addr, size int) (frames [2][]byte) {
	r.t.Helper()
	whole := r.fromPeer(to, packets.UDP{SrcPort: 1000, DstPort: 2000}, packets.Data(size))
	ethernet := packets.Ethernet{Dst: packets.MAC(whole[:6]), Src: packets.MAC(whole[6:12])}
	protocol, id := uint8(packets.ProtocolUDP), uint32(77)
	datagram := whole[ethernetLen+ipv4Len:]
	if to.Is6() {
		datagram = whole[ethernetLen+ipv6Len:]
	}
	half := len(datagram) / 16 * 8
	for i, part := range [][]byte{datagram[:half], datagram[half:]} {
		offset, more := uint16(i*half/8), i == 0
		if to.Is6() {
			header := packets.Fragment{Offset: offset, More: more, ID: &id, NextHeader: &protocol}
			frames[i] = r.fromPeer(to, header, packets.Payload(part))
			continue
		}
		frames[i] = packets.Frame(ethernet, packets.IPv4{Src: r.peer.IPv4(), Dst: to, ID: uint16(id),
			FragmentOffset: offset, MoreFragments: more, Protocol: &protocol}, packets.Payload(part))
	}
	return frames
}

// laterFragments sends fragments out of order: one that comes before the first is judged without ports, and passes if
// no rule has to know them.
func laterFragments(r *filterRig) {
	filter := func(action, ports string) string {
		return fmt.Sprintf(`{"default":{"egress":"allow","ingress":"deny"},"rules":[
			{"name":"udp","direction":"ingress","action":%q,"protocol":"udp"%s}]}`, action, ports)
	}
	for _, to := range families(r.pod) {
		frames := r.fragmentFrames(to, 1000)
		first, later := times(1, uint64(len(frames[0]))), times(1, uint64(len(frames[1])))
		arrived := r.capture(r.pod, frames[1])
		r.apply(filter("allow", `,"ports":["2000"]`))
		arrived.send(frames[1])
		r.expect("before the first, by ports", decisions{"ingress fragment": later, "rule udp": later})
		arrived.none("before the first, by ports")
		arrived.send(frames[0])
		r.expect("the first", decisions{"rule udp": first})
		arrived.send(frames[1])
		arrived.next("after the first")
		r.expect("after the first", decisions{"rule udp": later})

		r.apply(filter("deny", ""))
		arrived.send(frames[1])
		arrived.next("of a datagram whose first fragment passed before")
		r.expect("of a datagram whose first fragment passed before", nil)
	}
}

// floodedFragments sends the fragments of a datagram to all of a bridge: it passes them on in copies, of which the
// kernel makes new fragments, and does not say then where those of IPv6 came from. They are not the node's own.
func floodedFragments(r *filterRig) {
	const fragmentHeader, leastMTU = 8, 1280 // RFC 8200, 4.5 and 5
	if r.shape != "bridge" {
		return
	}
	for _, to := range families(r.pod) {
		for _, size := range []int{1000, 2000} {
			var dropped counter
			for _, frame := range r.fragmentFrames(to, size) {
				copy(frame, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
				dropped = sum(dropped, times(1, uint64(len(frame))))
				if err := tests.SendFrame(r.peer, r.peer.IfName, frame); err != nil {
					r.t.Fatal(err)
				}
			}
			if to.Is6() { // made anew as large as any link takes
				headers, room := ethernetLen+ipv6Len+fragmentHeader, (leastMTU-ipv6Len-fragmentHeader)/8*8
				n := (udpLen + size + room - 1) / room
				dropped = counter{uint64(n), uint64(udpLen + size + n*headers)}
			}
			r.expect(fmt.Sprintf("%d bytes to %s", size, to), decisions{"ingress default": dropped})
		}
	}
}
