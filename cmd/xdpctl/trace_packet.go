package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// traceFlags are the flags of trace.
type traceFlags struct {
	to, from, protocol string
	port, fromPort     uint16
}

func (f *traceFlags) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.to, "to", "", "its destination `address`")
	cmd.Flags().StringVar(&f.from, "from", "", "its source `address`, if not the pod's first one")
	cmd.Flags().StringVar(&f.protocol, "protocol", "tcp", "its `protocol`: tcp, udp, or icmp for an echo request")
	cmd.Flags().Uint16Var(&f.port, "port", 0, "its destination `port`")
	cmd.Flags().Uint16Var(&f.fromPort, "from-port", 0, "its source `port`; of icmp, the echo's identifier")
	for flag, words := range map[string][]cobra.Completion{
		"to": nil, "from": nil, "port": nil, "from-port": nil, "protocol": {"tcp", "udp", "icmp"},
	} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
}

// traced is the packet that flags describe.
type traced struct {
	protocol    uint8
	source      netip.AddrPort // its address is not valid if none was given
	destination netip.AddrPort
	named       bool // its flow is: with the ports of both ends
}

// parse returns the packet that the flags describe; errors are of usage.
func (f *traceFlags) parse() (*traced, error) {
	address := func(flag, value string) (netip.Addr, error) {
		parsed, err := netip.ParseAddr(value)
		if err != nil || parsed.Zone() != "" {
			return netip.Addr{}, fmt.Errorf("--%s: %q is no address such as 10.0.0.1 or fd00::1", flag, value)
		}
		return parsed.Unmap(), nil
	}
	if f.to == "" {
		return nil, errors.New("--to with the destination's address is needed")
	}
	to, err := address("to", f.to)
	if err != nil {
		return nil, err
	}
	var from netip.Addr
	if f.from != "" {
		if from, err = address("from", f.from); err != nil {
			return nil, err
		}
		if from.Is4() != to.Is4() {
			return nil, fmt.Errorf("%s and %s are not of one family", from, to)
		}
	}
	p := &traced{source: netip.AddrPortFrom(from, f.fromPort), destination: netip.AddrPortFrom(to, f.port)}
	switch f.protocol {
	case "tcp":
		p.protocol = uint8(conf.ProtocolTCP)
	case "udp":
		p.protocol = uint8(conf.ProtocolUDP)
	case "icmp", "icmpv6":
		if f.port != 0 {
			return nil, errors.New("--port: icmp has no ports; --from-port names an echo's identifier")
		}
		p.protocol = uint8(conf.ProtocolICMP)
		if to.Is6() {
			p.protocol = uint8(conf.ProtocolICMPv6)
		}
	default:
		return nil, fmt.Errorf("--protocol %s: want tcp, udp or icmp; all else goes by the stack", f.protocol)
	}
	p.named = f.fromPort != 0 && (f.port != 0 || p.isICMP())
	return p, nil
}

func (p *traced) isICMP() bool {
	return p.protocol == uint8(conf.ProtocolICMP) || p.protocol == uint8(conf.ProtocolICMPv6)
}

// echo is the type and code of an ICMP packet: those of an echo request.
func (p *traced) echo() *conf.ICMP {
	request, _ := (&packet{protocol: p.protocol}).echoTypes()
	return &conf.ICMP{Type: request, Code: new(uint8)}
}

// probe is the packet as the pod's own stack would send it.
func (t *tracing) probe() datapath.Packet {
	p := datapath.Packet{Source: t.packet.source, Destination: t.packet.destination, Protocol: t.packet.protocol, Hops: 64}
	self := t.endpointOf(t.from, t.packet.source.Addr())
	if self == nil {
		return p
	}
	p.DestinationMAC = t.router()
	if mac := t.neighbour(self); mac != nil {
		p.DestinationMAC = mac
	}
	return p
}

// router is the MAC by which the pod speaks to the node: the same for all its addresses.
func (t *tracing) router() net.HardwareAddr {
	for _, e := range t.known.List {
		if e.Attachment != nil && e.Attachment.ID == t.from.ID && e.RouterMAC != nil {
			return e.RouterMAC
		}
	}
	return nil
}

// neighbour returns the MAC by which a pod speaks to the destination if that is on its bridge, and within the
// prefix of one of its addresses: nil if not, and then it speaks to its router.
func (t *tracing) neighbour(self *datapath.Endpoint) net.HardwareAddr {
	destination := t.packet.destination.Addr()
	if _, within := containing(networksOf(t.from), destination); !within || self.Bridge == 0 {
		return nil
	}
	for _, e := range t.known.List {
		if e.Address == destination && e.Bridge == self.Bridge && e.AcrossNetworks == self.AcrossNetworks {
			return e.PodMAC
		}
	}
	return nil
}
