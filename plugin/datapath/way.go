package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// Packet is one that a pod sends, as far as its way depends on it.
type Packet struct {
	// Source and Destination; of echo the identifier is the port on the side that asks, the other is 0.
	Source, Destination netip.AddrPort
	Protocol            uint8
	// Special: neither TCP, UDP nor echo, or a fragment, or with options, or tagged.
	Special bool
	// SYN of TCP.
	SYN bool
	// Length of the IP packet in bytes, of the longest of those that a GSO packet holds.
	Length int
	// Hops is the TTL or hop limit.
	Hops uint8
	// DestinationMAC of the frame.
	DestinationMAC net.HardwareAddr
}

// Way is what becomes of a packet, before filters.
type Way struct {
	// Sender is EndpointInForce, or why all that the pod sends goes by the stack; then there is nothing else.
	Sender EndpointState
	// Way is direct, or by the stack, because.
	Way bpf.DatapathWay
	// Target is the pod that has the destination in the sender's network, nil for none.
	Target *Endpoint
	// Routed, if it goes directly: as by a router, else as over a bridge.
	Routed bool
	// Flow is what is known of the packet's flow, nil for nothing.
	Flow *DirectFlow
}

// FlowState is what was seen of a flow between two pods.
type FlowState uint8

const (
	// FlowOneEnd: what left one pod has not, or not all, come to the other: the stack translates or drops
	// it, or it is on its way.
	FlowOneEnd FlowState = iota
	// FlowUnanswered: all that left one pod came to the other, which has not answered, or that is on its way.
	FlowUnanswered
	// FlowMixed: other packets come under its addresses too, which were not sent so.
	FlowMixed
	// FlowKnown: it is not translated.
	FlowKnown
)

// DirectFlow is what is known of a flow between two pods.
type DirectFlow struct {
	Source, Destination netip.AddrPort // of the pod that was asked for, and the other
	Protocol            uint8
	State               FlowState
	// Sent to the stack by the pod, and Delivered by it to the other: packets; of TCP 1 or 0, for what opens it.
	Sent, Delivered uint32
	// AnswersSent and AnswersDelivered are the same of the other pod's packets.
	AnswersSent, AnswersDelivered uint32
	// Seen is the time of its last packet, to a second; zero for TCP, of which it is not noted.
	Seen time.Time
}

// Way says what the packet path would do with a packet that an attachment's pod sends and may send. It does
// what redirect_way() in bpf/lib/redirect.h does, in the same order, but changes nothing, and takes no lock.
func (d *Datapath) Way(a Attachment, p Packet) (*Way, error) {
	way := &Way{}
	err := d.withSender(a, func(s *sender) error {
		way.Sender = s.state
		if s.state != EndpointInForce {
			return nil
		}
		return s.way(way, p)
	})
	return way, err
}

// DirectFlows returns what is known of the flows between two addresses, of which the first is of the
// attachment's pod, sorted by protocol and ports.
func (d *Datapath) DirectFlows(a Attachment, source, destination netip.Addr) ([]DirectFlow, error) {
	var flows []DirectFlow
	err := d.withSender(a, func(s *sender) error {
		if s.state != EndpointInForce {
			return nil
		}
		target, err := s.find(destination)
		if target == nil || err != nil {
			return err
		}
		keys, values, err := readAll[bpf.DatapathDirectKey, bpf.DatapathDirectFlow](s.directFlows, pinDirectFlows)
		if err != nil {
			return err
		}
		now, err := programTime()
		if err != nil {
			return err
		}
		for i, key := range keys {
			low := source.As16() == key.Low && destination.As16() == key.High
			high := source.As16() == key.High && destination.As16() == key.Low
			if key.Network != s.slot.Self.Network || !low && !high {
				continue
			}
			if !s.holds(&values[i], target, end(low), key.Protocol, now) {
				continue
			}
			from, to := key.LowPort, key.HighPort
			if !low {
				from, to = to, from
			}
			flow, err := newDirectFlow(&values[i], end(low), key.Protocol)
			if err != nil {
				return err
			}
			flow.Source, flow.Destination = addrPort(source.As16(), from), addrPort(destination.As16(), to)
			flows = append(flows, *flow)
		}
		return nil
	})
	slices.SortFunc(flows, func(a, b DirectFlow) int {
		return bytes.Compare(a.sortKey(), b.sortKey())
	})
	return flows, err
}

