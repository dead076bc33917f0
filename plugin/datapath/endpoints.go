package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// EndpointState is whether packets go directly to and from a pod, or why not.
type EndpointState uint8

const (
	// EndpointNone: the pod's network configuration does not ask for it.
	EndpointNone EndpointState = iota
	// EndpointInForce: they do where they can.
	EndpointInForce
	// EndpointOff: it is turned off for the pod, which keeps its addresses.
	EndpointOff
	// EndpointMissing: the address leads to nobody.
	EndpointMissing
	// EndpointTaken: the address leads to another attachment, which came later.
	EndpointTaken
	// EndpointStale: the slot that it leads to is not that of the attachment it was entered for.
	EndpointStale
)

// Endpoint is an address of a pod that has redirect.
type Endpoint struct {
	Address netip.Addr
	// AcrossNetworks: for the pods of all networks that say so, else only for its own.
	AcrossNetworks bool
	State          EndpointState
	// Unfit says in words why it is turned off; nothing if the cause has gone, and nobody has looked since.
	Unfit []string
	// Attachment that has the address: nil if it is not published.
	Attachment *Attachment

	// What senders are told of it; if it is missing or taken, nothing.
	HostIndex   int
	PodMAC      net.HardwareAddr
	RouterMAC   net.HardwareAddr // by which the node, as a router, is spoken to
	MTU         int              // of the pod end, bytes
	Bridge      int              // interface index; 0: the pod is routed
	BridgeName  string           // "" if there is none, or it is gone
	Mode        Mode
	TakesFrames bool // its pod end takes XDP frames
}

// Endpoints are the addresses that the node knows pods by, and what there is room for.
type Endpoints struct {
	List []Endpoint // sorted by address
	// Entered is how many addresses there are, of MaxEndpoints at most: 0 if no pod has had redirect yet.
	Entered, MaxEndpoints int
	// Flows is of how many flows between pods something is noted, of MaxFlows at most.
	Flows, MaxFlows int
}

// Endpoints reads what is known of the pods that have redirect. It takes no lock, and changes nothing.
// Attachments that cannot be read come as an error, along with the rest.
func (d *Datapath) Endpoints() (*Endpoints, error) {
	attachments, listErr := d.List()
	all := &Endpoints{}
	err := d.withNode(func(n *node) error {
		r, err := openReader(n)
		if err != nil || r == nil {
			return err
		}
		defer r.close()
		return r.endpoints(all, attachments)
	})
	for i := range all.List {
		e := &all.List[i]
		if e.State != EndpointOff || e.Attachment == nil {
			continue
		}
		unfit, unfitErr := d.unfit(e.Attachment.dir, e.Attachment.Meta)
		if _, gone := os.Stat(e.Attachment.dir); gone == nil {
			err = errors.Join(err, unfitErr)
		}
		e.Unfit = unfit
	}
	return all, errors.Join(listErr, err)
}

// reader reads the node's maps for redirect.
type reader struct {
	*node
	addresses, directFlows *ebpf.Map
}

// openReader opens the maps: nil without an error if no pod has had redirect yet.
func openReader(n *node) (_ *reader, err error) {
	r := &reader{node: n}
	for _, m := range []struct {
		pin string
		to  **ebpf.Map
	}{{pinEndpoints, &r.addresses}, {pinDirectFlows, &r.directFlows}} {
		*m.to, err = ebpf.LoadPinnedMap(filepath.Join(n.dir, m.pin), &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			r.close()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("opening the node's map %s: %w", m.pin, err)
		}
	}
	return r, nil
}

func (r *reader) close() {
	_ = r.addresses.Close()
	_ = r.directFlows.Close()
}

// readAll reads a hash map whole. What comes and goes meanwhile may be missing.
func readAll[K, V any](m *ebpf.Map, name string) ([]K, []V, error) {
	var (
		cursor ebpf.MapBatchCursor
		keys   = make([]K, m.MaxEntries())
		values = make([]V, m.MaxEntries())
	)
	count, err := m.BatchLookup(&cursor, keys, values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // which says that this was all
		return nil, nil, fmt.Errorf("reading the node's map %s: %w", name, err)
	}
	return keys[:count], values[:count], nil
}

