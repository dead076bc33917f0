package datapath

import (
	"context"
	"errors"
	"net/netip"
	"time"

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
	// The rest is of IP packets only. Ports are 0 where the protocol, or a later fragment, has none;
	// of ICMP echo messages both are the identifier.
	Protocol            uint8
	Source, Destination netip.AddrPort
}

// FollowDrops calls with for each event from now on, until ctx ends or with returns an error, which
// it returns. The kernel keeps a few thousand events and limits their rate on each CPU, so that a
// flood costs little: counters have all drops, events a sample. pins.ErrBusy: somebody else follows;
// an event reaches one reader. fs.ErrNotExist: nothing is attached on this node.
func (d *Datapath) FollowDrops(ctx context.Context, with func(DropEvent) error) error {
	return errors.ErrUnsupported
}
