// Package model is the reference of what a pod's filter means: slow, plain, and of its own making,
// for the packet path to be compared with and for people to ask which rule decides.
//
// It takes a packet as a parser sees it and says whether it passes. In this order:
//
//  1. A broken packet is dropped, and so is a neighbour discovery message in fragments, which its
//     receiver has to drop as well (RFC 6980) and whose options cannot be checked.
//  2. With antiSpoof, what the pod sends must have the pod's MAC, and one of its addresses as the
//     source; so must what ARP and neighbour discovery claim in it. The unspecified source passes
//     where DHCP, duplicate address detection and multicast listener reports have it. Router
//     advertisements and redirects are spoofed whatever they hold.
//  3. ARP passes. Of what is not IP besides, the default of the direction decides.
//  4. Neighbour discovery and multicast listener messages pass.
//  5. With allowHost, what the node itself sends to the pod passes, and makes a flow.
//  6. A later fragment passes if its first fragment did. If that is not known, or was dropped, the
//     first rule decides whose addresses and protocol match; one that has ports, or an ICMP type,
//     cannot, and it is dropped. What is dropped is not remembered, so that nobody fills the memory
//     with it; the rules come to the same, since what denied the first fragment either needs no port
//     or comes behind one that does.
//  7. If stateful, ICMP errors about a live flow pass. They do not make it live longer.
//  8. If stateful, packets of a live flow pass, and make it live longer. Of a flow that an older
//     policy let through, the rules are asked anew as for its first packet; if they deny it, the flow
//     is forgotten. A TCP packet with SYN and without ACK begins a new flow, so it is not for an old
//     one to let it through.
//  9. The first rule that matches decides, or the default. What passes makes a flow, if stateful.
//
// Where that leaves a choice:
//
//   - First fragments are remembered if they pass, from step 4 on. An IPv4 fragment is of the datagram
//     with the same source, destination, protocol and ID (RFC 791); for IPv6 without the protocol
//     (RFC 8200, 4.5), as a later fragment names the extension header that comes first. The verdict
//     holds for the datagram when the policy is replaced meanwhile, but then without a rule: its
//     number would be of the old one.
//   - Later fragments neither make flows nor make them live longer.
//   - A flow that the node began is not for rules to judge while allowHost is set. What the node
//     sends into a flow that is there makes that live longer, and does not judge it anew.
//   - A flow of ICMP echo is that of who asks, with the identifier: whoever is pinged may answer, and
//     not ping in turn. Any other type has a flow of its own, with the type that answers it.
//   - ICMP errors and redirects neither make flows nor belong to one but by step 7.
//   - An IPv4-mapped IPv6 address is the IPv4 address.
//   - A SYN that is denied leaves the flow of its ports, if there is one, as it was.
//   - ICMP errors about a flow that an older policy let through pass until the flow is judged anew.
//   - TCP that begins without SYN makes a flow too, so that a filter that is applied to a running pod
//     knows its connections by their next packets.
//   - The number of flows has no limit here: none is forgotten before its time.
package model

import (
	"net/netip"
	"time"

	"github.com/xdp-cni/xdp-cni/conf"
)

// Reason is why a packet is dropped.
type Reason uint8

const (
	ReasonNone      Reason = iota // it passes
	ReasonSpoof                   // the pod claims to be somebody else
	ReasonRule                    // a rule denies it
	ReasonDefault                 // no rule matches, and the default denies it
	ReasonMalformed               // it is broken
	ReasonFragment                // it is a later fragment that cannot be judged
)

// String returns the word for the reason.
func (r Reason) String() string {
	return [...]string{"none", "spoof", "rule", "default", "malformed", "fragment"}[r]
}

// Step is the step that decides, by its number in the order of the package.
type Step uint8

const (
	StepParse     Step = 1
	StepSpoof     Step = 2
	StepNotIP     Step = 3
	StepNeighbour Step = 4
	StepHost      Step = 5
	StepFragment  Step = 6
	StepRelated   Step = 7
	StepFlow      Step = 8
	StepRules     Step = 9
)

// Verdict is what happens to a packet, and why.
type Verdict struct {
	Pass   bool
	Reason Reason // why not
	// Rule is the number of the rule in the filter that was decisive, to pass too; -1 for none.
	Rule int
	// WouldDeny is set if it passes by a rule to audit.
	WouldDeny bool
	Step      Step
}

// Pod is whose packets are judged.
type Pod struct {
	MAC MAC
	// Addresses are those that it may send from, the link-local one of its interface among them.
	Addresses []netip.Addr
}

// Model judges the packets of one pod, and remembers what the filter has to.
type Model struct {
	pod        Pod
	filter     *conf.Filter
	generation int
	flows      map[flowKey]*flow
	fragments  map[fragmentKey]fragment
}

// New returns a model without flows. filter has to be valid, and is not changed.
func New(pod Pod, filter *conf.Filter) *Model {
	return &Model{pod: pod, filter: filter,
		flows: make(map[flowKey]*flow), fragments: make(map[fragmentKey]fragment)}
}

// Replace puts another filter in the place of the one in force. Flows stay, and are judged anew by
// their next packet.
func (m *Model) Replace(filter *conf.Filter) {
	m.filter = filter
	m.generation++
}

// fragmentKey is a fragmented datagram.
type fragmentKey struct {
	direction conf.Direction
	src, dst  netip.Addr
	protocol  uint8 // 0 for IPv6
	id        uint32
}

type fragment struct {
	verdict    Verdict // on the first one, which passed
	generation int
	expires    time.Duration
}

func (p *Packet) fragmentKey(d conf.Direction) fragmentKey {
	k := fragmentKey{direction: d, src: p.Src.Unmap(), dst: p.Dst.Unmap(), id: p.Fragment.ID}
	if p.EtherType == EtherTypeIPv4 {
		k.protocol = p.Protocol
	}
	return k
}
