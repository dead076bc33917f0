package packets

import (
	"encoding/binary"
	"net/netip"
)

// IP protocol numbers, which are also those of IPv6 extension headers.
const (
	ProtocolHopByHop     = 0
	ProtocolICMP         = 1
	ProtocolTCP          = 6
	ProtocolUDP          = 17
	ProtocolRouting      = 43
	ProtocolFragment     = 44
	ProtocolESP          = 50
	ProtocolAH           = 51
	ProtocolICMPv6       = 58
	ProtocolNone         = 59
	ProtocolDestOptions  = 60
	ProtocolSCTP         = 132
	ProtocolExperimental = 253 // RFC 3692: what a bare payload is announced as
)

// The addresses of a packet whose IP header names none.
var (
	SourceIPv4      = netip.MustParseAddr("192.0.2.1")
	DestinationIPv4 = netip.MustParseAddr("198.51.100.2")
	SourceIPv6      = netip.MustParseAddr("2001:db8::1")
	DestinationIPv6 = netip.MustParseAddr("2001:db8:ffff::2")
)

// IPv4 is an IPv4 header.
type IPv4 struct {
	Src, Dst       netip.Addr
	Options        []byte // padded to a multiple of 4
	ID             uint16
	MoreFragments  bool
	FragmentOffset uint16 // in units of 8 bytes

	Version  *uint8
	IHL      *uint8
	TotalLen *uint16
	TTL      *uint8 // default: 64
	Protocol *uint8 // default: that of the next layer
}

func (IPv4) etherType() uint16 { return EtherTypeIPv4 }

func (ip IPv4) addresses() (src, dst [4]byte) {
	return orDefault(ip.Src, SourceIPv4).As4(), orDefault(ip.Dst, DestinationIPv4).As4()
}

func (ip IPv4) marshal(payload []byte, at position) []byte {
	options := padTo(ip.Options, 0, 4)
	size := 20 + len(options)
	fragment := ip.FragmentOffset
	if ip.MoreFragments {
		fragment |= 0x2000
	}
	src, dst := ip.addresses()

	header := make([]byte, 12, size)
	header[0] = or(ip.Version, 4)<<4 | or(ip.IHL, uint8(size/4))
	binary.BigEndian.PutUint16(header[2:], or(ip.TotalLen, uint16(size+len(payload))))
	binary.BigEndian.PutUint16(header[4:], ip.ID)
	binary.BigEndian.PutUint16(header[6:], fragment)
	header[8] = or(ip.TTL, 64)
	header[9] = protocol(ip.Protocol, at.next)
	header = append(header, src[:]...)
	header = append(header, dst[:]...)
	header = append(header, options...)
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	return append(header, payload...)
}

// pseudoHeader is that of RFC 9293, 3.1.
func (ip IPv4) pseudoHeader(protocol uint8, length int) []byte {
	src, dst := ip.addresses()
	header := append(src[:], dst[:]...)
	return binary.BigEndian.AppendUint16(append(header, 0, protocol), uint16(length))
}

// IPv6 is an IPv6 header.
type IPv6 struct {
	Src, Dst netip.Addr

	Version    *uint8
	PayloadLen *uint16
	NextHeader *uint8 // default: that of the next layer
	HopLimit   *uint8 // default: 64
}

func (IPv6) etherType() uint16 { return EtherTypeIPv6 }

func (IPv6) ipProtocol() uint8 { return 41 }

func (ip IPv6) addresses() (src, dst [16]byte) {
	return orDefault(ip.Src, SourceIPv6).As16(), orDefault(ip.Dst, DestinationIPv6).As16()
}

func (ip IPv6) marshal(payload []byte, at position) []byte {
	src, dst := ip.addresses()
	header := []byte{or(ip.Version, 6) << 4, 0, 0, 0}
	header = binary.BigEndian.AppendUint16(header, or(ip.PayloadLen, uint16(len(payload))))
	header = append(header, protocol(ip.NextHeader, at.next), or(ip.HopLimit, 64))
	header = append(header, src[:]...)
	header = append(header, dst[:]...)
	return append(header, payload...)
}

