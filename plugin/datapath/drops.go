package datapath

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// DropEvent is a packet that a filter dropped, or would have dropped if the rule were no audit rule.
type DropEvent struct {
	Time      time.Time
	HostIndex int
	Direction bpf.DatapathDirection
	Reason    bpf.DatapathDropReason
	Audit     bool // it passed
	// Rule is the rule's number in the filter, of the policy of Generation; -1 for none.
	Rule       int
	Generation uint32
	Len        uint32 // bytes of the frame
	EtherType  uint16
	// The rest is of IP packets only. Ports, and the type and code of ICMP and ICMPv6, are 0 where the
	// protocol, or a later fragment, has none.
	Protocol            uint8
	Source, Destination netip.AddrPort
	ICMPType, ICMPCode  uint8
}

// followPoll is how often a follower looks whether the node is still there.
const followPoll = time.Second

// FollowDrops calls with for each event from now on, until ctx ends or with returns an error, which
// it returns. The kernel keeps a few thousand events and limits their rate on each CPU, so that a
// flood costs little: counters have all drops, events a sample. pins.ErrBusy: somebody else follows;
// an event reaches one reader. fs.ErrNotExist: nothing is attached on this node, or no longer.
// The end of ctx is no error.
func (d *Datapath) FollowDrops(ctx context.Context, with func(DropEvent) error) error {
	n, err := openNode(d.Root.Node())
	if err != nil {
		return err
	}
	defer n.close()
	// nobody else takes the lock of this directory: ADD and DEL take the root's
	lock, err := tryLockDir(n.dir)
	if err != nil {
		return fmt.Errorf("following drops: %w", err)
	}
	defer lock.Unlock()
	// the program's clock may be a tick behind; this one is too
	var start unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &start); err != nil {
		return fmt.Errorf("reading the clock: %w", err)
	}
	events, err := n.open(bpf.DatapathMapDropEvents)
	if err != nil {
		return err
	}
	defer events.Close()
	reader, err := ringbuf.NewReader(events)
	if err != nil {
		return fmt.Errorf("reading drops: %w", err)
	}
	defer reader.Close()
	defer context.AfterFunc(ctx, func() { _ = reader.Close() })()
	var record ringbuf.Record
	for {
		reader.SetDeadline(time.Now().Add(followPoll))
		err := reader.ReadInto(&record)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			if !lock.Holds(n.dir) {
				return fmt.Errorf("following drops: the last attachment went: %w", fs.ErrNotExist)
			}
			continue
		case err != nil:
			return fmt.Errorf("reading drops: %w", err)
		}
		var raw bpf.DatapathDropEvent
		if _, err := binary.Decode(record.RawSample, binary.NativeEndian, &raw); err != nil {
			return fmt.Errorf("reading drops: %w", err)
		}
		if raw.Time < uint64(start.Nano()) {
			continue
		}
		clock, err := readClock()
		if err != nil {
			return err
		}
		if err := with(decodeDrop(&raw, clock)); err != nil {
			return err
		}
	}
}

func decodeDrop(raw *bpf.DatapathDropEvent, clock clock) DropEvent {
	e := DropEvent{
		Time:       clock.wall(raw.Time),
		HostIndex:  int(raw.Ifindex),
		Direction:  bpf.DatapathDirection(raw.Direction),
		Reason:     bpf.DatapathDropReason(raw.Reason),
		Audit:      raw.Audit != 0,
		Rule:       int(int32(raw.Rule)), // DROP_NO_RULE is -1
		Generation: raw.Generation,
		Len:        raw.Len,
		EtherType:  raw.Ethertype,
		Protocol:   raw.Protocol,
	}
	if raw.Source != [16]uint8{} || raw.Destination != [16]uint8{} {
		e.Source = addrPort(raw.Source, raw.SourcePort)
		e.Destination = addrPort(raw.Destination, raw.DestinationPort)
	}
	if e.Protocol == unix.IPPROTO_ICMP || e.Protocol == unix.IPPROTO_ICMPV6 {
		message := e.Destination.Port()
		e.ICMPType, e.ICMPCode = uint8(message>>8), uint8(message)
		e.Destination = netip.AddrPortFrom(e.Destination.Addr(), 0)
	}
	return e
}

// addrPort takes what stands in memory in network byte order.
func addrPort(address [16]uint8, port uint16) netip.AddrPort {
	var raw [2]byte
	binary.NativeEndian.PutUint16(raw[:], port)
	return netip.AddrPortFrom(netip.AddrFrom16(address).Unmap(), binary.BigEndian.Uint16(raw[:]))
}
