package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/filter/model"
)

// packetFlags are the flags of filter test that describe a packet.
type packetFlags struct {
	egress, ingress bool
	protocol        string
	from, to        string
	icmp            string
}

func (p *packetFlags) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&p.egress, "egress", false, "the pod sends it")
	cmd.Flags().BoolVar(&p.ingress, "ingress", false, "it comes for the pod")
	cmd.Flags().StringVar(&p.protocol, "protocol", "", "its `protocol`: tcp, udp, sctp, icmp, icmpv6 or a number")
	cmd.Flags().StringVar(&p.from, "from", "", "its source, `address[:port]`, IPv6 in brackets if there is a port")
	cmd.Flags().StringVar(&p.to, "to", "", "its destination, `address[:port]`, or :port of the pod")
	cmd.Flags().StringVar(&p.icmp, "icmp", "", "its ICMP `type[/code]`; without it, an echo request")
	for flag, words := range map[string][]cobra.Completion{
		"protocol": {"tcp", "udp", "sctp", "icmp", "icmpv6"},
		"from":     nil, "to": nil, "icmp": nil,
	} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
}

// packet is a flow's first packet, as far as a filter asks about it.
type packet struct {
	direction conf.Direction
	protocol  uint8
	// local is the pod's end. Its address is not valid if none was given.
	local, remote endpoint
	icmp          *conf.ICMP // with its code; nil if it is none
}

// endpoint is an address, a port or both.
type endpoint struct {
	address netip.Addr // IPv4 as such
	port    uint16
	hasPort bool
}

// parseEndpoint reads "address", "address:port", "[address]:port", or ":port".
func parseEndpoint(s string) (endpoint, error) {
	var e endpoint
	bad := func() (endpoint, error) {
		return endpoint{}, fmt.Errorf("%q is no address such as 10.0.0.1, 10.0.0.1:443, fd00::1 or [fd00::1]:443", s)
	}
	address, port := s, ""
	if strings.HasPrefix(s, "[") {
		var found bool
		if address, port, found = strings.Cut(s[1:], "]"); !found || port != "" && port[0] != ':' {
			return bad()
		}
		port, e.hasPort = strings.CutPrefix(port, ":")
	} else if strings.Count(s, ":") == 1 {
		address, port, e.hasPort = strings.Cut(s, ":")
	}
	if address != "" || !e.hasPort || strings.HasPrefix(s, "[") {
		parsed, err := netip.ParseAddr(address)
		if err != nil || parsed.Zone() != "" {
			return bad()
		}
		e.address = parsed.Unmap()
	}
	if e.hasPort {
		number, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return endpoint{}, fmt.Errorf("%q has no port from 0 to 65535 behind the colon", s)
		}
		e.port = uint16(number)
	}
	return e, nil
}

// parse returns the packet that the flags describe; errors are of usage.
func (p *packetFlags) parse() (*packet, error) {
	if p.egress == p.ingress {
		return nil, errors.New("one of --egress and --ingress is needed")
	}
	var ends [2]endpoint // from, to
	for i, flag := range []struct{ name, value string }{{"--from", p.from}, {"--to", p.to}} {
		if flag.value == "" {
			continue
		}
		var err error
		if ends[i], err = parseEndpoint(flag.value); err != nil {
			return nil, fmt.Errorf("%s: %w", flag.name, err)
		}
	}
	pkt := &packet{direction: conf.Egress, local: ends[0], remote: ends[1]}
	remoteFlag := "--to"
	if p.ingress {
		pkt.direction, pkt.local, pkt.remote = conf.Ingress, ends[1], ends[0]
		remoteFlag = "--from"
	}
	if !pkt.remote.address.IsValid() {
		return nil, fmt.Errorf("%s with the other side's address is needed", remoteFlag)
	}
	if local := pkt.local.address; local.IsValid() && local.Is4() != pkt.remote.address.Is4() {
		return nil, fmt.Errorf("%s and %s are not of one family", ends[0].address, ends[1].address)
	}
	if err := p.parseProtocol(pkt); err != nil {
		return nil, err
	}
	return pkt, pkt.checkPorts(ends[1])
}

// parseProtocol reads --protocol and --icmp.
func (p *packetFlags) parseProtocol(pkt *packet) error {
	icmp, echo := conf.ProtocolICMP, uint8(8)
	if pkt.remote.address.Is6() {
		icmp, echo = conf.ProtocolICMPv6, 128
	}
	protocol := icmp
	switch {
	case p.protocol == "" && p.icmp == "":
		return errors.New("--protocol is needed: tcp, udp, sctp, icmp, icmpv6 or a number")
	case p.protocol != "":
		var err error
		if protocol, err = conf.ParseProtocol(p.protocol); err != nil {
			return err
		}
		if protocol == conf.ProtocolAny {
			return errors.New("--protocol any: a packet has one protocol")
		}
	}
	pkt.protocol = uint8(protocol)
	switch protocol {
	case icmp:
		pkt.icmp = &conf.ICMP{Type: echo, Code: new(uint8)}
	case conf.ProtocolICMP, conf.ProtocolICMPv6:
		return fmt.Errorf("protocol %s does not go with the address %s: it is %s", protocol, pkt.remote.address, icmp)
	}
	if p.icmp == "" {
		return nil
	}
	if pkt.icmp == nil {
		return fmt.Errorf("--icmp does not go with %s", protocolText(protocol))
	}
	kind, code, hasCode := strings.Cut(p.icmp, "/")
	for _, part := range []struct {
		given bool
		text  string
		into  *uint8
	}{{true, kind, &pkt.icmp.Type}, {hasCode, code, pkt.icmp.Code}} {
		if !part.given {
			continue
		}
		number, err := strconv.ParseUint(part.text, 10, 8)
		if err != nil {
			return fmt.Errorf("--icmp %s: want a type, or a type and a code as 3/4, each from 0 to 255", p.icmp)
		}
		*part.into = uint8(number)
	}
	return nil
}

