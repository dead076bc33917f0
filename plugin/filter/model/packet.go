package model

import "net/netip"

// EtherTypes and protocol numbers that the semantics name.
const (
	EtherTypeIPv4 = 0x0800
	EtherTypeARP  = 0x0806
	EtherTypeIPv6 = 0x86dd

	protocolICMP   = 1
	protocolTCP    = 6
	protocolUDP    = 17
	protocolICMPv6 = 58
	protocolSCTP   = 132
)

// MAC is an Ethernet address.
type MAC [6]byte

// TCPFlags are the flags of a TCP header (RFC 9293, 3.1).
type TCPFlags uint8

const (
	FIN TCPFlags = 1 << 0
	SYN TCPFlags = 1 << 1
	RST TCPFlags = 1 << 2
	ACK TCPFlags = 1 << 4
)

// Packet is what a parser sees of a packet.
type Packet struct {
	// Broken is set for a packet with a header, or a length that one states, that reaches past what
	// holds it, with fields that contradict each other, or with more than two VLAN tags. Nothing else
	// is known of it. It is broken also if it is a router solicitation, or a solicitation or advertisement of a neighbour, with
	// more than 8 options or some that cannot be walked, of length 0 or past its end (RFC 4861, 4.6),
	// or with a link-layer address of another length than Ethernet's.
	Broken bool
	// FromHost is set if the source is one of the node's own addresses and the packet is not
	// another's, forwarded. It is not set for IPv6 with extension headers, of which that is not known.
	FromHost bool

	Source    MAC    // of the Ethernet header
	EtherType uint16 // behind all VLAN tags

	ARP *ARP // nil if it is none of IPv4 over Ethernet

	// The rest is of IP packets only.

	// Src and Dst may be IPv4-mapped in IPv6. To the filter they are then IPv4.
	Src, Dst netip.Addr
	HopLimit uint8 // of IPv6
	Protocol uint8 // of the header behind the extension headers; of a later fragment, as its fragment header says
	Fragment Fragment
	// SrcPort and DstPort are those of TCP, UDP and SCTP. A later fragment has none of what follows.
	SrcPort, DstPort uint16
	TCPFlags         TCPFlags
	ICMP             *ICMP // of ICMP over IPv4 and of ICMPv6 over IPv6
}

// ARP is the sender in an ARP packet (RFC 826).
type ARP struct {
	SenderMAC MAC
	SenderIP  netip.Addr
}

// Fragment says which part of a fragmented datagram a packet is; neither First nor Later is set if it
// is whole, as an atomic fragment (RFC 6946) is.
type Fragment struct {
	First, Later bool
	ID           uint32
}

// ICMP is an ICMP or ICMPv6 message.
type ICMP struct {
	Type, Code uint8
	Identifier uint16 // of echo requests and replies
	ND         *ND    // of neighbour discovery messages (RFC 4861)
	// Inner is the packet that an error quotes; nil if its header, or the first 8 bytes behind that,
	// are not all there, or if it is a later fragment.
	Inner *Inner
}

// ND is what a neighbour discovery message claims.
type ND struct {
	Target netip.Addr // of solicitations and advertisements of neighbours
	// SourceLinkLayer and TargetLinkLayer are the addresses in the options of those names, all of
	// them: a receiver takes the first, but which that is should not matter.
	SourceLinkLayer, TargetLinkLayer []MAC
}

// Inner is a packet quoted in an ICMP error.
type Inner struct {
	Src, Dst         netip.Addr
	Protocol         uint8
	SrcPort, DstPort uint16 // of TCP, UDP and SCTP
	ICMPType         uint8  // of ICMP over IPv4 and of ICMPv6 over IPv6
	Identifier       uint16 // of echo requests and replies
}

func (p *Packet) isIP() bool { return p.EtherType == EtherTypeIPv4 || p.EtherType == EtherTypeIPv6 }

// isND says whether p is a neighbour discovery message (RFC 4861).
func (p *Packet) isND() bool {
	return p.Protocol == protocolICMPv6 && p.ICMP != nil && p.ICMP.Type >= 133 && p.ICMP.Type <= 137
}

// isMLD says whether p is a multicast listener message (RFC 2710, RFC 3810), which no router forwards.
func (p *Packet) isMLD() bool {
	if p.Protocol != protocolICMPv6 || p.ICMP == nil || p.HopLimit != 1 {
		return false
	}
	t := p.ICMP.Type
	return t >= 130 && t <= 132 || t == 143
}

// isEcho says whether an ICMP type of a protocol is that of echo requests or replies.
func isEcho(protocol, icmpType uint8) bool {
	return protocol == protocolICMP && (icmpType == 8 || icmpType == 0) ||
		protocol == protocolICMPv6 && (icmpType == 128 || icmpType == 129)
}

func isEchoRequest(protocol, icmpType uint8) bool {
	return protocol == protocolICMP && icmpType == 8 || protocol == protocolICMPv6 && icmpType == 128
}

// questionOf returns the ICMP type that a message of one answers, or else that type (RFC 792, RFC 950).
func questionOf(protocol, icmpType uint8) uint8 {
	if protocol == protocolICMP {
		switch icmpType {
		case 14, 16, 18: // timestamp, information, address mask reply
			return icmpType - 1
		}
	}
	return icmpType
}

// isICMPError says whether an ICMP type of a protocol is that of a message about another packet
// (RFC 1122, 3.2.2; RFC 4443, 2.1).
func isICMPError(protocol, icmpType uint8) bool {
	switch protocol {
	case protocolICMP:
		return icmpType == 3 || icmpType == 4 || icmpType == 5 || icmpType == 11 || icmpType == 12
	case protocolICMPv6:
		return icmpType < 128
	}
	return false
}

// isRelated says whether ICMP errors of a type pass with the flow that they are about. Redirects (5)
// do not: they are about the way of all packets, and whoever sends one need not be a router.
func isRelated(protocol, icmpType uint8) bool {
	switch protocol {
	case protocolICMP:
		return icmpType == 3 || icmpType == 4 || icmpType == 11 || icmpType == 12
	case protocolICMPv6:
		return icmpType >= 1 && icmpType <= 4
	}
	return false
}

func hasPorts(protocol uint8) bool {
	return protocol == protocolTCP || protocol == protocolUDP || protocol == protocolSCTP
}
