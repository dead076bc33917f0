package main

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// filterSays is what the filter of one of the two pods does with the first packet of the flow.
type filterSays struct {
	Pod       string `json:"pod"`
	Direction string `json:"direction"`
	Verdict   string `json:"verdict"` // "" if it takes a port to say
	DecidedBy string `json:"decidedBy"`
	Rule      int    `json:"rule"`
	Name      string `json:"name"`
}

// filters asks the filters of both pods about the flow's first packet.
func (t *tracing) filters() error {
	asked := []struct {
		a         *datapath.Attachment
		direction conf.Direction
	}{{&t.from, conf.Egress}, {t.to, conf.Ingress}}
	if t.to != nil && t.to.ID == t.from.ID {
		asked = asked[:1] // what a pod sends itself does not leave it
	}
	for _, ask := range asked {
		if ask.a == nil {
			continue
		}
		says, err := t.askFilter(*ask.a, ask.direction)
		if err != nil {
			return err
		}
		if says == nil {
			continue
		}
		t.report.Filters = append(t.report.Filters, *says)
		// of a flow that is known, its first packet has passed
		if says.Verdict != conf.Deny.String() || t.report.Flow != flowNone || t.report.Result == resultDropped {
			continue
		}
		why := whyEgress
		if ask.direction == conf.Ingress {
			why = whyIngress
		}
		t.report.Result, t.report.Why = resultDropped, why
		t.report.Detail = fmt.Sprintf("the filter of %s denies it at %s, %s", labelOf(*ask.a), ask.direction, says.by())
	}
	return nil
}

// askFilter asks a pod's filter about the flow's first packet: nil if it has none.
func (t *tracing) askFilter(a datapath.Attachment, direction conf.Direction) (*filterSays, error) {
	inForce, err := readFilter(t.node, a)
	if err != nil || inForce == nil {
		return nil, t.goneError(a, err)
	}
	says := &filterSays{Pod: labelOf(a), Direction: direction.String(), Rule: -1}
	if conf.Protocol(t.packet.protocol).HasPorts() && t.packet.destination.Port() == 0 {
		return says, nil
	}
	made, err := makePolicy(a, inForce.Filter, inForce)
	if err != nil {
		return nil, err
	}
	p := packet{direction: direction, protocol: t.packet.protocol, local: end(t.packet.source), remote: end(t.packet.destination)}
	if direction == conf.Ingress {
		p.local, p.remote = p.remote, p.local
	}
	if t.packet.isICMP() {
		p.local.hasPort, p.remote.hasPort = false, false
		p.icmp = t.packet.echo()
	}
	pod := subjectPod{known: true, addresses: addressesOf(a)}
	copy(pod.mac[:], a.Meta.PodMAC)
	for _, address := range made.Compiled.Addresses {
		if !slices.Contains(pod.addresses, address) {
			pod.addresses = append(pod.addresses, address)
		}
	}
	tested, err := explain(inForce.Filter, made.Compiled, p, pod)
	if err != nil {
		return nil, err
	}
	says.Verdict, says.DecidedBy, says.Rule, says.Name = tested.Verdict, tested.DecidedBy, tested.Rule, tested.Name
	return says, nil
}

// end is an address and its port, if there is one.
func end(a netip.AddrPort) endpoint {
	return endpoint{address: a.Addr(), port: a.Port(), hasPort: a.Port() != 0}
}

// by says who decides, for people.
func (s *filterSays) by() string {
	switch s.DecidedBy {
	case deciderRule:
		return fmt.Sprintf("by rule %q", s.Name)
	case deciderSpoof, deciderHost:
		return "by " + s.DecidedBy
	case deciderNeighbour:
		return "as neighbour discovery"
	}
	return "by the default of " + s.Direction
}
