package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// Attachment is a published attachment.
type Attachment struct {
	ID   string // its directory's name
	Meta *Meta
	dir  string
}

// List returns the published attachments, sorted by ID. It takes no lock: one that goes meanwhile
// is left out. It goes on past attachments that cannot be read and returns their errors joined.
func (d *Datapath) List() ([]Attachment, error) {
	ids, err := d.Root.Pods()
	if err != nil {
		return nil, err
	}
	var (
		list []Attachment
		errs error
	)
	for _, id := range ids {
		dir := d.Root.Pod(id)
		m, err := readMeta(dir)
		if err != nil {
			if _, gone := os.Stat(dir); !errors.Is(gone, fs.ErrNotExist) {
				errs = errors.Join(errs, err)
			}
			continue
		}
		list = append(list, Attachment{ID: id, Meta: m, dir: dir})
	}
	return list, errs
}

// Verify returns nil if the attachment is intact, else ErrCheck with what is wrong.
func (d *Datapath) Verify(a Attachment) error {
	programs, err := readPrograms(a.dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCheck, err)
	}
	_, err = os.Stat(filepath.Join(a.dir, pinPeers))
	return d.checkIntact(a.dir, a.Meta, programs, err == nil, false)
}

// Counter counts packets as they would be on a wire, as far as the hook knows, and bytes of frames.
type Counter struct {
	Packets, Bytes uint64
}

func (c *Counter) add(rec bpf.DatapathDatarec) {
	c.Packets += rec.Packets
	c.Bytes += rec.Bytes
}

// DirectionStats is what was counted in one direction. The records of each table are by the key
// that bpf/lib/stats.h gives.
type DirectionStats struct {
	Verdicts  [bpf.DatapathVerdictVERDICTS]Counter
	Protocols [bpf.DatapathProtocolPROTOCOLS]Counter
	Kinds     [bpf.DatapathKindKINDS]Counter
	// Drops are by reason, less one: the filter's. All 0 without one.
	Drops [bpf.DatapathDropReasonDROP_REASONS - 1]Counter
}

// Stats is what was counted for an attachment.
type Stats struct {
	Egress, Ingress DirectionStats
}

// ReadStats reads an attachment's counters. It takes no lock and does not disturb the programs.
// fs.ErrNotExist: the attachment is gone.
func (d *Datapath) ReadStats(a Attachment) (*Stats, error) {
	var stats Stats
	for _, t := range tables {
		direction := &stats.Egress
		if t.direction == bpf.DatapathDirectionDIRECTION_INGRESS {
			direction = &stats.Ingress
		}
		var counters []Counter
		switch t.kind {
		case bpf.DatapathTableTABLE_VERDICT:
			counters = direction.Verdicts[:]
		case bpf.DatapathTableTABLE_PROTOCOL:
			counters = direction.Protocols[:]
		case bpf.DatapathTableTABLE_KIND:
			counters = direction.Kinds[:]
		case bpf.DatapathTableTABLE_DROP:
			counters = direction.Drops[:]
		}
		err := readTable(filepath.Join(a.dir, t.pin), counters)
		if t.ofFilter() && errors.Is(err, fs.ErrNotExist) {
			if _, gone := os.Stat(a.dir); gone == nil {
				err = nil // no filter, no drops
			}
		}
		if err != nil {
			return nil, fmt.Errorf("reading the counters of container %s, interface %s: %w", a.Meta.ContainerID, a.Meta.IfName, err)
		}
	}
	return &stats, nil
}

func readTable(pin string, counters []Counter) error {
	m, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("opening map %s: %w", pin, err)
	}
	defer m.Close()
	for i := range counters {
		var cpus []bpf.DatapathDatarec
		if err := m.Lookup(uint32(i), &cpus); err != nil {
			return fmt.Errorf("reading map %s: %w", pin, err)
		}
		for _, rec := range cpus {
			counters[i].add(rec)
		}
	}
	return nil
}

// PeerStats is what an attachment and one remote address sent each other.
type PeerStats struct {
	Address         netip.Addr
	Egress, Ingress Counter
}

// ErrNoPeers: the attachment does not count by peer.
var ErrNoPeers = errors.New("per-peer counters are not configured")

// ReadPeers reads an attachment's per-peer counters, in no order. Entries that come and go
// meanwhile may be missing, or be there twice.
func (d *Datapath) ReadPeers(a Attachment) ([]PeerStats, error) {
	pin := filepath.Join(a.dir, pinPeers)
	m, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the peers of container %s, interface %s: %w", a.Meta.ContainerID, a.Meta.IfName, ErrNoPeers)
	}
	if err != nil {
		return nil, fmt.Errorf("opening map %s: %w", pin, err)
	}
	defer m.Close()
	var (
		peers []PeerStats
		peer  bpf.DatapathPeer
		cpus  []bpf.DatapathPeerCounters
	)
	entries := m.Iterate()
	for entries.Next(&peer, &cpus) {
		p := PeerStats{Address: netip.AddrFrom16(peer.Address).Unmap()}
		for _, c := range cpus {
			p.Egress.add(c.Direction[bpf.DatapathDirectionDIRECTION_EGRESS])
			p.Ingress.add(c.Direction[bpf.DatapathDirectionDIRECTION_INGRESS])
		}
		peers = append(peers, p)
	}
	if err := entries.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("reading map %s: %w", pin, err)
	}
	return peers, nil
}
