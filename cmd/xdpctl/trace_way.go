package main

import (
	"fmt"
	"slices"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// What becomes of a packet.
const (
	resultDirect  = "direct"
	resultStack   = "stack"
	resultDropped = "dropped"
)

// Why it does; those of the ways are in wayWords.
const (
	whyOff     = "off"     // redirect is not in force for the sender
	whyFlow    = "flow"    // it depends on the flow, which was not named
	whyEgress  = "egress"  // the sender's filter denies it
	whyIngress = "ingress" // the receiver's does
	whyBridged = "bridged"
	whyRouted  = "routed"
)

// wayWords are the ways by the stack, for programs.
var wayWords = map[bpf.DatapathWay]string{
	bpf.DatapathWayWAY_SPECIAL:  "special",
	bpf.DatapathWayWAY_STRANGER: "stranger",
	bpf.DatapathWayWAY_MODES:    "modes",
	bpf.DatapathWayWAY_LINK:     "link",
	bpf.DatapathWayWAY_LONG:     "long",
	bpf.DatapathWayWAY_LAST_HOP: "lastHop",
	bpf.DatapathWayWAY_UNKNOWN:  "unknown",
	bpf.DatapathWayWAY_PROGRAMS: "programs",
}

// conclude says what becomes of the packet, before filters.
func (t *tracing) conclude() {
	r := t.report
	say := func(result, why, format string, args ...any) {
		r.Result, r.Why, r.Detail = result, why, fmt.Sprintf(format, args...)
	}
	if t.way.Sender != datapath.EndpointInForce {
		say(resultStack, whyOff, "%s", t.senderDetail())
		return
	}
	to := ""
	if r.To != nil {
		to = r.To.label
	}
	switch t.way.Way {
	case bpf.DatapathWayWAY_DIRECT:
		where := fmt.Sprintf("to %s on %s", to, t.interfaceName())
		if t.way.Routed {
			say(resultDirect, whyRouted, "%s: routed, with the MACs rewritten and one hop less", where)
		} else {
			say(resultDirect, whyBridged, "%s: bridged, unchanged", where)
		}
		return
	case bpf.DatapathWayWAY_STRANGER:
		say(resultStack, "", "%s", t.strangerDetail())
	case bpf.DatapathWayWAY_MODES:
		say(resultStack, "", "%s", t.modesDetail())
	case bpf.DatapathWayWAY_LINK:
		say(resultStack, "", "its frame is neither for the MAC of %s on the same bridge nor for that of the node as a router", to)
	case bpf.DatapathWayWAY_LONG:
		say(resultStack, "", "it is longer than the MTU of %s", to)
	case bpf.DatapathWayWAY_LAST_HOP:
		say(resultStack, "", "its TTL or hop limit ends here, which the node's stack is to say")
	case bpf.DatapathWayWAY_PROGRAMS:
		say(resultStack, "", "programs run on it after the filter, and may have changed it: %s", t.programs(orderAfter))
	case bpf.DatapathWayWAY_UNKNOWN:
		if !t.packet.named {
			say(resultStack, whyFlow, "the first packets of a flow go by the stack; later ones go directly to %s on %s once the flow is known to be untranslated",
				to, t.interfaceName())
			return
		}
		say(resultStack, "", "%s", t.unknownDetail())
	default:
		say(resultStack, "", "it is neither TCP, UDP nor echo, or is not whole and plain")
	}
	r.Why = wayWords[t.way.Way]
}

// interfaceName is the target's host end.
func (t *tracing) interfaceName() string {
	if t.report.To == nil {
		return fmt.Sprintf("interface %d", t.way.Target.HostIndex)
	}
	return t.report.To.HostInterface.Name
}

func (t *tracing) senderDetail() string {
	if t.way.Sender == datapath.EndpointNone {
		return fmt.Sprintf(`%s has no redirect: its network configuration lacks {"redirect": true}`, labelOf(t.from))
	}
	e := t.endpointOf(t.from, t.packet.source.Addr())
	if e == nil || e.State != t.way.Sender {
		e = &datapath.Endpoint{State: t.way.Sender, Unfit: []string{"its slot says so"}}
	}
	return fmt.Sprintf("redirect is not in force for %s: %s", labelOf(t.from), stateDetail(e))
}

// strangerDetail says why no pod of the sender's network has the address.
func (t *tracing) strangerDetail() string {
	destination := t.packet.destination.Addr()
	switch {
	case t.way.Target != nil: // it is known, but not in force
		e := *t.way.Target
		if t.to != nil {
			if known := t.endpointOf(*t.to, destination); known != nil && known.State == e.State {
				e = *known
			}
			return fmt.Sprintf("%s is %s, for which redirect is not in force: %s", destination, labelOf(*t.to), stateDetail(&e))
		}
		return fmt.Sprintf("%s is known, but not in force: %s", destination, stateDetail(&e))
	case t.to == nil:
		return fmt.Sprintf("no pod of this node has %s%s", destination, t.hostNote())
	case t.to.ID == t.from.ID:
		return fmt.Sprintf("%s is %s itself", destination, labelOf(*t.to))
	}
	e := t.endpointOf(*t.to, destination)
	switch {
	case e == nil:
		return fmt.Sprintf("%s is %s, which has no redirect", destination, labelOf(*t.to))
	case e.State == datapath.EndpointMissing || e.State == datapath.EndpointTaken:
		return fmt.Sprintf("%s is %s, for which redirect is not in force: %s", destination, labelOf(*t.to), stateDetail(e))
	case t.to.Meta.Network == t.from.Meta.Network:
		return fmt.Sprintf(`%s is %s of the same network, %q, and only one of the two was attached with "acrossNetworks"`,
			destination, labelOf(*t.to), t.to.Meta.Network)
	}
	return fmt.Sprintf(`%s is %s of network %q, not of %q: packets go directly between networks that both have "acrossNetworks"`,
		destination, labelOf(*t.to), t.to.Meta.Network, t.from.Meta.Network)
}

// hostNote says whether the destination is the node's own.
func (t *tracing) hostNote() string {
	if own, err := t.nodeAddresses(); err == nil && slices.Contains(own, t.packet.destination.Addr()) {
		return ", it is the node's own"
	}
	return ""
}

func (t *tracing) modesDetail() string {
	self, other := t.from.Meta.Mode, t.way.Target.Mode
	generic := self == datapath.ModeGeneric || other == datapath.ModeGeneric
	if t.packet.protocol == uint8(conf.ProtocolTCP) && generic {
		return fmt.Sprintf("the modes do not go together: %s sends in mode %s, and the other is in %s; TCP goes by the stack where one is generic",
			labelOf(t.from), self, other)
	}
	return fmt.Sprintf("the modes do not go together: %s is in mode %s and the other in %s; native reaches only pod ends that take XDP frames, and pods go directly both ways or not at all",
		labelOf(t.from), self, other)
}

// unknownDetail says why the named flow is not known to be untranslated.
func (t *tracing) unknownDetail() string {
	if t.way.Flow == nil {
		return "nothing is known of its flow: it has not begun, or began before one of the pods was attached, or is forgotten"
	}
	return "its flow is not known to be untranslated: " + flowWords[t.way.Flow.State].detail
}
