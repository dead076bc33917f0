package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/filter"
	"github.com/xdp-cni/xdp-cni/plugin/filter/model"
)

// Who decides about a packet, beside the default.
const (
	deciderRule      = "rule"
	deciderSpoof     = "antiSpoof"
	deciderHost      = "allowHost"
	deciderNeighbour = "neighbourDiscovery"
)

var deciders = map[model.Step]string{
	model.StepSpoof:     deciderSpoof,
	model.StepNeighbour: deciderNeighbour,
	model.StepHost:      deciderHost,
	model.StepRules:     "default", // unless a rule does
}

// Why a rule does not match, by its key.
const (
	whyMatches   = ""
	whyDirection = "direction"
	whyAddress   = "address"
	whyExcept    = "except"
	whyProtocol  = "protocol"
	whyPorts     = "ports"
	whyICMP      = "icmp"
)

// testReport is what filter test says of a packet.
type testReport struct {
	Packet    packetReport `json:"packet"`
	Verdict   string       `json:"verdict"` // allow, deny or audit
	DecidedBy string       `json:"decidedBy"`
	Rule      int          `json:"rule"` // -1 if none decides
	Name      string       `json:"name"`
	// Rules are those that were asked, in order; the last one decides if one does.
	Rules []askedRule `json:"rules"`
	Notes []string    `json:"notes"`
}

type packetReport struct {
	Direction       string `json:"direction"`
	Protocol        string `json:"protocol"`
	Source          string `json:"source"` // "" for the pod's
	SourcePort      uint16 `json:"sourcePort"`
	Destination     string `json:"destination"`
	DestinationPort uint16 `json:"destinationPort"`
	ICMP            string `json:"icmp"` // type/code, "" for other protocols
}

// askedRule is a rule that was asked about a packet.
type askedRule struct {
	Rule    int    `json:"rule"`
	Name    string `json:"name"`
	Matches bool   `json:"matches"`
	Why     string `json:"why"`    // the key that does not match, "" if it matches
	Detail  string `json:"detail"` // the same for people
}

// subjectPod is the pod that a packet is of, as far as it is known.
type subjectPod struct {
	known     bool // whether a POD was named; else there is nothing else
	mac       model.MAC
	addresses []netip.Addr // that it may send from
	hosts     []netip.Addr // the node's own
	others    map[netip.Addr]string
}

var errDisagree = errors.New("the compiled filter and its reference disagree: please report it with the filter and the packet")

// explanation is a packet with all that is known about it.
type explanation struct {
	filter    *conf.Filter
	packet    packet
	pod       subjectPod
	anonymous bool      // the pod's address in packet stands for one that is not known
	judge     model.Pod // pod, as the model is told of it
}

func newExplanation(f *conf.Filter, p packet, pod subjectPod) *explanation {
	e := &explanation{filter: f, packet: p, pod: pod}
	local, remote := &e.packet.local.address, p.remote.address
	if !local.IsValid() {
		*local = ownAddress(pod.addresses, remote.Is4())
	}
	if e.anonymous = !local.IsValid(); e.anonymous {
		*local = placeholder(remote)
	}
	e.judge = model.Pod{MAC: pod.mac, Addresses: pod.addresses}
	if !e.pod.known {
		e.judge.Addresses = []netip.Addr{*local}
	}
	return e
}

// explain says what a filter does with a packet and why. compiled is the same filter.
func explain(f *conf.Filter, compiled *filter.Policy, p packet, pod subjectPod) (*testReport, error) {
	e := newExplanation(f, p, pod)
	fromHost := p.direction == conf.Ingress && slices.Contains(pod.hosts, p.remote.address)
	v := model.New(e.judge, f).Decide(e.packet.model(e.judge, fromHost), p.direction, 0)

	report := &testReport{
		Packet: newPacketReport(&e.packet, e.anonymous), Verdict: verdictText(v),
		DecidedBy: deciders[v.Step], Rule: v.Rule, Rules: []askedRule{}, Notes: e.notes(v),
	}
	if v.Step == model.StepRules {
		if v.Rule >= 0 {
			report.DecidedBy, report.Name = deciderRule, f.Rules[v.Rule].Name
		}
		report.Rules = askRules(f, &p)
		if err := crossCheck(compiled, &p, v.Rule, report.Rules); err != nil {
			return nil, err
		}
	}
	return report, nil
}

func verdictText(v model.Verdict) string {
	switch {
	case v.WouldDeny:
		return conf.Audit.String()
	case v.Pass:
		return conf.Allow.String()
	}
	return conf.Deny.String()
}

// ownAddress returns the first address of a family, the zero Addr if there is none.
func ownAddress(addresses []netip.Addr, ipv4 bool) netip.Addr {
	for _, a := range addresses {
		if a.Is4() == ipv4 {
			return a
		}
	}
	return netip.Addr{}
}

