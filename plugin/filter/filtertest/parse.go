package filtertest

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/filter/model"
)

// Parse returns what frame, in direction d, is to the model: for frames that nobody made from a
// packet. Lengths of 0 in IP headers (BIG TCP) and jumbograms are not for it.
func Parse(frame []byte, d conf.Direction) model.Packet {
	r := &reader{data: frame}
	p := model.Packet{}
	r.take(6)
	p.Source = model.MAC(r.take(6))
	p.EtherType = r.uint16()
	for range 2 {
		if p.EtherType == 0x8100 || p.EtherType == 0x88a8 {
			r.take(2)
			p.EtherType = r.uint16()
		}
	}
	switch p.EtherType {
	case 0x8100, 0x88a8:
		r.broken = true
	case model.EtherTypeARP:
		parseARP(r, &p)
	case model.EtherTypeIPv4:
		parseIPv4(r, &p)
	case model.EtherTypeIPv6:
		parseIPv6(r, &p)
	}
	p.FromHost = d == conf.Ingress && slices.Contains(Hosts(), p.Src) && !r.extended
	if r.broken {
		return model.Packet{Broken: true, Source: p.Source, EtherType: p.EtherType}
	}
	return p
}

// reader takes bytes off the front of data; past its end it returns zeros, and is broken.
type reader struct {
	data     []byte
	broken   bool
	extended bool // there were IPv6 extension headers
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.data) {
		r.broken = true
		return make([]byte, max(0, n))
	}
	taken := r.data[:n]
	r.data = r.data[n:]
	return taken
}

func (r *reader) uint8() uint8   { return r.take(1)[0] }
func (r *reader) uint16() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) address4() netip.Addr {
	return netip.AddrFrom4([4]byte(r.take(4)))
}
func (r *reader) address6() netip.Addr {
	return netip.AddrFrom16([16]byte(r.take(16)))
}

// limit cuts what is left to n bytes: padding may be behind them.
func (r *reader) limit(n int) {
	if n < 0 || n > len(r.data) {
		r.broken = true
		return
	}
	r.data = r.data[:n]
}

func parseARP(r *reader, p *model.Packet) {
	kind := r.take(6)
	r.take(2)
	a := &model.ARP{SenderMAC: model.MAC(r.take(6)), SenderIP: r.address4()}
	r.take(10)
	if slices.Equal(kind, []byte{0, 1, 8, 0, 6, 4}) {
		p.ARP = a
	}
}

func parseIPv4(r *reader, p *model.Packet) {
	first := r.uint8()
	header := int(first&0xf) * 4
	r.take(1)
	total := int(r.uint16())
	id, fragment := r.uint16(), r.uint16()
	r.take(1)
	p.Protocol = r.uint8()
	r.take(2)
	p.Src, p.Dst = r.address4(), r.address4()
	if first>>4 != 4 || header < 20 || total < header {
		r.broken = true
		return
	}
	r.limit(total - 20)
	r.take(header - 20)
	setFragment(p, uint32(id), fragment&0x1fff != 0, fragment&0x2000 != 0)
	parseTransport(r, p)
}

func setFragment(p *model.Packet, id uint32, offset, more bool) {
	if offset || more {
		p.Fragment = model.Fragment{First: !offset, Later: offset, ID: id}
	}
}

func parseIPv6(r *reader, p *model.Packet) {
	version := r.uint8() >> 4
	r.take(3)
	length := int(r.uint16())
	next := r.uint8()
	p.HopLimit = r.uint8()
	p.Src, p.Dst = r.address6(), r.address6()
	r.limit(length)
	if version != 6 {
		r.broken = true
	}
	for n := 0; !r.broken && slices.Contains(extensions, next) && !p.Fragment.Later; n++ {
		if n == 8 {
			r.broken = true
			return
		}
		r.extended = true
		kind := next
		next = r.uint8()
		size := int(r.uint8())
		switch kind {
		case 44:
			offset := r.uint16()
			setFragment(p, binary.BigEndian.Uint32(r.take(4)), offset&0xfff8 != 0, offset&1 != 0)
		case 51:
			r.take((size+2)*4 - 2)
		default:
			r.take((size+1)*8 - 2)
		}
	}
	p.Protocol = next
	parseTransport(r, p)
}

