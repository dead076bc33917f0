package bpf_test

import (
	"encoding/binary"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// TestRedirectHops: what is routed loses one of its TTL or hop limit, and goes by the stack where that
// ends; what is bridged keeps it.
func TestRedirectHops(t *testing.T) {
	eachTalk(t, func(t *testing.T, c talk) {
		routed := c.client.endpoint.Segment == 0
		for hops := 255; hops >= 0; hops-- {
			if hops == 253 {
				hops = 4
			}
			c.reset(t)
			if routed {
				c.routed(t)
			}
			c.learn(t)
			ask := c.ask()
			frame := ask.frame()
			if ask.source.Is4() {
				setHops(frame, uint8(hops))
			} else {
				frame[14+7] = uint8(hops)
			}
			want := outcome{to: c.server}
			switch {
			case routed && hops <= 1:
				want = byStack
			case routed:
				want.frame = append([]byte(nil), frame...)
				copy(want.frame, c.server.endpoint.Mac[:])
				copy(want.frame[6:], c.server.endpoint.RouterMac[:])
				if ask.source.Is4() {
					setHops(want.frame, uint8(hops-1))
				} else {
					want.frame[14+7]--
				}
			}
			c.sends(t, c.client, input{frame: frame}, want)
		}
	})
}

// setHops sets the TTL of an IPv4 header without options, and reckons its checksum anew.
func setHops(frame []byte, ttl uint8) {
	frame[14+8] = ttl
	frame[14+10], frame[14+11] = 0, 0
	binary.BigEndian.PutUint16(frame[14+10:], ^onesSum(frame[14:34]))
}

// onesSum is the sum of RFC 1071.
func onesSum(data []byte) uint16 {
	sum := uint32(0)
	for ; len(data) > 1; data = data[2:] {
		sum += uint32(binary.BigEndian.Uint16(data))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// TestRedirectChecksum: the checksum is the right one with any TTL and whatever it was, at the carries
// too.
func TestRedirectChecksum(t *testing.T) {
	checks := []uint16{0x0000, 0x0001, 0x00ff, 0x0100, 0xfe00, 0xfefe, 0xfeff, 0xff00, 0xff01, 0xfffe, 0x8000, 0x1234}
	eachNode(t, func(t *testing.T, n *node) {
		n.routed(t)
		c := n.newTalk(packets.ProtocolTCP, 0)
		c.learn(t)
		seen := 0
		try := func(frame []byte) {
			want := c.directly(c.ask(), c.server).frame
			want[14+4], want[14+5] = frame[14+4], frame[14+5]
			setHops(want, frame[14+8]-1)
			verdict, out, err := n.hands(t, c.client, input{frame: frame})
			if err != nil {
				t.Fatal(err)
			}
			if verdict != n.hook.redirected() || string(out) != string(want) {
				t.Fatalf("verdict %d, frame\n     %x\nwant %x\nof   %x", int32(verdict), out, want, frame)
			}
			seen++
		}
		for ttl := 2; ttl <= 255; ttl++ {
			for _, check := range checks {
				frame := c.ask().frame()
				setHops(frame, uint8(ttl))
				// with this ID, so far 0, the checksum is check
				id := uint32(^check) + uint32(binary.BigEndian.Uint16(frame[14+10:]))
				id = id&0xffff + id>>16
				binary.BigEndian.PutUint16(frame[14+4:], uint16(id))
				setHops(frame, uint8(ttl))
				if got := binary.BigEndian.Uint16(frame[14+10:]); got != check {
					t.Fatalf("the checksum is %#04x, want %#04x", got, check)
				}
				try(frame)
				if check == 0 { // the other 0 of ones' complement
					frame[14+10], frame[14+11] = 0xff, 0xff
					try(frame)
				}
			}
		}
		if want := 254 * (len(checks) + 1); seen != want {
			t.Errorf("%d frames tried, want %d", seen, want)
		}
	})
}

// TestRedirectGSORouted: all of a GSO packet's header is changed as that of any.
func TestRedirectGSORouted(t *testing.T) {
	for _, n := range newNodes(t) {
		if n.hook.xdp {
			continue
		}
		n.routed(t)
		for family := range 2 {
			c := n.newTalk(packets.ProtocolTCP, family)
			c.learn(t)
			ask := c.ask()
			ask.size = 2500
			want := c.directly(ask, c.server)
			want.packets = 3
			c.sends(t, c.client, input{frame: ask.frame(), gsoSize: 1000, gsoSegs: 3}, want)
		}
		// of UDP every packet that it stands for counts at either end
		c := n.newTalk(packets.ProtocolUDP, 0)
		ask := c.ask()
		ask.size = 2500
		c.sends(t, c.client, input{frame: ask.frame(), gsoSize: 1000, gsoSegs: 3}, outcome{packets: 3})
		c.knows(t, &known{sent: [2]uint32{3, 0}})
		for _, size := range []int{1000, 1000, 500} { // in pieces, as the stack may make them
			ask.size = size
			c.gets(t, c.server, arrived(ask, c.server).frame())
		}
		c.through(t, c.answer())
		c.knows(t, &known{sent: [2]uint32{3, 1}, delivered: [2]uint32{3, 1}})
		c.direct(t)
	}
}