// pseudoHeader is that of RFC 8200, 8.1.
func (ip IPv6) pseudoHeader(protocol uint8, length int) []byte {
	src, dst := ip.addresses()
	header := append(src[:], dst[:]...)
	header = binary.BigEndian.AppendUint32(header, uint32(length))
	return append(header, 0, 0, 0, protocol)
}

// Extension is an IPv6 extension header of the common form (RFC 8200, 4): hop-by-hop options,
// routing, destination options.
type Extension struct {
	Protocol uint8  // its own number
	Body     []byte // behind the first two bytes; padded to fill the header

	NextHeader *uint8 // default: that of the next layer
	Len        *uint8 // in units of 8 bytes, less the first
}

func (e Extension) ipProtocol() uint8 { return e.Protocol }

func (e Extension) marshal(payload []byte, at position) []byte {
	body := padTo(e.Body, 2, 8)
	if len(body) == 0 {
		body = make([]byte, 6)
	}
	header := []byte{protocol(e.NextHeader, at.next), or(e.Len, uint8((2+len(body))/8-1))}
	return append(append(header, body...), payload...)
}

// HopByHop is a hop-by-hop options header with the options given.
func HopByHop(options ...byte) Extension {
	return Extension{Protocol: ProtocolHopByHop, Body: options}
}

// DestOptions is a destination options header with the options given.
func DestOptions(options ...byte) Extension {
	return Extension{Protocol: ProtocolDestOptions, Body: options}
}

// Routing is a routing header of type 4 (RFC 8754) whose segments are all visited.
func Routing() Extension {
	body := append([]byte{4, 0, 0, 0, 0, 0}, DestinationIPv6.AsSlice()...)
	return Extension{Protocol: ProtocolRouting, Body: body}
}

// Jumbo is a hop-by-hop options header with a jumbo payload option (RFC 2675).
func Jumbo(payloadLen uint32) Extension {
	return HopByHop(binary.BigEndian.AppendUint32([]byte{0xc2, 4}, payloadLen)...)
}

// Fragment is an IPv6 fragment header; its zero value is that of an atomic fragment (RFC 6946).
type Fragment struct {
	Offset uint16 // in units of 8 bytes
	More   bool

	ID         *uint32
	NextHeader *uint8 // default: that of the next layer
	Reserved   uint8  // where other extension headers have their length
}

func (Fragment) ipProtocol() uint8 { return ProtocolFragment }

func (f Fragment) marshal(payload []byte, at position) []byte {
	offset := f.Offset << 3
	if f.More {
		offset |= 1
	}
	header := []byte{protocol(f.NextHeader, at.next), f.Reserved}
	header = binary.BigEndian.AppendUint16(header, offset)
	header = binary.BigEndian.AppendUint32(header, or(f.ID, 0xdeadbeef))
	return append(header, payload...)
}

// AH is an IP authentication header (RFC 4302).
type AH struct {
	ICV []byte // padded to a multiple of 4

	NextHeader *uint8 // default: that of the next layer
	Len        *uint8 // in units of 4 bytes, less two
}

func (AH) ipProtocol() uint8 { return ProtocolAH }

func (a AH) marshal(payload []byte, at position) []byte {
	icv := padTo(a.ICV, 0, 4)
	header := []byte{protocol(a.NextHeader, at.next), or(a.Len, uint8((12+len(icv))/4-2)), 0, 0}
	header = append(header, 0, 0, 1, 0, 0, 0, 0, 1) // SPI, sequence number
	return append(append(header, icv...), payload...)
}

// protocol returns the IP protocol number that announces next, unless override is set.
func protocol(override *uint8, next Layer) uint8 {
	if override != nil {
		return *override
	}
	if numbered, ok := next.(interface{ ipProtocol() uint8 }); ok {
		return numbered.ipProtocol()
	}
	return ProtocolExperimental
}