// placeholder returns an address for documentation (RFC 5737, RFC 3849) of a family.
func placeholder(remote netip.Addr) netip.Addr {
	if remote.Is4() {
		return netip.MustParseAddr("192.0.2.1")
	}
	return netip.MustParseAddr("2001:db8::1")
}

// askRules asks rule after rule, to the one that matches or to the last.
func askRules(f *conf.Filter, p *packet) []askedRule {
	asked := []askedRule{}
	for i := range f.Rules {
		r := &f.Rules[i]
		why, detail := mismatch(r, p)
		asked = append(asked, askedRule{i, r.Name, why == whyMatches, why, detail})
		if why == whyMatches {
			break
		}
	}
	return asked
}

// mismatch says which key of a rule does not match a packet.
func mismatch(r *conf.Rule, p *packet) (why, detail string) {
	remote := p.remote.address
	if r.Direction != p.direction {
		return whyDirection, "is for " + r.Direction.String()
	}
	if inside, ok := containing(r.Remote(), remote); !ok && len(r.Remote()) > 0 {
		return whyAddress, fmt.Sprintf("%s is not in %s", remote, listed(r.Remote(), "", mostShown))
	} else if except, ok := containing(r.Except, remote); ok {
		detail := fmt.Sprintf("%s is excepted by %s", remote, except)
		if inside.IsValid() {
			detail += fmt.Sprintf(", within %s", inside)
		}
		return whyExcept, detail
	}
	if r.Protocol != conf.ProtocolAny && r.Protocol != conf.Protocol(p.protocol) {
		return whyProtocol, fmt.Sprintf("is for %s, not %s", protocolText(r.Protocol), protocolText(conf.Protocol(p.protocol)))
	}
	if r.ICMP != nil && !matchesICMP(r.ICMP, p.subject()) {
		return whyICMP, fmt.Sprintf("is for type %s, not %d/%d", icmpText(r.ICMP), p.subject().ICMPType, p.subject().ICMPCode)
	}
	inRange := func(ports conf.PortRange) bool { return ports.First <= p.port() && p.port() <= ports.Last }
	if len(r.Ports) > 0 && !slices.ContainsFunc(r.Ports, inRange) {
		return whyPorts, fmt.Sprintf("port %d is not in %s", p.port(), listed(r.Ports, "", mostShown))
	}
	return whyMatches, "matches: " + ruleText(r, mostShown)
}

// containing returns the first of prefixes that has an address in it.
func containing(prefixes []netip.Prefix, address netip.Addr) (netip.Prefix, bool) {
	for _, p := range prefixes {
		if p.Contains(address) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

func matchesICMP(i *conf.ICMP, s model.Subject) bool {
	return i.Type == s.ICMPType && (i.Code == nil || *i.Code == s.ICMPCode)
}

// crossCheck compares what was explained with the model and with the compiled filter.
func crossCheck(compiled *filter.Policy, p *packet, rule int, asked []askedRule) error {
	explained := -1
	if n := len(asked); n > 0 && asked[n-1].Matches {
		explained = asked[n-1].Rule
	}
	looked := compiled.Lookup(p.direction, p.remote.address, p.protocol, p.lookupPort())
	if explained != rule || looked != rule {
		return fmt.Errorf("%w: rule %d, %d and %d", errDisagree, rule, looked, explained)
	}
	return nil
}

// newPacketReport tells of a packet; anonymous if the pod's address stands for one that is not known.
func newPacketReport(p *packet, anonymous bool) packetReport {
	local, remote := p.local.address.String(), p.remote.address.String()
	if anonymous {
		local = ""
	}
	report := packetReport{
		Direction: p.direction.String(), Protocol: conf.Protocol(p.protocol).String(),
		Source: local, SourcePort: p.local.port, Destination: remote, DestinationPort: p.remote.port,
	}
	if p.direction == conf.Ingress {
		report.Source, report.Destination = report.Destination, report.Source
		report.SourcePort, report.DestinationPort = report.DestinationPort, report.SourcePort
	}
	if p.icmp != nil {
		report.ICMP = icmpText(p.icmp)
	}
	return report
}

// String writes the packet as "egress tcp from 10.88.0.2 to 10.0.0.1:443".
func (r packetReport) String() string {
	end := func(address string, port uint16) string {
		parsed, err := netip.ParseAddr(address)
		switch {
		case err != nil && port == 0:
			return "the pod"
		case err != nil:
			return fmt.Sprintf("port %d of the pod", port)
		case port == 0:
			return address
		}
		return netip.AddrPortFrom(parsed, port).String()
	}
	protocol := r.Protocol
	if parsed, err := conf.ParseProtocol(protocol); err == nil {
		protocol = protocolText(parsed)
	}
	if r.ICMP != "" {
		protocol += " type " + r.ICMP
	}
	return fmt.Sprintf("%s %s from %s to %s", r.Direction, protocol, end(r.Source, r.SourcePort), end(r.Destination, r.DestinationPort))
}

// nodeAddresses returns the addresses of the interfaces of this network namespace.
func nodeAddresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("reading the node's addresses: %w", err)
	}
	var addresses []netip.Addr
	for _, a := range all {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			addresses = append(addresses, prefix.Addr().Unmap())
		}
	}
	return addresses, nil
}