func parseTransport(r *reader, p *model.Packet) {
	if p.Fragment.Later || r.broken {
		return
	}
	all := len(r.data)
	switch {
	case p.Protocol == tcp:
		p.SrcPort, p.DstPort = r.uint16(), r.uint16()
		r.take(8)
		size := int(r.uint8()>>4) * 4
		// FIN, SYN, RST, PSH, ACK, URG; the model knows them all by their bits
		p.TCPFlags = model.TCPFlags(r.uint8())
		r.take(6)
		if size < 20 || size > all {
			r.broken = true
		}
	case p.Protocol == udp:
		p.SrcPort, p.DstPort = r.uint16(), r.uint16()
		size := int(r.uint16())
		r.take(2)
		if jumbo := size == 0 && p.EtherType == model.EtherTypeIPv6; !jumbo && (size < 8 || size > all && !p.Fragment.First) {
			r.broken = true
		}
	case conf.Protocol(p.Protocol).HasPorts():
		p.SrcPort, p.DstPort = r.uint16(), r.uint16()
		r.take(8)
	case p.Protocol == familyICMP(p):
		parseICMP(r, p)
	}
}

func parseICMP(r *reader, p *model.Packet) {
	m := &model.ICMP{Type: r.uint8(), Code: r.uint8()}
	r.take(2)
	rest := r.take(4)
	p.ICMP = m
	switch {
	case isEcho(p.Protocol, m.Type):
		m.Identifier = binary.BigEndian.Uint16(rest)
	case p.Protocol == icmp6 && m.Type >= 133 && m.Type <= 137:
		m.ND = parseND(r, m.Type)
	case quotes(p.Protocol, m.Type):
		m.Inner = parseInner(&reader{data: r.data}, p.EtherType)
	}
}

// maxOptions is how many options a neighbour discovery message may have.
const maxOptions = 8

// parseND reads the part of the message that its type has, and its options (RFC 4861, 4.1 to 4.6).
func parseND(r *reader, icmpType uint8) *model.ND {
	nd := &model.ND{}
	switch icmpType {
	case 134, 137:
		return nd
	case 135, 136:
		nd.Target = r.address6()
	}
	for n := 0; !r.broken && len(r.data) > 0; n++ {
		if n == maxOptions {
			r.broken = true
			break
		}
		number, size := r.uint8(), int(r.uint8())
		body := r.take(8*size - 2)
		if number != 1 && number != 2 || r.broken {
			continue
		}
		if size != 1 {
			r.broken = true
			break
		}
		if number == 1 {
			nd.SourceLinkLayer = append(nd.SourceLinkLayer, model.MAC(body))
		} else {
			nd.TargetLinkLayer = append(nd.TargetLinkLayer, model.MAC(body))
		}
	}
	return nd
}

// parseInner reads a quoted packet of the family of the one that quotes it. Extension headers in it are
// not walked: they are its protocol.
func parseInner(r *reader, etherType uint16) *model.Inner {
	in := &model.Inner{}
	is := icmp
	if etherType == model.EtherTypeIPv4 {
		first := r.uint8()
		r.take(5)
		later := r.uint16()&0x1fff != 0
		r.take(1)
		in.Protocol = r.uint8()
		r.take(2)
		in.Src, in.Dst = r.address4(), r.address4()
		r.take(int(first&0xf)*4 - 20)
		if first>>4 != 4 || later {
			return nil
		}
	} else {
		is = icmp6
		version := r.uint8() >> 4
		r.take(5)
		in.Protocol = r.uint8()
		r.take(1)
		in.Src, in.Dst = r.address6(), r.address6()
		if version != 6 {
			return nil
		}
	}
	head := r.take(8)
	switch {
	case r.broken:
		return nil
	case conf.Protocol(in.Protocol).HasPorts():
		in.SrcPort, in.DstPort = binary.BigEndian.Uint16(head), binary.BigEndian.Uint16(head[2:])
	case in.Protocol == is:
		in.ICMPType = head[0]
		if isEcho(in.Protocol, in.ICMPType) {
			in.Identifier = binary.BigEndian.Uint16(head[4:])
		}
	}
	return in
}