func (r *reader) endpoints(all *Endpoints, attachments []Attachment) error {
	keys, values, err := readAll[bpf.DatapathEndpointKey, bpf.DatapathEndpoint](r.addresses, pinEndpoints)
	if err != nil {
		return err
	}
	flows, _, err := readAll[bpf.DatapathDirectKey, bpf.DatapathDirectFlow](r.directFlows, pinDirectFlows)
	if err != nil {
		return err
	}
	all.Entered, all.MaxEndpoints = len(keys), int(r.addresses.MaxEntries())
	all.Flows, all.MaxFlows = len(flows), int(r.directFlows.MaxEntries())

	byOwner := map[uint64]*Attachment{}
	for i, a := range attachments {
		byOwner[a.Meta.owner] = &attachments[i]
	}
	owners := map[bpf.DatapathEndpointKey]uint64{}
	for i, key := range keys {
		e := newEndpoint(key, &values[i])
		if e.State, err = r.stateOf(&values[i]); err != nil {
			return err
		}
		e.Attachment = byOwner[values[i].Owner]
		owners[key] = values[i].Owner
		all.List = append(all.List, e)
	}
	for _, a := range byOwner {
		all.List = append(all.List, notEntered(a, owners)...)
	}
	slices.SortFunc(all.List, func(a, b Endpoint) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.HostIndex, b.HostIndex), cmp.Compare(a.State, b.State))
	})
	return nil
}

// newEndpoint tells of an entry, but for its state.
func newEndpoint(key bpf.DatapathEndpointKey, e *bpf.DatapathEndpoint) Endpoint {
	shown := Endpoint{
		Address: netip.AddrFrom16(key.Address).Unmap(), AcrossNetworks: key.Network == 0,
		HostIndex: int(e.Ifindex), PodMAC: net.HardwareAddr(e.Mac[:]), RouterMAC: net.HardwareAddr(e.RouterMac[:]),
		MTU: int(e.Mtu), Bridge: int(e.Segment), Mode: Mode(e.Mode),
		TakesFrames: e.Flags&uint8(bpf.DatapathEndpointFlagENDPOINT_TAKES_FRAMES) != 0,
	}
	if e.Segment != 0 {
		if bridge, err := netlink.LinkByIndex(int(e.Segment)); err == nil {
			shown.BridgeName = bridge.Attrs().Name
		}
	}
	return shown
}

// stateOf is what senders make of an entry.
func (r *reader) stateOf(e *bpf.DatapathEndpoint) (EndpointState, error) {
	slot, err := r.slot(e.Slot)
	switch {
	case err != nil:
		return EndpointNone, err
	case slot.Owner != e.Owner:
		return EndpointStale, nil
	case slot.Flags&uint32(bpf.DatapathSlotFlagSLOT_REDIRECT) == 0:
		return EndpointOff, nil
	}
	return EndpointInForce, nil
}

// notEntered returns the addresses of an attachment with redirect that do not lead to it.
func notEntered(a *Attachment, owners map[bpf.DatapathEndpointKey]uint64) []Endpoint {
	if !a.Meta.has(bpf.DatapathPodFlagPOD_REDIRECT) {
		return nil
	}
	if _, err := os.Stat(a.dir); err != nil {
		return nil // it is going, and its addresses went first
	}
	var missing []Endpoint
	for _, address := range a.Meta.Addresses {
		owner, entered := owners[endpointKey(a.Meta.networkID, address.Addr())]
		e := Endpoint{
			Address: address.Addr(), AcrossNetworks: a.Meta.networkID == 0, State: EndpointMissing, Attachment: a,
			HostIndex: a.Meta.HostIndex, Mode: a.Meta.Mode,
		}
		switch {
		case owner == a.Meta.owner && entered:
			continue
		case entered:
			e.State = EndpointTaken
		}
		missing = append(missing, e)
	}
	return missing
}
