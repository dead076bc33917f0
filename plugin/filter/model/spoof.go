package model

import (
	"net/netip"
	"slices"
)

// spoofed says whether a packet that the pod sent claims to be from, or to be, somebody else.
func (m *Model) spoofed(p *Packet) bool {
	if p.Source != m.pod.MAC {
		return true
	}
	switch p.EtherType {
	case EtherTypeARP:
		// What is not IPv4 over Ethernet claims what nobody can check.
		return p.ARP == nil || p.ARP.SenderMAC != m.pod.MAC ||
			!m.owns(p.ARP.SenderIP) && p.ARP.SenderIP != netip.IPv4Unspecified() // a probe (RFC 5227)
	case EtherTypeIPv4:
		return !m.owns(p.Src) && !p.isDHCP()
	case EtherTypeIPv6:
		return !m.owns(p.Src) && !p.isFromNowhere() || m.spoofedND(p)
	}
	return false
}

// isDHCP says whether p is from a DHCP client without an address (RFC 2131).
func (p *Packet) isDHCP() bool {
	return p.Src == netip.IPv4Unspecified() && p.Protocol == protocolUDP && !p.Fragment.Later &&
		p.SrcPort == 68 && p.DstPort == 67
}

// isFromNowhere says whether p is one of the messages that a node sends from :: before it has an
// address: duplicate address detection and router solicitation (RFC 4861, 4.1, 4.3), multicast
// listener reports (RFC 3590).
func (p *Packet) isFromNowhere() bool {
	if p.Src != netip.IPv6Unspecified() || p.Protocol != protocolICMPv6 || p.ICMP == nil {
		return false
	}
	switch p.ICMP.Type {
	case 131, 132, 133, 135, 143:
		return true
	}
	return false
}

// spoofedND says whether p claims an address that is not the pod's, or one of the pod's for another
// MAC, or to be a router or to know of a better one. The last two would let a pod take over the IPv6
// of all its neighbours (CVE-2020-10749).
func (m *Model) spoofedND(p *Packet) bool {
	if !p.isND() {
		return false
	}
	others := func(macs []MAC) bool {
		return slices.ContainsFunc(macs, func(mac MAC) bool { return mac != m.pod.MAC })
	}
	nd := p.ICMP.ND
	if nd == nil {
		nd = &ND{} // owned by nobody
	}
	switch p.ICMP.Type {
	case 133:
		return others(nd.SourceLinkLayer)
	case 134, 137:
		return true
	case 135:
		if p.Src == netip.IPv6Unspecified() { // duplicate address detection (RFC 4862, 5.4.3)
			return !m.owns(nd.Target)
		}
		return others(nd.SourceLinkLayer)
	default: // 136
		return !m.owns(nd.Target) || others(nd.TargetLinkLayer)
	}
}

func (m *Model) owns(a netip.Addr) bool { return slices.Contains(m.pod.Addresses, a.Unmap()) }