// notes says what a person may want to know beside the verdict on a flow's first packet.
func (e *explanation) notes(v model.Verdict) []string {
	f, p := e.filter, &e.packet
	all := []string{}
	note := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	switch v.Step {
	case model.StepSpoof:
		note("%s", e.spoofNote())
		return all
	case model.StepNeighbour:
		note("neighbour discovery and multicast listener messages pass under any rules")
		return all
	case model.StepHost:
		note("allowHost: %s is the node's own address, and what the node itself sends to the pod passes whatever the rules say", p.remote.address)
	}
	if v.WouldDeny {
		note("audit: it passes, and is counted and reported as one that would be denied")
	}
	if p.direction == conf.Egress && f.AntiSpoof && !e.pod.known && !e.anonymous {
		note("antiSpoof: without POD, %s is taken for an address of the pod", p.local.address)
	}
	if p.direction == conf.Ingress && f.AllowHost && !e.pod.known && !v.Pass {
		note("allowHost: from the node itself it would pass")
	}
	if name, ok := e.pod.others[p.remote.address]; ok && p.direction == conf.Egress && v.Pass {
		note("%s is %s: if that has a filter, its ingress rules are asked, too", p.remote.address, name)
	}
	switch {
	case p.isError():
		if f.Stateful {
			note("stateful: an ICMP error about a live flow passes before rules are asked; this is about one that is about none")
		}
	case f.Stateful && v.Pass:
		note("stateful: answers to it, and ICMP errors about it, pass; the flow's later packets are not judged again")
	case f.Stateful:
		note("stateful: %s", e.asAnswer())
	case v.Pass:
		if answer, ok := p.answer(); ok {
			note("not stateful: an answer to it is judged by itself, and %s", rulesSay(f, answer))
		} else {
			note("not stateful: an answer to it is judged by itself")
		}
	}
	return all
}

// spoofNote says what is spoofed.
func (e *explanation) spoofNote() string {
	p := &e.packet
	switch {
	case p.icmp != nil && p.isRouterMessage():
		return "antiSpoof: a pod is no router, and its router advertisements and redirects are dropped whatever they hold"
	case e.anonymous:
		return fmt.Sprintf("antiSpoof: the pod has no address of the family of %s to send from; it has %s", p.remote.address, addressList(e.pod.addresses))
	}
	return fmt.Sprintf("antiSpoof: %s is not an address of the pod, which may send from %s", p.local.address, addressList(e.pod.addresses))
}

func addressList(addresses []netip.Addr) string {
	return strings.ReplaceAll(listed(addresses, "none", 0), ",", ", ")
}

// asAnswer says whether a packet that is denied would pass as the answer to a flow that the other end
// of it began.
func (e *explanation) asAnswer() string {
	opener, ok := e.packet.opener()
	if !ok {
		if conf.Protocol(e.packet.protocol).HasPorts() {
			return "as an answer to a flow that was let through it would pass; give the ports of both ends to see whether that is so"
		}
		return "it is judged here as the first packet of a flow"
	}
	m := model.New(e.judge, e.filter)
	flow := newPacketReport(opener, e.anonymous)
	fromHost := opener.direction == conf.Ingress && slices.Contains(e.pod.hosts, opener.remote.address)
	if m.Decide(opener.model(e.judge, fromHost), opener.direction, 0).Pass {
		answer := e.packet.model(e.judge, false)
		answer.TCPFlags |= model.ACK
		if m.Decide(answer, e.packet.direction, 0).Pass {
			return fmt.Sprintf("it would pass as an answer in a flow that began with %s, which %s", flow, rulesSay(e.filter, opener))
		}
	}
	return fmt.Sprintf("it would not pass as an answer either: a flow that begins with %s %s", flow, rulesSay(e.filter, opener))
}

// rulesSay says what the rules do with the first packet of a flow.
func rulesSay(f *conf.Filter, p *packet) string {
	by, action := fmt.Sprintf("by the default of %s", p.direction), f.Default.Of(p.direction)
	if i := model.Match(f, p.direction, p.subject()); i >= 0 {
		by, action = fmt.Sprintf("by rule %q", f.Rules[i].Name), f.Rules[i].Action
	}
	if action == conf.Deny {
		return "is denied " + by
	}
	return "is allowed " + by
}
