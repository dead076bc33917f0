package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

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

// flowWords are the states of flows, for programs and for people.
var flowWords = map[datapath.FlowState]struct{ word, detail string }{
	datapath.FlowKnown:      {"untranslated", "known to be untranslated"},
	datapath.FlowUnanswered: {"unanswered", "came through, and no answer has yet"},
	datapath.FlowMixed:      {"mixed", "mixed with packets that were sent under other addresses: translated"},
	datapath.FlowOneEnd:     {"oneEnd", "seen at one end only, or not whole at both: translated, lost, or on its way"},
}

// flowNone is the state of a flow of which nothing is known.
const flowNone = "none"

// traceReport is what trace says of a packet, after what is said of the attachment that sends it.
type traceReport struct {
	attachment
	Packet packetReport `json:"packet"`
	Result string       `json:"result"`
	Why    string       `json:"why"`
	Detail string       `json:"detail"`
	// To is the pod of this node that has the destination, nil for none.
	To      *traceTarget `json:"to"`
	Flow    string       `json:"flow"` // state of the packet's flow
	Flows   []flowReport `json:"flows"`
	Filters []filterSays `json:"filters"`
	// User programs that run on what the sender sends.
	Programs []programPlace `json:"programs"`
	Notes    []string       `json:"notes"`
}

// traceTarget is a pod that a packet is for.
type traceTarget struct {
	Pod           pod           `json:"pod"`
	ContainerID   string        `json:"containerID"`
	HostInterface hostInterface `json:"hostInterface"`
	label         string
}

// flowReport is what is known of a flow between two pods.
type flowReport struct {
	Protocol         string `json:"protocol"`
	Source           string `json:"source"`
	SourcePort       uint16 `json:"sourcePort"`
	Destination      string `json:"destination"`
	DestinationPort  uint16 `json:"destinationPort"`
	State            string `json:"state"`
	Sent             uint32 `json:"sent"`
	Delivered        uint32 `json:"delivered"`
	AnswersSent      uint32 `json:"answersSent"`
	AnswersDelivered uint32 `json:"answersDelivered"`
	Seen             string `json:"seen"`
}

// filterSays is what the filter of one of the two pods does with the first packet of the flow.
type filterSays struct {
	Pod       string `json:"pod"`
	Direction string `json:"direction"`
	Verdict   string `json:"verdict"` // "" if it takes a port to say
	DecidedBy string `json:"decidedBy"`
	Rule      int    `json:"rule"`
	Name      string `json:"name"`
}

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

const traceHelp = `Say whether a packet of POD would go directly to another pod of this node, and why, or why by the stack.

It is asked for by --to, and --protocol tcp, udp or icmp. With the ports of both ends (of icmp with
--from-port, an echo's identifier), it is one of the flow of that name, not the first one. Without them the
answer is for a new flow, whose first packets always go by the stack, and what is known of the flows between
the two pods is listed. Of a flow is known what left one pod by the stack, and what came of it to the other.

The packet is one that the pod's own stack would send: whole, without IP options, no longer than the
receiver's MTU, with a TTL of 64, and TCP without SYN. No packet is sent, and nothing is changed.

What the filters of the two pods do with the flow's first packet is said too; see xdpctl filter test. Whether
user programs let it pass, nobody can say but they: that the sender has some is said, and where they run.

Exit status 0 whatever the way is.`

func newTraceCommand(o *options) *cobra.Command {
	var flags traceFlags
	cmd := &cobra.Command{
		Use:   "trace POD --to ADDRESS [--protocol PROTOCOL] [--port PORT --from-port PORT] [--from ADDRESS]",
		Short: "Say whether a packet would go directly, and why",
		Long:  traceHelp,
		Example: `  xdpctl trace default/web --to 10.88.0.7
  xdpctl trace default/web --to 10.88.0.7 --protocol tcp --port 5432 --from-port 40112
  xdpctl trace default/web --to fd00::7 --protocol icmp -o json | jq -r .detail`,
		Args: usageArgs(func(cmd *cobra.Command, args []string) error {
			if err := onePod(cmd, args); err != nil {
				return err
			}
			_, err := flags.parse()
			return err
		}),
		ValidArgsFunction:     o.completePod,
		DisableFlagsInUseLine: true,
		RunE: func(_ *cobra.Command, args []string) error {
			p, err := flags.parse()
			if err != nil {
				return err
			}
			report, err := o.trace(args[0], *p)
			if err != nil {
				return err
			}
			return o.write(report, func(style) string { return traceText(report) })
		},
	}
	flags.flags(cmd)
	return cmd
}

// tracing is a trace under way.
type tracing struct {
	*options
	node   redirects
	all    []datapath.Attachment
	known  *datapath.Endpoints
	from   datapath.Attachment
	to     *datapath.Attachment // that has the destination, whether redirect is for it or not; nil for none
	packet traced
	way    *datapath.Way
	report *traceReport
}

