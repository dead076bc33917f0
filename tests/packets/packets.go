// Package packets builds frames for tests, right ones and wrong ones.
//
//	packets.Frame(packets.Ethernet{}, packets.IPv4{}, packets.UDP{DstPort: 53}, packets.Payload("hello"))
//
// A layer's zero value is a right header: lengths, checksums and the number of what follows are
// filled in. Fields that are pointers put another value in their place, to make a wrong header:
//
//	packets.IPv4{TotalLen: new(uint16(19))}
package packets

import (
	"encoding/binary"
	"net/netip"
)

// EtherTypes that the layers stand for.
const (
	EtherTypeIPv4   = 0x0800
	EtherTypeARP    = 0x0806
	EtherTypeVLAN   = 0x8100 // 802.1Q customer tag
	EtherTypeQinQ   = 0x88a8 // 802.1ad service tag
	EtherTypeIPv6   = 0x86dd
	EtherTypeLLDP   = 0x88cc
	EtherTypeExpmtl = 0x88b5 // IEEE 802 local experimental: what a bare payload is announced as
)

// MinFrame is the shortest Ethernet frame, without its check sequence.
const MinFrame = 60

// MAC is an Ethernet address.
type MAC [6]byte

// The addresses of a frame whose layers name none.
var (
	SourceMAC      = MAC{0x02, 0, 0, 0, 0, 0x01}
	DestinationMAC = MAC{0x02, 0, 0, 0, 0, 0x02}
)

// A Layer is a header of a frame, or its payload.
type Layer interface {
	// marshal returns the layer with payload, all that comes behind it, appended.
	marshal(payload []byte, at position) []byte
}

// position is where a layer stands among the others.
type position struct {
	next Layer  // the layer behind it; nil if it is the last
	ip   pseudo // the IP layer around it; nil if there is none
}

// pseudo is a layer that the checksum of a transport header covers a part of.
type pseudo interface {
	pseudoHeader(protocol uint8, length int) []byte
}

// Frame returns the layers, outermost first, as one frame.
func Frame(layers ...Layer) []byte {
	frame := []byte{}
	for i := len(layers) - 1; i >= 0; i-- {
		at := position{}
		if i+1 < len(layers) {
			at.next = layers[i+1]
		}
		for _, outer := range layers[:i] {
			if ip, ok := outer.(pseudo); ok {
				at.ip = ip
			}
		}
		frame = layers[i].marshal(frame, at)
	}
	return frame
}

// Pad returns frame with zero bytes behind it, so that it is at least size bytes long.
func Pad(frame []byte, size int) []byte {
	if len(frame) < size {
		frame = append(frame[:len(frame):len(frame)], make([]byte, size-len(frame))...)
	}
	return frame
}

// Payload is data, put into the frame as it is.
type Payload []byte

// Data returns a payload of size bytes, no two neighbours of which are the same.
func Data(size int) Payload {
	data := make(Payload, size)
	for i := range data {
		data[i] = byte(i)
	}
	return data
}

func (p Payload) marshal(payload []byte, _ position) []byte {
	return append(p[:len(p):len(p)], payload...)
}

// Ethernet is an Ethernet II header.
type Ethernet struct {
	Dst, Src MAC
	Type     *uint16 // default: that of the next layer
}

func (e Ethernet) marshal(payload []byte, at position) []byte {
	dst, src := orDefault(e.Dst, DestinationMAC), orDefault(e.Src, SourceMAC)
	header := append(dst[:], src[:]...)
	header = binary.BigEndian.AppendUint16(header, etherType(e.Type, at.next))
	return append(header, payload...)
}

// VLAN is an 802.1Q tag, or an 802.1ad service tag.
type VLAN struct {
	Service bool // 802.1ad: announced as 0x88a8
	ID      uint16
	Type    *uint16 // default: that of the next layer
}

func (v VLAN) etherType() uint16 {
	if v.Service {
		return EtherTypeQinQ
	}
	return EtherTypeVLAN
}

func (v VLAN) marshal(payload []byte, at position) []byte {
	header := binary.BigEndian.AppendUint16(nil, v.ID)
	header = binary.BigEndian.AppendUint16(header, etherType(v.Type, at.next))
	return append(header, payload...)
}

// ARP is an ARP packet of IPv4 over Ethernet (RFC 826): a request of the default IPv4 source for the
// default destination, unless it says otherwise.
type ARP struct {
	SenderMAC          MAC
	SenderIP, TargetIP netip.Addr // of IPv4

	HardwareType *uint16 // default: Ethernet
	Operation    *uint16 // default: request
}

func (ARP) etherType() uint16 { return EtherTypeARP }

func (a ARP) marshal(payload []byte, _ position) []byte {
	mac := orDefault(a.SenderMAC, SourceMAC)
	header := binary.BigEndian.AppendUint16(nil, or(a.HardwareType, 1))
	header = append(header, 0x08, 0x00, 6, 4) // IPv4, the lengths of addresses
	header = binary.BigEndian.AppendUint16(header, or(a.Operation, 1))
	header = append(header, mac[:]...)
	header = append(header, orDefault(a.SenderIP, SourceIPv4).AsSlice()...)
	header = append(header, make([]byte, 6)...)
	header = append(header, orDefault(a.TargetIP, DestinationIPv4).AsSlice()...)
	return append(header, payload...)
}

// etherType returns the EtherType that announces next, unless override is set.
func etherType(override *uint16, next Layer) uint16 {
	if override != nil {
		return *override
	}
	if typed, ok := next.(interface{ etherType() uint16 }); ok {
		return typed.etherType()
	}
	return EtherTypeExpmtl
}

// orDefault returns value, or other if value is zero.
func orDefault[T comparable](value, other T) T {
	if value == *new(T) {
		return other
	}
	return value
}

// or returns *override, or value if override is nil.
func or[T any](override *T, value T) T {
	if override != nil {
		return *override
	}
	return value
}

// padTo returns data with as many zero bytes behind it as make its length plus before a
// multiple of unit.
func padTo(data []byte, before, unit int) []byte {
	missing := (unit - (before+len(data))%unit) % unit
	return append(data[:len(data):len(data)], make([]byte, missing)...)
}

// checksum returns the Internet checksum (RFC 1071) of the parts, of which all but the last must
// be of even length.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, part := range parts {
		for i, b := range part {
			if i%2 == 0 {
				sum += uint32(b) << 8
			} else {
				sum += uint32(b)
			}
			sum = sum&0xffff + sum>>16
		}
	}
	return ^uint16(sum)
}
