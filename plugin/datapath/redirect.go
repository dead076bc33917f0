package datapath

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// Redirect says how a pod's packets may go directly to other pods of the node.
type Redirect struct {
	// AcrossNetworks: to and from the pods of all networks that say so, else only of its own.
	AcrossNetworks bool
	// MaxEndpoints (addresses of pods) and MaxFlows (between pods) are what the node has room for, if this
	// is the first pod with redirect: at least 2 and 1.
	MaxEndpoints, MaxFlows uint32
}

// Pins of the node for redirect. A DEVMAP takes programs with multi-buffer support or without, not both
// (map_type_contains_progs() and __bpf_prog_map_compatible() in kernel/bpf/core.c). 6.18 holds a DEVMAP_HASH to
// that no more than 5.10, which had only one kind; with one for each it does not matter what a kernel does.
const (
	pinEndpoints    = bpf.DatapathMapEndpoints
	pinDirectFlows  = bpf.DatapathMapDirectFlows
	pinTxPorts      = bpf.DatapathMapTxPorts
	pinTxPortsFrags = bpf.DatapathMapTxPorts + "_frags"
)

// redirectPins are the pins by the name of the map in the object.
var redirectPins = map[string][]string{
	bpf.DatapathMapEndpoints:   {pinEndpoints},
	bpf.DatapathMapDirectFlows: {pinDirectFlows},
	bpf.DatapathMapTxPorts:     {pinTxPorts, pinTxPortsFrags},
}

// networkID returns what stands for a network in the endpoints: pods find those with the same one.
func networkID(network string, r *Redirect) uint64 {
	if r.AcrossNetworks {
		return 0
	}
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(network)) // never fails
	return max(1, sum.Sum64())
}

// ensureRedirect makes and pins the node's maps for redirect, but for those that are there, whose
// sizes stay. The caller holds the node's lock.
func (n *node) ensureRedirect(spec *ebpf.CollectionSpec, opts *Redirect) error {
	for pin, mapSpec := range pinSpecs(spec, redirectPins) {
		if err := n.ensureMap(redirectSpec(mapSpec, opts), pin); err != nil {
			return err
		}
	}
	return nil
}

func redirectSpec(spec *ebpf.MapSpec, opts *Redirect) *ebpf.MapSpec {
	spec = spec.Copy()
	switch spec.Name {
	case bpf.DatapathMapEndpoints:
		spec.MaxEntries = opts.MaxEndpoints
	case bpf.DatapathMapDirectFlows:
		spec.MaxEntries = opts.MaxFlows
	}
	return spec
}

// ensureMap makes a map of the node unless it is pinned.
func (n *node) ensureMap(spec *ebpf.MapSpec, pin string) error {
	path := filepath.Join(n.dir, pin)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return fmt.Errorf("making the node's map %s: %w", pin, err)
	}
	defer m.Close()
	if err := m.Pin(path); err != nil {
		return fmt.Errorf("pinning the node's map %s: %w", pin, err)
	}
	return nil
}

// redirectMaps are the open handles of what the control path uses of them.
type redirectMaps struct {
	endpoints *ebpf.Map
	ports     []*ebpf.Map
}

func (r *redirectMaps) close() {
	_ = r.endpoints.Close()
	for _, m := range r.ports {
		_ = m.Close()
	}
}

// openRedirect opens the node's maps for redirect: ErrDamaged if they are not all there.
func (n *node) openRedirect() (_ *redirectMaps, err error) {
	r := &redirectMaps{}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if r.endpoints, err = n.open(pinEndpoints); err != nil {
		return nil, err
	}
	for _, pin := range []string{pinTxPorts, pinTxPortsFrags} {
		m, err := n.open(pin)
		if err != nil {
			return nil, err
		}
		r.ports = append(r.ports, m)
	}
	return r, nil
}

func endpointKey(network uint64, address netip.Addr) bpf.DatapathEndpointKey {
	return bpf.DatapathEndpointKey{Network: network, Address: address.As16()}
}

// describe returns the endpoint that an attachment is, by its interfaces as they are now.
func (m *Meta) describe(slot uint32, mtu int) (bpf.DatapathEndpoint, error) {
	e := bpf.DatapathEndpoint{
		Owner: m.owner, Network: m.networkID, Ifindex: uint32(m.HostIndex), Slot: slot,
		Mtu: uint32(mtu), Mode: uint8(m.Mode),
	}
	if m.Mode == ModeNative {
		e.Flags = uint8(bpf.DatapathEndpointFlagENDPOINT_TAKES_FRAMES) // or it is not in force
	}
	copy(e.Mac[:], m.PodMAC)
	host, err := netlink.LinkByIndex(m.HostIndex)
	if err != nil {
		return e, fmt.Errorf("looking up %s: %w", m.HostName, err)
	}
	// the stack asks the host end's
	e.Mtu = min(e.Mtu, uint32(host.Attrs().MTU))
	router := host.Attrs().HardwareAddr
	if master := host.Attrs().MasterIndex; master != 0 {
		bridge, err := netlink.LinkByIndex(master)
		if err != nil {
			return e, fmt.Errorf("looking up the bridge of %s: %w", m.HostName, err)
		}
		// behind another master, such as a VRF, it is routed
		if bridge.Type() == "bridge" {
			e.Segment, router = uint32(master), bridge.Attrs().HardwareAddr
		}
	}
	copy(e.RouterMac[:], router)
	return e, nil
}