// checkPorts: where there are ports, rules ask for that of the destination.
func (p *packet) checkPorts(destination endpoint) error {
	protocol := conf.Protocol(p.protocol)
	switch {
	case protocol.HasPorts() && !destination.hasPort && p.direction == conf.Egress:
		return fmt.Errorf("--to needs a port: %s is judged by its destination port", protocol)
	case protocol.HasPorts() && !destination.hasPort:
		return fmt.Errorf("--to needs a port of the pod, such as :80: %s is judged by its destination port", protocol)
	case !protocol.HasPorts() && (p.local.hasPort || p.remote.hasPort):
		return fmt.Errorf("%s has no ports", protocolText(protocol))
	}
	return nil
}

// port is the destination port.
func (p *packet) port() uint16 {
	if p.direction == conf.Egress {
		return p.remote.port
	}
	return p.local.port
}

// subject is what rules are asked about.
func (p *packet) subject() model.Subject {
	s := model.Subject{Remote: p.remote.address, Protocol: p.protocol, Port: p.port()}
	if p.icmp != nil {
		s.ICMPType, s.ICMPCode = p.icmp.Type, *p.icmp.Code
	}
	return s
}

// lookupPort is what the compiled filter has in the place of a port.
func (p *packet) lookupPort() uint16 {
	if p.icmp != nil {
		return conf.ICMPPort(p.icmp.Type, *p.icmp.Code)
	}
	return p.port()
}

// answer returns the packet that would answer p, and opener the one that p would answer; false if that
// is not known: it takes the ports of both ends, and of ICMP only echo is answered in one way.
func (p *packet) answer() (*packet, bool) {
	request, reply := p.echoTypes()
	return p.turned(request, reply)
}

func (p *packet) opener() (*packet, bool) {
	request, reply := p.echoTypes()
	return p.turned(reply, request)
}

func (p *packet) echoTypes() (request, reply uint8) {
	if p.protocol == uint8(conf.ProtocolICMPv6) {
		return 128, 129
	}
	return 8, 0
}

// turned returns p in the other direction, of ICMP type to if p is of type from.
func (p *packet) turned(from, to uint8) (*packet, bool) {
	other := *p
	other.direction = conf.Egress
	if p.direction == conf.Egress {
		other.direction = conf.Ingress
	}
	if p.icmp != nil {
		other.icmp = &conf.ICMP{Type: to, Code: new(uint8)}
		return &other, p.icmp.Type == from
	}
	ports := conf.Protocol(p.protocol).HasPorts()
	return &other, !ports || p.local.hasPort && p.remote.hasPort
}

// model returns the packet for the reference model, from the pod's MAC address.
func (p *packet) model(pod model.Pod, fromHost bool) model.Packet {
	m := model.Packet{
		FromHost: fromHost, Source: pod.MAC, EtherType: model.EtherTypeIPv4,
		Src: p.local.address, SrcPort: p.local.port, Dst: p.remote.address, DstPort: p.remote.port,
		Protocol: p.protocol, TCPFlags: model.SYN,
	}
	if p.direction == conf.Ingress {
		m.Src, m.SrcPort, m.Dst, m.DstPort = m.Dst, m.DstPort, m.Src, m.SrcPort
	}
	if p.remote.address.Is6() {
		m.EtherType = model.EtherTypeIPv6
	}
	if p.icmp != nil {
		m.HopLimit = p.hopLimit()
		// a neighbour message claims no more than its source, or what it is to be
		target := m.Src
		if m.Src == netip.IPv6Unspecified() {
			target = ownAddress(pod.Addresses, false)
		}
		m.ICMP = &model.ICMP{Type: p.icmp.Type, Code: *p.icmp.Code, ND: &model.ND{Target: target}}
	}
	return m
}

// hopLimit is what ICMPv6 messages of the type have if they are to pass without rules.
func (p *packet) hopLimit() uint8 {
	if p.icmp.Type >= 133 && p.icmp.Type <= 137 { // neighbour discovery (RFC 4861)
		return 255
	}
	return 1 // multicast listeners (RFC 2710)
}

// isError tells whether p is an ICMP message about another packet (RFC 1122, 3.2.2; RFC 4443, 2.1).
func (p *packet) isError() bool {
	switch {
	case p.icmp == nil:
		return false
	case p.protocol == uint8(conf.ProtocolICMPv6):
		return p.icmp.Type < 128
	}
	return slices.Contains([]uint8{3, 4, 5, 11, 12}, p.icmp.Type)
}

// isRouterMessage tells whether p is a router advertisement or a redirect (RFC 4861).
func (p *packet) isRouterMessage() bool {
	return p.protocol == uint8(conf.ProtocolICMPv6) && (p.icmp.Type == 134 || p.icmp.Type == 137)
}
