package bpf_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// representative frames have a header of each kind, and no padding.
func representative() []packetCase {
	return []packetCase{
		{"ipv4 tcp", frame(packets.IPv4{}, packets.TCP{Options: make([]byte, 12)}, packets.Data(8)), tcp4},
		{"ipv4 options udp", frame(packets.IPv4{Options: make([]byte, 24)}, packets.UDP{}, packets.Data(8)), udp4},
		{"ipv4 icmp", frame(packets.IPv4{}, packets.ICMP{}, packets.Data(8)), icmp4},
		{"ipv4 last fragment", frame(packets.IPv4{FragmentOffset: 9, Protocol: new(uint8(17))}, packets.Data(24)), udp4},
		{"ipv6 udp", frame(packets.IPv6{}, packets.UDP{}, packets.Data(8)), udp6},
		{"ipv6 extensions tcp", ext(packets.HopByHop(), packets.Routing(), packets.Fragment{More: true}, packets.AH{ICV: make([]byte, 12)}, packets.DestOptions()), tcp6},
		{"ipv6 icmpv6", frame(packets.IPv6{}, packets.ICMPv6{}, packets.Data(8)), icmp6},
		{"QinQ ipv4 udp", frame(packets.VLAN{Service: true}, packets.VLAN{}, packets.IPv4{}, packets.UDP{}, packets.Data(8)), udp4},
		{"QinQ ipv6 tcp", frame(packets.VLAN{Service: true}, packets.VLAN{}, packets.IPv6{}, packets.TCP{}), tcp6},
	}
}

// TestTruncation cuts frames short at every byte: since none is padded, each cut shows.
func TestTruncation(t *testing.T) {
	hooks := newHooks(t)
	for _, test := range representative() {
		t.Run(test.name, func(t *testing.T) {
			for size := 14; size <= len(test.frame); size++ { // no hook sees less
				in, want := input{frame: test.frame[:size]}, truncated
				if size == len(test.frame) {
					want = test.want
				}
				if got := classify(in); got != want {
					t.Errorf("the reference says %v of the first %d bytes, want %v", got, size, want)
				}
				for _, h := range hooks {
					h.check(t, in, want, 1)
				}
			}
		})
	}
}

// TestFirstBuffer gives XDP whole frames of which only a part, of every length, can be read in
// place. Those whose headers reach past it count as truncated, and no byte is left uncounted.
//
// A test run cannot make a socket buffer of that kind for tc (6.18): that bpf_skb_pull_data() is
// called, and helps, is left to the integration tests.
func TestFirstBuffer(t *testing.T) {
	if !needFrags(t) {
		return
	}
	h := newHooks(t)[0]
	if !h.canSplit(t) {
		t.Skip("the kernel fills the first buffer before it makes a second (6.17 and older)")
	}
	for _, test := range representative() {
		t.Run(test.name, func(t *testing.T) {
			seen := map[class]bool{}
			for readable := 14; readable <= len(test.frame); readable++ {
				in := input{frame: test.frame, readable: readable}
				want := classify(in)
				seen[want] = true
				h.check(t, in, want, 1)
			}
			if len(seen) != 2 || !seen[truncated] || !seen[test.want] {
				t.Errorf("the reference says %v, want %v and then %v", seen, truncated, test.want)
			}
		})
	}
}

func (h hook) canSplit(t testing.TB) bool {
	t.Helper()
	err := h.run(t, input{frame: frame(packets.Data(100)), readable: 50})
	if err != nil && !errors.Is(err, unix.EINVAL) {
		t.Fatal(err)
	}
	return err == nil
}
