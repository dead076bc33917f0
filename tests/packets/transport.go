package packets

import (
	"encoding/binary"
	"hash/crc32"
)

// The ports of a transport header that names none.
const (
	SourcePort      = 40000
	DestinationPort = 5201
)

// TCP is a TCP header with the ACK flag.
type TCP struct {
	SrcPort, DstPort uint16
	Options          []byte // padded to a multiple of 4

	Ports      *Ports // in the place of the ports above, for those that are 0
	Seq        *uint32
	Flags      *uint8 // default: ACK
	DataOffset *uint8 // in units of 4 bytes
}

func (TCP) ipProtocol() uint8 { return ProtocolTCP }

func (t TCP) marshal(payload []byte, at position) []byte {
	options := padTo(t.Options, 0, 4)
	segment := ports(t.SrcPort, t.DstPort, t.Ports)
	segment = binary.BigEndian.AppendUint32(segment, or(t.Seq, 1))
	segment = append(segment, 0, 0, 0, 1) // acknowledgement number
	segment = append(segment, or(t.DataOffset, uint8((20+len(options))/4))<<4, or(t.Flags, 0x10))
	segment = append(segment, 0xff, 0xff, 0, 0, 0, 0) // window, checksum, urgent pointer
	segment = append(append(segment, options...), payload...)
	binary.BigEndian.PutUint16(segment[16:], transportChecksum(at.ip, ProtocolTCP, segment))
	return segment
}

// UDP is a UDP header.
type UDP struct {
	SrcPort, DstPort uint16

	Ports *Ports // in the place of the ports above, for those that are 0
	Len   *uint16
}

func (UDP) ipProtocol() uint8 { return ProtocolUDP }

func (u UDP) marshal(payload []byte, at position) []byte {
	datagram := ports(u.SrcPort, u.DstPort, u.Ports)
	datagram = binary.BigEndian.AppendUint16(datagram, or(u.Len, uint16(8+len(payload))))
	datagram = append(append(datagram, 0, 0), payload...)
	sum := transportChecksum(at.ip, ProtocolUDP, datagram)
	binary.BigEndian.PutUint16(datagram[6:], orDefault(sum, 0xffff)) // 0 would say: none
	return datagram
}

// ICMP is an ICMP message: an echo request, unless it says otherwise.
type ICMP struct {
	Type *uint8
	Code uint8
	Rest *[4]byte // behind the checksum; of an echo request identifier and sequence number
}

func (ICMP) ipProtocol() uint8 { return ProtocolICMP }

func (i ICMP) marshal(payload []byte, _ position) []byte {
	message := icmp(or(i.Type, 8), i.Code, i.Rest, payload)
	binary.BigEndian.PutUint16(message[2:], checksum(message))
	return message
}

// ICMPv6 is an ICMPv6 message: an echo request, unless it says otherwise.
type ICMPv6 struct {
	Type *uint8
	Code uint8
	Rest *[4]byte // behind the checksum; of an echo request identifier and sequence number
}

func (ICMPv6) ipProtocol() uint8 { return ProtocolICMPv6 }

func (i ICMPv6) marshal(payload []byte, at position) []byte {
	message := icmp(or(i.Type, 128), i.Code, i.Rest, payload)
	binary.BigEndian.PutUint16(message[2:], transportChecksum(at.ip, ProtocolICMPv6, message))
	return message
}

func icmp(icmpType, code uint8, rest *[4]byte, payload []byte) []byte {
	word := or(rest, [4]byte{0, 1, 0, 1})
	return append(append([]byte{icmpType, code, 0, 0}, word[:]...), payload...)
}

// SCTP is the common header of SCTP; the chunks are payload.
type SCTP struct {
	SrcPort, DstPort uint16

	Ports *Ports // in the place of the ports above, for those that are 0
}

func (SCTP) ipProtocol() uint8 { return ProtocolSCTP }

func (s SCTP) marshal(payload []byte, _ position) []byte {
	packet := append(ports(s.SrcPort, s.DstPort, s.Ports), 0, 0, 0, 1, 0, 0, 0, 0) // tag, checksum
	packet = append(packet, payload...)
	// RFC 9260, appendix A: CRC32c, in the byte order that it is computed in
	sum := crc32.Checksum(packet, crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(packet[8:], sum)
	return packet
}

// ESP is the header of an encrypted payload (RFC 4303).
type ESP struct{}

func (ESP) ipProtocol() uint8 { return ProtocolESP }

func (ESP) marshal(payload []byte, _ position) []byte {
	return append([]byte{0, 0, 1, 0, 0, 0, 0, 1}, payload...) // SPI, sequence number
}

// Ports are both ports of a transport header.
type Ports struct{ Src, Dst uint16 }

func ports(src, dst uint16, override *Ports) []byte {
	p := or(override, Ports{orDefault(src, SourcePort), orDefault(dst, DestinationPort)})
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.Src), p.Dst)
}

// transportChecksum is over segment and what of ip the checksum covers.
func transportChecksum(ip pseudo, protocol uint8, segment []byte) uint16 {
	if ip == nil {
		return checksum(segment)
	}
	return checksum(ip.pseudoHeader(protocol, len(segment)), segment)
}
