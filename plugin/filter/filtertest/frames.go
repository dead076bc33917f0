package filtertest

import (
	"bytes"
	"math/rand/v2"
	"net/netip"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/filter/model"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// Frame returns a frame that holds p, with what the filter does not look at at random: VLAN tags, IP
// options, extension headers, payload, padding. For a broken packet it is one of many ways to be that.
func Frame(rng *rand.Rand, p model.Packet) []byte {
	ethernet := packets.Ethernet{Src: packets.MAC(p.Source), Dst: packets.MAC(podMAC)}
	if p.Source == podMAC {
		ethernet.Dst = packets.MAC(otherMAC)
	}
	layers := []packets.Layer{ethernet}
	for i := range pick(rng, 0, 0, 0, 1, 2) {
		layers = append(layers, packets.VLAN{Service: i == 0 && chance(rng, 2), ID: 7})
	}
	switch {
	case p.Broken:
		return brokenFrame(rng, layers, p.EtherType)
	case p.EtherType == model.EtherTypeARP:
		layers = append(layers, arp(rng, p.ARP))
	case p.EtherType == model.EtherTypeIPv4 || p.EtherType == model.EtherTypeIPv6:
		layers = append(layers, ip(rng, &p)...)
	default:
		layers[len(layers)-1] = withType(layers[len(layers)-1], p.EtherType)
		layers = append(layers, packets.Data(50))
	}
	frame := packets.Frame(layers...)
	if chance(rng, 2) {
		frame = packets.Pad(frame, packets.MinFrame)
	}
	return frame
}

func withType(l packets.Layer, etherType uint16) packets.Layer {
	if v, ok := l.(packets.VLAN); ok {
		v.Type = &etherType
		return v
	}
	e, _ := l.(packets.Ethernet)
	e.Type = &etherType
	return e
}

func arp(rng *rand.Rand, a *model.ARP) packets.Layer {
	if a == nil {
		return packets.ARP{HardwareType: new(uint16(6))} // IEEE 802
	}
	return packets.ARP{SenderMAC: packets.MAC(a.SenderMAC), SenderIP: a.SenderIP,
		Operation: new(pick[uint16](rng, 1, 2))}
}

// ip returns the layers of p from the IP header on.
func ip(rng *rand.Rand, p *model.Packet) []packets.Layer {
	var layers []packets.Layer
	fragmented := p.Fragment.First || p.Fragment.Later
	offset := uint16(0)
	if p.Fragment.Later {
		offset = pick[uint16](rng, 1, 8, 185, 0x1fff)
	}
	more := p.Fragment.First || p.Fragment.Later && chance(rng, 2)
	if p.EtherType == model.EtherTypeIPv4 {
		header := packets.IPv4{Src: p.Src, Dst: p.Dst, ID: uint16(p.Fragment.ID), MoreFragments: more,
			FragmentOffset: offset, Protocol: &p.Protocol}
		if chance(rng, 4) {
			header.Options = packets.Data(1 + rng.IntN(40)) // never looked at
		}
		layers = append(layers, header)
	} else {
		layers = append(layers, packets.IPv6{Src: p.Src, Dst: p.Dst, HopLimit: &p.HopLimit})
		if !p.FromHost && chance(rng, 6) {
			layers = append(layers, packets.HopByHop())
		}
		if fragmented || !p.FromHost && chance(rng, 8) {
			layers = append(layers, packets.Fragment{ID: &p.Fragment.ID, Offset: offset, More: more})
		}
		if !p.Fragment.Later && !p.FromHost && chance(rng, 6) {
			layers = append(layers, pick[packets.Layer](rng, packets.DestOptions(), packets.Routing(), packets.AH{ICV: make([]byte, 12)}))
		}
		layers[len(layers)-1] = withNext(layers[len(layers)-1], p.Protocol)
	}
	if p.Fragment.Later {
		return append(layers, packets.Data(8+rng.IntN(64)))
	}
	return append(layers, transport(rng, p)...)
}

// withNext returns the layer with the number of what comes behind it: tests/packets knows that of its
// own layers only, and not if there is none.
func withNext(l packets.Layer, number uint8) packets.Layer {
	switch h := l.(type) {
	case packets.IPv6:
		h.NextHeader = &number
		return h
	case packets.Extension:
		h.NextHeader = &number
		return h
	case packets.Fragment:
		h.NextHeader = &number
		return h
	case packets.AH:
		h.NextHeader = &number
		return h
	}
	return l
}

func transport(rng *rand.Rand, p *model.Packet) []packets.Layer {
	data := packets.Data(rng.IntN(100))
	ports := &packets.Ports{Src: p.SrcPort, Dst: p.DstPort}
	switch {
	case p.Protocol == tcp:
		header := packets.TCP{Ports: ports, Flags: new(uint8(p.TCPFlags))}
		if chance(rng, 3) {
			header.Options = packets.Data(1 + rng.IntN(40))
		}
		return []packets.Layer{header, data}
	case p.Protocol == udp:
		return []packets.Layer{packets.UDP{Ports: ports}, data}
	case conf.Protocol(p.Protocol).HasPorts():
		return []packets.Layer{packets.SCTP{Ports: ports}, data}
	case p.ICMP != nil:
		return icmpLayers(rng, p.Protocol, p.ICMP)
	}
	return []packets.Layer{data}
}

func icmpLayers(rng *rand.Rand, protocol uint8, m *model.ICMP) []packets.Layer {
	rest := &[4]byte{0, 0, 0, 1}
	payload := packets.Data(rng.IntN(40))
	switch {
	case isEcho(protocol, m.Type):
		rest[0], rest[1] = byte(m.Identifier>>8), byte(m.Identifier)
	case m.ND != nil:
		payload = ndBody(rng, m)
	case m.Inner != nil:
		payload = packets.Frame(inner(rng, m.Inner)...)
	case quotes(protocol, m.Type):
		payload = packets.Data(rng.IntN(20)) // less than an IP header
	}
	if protocol == icmp {
		return []packets.Layer{packets.ICMP{Type: &m.Type, Code: m.Code, Rest: rest}, payload}
	}
	return []packets.Layer{packets.ICMPv6{Type: &m.Type, Code: m.Code, Rest: rest}, payload}
}

// ndBody returns what is behind the first 8 bytes of a neighbour discovery message.
func ndBody(rng *rand.Rand, m *model.ICMP) packets.Payload {
	var body packets.Payload
	switch m.Type {
	case 134:
		body = make(packets.Payload, 8) // times
	case 135, 136:
		body = m.ND.Target.AsSlice()
	case 137:
		body = make(packets.Payload, 32) // target and destination
	}
	for _, option := range []struct {
		number uint8
		macs   []model.MAC
	}{{1, m.ND.SourceLinkLayer}, {2, m.ND.TargetLinkLayer}} {
		if chance(rng, 4) {
			body = append(body, 14, 1, 1, 2, 3, 4, 5, 6) // a nonce (RFC 3971)
		}
		for _, mac := range option.macs {
			body = append(append(body, option.number, 1), mac[:]...)
		}
	}
	return body
}

// inner returns the layers of a packet that an ICMP error quotes, most often cut to 8 bytes behind its
// IP header.
func inner(rng *rand.Rand, in *model.Inner) []packets.Layer {
	data := packets.Data(pick(rng, 8, 8, 40))
	switch {
	case conf.Protocol(in.Protocol).HasPorts():
		data[0], data[1], data[2], data[3] = byte(in.SrcPort>>8), byte(in.SrcPort), byte(in.DstPort>>8), byte(in.DstPort)
	case in.Protocol == icmp || in.Protocol == icmp6:
		data[0], data[4], data[5] = in.ICMPType, byte(in.Identifier>>8), byte(in.Identifier)
	}
	if in.Src.Is4() && in.Dst.Is4() {
		header := packets.IPv4{Src: in.Src, Dst: in.Dst, Protocol: &in.Protocol, TotalLen: new(uint16(1500))}
		if chance(rng, 4) {
			header.Options = packets.Data(8)
		}
		return []packets.Layer{header, data}
	}
	return []packets.Layer{packets.IPv6{Src: in.Src, Dst: in.Dst, NextHeader: &in.Protocol, PayloadLen: new(uint16(1400))}, data}
}

// brokenFrame returns a frame that its receiver would not take either.
func brokenFrame(rng *rand.Rand, outer []packets.Layer, etherType uint16) []byte {
	start := len(packets.Frame(outer...))
	outer[len(outer)-1] = withType(outer[len(outer)-1], etherType)
	build := func(layers ...packets.Layer) []byte { return packets.Frame(append(outer, layers...)...) }
	cut := func(frame []byte) []byte { return frame[:start+rng.IntN(len(frame)-start)] }
	own4, own6 := packets.IPv4{Src: local4, Dst: bases[0]}, packets.IPv6{Src: local6, Dst: bases[6], HopLimit: new(uint8(255))}
	udpHeader, tcpHeader := packets.UDP{}, packets.TCP{}
	switch etherType {
	case packets.EtherTypeVLAN: // too many tags
		return packets.Frame(outer[0], packets.VLAN{Service: chance(rng, 2)}, packets.VLAN{}, packets.VLAN{}, own4, udpHeader)
	case model.EtherTypeARP:
		return cut(build(packets.ARP{}))
	case model.EtherTypeIPv4:
		short := own4
		switch rng.IntN(6) {
		case 0:
			return cut(build(own4, udpHeader))
		case 1:
			return cut(build(own4, tcpHeader))
		case 2:
			short.IHL = new(uint8(rng.IntN(5)))
		case 3:
			short.Version = new(uint8(6))
		case 4:
			short.TotalLen = new(uint16(1 + rng.IntN(19)))
		case 5:
			return build(own4, packets.UDP{Len: new(uint16(rng.IntN(8)))}, packets.Data(8))
		}
		return build(short, udpHeader)
	}
	switch rng.IntN(6) {
	case 5: // too many options
		return build(own6, packets.ICMPv6{Type: new(uint8(133)), Rest: new([4]byte)},
			packets.Payload(bytes.Repeat([]byte{1, 1, 2, 0, 0, 0, 0, 1}, maxOptions+1)))
	case 0:
		return cut(build(own6, packets.HopByHop(), udpHeader))
	case 1:
		return build(own6, packets.TCP{DataOffset: new(uint8(rng.IntN(5)))})
	case 2:
		own6.Version = new(uint8(4))
		return build(own6, udpHeader)
	case 3: // an option of length 0
		return build(own6, packets.ICMPv6{Type: new(uint8(135)), Rest: new([4]byte)},
			packets.Payload(append(netip.IPv6Unspecified().AsSlice(), 1, 0, 2, 0, 0, 0, 0, 1)))
	default: // an option past the end
		return build(own6, packets.ICMPv6{Type: new(uint8(136)), Rest: new([4]byte)},
			packets.Payload(append(local6.AsSlice(), 2, 2, 2, 0, 0, 0, 0, 1)))
	}
}