func (o *options) trace(name string, p traced) (*traceReport, error) {
	t := &tracing{options: o, node: o.redirects(), packet: p}
	from, err := attachmentOf(t.node, name)
	if err != nil {
		return nil, err
	}
	t.from = *from
	if t.all, err = t.node.List(); err != nil {
		return nil, err
	}
	if t.known, err = t.node.Endpoints(); err != nil {
		return nil, err
	}
	if err := t.begin(); err != nil {
		return nil, err
	}
	programs, err := t.node.ReadPrograms(t.from)
	if err != nil {
		return nil, o.goneError(t.from, err)
	}
	t.report.Programs = newProgramPlaces(programs)
	if t.way, err = t.node.Way(t.from, t.probe()); err != nil {
		return nil, o.goneError(t.from, err)
	}
	t.find()
	if err := t.flows(); err != nil {
		return nil, err
	}
	t.conclude()
	if err := t.filters(); err != nil {
		return nil, err
	}
	t.notes()
	return t.report, nil
}

// begin fills in the source, and makes the report.
func (t *tracing) begin() error {
	p := &t.packet
	if !p.source.Addr().IsValid() {
		own := ownAddress(addressesOf(t.from), p.destination.Addr().Is4())
		if !own.IsValid() {
			return fmt.Errorf("%s has no address of the family of %s to send from; name one by --from", longLabel(t.from), p.destination.Addr())
		}
		p.source = netip.AddrPortFrom(own, p.source.Port())
	}
	t.report = &traceReport{
		attachment: newAttachment(t.from.Meta), Flow: flowNone,
		Packet: packetReport{
			Direction: conf.Egress.String(), Protocol: conf.Protocol(p.protocol).String(),
			Source: p.source.Addr().String(), SourcePort: p.source.Port(),
			Destination: p.destination.Addr().String(), DestinationPort: p.destination.Port(),
		},
		Flows: []flowReport{}, Filters: []filterSays{}, Notes: []string{},
	}
	if p.isICMP() {
		request := uint8(8)
		if p.destination.Addr().Is6() {
			request = 128
		}
		t.report.Packet.ICMP = icmpText(&conf.ICMP{Type: request, Code: new(uint8)})
	}
	return nil
}

func addressesOf(a datapath.Attachment) []netip.Addr {
	var addresses []netip.Addr
	for _, prefix := range a.Meta.Addresses {
		addresses = append(addresses, prefix.Addr())
	}
	return addresses
}