func (f *DirectFlow) sortKey() []byte {
	key := []byte{f.Protocol}
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(key, f.Source.Port()), f.Destination.Port())
}

// sender is a pod that sends, with the node's maps open.
type sender struct {
	*reader
	number uint32
	slot   bpf.DatapathSlot
	state  EndpointState
}

func (d *Datapath) withSender(a Attachment, fn func(*sender) error) error {
	s := &sender{state: EndpointNone}
	if !a.Meta.has(bpf.DatapathPodFlagPOD_REDIRECT) {
		return fn(s)
	}
	return d.withNode(func(n *node) error {
		r, err := openReader(n)
		if err != nil {
			return err
		}
		if s.reader = r; r == nil {
			s.state = EndpointMissing
			return fn(s)
		}
		defer r.close()
		var found bool
		if s.number, s.slot, found, err = n.slotOf(a.Meta.HostIndex); err != nil {
			return err
		}
		switch {
		case !found || s.slot.Owner != a.Meta.owner:
			s.state = EndpointStale
		case s.slot.Flags&uint32(bpf.DatapathSlotFlagSLOT_REDIRECT) == 0:
			s.state = EndpointOff
		default:
			s.state = EndpointInForce
		}
		return fn(s)
	})
}

// find is redirect_find().
func (s *sender) find(address netip.Addr) (*bpf.DatapathEndpoint, error) {
	var e bpf.DatapathEndpoint
	err := s.addresses.Lookup(endpointKey(s.slot.Self.Network, address), &e)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil
	}
	return &e, err
}

// way is redirect_way().
func (s *sender) way(way *Way, p Packet) error {
	if p.Special {
		way.Way = bpf.DatapathWayWAY_SPECIAL
		return nil
	}
	target, err := s.find(p.Destination.Addr())
	if err != nil {
		return err
	}
	way.Way = bpf.DatapathWayWAY_STRANGER
	if target == nil || target.Slot == s.number {
		return nil
	}
	shown := newEndpoint(endpointKey(s.slot.Self.Network, p.Destination.Addr()), target)
	if shown.State, err = s.stateOf(target); err != nil {
		return err
	}
	way.Target = &shown
	if shown.State != EndpointInForce {
		return nil
	}
	if !endpointPairs(&s.slot.Self, target, p.Protocol) {
		way.Way = bpf.DatapathWayWAY_MODES
		return nil
	}
	way.Way = bpf.DatapathWayWAY_PROGRAMS
	if _, after := programCounts(s.slot); after == 0 {
		way.Way, way.Routed = frameWay(&s.slot.Self, target, p)
	}
	now, err := programTime()
	if err != nil {
		return err
	}
	known, err := s.flow(way, p, target, now)
	if err != nil {
		return err
	}
	if way.Way == bpf.DatapathWayWAY_DIRECT && (!known || p.Protocol == unix.IPPROTO_TCP && p.SYN) {
		way.Way = bpf.DatapathWayWAY_UNKNOWN
	}
	return nil
}

// flow reads what is known of the packet's flow, and tells whether it is known to be untranslated.
func (s *sender) flow(way *Way, p Packet, target *bpf.DatapathEndpoint, now uint64) (bool, error) {
	key, low := directKey(s.slot.Self.Network, p)
	var raw bpf.DatapathDirectFlow
	err := s.directFlows.Lookup(key, &raw)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !s.holds(&raw, target, low, p.Protocol, now) {
		return false, nil
	}
	flow, err := newDirectFlow(&raw, low, p.Protocol)
	if err != nil {
		return false, err
	}
	flow.Source, flow.Destination = p.Source, p.Destination
	way.Flow = flow
	return flow.State == FlowKnown, nil
}

// holds tells whether what is known of a flow is of these two attachments, and not yet forgotten
// (direct_live()). low is the sender's end.
func (s *sender) holds(flow *bpf.DatapathDirectFlow, target *bpf.DatapathEndpoint, low bpf.DatapathDirectEnd, protocol uint8, now uint64) bool {
	return flow.Owner[low] == s.slot.Owner && flow.Owner[1-low] == target.Owner &&
		(protocol == unix.IPPROTO_TCP || now < flow.Seen+uint64(directTimeout))
}

// directTimeout is DIRECT_TIMEOUT of bpf/lib/direct.h.
const directTimeout = 120 * time.Second

