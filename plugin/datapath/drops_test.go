package datapath_test

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// TestFollowDrops: events say which packet was dropped, by what; those of before are not told, and there is one
// reader at a time.
func TestFollowDrops(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault, tests.WithoutIPv6())
	follow := func(ctx context.Context, with func(datapath.DropEvent) error) error {
		return r.do(func(d *datapath.Datapath) error { return d.FollowDrops(ctx, with) })
	}
	if err := follow(t.Context(), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without attachments: %v", err)
	}
	r.opts.Policy = mustPolicy(t, someFilter)
	r.mustAttach(r.opts)
	r.send(99) // before
	ctx, cancel := context.WithTimeout(t.Context(), settle)
	defer cancel()
	var (
		events   []datapath.DropEvent
		enough   = errors.New("enough")
		ended    = make(chan error)
		started  = make(chan struct{})
		announce = sync.OnceFunc(func() { close(started) })
	)
	go func() {
		ended <- follow(ctx, func(e datapath.DropEvent) error {
			announce()
			if e.Destination.Port() == 100 {
				return nil
			}
			if events = append(events, e); len(events) == 3 {
				return enough
			}
			return nil
		})
	}()
	for begun := false; !begun; { // until it tells of one
		r.send(100)
		select {
		case <-started:
			begun = true
		case err := <-ended:
			t.Fatalf("following ended: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	if err := follow(ctx, nil); !errors.Is(err, pins.ErrBusy) {
		t.Errorf("a second reader: %v", err)
	}
	r.send(54, 55, 56)
	if err := <-ended; !errors.Is(err, enough) {
		t.Errorf("following ended with %v", err)
	}
	for i, want := range []struct {
		port   uint16
		reason bpf.DatapathDropReason
		rule   int
		audit  bool
	}{
		{54, bpf.DatapathDropReasonDROP_RULE, 1, false},
		{55, bpf.DatapathDropReasonDROP_RULE, 2, true},
		{56, bpf.DatapathDropReasonDROP_DEFAULT, -1, false},
	} {
		got := events[i]
		if time.Since(got.Time).Abs() > time.Minute || got.Generation != 1 {
			t.Errorf("event %d is of %s, generation %d", i, got.Time, got.Generation)
		}
		got.Time, got.Generation = time.Time{}, 0
		if want := (datapath.DropEvent{
			HostIndex: r.veth.HostIndex, Direction: bpf.DatapathDirectionDIRECTION_EGRESS, Reason: want.reason, Audit: want.audit,
			Rule: want.rule, Len: 60, EtherType: packets.EtherTypeIPv4, Protocol: packets.ProtocolUDP,
			Source: netip.MustParseAddrPort("10.0.0.2:1000"), Destination: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), want.port),
		}); got != want {
			t.Errorf("event %d is %+v, want %+v", i, got, want)
		}
	}
	// a reader that nobody disturbs ends with its context, or with the node
	soon, cancelSoon := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancelSoon()
	if err := follow(soon, func(datapath.DropEvent) error { return nil }); err != nil {
		t.Errorf("at the end of its context: %v", err)
	}
	go func() { ended <- follow(ctx, func(datapath.DropEvent) error { return nil }) }()
	time.Sleep(50 * time.Millisecond)
	r.mustDetach(r.opts)
	if err := <-ended; !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("when the last attachment went: %v", err)
	}
}
