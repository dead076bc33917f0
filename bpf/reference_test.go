package bpf_test

import (
	"encoding/binary"
	"errors"

	"github.com/xdp-cni/xdp-cni/bpf"
)

/*
The reference: what a frame is counted as, written from the RFCs and the rules below instead of
from the C, slow and plain. The packet path must agree with it on every frame.

  - Headers are judged from the outside in, and the first fault decides. A header, or a length that
    one states, that reaches past what holds it is truncated; a field with an impossible value is
    malformed.
  - Two VLAN tags are looked through. Eight IPv6 extension headers are; more are malformed, and so
    is a header that starts more than 2048 bytes into the frame.
  - A length of 0 in the IP header stands for the rest of the frame, if that, from the IP header
    on, is longer than 65535 bytes, or if the packet is GSO. In IPv6 it does also before a
    hop-by-hop header, which may hold the true one (RFC 2675).
  - What has no L4 header in the frame has none that can be wrong: all fragments but the first, and
    protocols other than TCP, UDP and the ICMP of the IP version.
*/

// class is what a frame is counted as: protocol is zero if kind says that the frame is broken.
type class struct {
	kind     bpf.DatapathKind
	protocol bpf.DatapathProtocol
}

const (
	kindIPv4 = bpf.DatapathKindKIND_IPV4
	kindIPv6 = bpf.DatapathKindKIND_IPV6

	protocolTCP    = bpf.DatapathProtocolPROTOCOL_TCP
	protocolUDP    = bpf.DatapathProtocolPROTOCOL_UDP
	protocolICMP   = bpf.DatapathProtocolPROTOCOL_ICMP
	protocolICMPv6 = bpf.DatapathProtocolPROTOCOL_ICMPV6
	protocolOther  = bpf.DatapathProtocolPROTOCOL_OTHER
)

var (
	tcp4   = class{kindIPv4, protocolTCP}
	udp4   = class{kindIPv4, protocolUDP}
	icmp4  = class{kindIPv4, protocolICMP}
	other4 = class{kindIPv4, protocolOther}

	tcp6   = class{kindIPv6, protocolTCP}
	udp6   = class{kindIPv6, protocolUDP}
	icmp6  = class{kindIPv6, protocolICMPv6}
	other6 = class{kindIPv6, protocolOther}

	notIP     = class{bpf.DatapathKindKIND_OTHER, protocolOther}
	truncated = class{kind: bpf.DatapathKindKIND_TRUNCATED}
	malformed = class{kind: bpf.DatapathKindKIND_MALFORMED}
)

// String is the class in words.
func (c class) String() string {
	kind := [...]string{"ipv4", "ipv6", "other", "truncated", "malformed"}[c.kind]
	if c.broken() {
		return kind
	}
	return kind + " " + [...]string{"tcp", "udp", "icmp", "icmpv6", "other"}[c.protocol]
}

// broken says whether the frame is counted by kind and verdict alone.
func (c class) broken() bool { return c == truncated || c == malformed }

const (
	maxHeaders    = 2048
	maxTags       = 2
	maxExtensions = 8
)

var (
	errTruncated = errors.New("truncated")
	errMalformed = errors.New("malformed")
)

// classify returns what in is counted as.
func classify(in input) class {
	c, err := classifyFrame(in)
	switch {
	case errors.Is(err, errTruncated):
		return truncated
	case errors.Is(err, errMalformed):
		return malformed
	}
	return c
}

// datagram is an IP datagram within a frame. Offsets are from the start of the frame.
type datagram struct {
	kind     bpf.DatapathKind
	protocol uint8 // the first that is not an extension header's
	payload  int   // where the protocol's header begins
	end      int   // behind the datagram; padding may follow
	fragment bool
	later    bool // a fragment, and not the first
}

func classifyFrame(in input) (class, error) {
	etherType, off, err := in.linkLayer()
	if err != nil {
		return class{}, err
	}
	var d datagram
	switch etherType {
	case 0x0800:
		d, err = in.ipv4(off)
	case 0x86dd:
		d, err = in.ipv6(off)
	default:
		return notIP, nil
	}
	if err != nil {
		return class{}, err
	}
	return in.transport(d)
}

// header returns the size bytes at off of something that ends at end.
func (in input) header(off, size, end int) ([]byte, error) {
	readable := in.readable
	if readable == 0 {
		readable = len(in.frame)
	}
	switch {
	case off+size > end:
		return nil, errTruncated
	case off > maxHeaders:
		return nil, errMalformed
	case off+size > readable:
		return nil, errTruncated
	}
	return in.frame[off : off+size], nil
}