// end is which end of a flow a pod is, whose address is the lower one or not.
func end(low bool) bpf.DatapathDirectEnd {
	if low {
		return bpf.DatapathDirectEndDIRECT_LOW
	}
	return bpf.DatapathDirectEndDIRECT_HIGH
}

// directKey is redirect_key().
func directKey(network uint64, p Packet) (bpf.DatapathDirectKey, bpf.DatapathDirectEnd) {
	source, destination := p.Source.Addr().As16(), p.Destination.Addr().As16()
	// the packet path compares two words as they lie in memory
	low := wordOf(source, 0) < wordOf(destination, 0)
	if wordOf(source, 0) == wordOf(destination, 0) {
		low = wordOf(source, 8) < wordOf(destination, 8)
	}
	key := bpf.DatapathDirectKey{
		Network: network, Low: source, High: destination,
		LowPort: networkOrder(p.Source.Port()), HighPort: networkOrder(p.Destination.Port()), Protocol: p.Protocol,
	}
	if !low {
		key.Low, key.High = key.High, key.Low
		key.LowPort, key.HighPort = key.HighPort, key.LowPort
	}
	return key, end(low)
}

func wordOf(address [16]byte, at int) uint64 { return binary.NativeEndian.Uint64(address[at:]) }

// networkOrder returns what lies in memory in network byte order.
func networkOrder(port uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
}

// endpointPairs is endpoint_pairs() of bpf/lib/endpoint.h.
func endpointPairs(one, other *bpf.DatapathEndpoint, protocol uint8) bool {
	generic := one.Mode == uint8(ModeGeneric) || other.Mode == uint8(ModeGeneric)
	if protocol == unix.IPPROTO_TCP && generic {
		return false
	}
	reaches := func(from, to *bpf.DatapathEndpoint) bool {
		return from.Mode != uint8(ModeNative) || to.Flags&uint8(bpf.DatapathEndpointFlagENDPOINT_TAKES_FRAMES) != 0
	}
	return reaches(one, other) && reaches(other, one)
}

// frameWay is redirect_frame().
func frameWay(self, target *bpf.DatapathEndpoint, p Packet) (way bpf.DatapathWay, routed bool) {
	switch {
	case p.Length > int(target.Mtu):
		return bpf.DatapathWayWAY_LONG, false
	case self.Segment != 0 && self.Segment == target.Segment && bytes.Equal(p.DestinationMAC, target.Mac[:]):
		return bpf.DatapathWayWAY_DIRECT, false
	case !bytes.Equal(p.DestinationMAC, self.RouterMac[:]):
		return bpf.DatapathWayWAY_LINK, false
	case p.Hops <= 1:
		return bpf.DatapathWayWAY_LAST_HOP, true
	}
	return bpf.DatapathWayWAY_DIRECT, true
}

// newDirectFlow tells what is known of a flow as its end self sees it, but for its ends' addresses.
func newDirectFlow(raw *bpf.DatapathDirectFlow, self bpf.DatapathDirectEnd, protocol uint8) (*DirectFlow, error) {
	flow := &DirectFlow{
		Protocol: protocol, State: flowState(raw, protocol),
		Sent: raw.Sent[self], Delivered: raw.Delivered[self],
		AnswersSent: raw.Sent[1-self], AnswersDelivered: raw.Delivered[1-self],
	}
	if raw.Seen != 0 {
		clock, err := readClock()
		if err != nil {
			return nil, err
		}
		flow.Seen = clock.wall(raw.Seen)
	}
	return flow, nil
}

// flowState is FlowKnown for what direct_known() of bpf/lib/direct.h says.
func flowState(f *bpf.DatapathDirectFlow, protocol uint8) FlowState {
	both := f.Delivered[0] != 0 && f.Delivered[1] != 0
	whole := f.Sent == f.Delivered
	if protocol == unix.IPPROTO_TCP {
		answerer := end(f.Opener != uint8(bpf.DatapathDirectEndDIRECT_LOW))
		whole = f.SynSent == f.SynDelivered && f.AnswerSent == f.AnswerDelivered
		both = both && f.Sent[answerer] != 0
	}
	switch {
	case protocol != unix.IPPROTO_TCP && f.Tainted != 0:
		return FlowMixed
	case whole && both:
		return FlowKnown
	case whole && f.Sent == f.Delivered:
		return FlowUnanswered
	}
	return FlowOneEnd
}

// programTime reads the clock that programs note times by, to a tick.
func programTime() (uint64, error) {
	clock, err := readClock()
	return uint64(clock.monotonic), err
}
