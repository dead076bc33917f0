package packets

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"testing"
)

// TestFrame compares frames with bytes written by hand from the RFCs.
func TestFrame(t *testing.T) {
	const ethernet = "020000000002020000000001"
	for _, test := range []struct {
		name  string
		frame []byte
		want  string
	}{
		{
			"ipv4 udp", Frame(Ethernet{}, IPv4{}, UDP{}, Payload("hi")),
			ethernet + "0800" + "4500001e00000000 4011 8e98 c0000201c6336402" + "9c401451000a faa7" + "6869",
		},
		{
			"QinQ arp", Frame(Ethernet{}, VLAN{Service: true, ID: 2}, VLAN{ID: 3}, ARP{}),
			ethernet + "88a8 0002 8100 0003 0806" +
				"0001 0800 06 04 0001 020000000001 c0000201 000000000000 c6336402",
		},
		{
			"ipv6 extensions", Frame(Ethernet{}, IPv6{}, HopByHop(), Fragment{Offset: 1, More: true, NextHeader: new(uint8(6))}, Payload{1}),
			ethernet + "86dd" + "60000000 0011 00 40 20010db8000000000000000000000001 20010db8ffff00000000000000000002" +
				"2c00000000000000" + "06 00 0009 deadbeef" + "01",
		},
		{
			"ipv6 jumbo, ah", Frame(Ethernet{}, IPv6{PayloadLen: new(uint16(0))}, Jumbo(65536), AH{ICV: make([]byte, 4)}, Payload{}),
			ethernet + "86dd" + "60000000 0000 00 40 20010db8000000000000000000000001 20010db8ffff00000000000000000002" +
				"3300 c204 00010000" + "fd 02 0000 00000100 00000001 00000000",
		},
		{
			"overrides", Frame(Ethernet{Type: new(uint16(0x1234))}, IPv4{Version: new(uint8(6)), IHL: new(uint8(2)), TotalLen: new(uint16(1)), Protocol: new(uint8(9)), MoreFragments: true, FragmentOffset: 3}),
			ethernet + "1234" + "62 00 0001 0000 2003 40 09 51ba c0000201c6336402",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			want, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(test.want), []byte(" "), nil)))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(test.frame, want) {
				t.Errorf("got  %x\nwant %x", test.frame, want)
			}
		})
	}
}

// TestChecksums sums up what each checksum covers, itself included: the result must be 0.
func TestChecksums(t *testing.T) {
	data := Data(33)
	for _, test := range []struct {
		name     string
		ip       Layer
		layer    Layer
		protocol uint8
		size     int // of the header
	}{
		{"ipv4 tcp", IPv4{}, TCP{Options: []byte{1}}, ProtocolTCP, 24},
		{"ipv4 options udp", IPv4{Options: []byte{1, 1, 1}}, UDP{}, ProtocolUDP, 8},
		{"ipv6 tcp", IPv6{}, TCP{}, ProtocolTCP, 20},
		{"ipv6 udp", IPv6{}, UDP{}, ProtocolUDP, 8},
		{"ipv6 icmpv6", IPv6{}, ICMPv6{}, ProtocolICMPv6, 8},
	} {
		t.Run(test.name, func(t *testing.T) {
			frame := Frame(test.ip, test.layer, data)
			segment := frame[len(frame)-len(data)-test.size:]
			pseudo := test.ip.(pseudo).pseudoHeader(test.protocol, len(segment))
			if sum := checksum(pseudo, segment); sum != 0 {
				t.Errorf("the sum over the segment is %#x, want 0", sum)
			}
			if frame[0]>>4 == 4 {
				if sum := checksum(frame[:int(frame[0]&0xf)*4]); sum != 0 {
					t.Errorf("the sum over the IP header is %#x, want 0", sum)
				}
			}
		})
	}
	icmp := Frame(ICMP{}, data)
	if sum := checksum(icmp); sum != 0 {
		t.Errorf("the sum over the ICMP message is %#x, want 0", sum)
	}
	// CRC32c, computed bit by bit elsewhere
	if got, want := binary.BigEndian.Uint32(Frame(SCTP{}, Payload("hi!!"))[8:]), uint32(0xc24f067e); got != want {
		t.Errorf("the checksum of the SCTP packet is %#x, want %#x", got, want)
	}
}

// TestPad leaves what it pads alone.
func TestPad(t *testing.T) {
	frame := make([]byte, 2, 100)
	padded := Pad(frame, MinFrame)
	if len(padded) != MinFrame || len(Pad(padded, 10)) != MinFrame {
		t.Errorf("%d bytes, want %d", len(padded), MinFrame)
	}
	padded[0] = 1
	if frame[0] != 0 {
		t.Error("the frame that was padded changed with the one made of it")
	}
}