// enterEndpoint makes a pod's packets go directly, and others' to it: it is found from the moment that its
// addresses are in the map of endpoints. fit: else it is entered, but not in force. The caller holds the node's
// lock. ErrFull if there is no room.
func (n *node) enterEndpoint(m *Meta, self bpf.DatapathEndpoint, fit bool) error {
	maps, err := n.openRedirect()
	if err != nil {
		return err
	}
	defer maps.close()
	for _, ports := range maps.ports {
		err := ports.Put(self.Ifindex, self.Ifindex)
		if errors.Is(err, unix.E2BIG) {
			err = fmt.Errorf("%w: all %d places for interfaces to redirect to are taken", ErrFull, ports.MaxEntries())
		}
		if err != nil {
			return fmt.Errorf("entering %s in the node's map %s: %w", m.HostName, pinTxPorts, err)
		}
	}
	entry, err := n.slot(self.Slot)
	if err != nil {
		return err
	}
	if entry.Owner != m.owner {
		return fmt.Errorf("%w: the slot of interface %s was taken", ErrDamaged, m.HostName)
	}
	entry.Self = self
	if err := n.slots.Put(self.Slot, entry); err != nil {
		return fmt.Errorf("entering the endpoint of slot %d: %w", self.Slot, err)
	}
	// by itself: who finds the flag reads what is there by then
	if err := n.setRedirect(self.Slot, fit); err != nil {
		return err
	}
	for _, address := range m.Addresses {
		err := maps.endpoints.Put(endpointKey(m.networkID, address.Addr()), self)
		if errors.Is(err, unix.E2BIG) {
			err = fmt.Errorf("%w: all %d places for addresses that packets are redirected to are taken: raise "+
				"\"maxEndpoints\" of \"redirect\", which the first pod with redirect on the node decides", ErrFull, maps.endpoints.MaxEntries())
		}
		if err != nil {
			return fmt.Errorf("entering %s in the node's map %s: %w", address.Addr(), pinEndpoints, err)
		}
	}
	return nil
}

// leaveEndpoint undoes enterEndpoint, whole or half done; what another attachment has taken over stays. The
// caller holds the node's lock.
func (n *node) leaveEndpoint(m *Meta) error {
	number, entry, found, err := n.slotOf(m.HostIndex)
	if err != nil {
		return err
	}
	own := found && entry.Owner == m.owner
	if own && entry.Flags&uint32(bpf.DatapathSlotFlagSLOT_REDIRECT) != 0 {
		if err := n.setRedirect(number, false); err != nil {
			return err
		}
	}
	maps, err := n.openRedirect()
	if errors.Is(err, ErrDamaged) {
		return nil // nothing is entered there, or nobody can say where
	}
	if err != nil {
		return err
	}
	defer maps.close()
	var errs error
	for _, address := range m.Addresses {
		errs = errors.Join(errs, maps.remove(endpointKey(m.networkID, address.Addr()), m.owner))
	}
	if !own {
		return errs
	}
	for _, ports := range maps.ports {
		err := ports.Delete(uint32(m.HostIndex))
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = errors.Join(errs, fmt.Errorf("removing %s from the node's map %s: %w", m.HostName, pinTxPorts, err))
		}
	}
	return errs
}

// remove removes an address, if it is the owner's.
func (r *redirectMaps) remove(key bpf.DatapathEndpointKey, owner uint64) error {
	var e bpf.DatapathEndpoint
	err := r.endpoints.Lookup(key, &e)
	if err == nil && e.Owner == owner {
		err = r.endpoints.Delete(key)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("removing %s from the node's map %s: %w", netip.AddrFrom16(key.Address).Unmap(), pinEndpoints, err)
	}
	return nil
}

// setRedirect lets the packets of the pod in a slot, and those for it, go directly or not. The caller holds
// the node's lock.
func (n *node) setRedirect(number uint32, on bool) error {
	entry, err := n.slot(number)
	if err != nil {
		return err
	}
	entry.Flags &^= uint32(bpf.DatapathSlotFlagSLOT_REDIRECT)
	if on {
		entry.Flags |= uint32(bpf.DatapathSlotFlagSLOT_REDIRECT)
	}
	if err := n.slots.Put(number, entry); err != nil {
		return fmt.Errorf("changing slot %d: %w", number, err)
	}
	return nil
}

// removeEndpointsOf removes the addresses whose owner is not among these. The caller holds the node's lock.
func (n *node) removeEndpointsOf(living map[uint64]bool) error {
	maps, err := n.openRedirect()
	if errors.Is(err, ErrDamaged) {
		return nil
	}
	if err != nil {
		return err
	}
	defer maps.close()
	keys, values, err := readAll[bpf.DatapathEndpointKey, bpf.DatapathEndpoint](maps.endpoints, pinEndpoints)
	if err != nil {
		return err
	}
	var errs error
	for i, key := range keys {
		if owner := values[i].Owner; !living[owner] {
			errs = errors.Join(errs, maps.remove(key, owner))
		}
	}
	return errs
}

// roomForEndpoints returns ErrFull if no address can be entered any more.
func (n *node) roomForEndpoints() error {
	maps, err := n.openRedirect()
	if errors.Is(err, ErrDamaged) {
		return nil // they are made by the first pod
	}
	if err != nil {
		return err
	}
	defer maps.close()
	taken, _, err := readAll[bpf.DatapathEndpointKey, bpf.DatapathEndpoint](maps.endpoints, pinEndpoints)
	if err != nil {
		return err
	}
	if len(taken) >= int(maps.endpoints.MaxEntries()) {
		return fmt.Errorf("%w: all %d places for addresses that packets are redirected to are taken", ErrFull, len(taken))
	}
	return nil
}
