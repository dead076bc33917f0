package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

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
		t.report.Packet.ICMP = icmpText(p.echo())
	}
	return nil
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
