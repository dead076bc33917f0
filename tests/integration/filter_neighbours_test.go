package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// pingsOnly lets nothing through but pings, in both directions.
const pingsOnly = `{"allowHost":false,"default":{"egress":"deny","ingress":"deny"},"rules":[
	{"name":"out4","direction":"egress","action":"allow","protocol":"icmp","icmp":{"type":8}},
	{"name":"out6","direction":"egress","action":"allow","protocol":"icmpv6","icmp":{"type":128}},
	{"name":"in4","direction":"ingress","action":"allow","protocol":"icmp","icmp":{"type":8}},
	{"name":"in6","direction":"ingress","action":"allow","protocol":"icmpv6","icmp":{"type":128}}]}`

// TestFilterNeighbours: a pod that lets nothing through finds its neighbours, and they find it, and it gets an address,
// without a rule for any of that.
func TestFilterNeighbours(t *testing.T) {
	eachChain(t, mixedChains, pingsOnly, func(r *filterRig) {
		for i, family := range []string{"4", "6"} {
			for name, ends := range map[string][2]*tests.Pod{"out": {r.pod, r.peer}, "in": {r.peer, r.pod}} {
				r.forgetAll()
				to := families(ends[1])[i]
				if err := tests.Ping(r.t.Context(), ends[0], to, 1); err != nil {
					r.t.Errorf("with fresh neighbours: %v", err)
				}
				r.expect("a ping with fresh neighbours", decisions{"rule " + name + family: times(1, frameLen(to, tests.PingPayload))})
			}
		}
		if r.shape == "bridge" {
			r.sub("DHCP", pingsOnly, dhcp)
			r.sub("duplicate addresses", pingsOnly, duplicateAddresses)
		}
	})
}

// forgetAll makes both pods and the node forget all their neighbours.
func (r *filterRig) forgetAll() {
	r.t.Helper()
	for _, pod := range []*tests.Pod{r.pod, r.peer} {
		host, err := pod.HostInterface()
		if err == nil {
			err = errors.Join(tests.ForgetNeighbours(pod, pod.IfName), tests.ForgetNeighbours(r, host.Attrs().Name))
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	if r.shape == "bridge" {
		if err := tests.ForgetNeighbours(r, "cni0"); err != nil {
			r.t.Fatal(err)
		}
	}
}

// dhcp sends what a DHCP client without an address does: it is the rules', and antiSpoof does not stop it.
func dhcp(r *filterRig) {
	mac, err := r.pod.MAC()
	if err != nil {
		r.t.Fatal(err)
	}
	discover := packets.Frame(packets.Ethernet{Dst: packets.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, Src: packets.MAC(mac)},
		packets.IPv4{Src: netip.IPv4Unspecified(), Dst: netip.MustParseAddr("255.255.255.255")},
		packets.UDP{SrcPort: 68, DstPort: 67}, packets.Data(244))
	size := times(1, uint64(len(discover)))
	arrived := r.capture(r.peer, discover)
	arrived.send(discover)
	r.expect("without a rule", decisions{"egress default": size})
	arrived.none("without a rule")
	r.apply(`{"default":{"egress":"deny","ingress":"deny"},"rules":[
		{"name":"dhcp","direction":"egress","action":"allow","protocol":"udp","ports":["67"]}]}`)
	arrived.send(discover)
	arrived.next("with a rule")
	r.expect("with a rule", decisions{"rule dhcp": size})
}

// duplicateAddresses takes the pod its address and gives it back: it asks whether anybody has that, and uses it. For
// the peer's address it may not ask: with antiSpoof that would keep the peer from getting it.
func duplicateAddresses(r *filterRig) {
	conf, ifname := "net/ipv6/conf/"+r.pod.IfName+"/", r.pod.IfName
	err := errors.Join(r.pod.Sysctl(conf+"accept_dad", "1"), r.pod.Sysctl(conf+"dad_transmits", "1"),
		r.pod.Sysctl("net/ipv6/neigh/"+ifname+"/retrans_time_ms", "200"))
	if err != nil {
		r.t.Fatal(err)
	}
	questions, err := tests.NewCapture(r.peer, r.peer.IfName, func(frame []byte) bool {
		return len(frame) >= 78 && frame[20] == packets.ProtocolICMPv6 && frame[54] == 135 &&
			netip.AddrFrom16([16]byte(frame[22:38])).IsUnspecified()
	})
	if err != nil {
		r.t.Fatal(err)
	}
	defer questions.Close()
	about := func(want netip.Addr) {
		frame, err := questions.Next(r.t.Context(), patience)
		if err != nil {
			r.t.Fatalf("the pod's question for %s: %v", want, err)
		}
		if target := netip.AddrFrom16([16]byte(frame[62:78])); target != want {
			r.t.Errorf("the pod's question is for %s, want %s", target, want)
		}
	}
	change := func(how func(netlink.Link, *netlink.Addr) error, address netip.Addr) {
		err := r.pod.Do(func() error {
			link, err := netlink.LinkByName(ifname)
			if err != nil {
				return err
			}
			return how(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(address, 64))})
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	usable := func(address netip.Addr) {
		eventually(r.t, func() error {
			flags, err := addressFlags(r.pod, address)
			if err == nil && flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
				err = fmt.Errorf("address %s has flags %#x", address, flags)
			}
			return err
		})
	}

	own := r.pod.IPv6()
	change(netlink.AddrDel, own)
	change(netlink.AddrAdd, own)
	about(own)
	usable(own)
	r.expect("detection of its own address", nil)

	const solicitation = 14 + 40 + 24 + 8 // with a nonce (RFC 7527)
	change(netlink.AddrAdd, r.peer.IPv6())
	usable(r.peer.IPv6()) // nobody answers
	r.expect("detection of another's address", decisions{"egress spoof": {Packets: 1, Bytes: solicitation}})
	change(netlink.AddrDel, r.peer.IPv6())
	change(netlink.AddrDel, own)
	change(netlink.AddrAdd, own)
	about(own) // and no other question came before it
	usable(own)
}

// addressFlags are those that a place has for an address, IFA_F_*.
func addressFlags(at tests.Place, address netip.Addr) (flags int, err error) {
	err = at.Do(func() error {
		list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		for _, a := range list {
			if have, ok := netip.AddrFromSlice(a.IP); ok && have.Unmap() == address {
				flags = a.Flags
				return err
			}
		}
		return errors.Join(err, fmt.Errorf("address %s is not there", address))
	})
	return flags, err
}
