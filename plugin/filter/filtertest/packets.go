package filtertest

import (
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/filter/model"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

const (
	icmp   = uint8(conf.ProtocolICMP)
	icmp6  = uint8(conf.ProtocolICMPv6)
	tcp    = uint8(conf.ProtocolTCP)
	udp    = uint8(conf.ProtocolUDP)
	destOp = 60 // an IPv6 extension header that may come behind a fragment header
)

// extensions are the numbers of IPv6 extension headers, which never are what a packet holds.
var extensions = []uint8{0, 43, 44, 51, destOp}

var (
	podMAC   = model.MAC{2, 0, 0, 0, 0, 1}
	otherMAC = model.MAC{2, 0, 0, 0, 0, 2}
	local4   = netip.MustParseAddr("10.0.0.5")
	local6   = netip.MustParseAddr("fd00::5")
	link6    = netip.MustParseAddr("fe80::ff:fe00:1")
	host4    = netip.MustParseAddr("10.0.0.1")
	host6    = netip.MustParseAddr("fd00::1")
)

// Pod is the pod whose packets are made.
func Pod() model.Pod {
	return model.Pod{MAC: podMAC, Addresses: []netip.Addr{local4, local6, link6}}
}

// Hosts are the node's own addresses.
func Hosts() []netip.Addr { return []netip.Addr{host4, host6} }

// RandomPacket returns a packet of direction d, at the edges of what a rule of f says.
func RandomPacket(rng *rand.Rand, f *conf.Filter, d conf.Direction) model.Packet {
	p := model.Packet{Source: otherMAC}
	if d == conf.Egress && !chance(rng, 20) {
		p.Source = podMAC
	}
	switch rng.IntN(30) {
	case 0:
		p.EtherType = pick[uint16](rng, 0x88cc, 0x88b5)
		return p
	case 1, 2:
		p.EtherType = model.EtherTypeARP
		if !chance(rng, 6) {
			p.ARP = &model.ARP{SenderMAC: pick(rng, p.Source, p.Source, podMAC, otherMAC),
				SenderIP: pick(rng, local4, local4, host4, netip.IPv4Unspecified(), bases[0])}
		}
		return p
	case 3:
		return model.Packet{Source: p.Source, Broken: true,
			EtherType: pick[uint16](rng, model.EtherTypeIPv4, model.EtherTypeIPv6, model.EtherTypeARP, packets.EtherTypeVLAN)}
	}
	s := RandomSubject(rng, f)
	if chance(rng, 8) {
		s.Remote = pick(rng, host4, host6)
	}
	p.EtherType = model.EtherTypeIPv6
	p.Src = pick(rng, local6, local6, link6)
	if s.Remote.Is4() {
		p.EtherType, p.Src = model.EtherTypeIPv4, local4
	}
	if chance(rng, 15) {
		p.Src = randomSource(rng, s.Remote.Is4())
	}
	p.Dst = s.Remote
	if p.EtherType == model.EtherTypeIPv6 {
		p.HopLimit = pick[uint8](rng, 255, 255, 255, 254, 1, 1)
	}
	if d == conf.Ingress {
		p.Src, p.Dst = p.Dst, p.Src
		p.FromHost = slices.Contains(Hosts(), p.Src)
	}
	p.Protocol = s.Protocol
	if p.EtherType == model.EtherTypeIPv6 && slices.Contains(extensions, p.Protocol) {
		p.Protocol = 47
	}
	switch protocol := conf.Protocol(p.Protocol); {
	case protocol.HasPorts():
		p.SrcPort, p.DstPort = randomPort(rng), s.Port
		if p.Protocol == tcp {
			p.TCPFlags = randomFlags(rng)
		}
	case p.Protocol == familyICMP(&p):
		p.ICMP = randomICMP(rng, f, &p, s)
	}
	if chance(rng, 8) {
		p.Fragment = model.Fragment{First: true, ID: rng.Uint32N(4)}
		p.FromHost = p.FromHost && p.EtherType == model.EtherTypeIPv4
		if chance(rng, 2) {
			p = later(rng, p)
		}
	}
	return p
}

func randomSource(rng *rand.Rand, is4 bool) netip.Addr {
	if is4 {
		return pick(rng, netip.IPv4Unspecified(), host4, bases[0])
	}
	return pick(rng, netip.IPv6Unspecified(), netip.IPv6Unspecified(), host6, netip.AddrFrom16(local4.As16()))
}

func randomFlags(rng *rand.Rand) model.TCPFlags {
	return pick(rng, model.SYN, model.SYN, model.SYN|model.ACK, model.ACK, model.ACK, model.FIN|model.ACK, model.RST,
		model.RST|model.ACK, model.SYN|model.FIN, model.SYN|model.RST, 0)
}

// familyICMP returns the number of the ICMP of the packet's family.
func familyICMP(p *model.Packet) uint8 {
	if p.EtherType == model.EtherTypeIPv4 {
		return icmp
	}
	return icmp6
}

// later returns a later fragment of the datagram of p.
func later(rng *rand.Rand, p model.Packet) model.Packet {
	p.Fragment.First, p.Fragment.Later = false, true
	p.SrcPort, p.DstPort, p.TCPFlags, p.ICMP = 0, 0, 0, nil
	if p.EtherType == model.EtherTypeIPv6 && chance(rng, 3) {
		p.Protocol = destOp
	}
	return p
}

func randomICMP(rng *rand.Rand, f *conf.Filter, p *model.Packet, s model.Subject) *model.ICMP {
	m := &model.ICMP{Type: s.ICMPType, Code: s.ICMPCode}
	if chance(rng, 2) {
		m.Type = pick[uint8](rng, 0, 8, 8, 3, 5, 11, 12, 13, 14, 17)
		if p.Protocol == icmp6 {
			m.Type = pick[uint8](rng, 128, 128, 129, 1, 2, 3, 4, 133, 134, 135, 135, 136, 136, 137, 143)
		}
	}
	switch t := m.Type; {
	case isEcho(p.Protocol, t):
		m.Identifier = pick[uint16](rng, 0, 1, 7, 0xffff)
	case p.Protocol == icmp6 && t >= 133 && t <= 137:
		m.ND = randomND(rng, t)
	case quotes(p.Protocol, t) && !chance(rng, 6):
		is4 := p.EtherType == model.EtherTypeIPv4
		in := &model.Inner{Src: p.Dst, Dst: p.Src, Protocol: pick(rng, tcp, udp, 47, p.Protocol)}
		if conf.Protocol(in.Protocol).HasPorts() {
			in.SrcPort, in.DstPort = randomPort(rng), randomPort(rng)
		}
		if in.Protocol == p.Protocol {
			in.ICMPType, in.Identifier = uint8(128), 7
			if is4 {
				in.ICMPType = 8
			}
		}
		m.Inner = in
	}
	return m
}

func randomND(rng *rand.Rand, icmpType uint8) *model.ND {
	nd := &model.ND{}
	if icmpType == 134 || icmpType == 137 {
		return nd
	}
	if icmpType == 135 || icmpType == 136 {
		nd.Target = pick(rng, local6, local6, link6, host6, bases[6])
	}
	mac := func() model.MAC { return pick(rng, podMAC, podMAC, podMAC, otherMAC) }
	for range pick(rng, 0, 1, 1, 2) {
		nd.SourceLinkLayer = append(nd.SourceLinkLayer, mac())
	}
	for range pick(rng, 0, 0, 1, 2) {
		nd.TargetLinkLayer = append(nd.TargetLinkLayer, mac())
	}
	return nd
}

func isEcho(protocol, t uint8) bool {
	return protocol == icmp && (t == 0 || t == 8) || protocol == icmp6 && (t == 128 || t == 129)
}

// quotes says whether messages of a type hold the packet that they are about.
func quotes(protocol, t uint8) bool {
	return protocol == icmp && slices.Contains([]uint8{3, 4, 5, 11, 12}, t) || protocol == icmp6 && t < 128
}

// Traffic makes packets that have to do with each other: half of them answer, repeat, continue or
// report one of the last.
type Traffic struct {
	rng    *rand.Rand
	filter *conf.Filter
	recent []sent
}

type sent struct {
	packet    model.Packet
	direction conf.Direction
}

// NewTraffic returns traffic at the edges of what the rules of f say.
func NewTraffic(rng *rand.Rand, f *conf.Filter) *Traffic { return &Traffic{rng: rng, filter: f} }

// Next returns the next packet, and which way it goes.
func (t *Traffic) Next() (model.Packet, conf.Direction) {
	d := pick(t.rng, conf.Egress, conf.Ingress)
	if len(t.recent) == 0 || chance(t.rng, 2) {
		p := RandomPacket(t.rng, t.filter, d)
		if !p.Broken && p.Src.IsValid() {
			if t.recent = append(t.recent, sent{p, d}); len(t.recent) > 12 {
				t.recent = t.recent[1:]
			}
		}
		return p, d
	}
	last := pick(t.rng, t.recent...)
	p, d := last.packet, last.direction
	switch t.rng.IntN(8) {
	case 0:
		if p.Fragment.First {
			return later(t.rng, p), d
		}
	case 1:
		if !p.Fragment.Later {
			return t.report(p, d), opposite(d)
		}
	case 2: // the same again
		if p.Protocol == tcp && !p.Fragment.Later {
			p.TCPFlags = randomFlags(t.rng)
		}
		return p, d
	}
	return t.reply(p, d), opposite(d)
}

// answer returns a packet of the other direction without anything behind the IP header.
func answer(p model.Packet, d conf.Direction) model.Packet {
	a := model.Packet{Source: otherMAC, EtherType: p.EtherType, Src: p.Dst, Dst: p.Src, HopLimit: p.HopLimit, Protocol: p.Protocol}
	if d == conf.Ingress {
		a.Source = podMAC
	} else {
		a.FromHost = slices.Contains(Hosts(), a.Src)
	}
	return a
}

func (t *Traffic) reply(p model.Packet, d conf.Direction) model.Packet {
	r := answer(p, d)
	if r.Fragment = p.Fragment; r.Fragment != (model.Fragment{}) {
		r.FromHost = r.FromHost && r.EtherType == model.EtherTypeIPv4
	}
	r.SrcPort, r.DstPort = p.DstPort, p.SrcPort
	if p.Protocol == tcp && !p.Fragment.Later {
		r.TCPFlags = randomFlags(t.rng)
	}
	if p.ICMP != nil {
		m := *p.ICMP
		if isEcho(p.Protocol, m.Type) {
			m.Type = pick[uint8](t.rng, 0, 0, 8)
			if p.Protocol == icmp6 {
				m.Type = pick[uint8](t.rng, 129, 129, 128)
			}
		}
		if p.Protocol == icmp && m.Type == 13 {
			m.Type = 14 // timestamp reply
		}
		r.ICMP = &m
	}
	return r
}

// report returns an ICMP error about p.
func (t *Traffic) report(p model.Packet, d conf.Direction) model.Packet {
	r := answer(p, d)
	r.Protocol = familyICMP(&p)
	if chance(t.rng, 6) { // to somebody else
		r.Dst = RandomPacket(t.rng, t.filter, opposite(d)).Dst
		if r.Dst.Is4() != p.Src.Is4() || !r.Dst.IsValid() {
			r.Dst = p.Dst
		}
	}
	in := &model.Inner{Src: p.Src, Dst: p.Dst, Protocol: p.Protocol, SrcPort: p.SrcPort, DstPort: p.DstPort}
	if p.ICMP != nil {
		in.ICMPType, in.Identifier = p.ICMP.Type, p.ICMP.Identifier
	}
	m := &model.ICMP{Type: pick[uint8](t.rng, 3, 4, 5, 11, 12), Inner: in}
	if r.Protocol == icmp6 {
		m.Type = pick[uint8](t.rng, 1, 2, 3, 4, 100)
	}
	r.ICMP = m
	return r
}

func opposite(d conf.Direction) conf.Direction { return 1 - d }