// unstated says whether an IP header at off has no way to state its datagram's length.
func (in input) unstated(off int) bool {
	return in.gsoSize != 0 || len(in.frame)-off > 0xffff
}

func (in input) linkLayer() (etherType uint16, off int, err error) {
	h, err := in.header(0, 14, len(in.frame))
	for tags := 0; err == nil; tags++ {
		off += len(h)
		etherType = binary.BigEndian.Uint16(h[len(h)-2:])
		if tags == maxTags || etherType != 0x8100 && etherType != 0x88a8 {
			return etherType, off, nil
		}
		h, err = in.header(off, 4, len(in.frame))
	}
	return 0, 0, err
}

// ipv4 is by RFC 791.
func (in input) ipv4(off int) (datagram, error) {
	h, err := in.header(off, 20, len(in.frame))
	if err != nil {
		return datagram{}, err
	}
	headerLen := int(h[0]&0xf) * 4
	if h[0]>>4 != 4 || headerLen < 20 {
		return datagram{}, errMalformed
	}
	length := int(binary.BigEndian.Uint16(h[2:]))
	if length == 0 && in.unstated(off) {
		length = len(in.frame) - off
	}
	if length < headerLen {
		return datagram{}, errMalformed
	}
	if off+length > len(in.frame) {
		return datagram{}, errTruncated
	}
	more := h[6]&0x20 != 0
	later := binary.BigEndian.Uint16(h[6:])<<3 != 0
	return datagram{kindIPv4, h[9], off + headerLen, off + length, more || later, later}, nil
}

// ipv6 is by RFC 8200, and RFC 4302 for the length of AH.
func (in input) ipv6(off int) (datagram, error) {
	h, err := in.header(off, 40, len(in.frame))
	if err != nil {
		return datagram{}, err
	}
	if h[0]>>4 != 6 {
		return datagram{}, errMalformed
	}
	d := datagram{kind: kindIPv6, protocol: h[6], payload: off + 40}
	length := int(binary.BigEndian.Uint16(h[4:]))
	if length == 0 && (d.protocol == 0 || in.unstated(off)) {
		length = len(in.frame) - d.payload
	}
	d.end = d.payload + length
	if d.end > len(in.frame) {
		return datagram{}, errTruncated
	}
	for extensions := 0; ; extensions++ {
		if d.later {
			return d, nil // what comes is not the header that the protocol names
		}
		switch d.protocol {
		case 0, 43, 44, 51, 60:
		default:
			return d, nil
		}
		h, err := in.header(d.payload, 8, d.end)
		if err != nil {
			return datagram{}, err
		}
		size := int(h[1])*8 + 8
		switch d.protocol {
		case 44:
			size = 8
			d.later = binary.BigEndian.Uint16(h[2:]) >= 8
			d.fragment = d.fragment || d.later || h[3]&1 != 0
		case 51:
			size = int(h[1])*4 + 8
		}
		d.protocol = h[0]
		d.payload += size
		if d.payload > d.end {
			return datagram{}, errTruncated
		}
		if extensions == maxExtensions {
			return datagram{}, errMalformed
		}
	}
}

// transport is by RFC 9293, 768, 792 and 4443.
func (in input) transport(d datagram) (class, error) {
	c := class{d.kind, protocolOther}
	size := 8
	switch {
	case d.protocol == 6:
		c.protocol, size = protocolTCP, 20
	case d.protocol == 17:
		c.protocol = protocolUDP
	case d.protocol == 1 && d.kind == kindIPv4:
		c.protocol = protocolICMP
	case d.protocol == 58 && d.kind == kindIPv6:
		c.protocol = protocolICMPv6
	default:
		return c, nil
	}
	if d.later {
		return c, nil
	}
	h, err := in.header(d.payload, size, d.end)
	if err != nil {
		return class{}, err
	}
	switch c.protocol {
	case protocolTCP:
		size = int(h[12]>>4) * 4
		if size < 20 {
			return class{}, errMalformed
		}
	case protocolUDP:
		length := int(binary.BigEndian.Uint16(h[4:]))
		if length == 0 && d.kind == kindIPv6 {
			return c, nil // a jumbogram (RFC 2675, 4)
		}
		if length < 8 {
			return class{}, errMalformed
		}
		if !d.fragment { // else the datagram goes on in other frames
			size = length
		}
	}
	if d.payload+size > d.end {
		return class{}, errTruncated
	}
	return c, nil
}