// endpointOf is what is known of an attachment's address, or of its first one in force: nil for nothing.
func (t *tracing) endpointOf(a datapath.Attachment, address netip.Addr) *datapath.Endpoint {
	var found *datapath.Endpoint
	for i := range t.known.List {
		e := &t.known.List[i]
		if e.Attachment == nil || e.Attachment.ID != a.ID {
			continue
		}
		if e.Address == address {
			return e
		}
		if found == nil || found.State != datapath.EndpointInForce {
			found = e
		}
	}
	return found
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

// networksOf returns the prefixes that a pod's addresses are in.
func networksOf(a datapath.Attachment) []netip.Prefix {
	var prefixes []netip.Prefix
	for _, address := range a.Meta.Addresses {
		prefixes = append(prefixes, address.Masked())
	}
	return prefixes
}

// find finds out whose the destination is.
func (t *tracing) find() {
	if e := t.way.Target; e != nil {
		// of several with one address, the one that the packet path takes it for
		for i, a := range t.all {
			if a.Meta.HostIndex == e.HostIndex {
				t.to = &t.all[i]
			}
		}
	}
	for i, a := range t.all {
		if t.to == nil && slices.Contains(addressesOf(a), t.packet.destination.Addr()) {
			t.to = &t.all[i]
		}
	}
	if t.to != nil {
		m := t.to.Meta
		t.report.To = &traceTarget{
			Pod: pod{m.PodNamespace, m.PodName, m.PodUID}, ContainerID: m.ContainerID,
			HostInterface: hostInterface{m.HostName, m.HostIndex}, label: labelOf(*t.to),
		}
	}
}

// flows notes what is known of the packet's flow if it was named, else of all between the two.
func (t *tracing) flows() error {
	p := &t.packet
	if p.named {
		if t.way.Flow != nil {
			t.report.Flow = flowWords[t.way.Flow.State].word
			t.report.Flows = append(t.report.Flows, newFlowReport(*t.way.Flow))
		}
		return nil
	}
	flows, err := t.node.DirectFlows(t.from, p.source.Addr(), p.destination.Addr())
	if err != nil {
		return t.goneError(t.from, err)
	}
	for _, f := range flows {
		if f.Protocol != p.protocol ||
			p.source.Port() != 0 && p.source.Port() != f.Source.Port() ||
			p.destination.Port() != 0 && p.destination.Port() != f.Destination.Port() {
			continue
		}
		t.report.Flows = append(t.report.Flows, newFlowReport(f))
	}
	return nil
}

func newFlowReport(f datapath.DirectFlow) flowReport {
	report := flowReport{
		Protocol: conf.Protocol(f.Protocol).String(),
		Source:   f.Source.Addr().String(), SourcePort: f.Source.Port(),
		Destination: f.Destination.Addr().String(), DestinationPort: f.Destination.Port(),
		State: flowWords[f.State].word, Sent: f.Sent, Delivered: f.Delivered,
		AnswersSent: f.AnswersSent, AnswersDelivered: f.AnswersDelivered,
	}
	if !f.Seen.IsZero() {
		report.Seen = timestamp(f.Seen)
	}
	return report
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
		request := uint8(8)
		if t.packet.destination.Addr().Is6() {
			request = 128
		}
		p.icmp = &conf.ICMP{Type: request, Code: new(uint8)}
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

// programs names the sender's user programs of an order, "" if there are none.
func (t *tracing) programs(order string) string {
	var names []string
	for _, p := range t.report.Programs {
		if p.Order == order {
			names = append(names, p.Name)
		}
	}
	return strings.Join(names, ", then ")
}

// notes says what else is worth knowing.
func (t *tracing) notes() {
	note := func(format string, args ...any) {
		t.report.Notes = append(t.report.Notes, fmt.Sprintf(format, args...))
	}
	if before := t.programs(orderBefore); before != "" {
		note("before all that is said here, user programs run on it: %s; they may end it, or change it", before)
	}
	if after := t.programs(orderAfter); after != "" {
		note("if the filter of %s lets it pass, user programs run on it: %s; they may end it, or change it",
			labelOf(t.from), after)
	}
	p := &t.packet
	if !slices.Contains(addressesOf(t.from), p.source.Addr()) {
		note("%s is not an address that %s was given: what it sends from there begins no flow that could go directly", p.source.Addr(), labelOf(t.from))
	}
	mayBeDirect := t.way.Sender == datapath.EndpointInForce &&
		(t.way.Way == bpf.DatapathWayWAY_DIRECT || t.way.Way == bpf.DatapathWayWAY_UNKNOWN)
	if !mayBeDirect {
		return
	}
	if t.way.Target.MTU > 0 {
		note("packets longer than %d bytes, the MTU of the pod that it is for, go by the stack; GSO packets count by their segments", t.way.Target.MTU)
	}
	if p.protocol == uint8(conf.ProtocolTCP) {
		note("SYN and SYN+ACK of TCP always go by the stack")
	}
}

func traceText(r *traceReport) string {
	var b strings.Builder
	result := map[string]string{resultDirect: "goes directly", resultStack: "goes by the stack", resultDropped: "is dropped"}[r.Result]
	colon := ":"
	if r.Result == resultDirect {
		colon = ""
	}
	b.WriteString(wrap(printable(fmt.Sprintf("%s %s%s %s", r.Packet, result, colon, r.Detail)), wrapAt, "  "))
	if len(r.Flows) > 0 {
		t := table{columns: text("FROM", "TO", "FLOW")}
		t.columns = append(t.columns, number("SENT", "LEFT", "CAME")...)
		t.columns = append(t.columns, number("ANSWERS", "LEFT", "CAME")...)
		for _, f := range r.Flows {
			t.add(f.end(f.Source, f.SourcePort), f.end(f.Destination, f.DestinationPort), f.stateText(),
				fmt.Sprint(f.Sent), fmt.Sprint(f.Delivered), fmt.Sprint(f.AnswersSent), fmt.Sprint(f.AnswersDelivered))
		}
		b.WriteString("\n" + t.String())
	}
	if len(r.Filters) > 0 {
		t := table{columns: text("FILTER OF", "DIRECTION", "FIRST PACKET")}
		for _, f := range r.Filters {
			verdict := "depends on the port: give --port"
			if f.Verdict != "" {
				verdict = map[string]string{
					conf.Allow.String(): "allowed", conf.Deny.String(): "denied", conf.Audit.String(): "allowed, and audited,",
				}[f.Verdict] + " " + f.by()
			}
			t.add(f.Pod, f.Direction, verdict)
		}
		b.WriteString("\n" + t.String())
	}
	for i, note := range r.Notes {
		if i == 0 {
			b.WriteString("\n")
		}
		b.WriteString(wrap("- "+printable(note), wrapAt, "  "))
	}
	return b.String()
}

// end writes an address with its port, which of an echo's answering side is 0.
func (f *flowReport) end(address string, port uint16) string {
	if port == 0 {
		return address
	}
	return net.JoinHostPort(address, strconv.Itoa(int(port)))
}

func (f *flowReport) stateText() string {
	for _, words := range flowWords {
		if words.word == f.State {
			return words.detail
		}
	}
	return f.State
}
