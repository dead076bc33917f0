// Package policy makes of a pod's filter what the packet path decides by: it compiles it for the
// addresses that are the pod's own.
package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/filter"
)

// Pod is whom a filter is for.
type Pod struct {
	// Addresses that the pod was given.
	Addresses []netip.Prefix
	// MAC of its end of the veth.
	MAC net.HardwareAddr
	// Netns is the path of its network namespace, and IfName its interface there. "" once the pod runs:
	// whoever may configure the interface could make any address its own by then.
	Netns, IfName string
	// Known are the pod's own addresses by the policy that is in force, if it has any.
	Known []netip.Addr
}

// Make returns the policy that a valid filter is for a pod. With antiSpoof, the pod's own addresses
// are those that it was given, those that are known, and the IPv6 link-local ones of its interface: the
// one that the kernel makes of the MAC, which may not be there yet, and those that are there, if its
// network namespace is given and can be opened.
func Make(f *conf.Filter, pod Pod) (*datapath.Policy, error) {
	var addresses []netip.Addr
	if f.AntiSpoof {
		var err error
		if addresses, err = pod.own(); err != nil {
			return nil, err
		}
	}
	compiled, err := filter.Compile(f, addresses)
	if err != nil {
		return nil, fmt.Errorf("compiling the filter: %w", err)
	}
	source, err := json.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("writing the filter: %w", err)
	}
	return &datapath.Policy{Compiled: compiled, Source: source}, nil
}

// own returns the pod's own addresses, without repeats.
func (p Pod) own() ([]netip.Addr, error) {
	var own []netip.Addr
	for _, prefix := range p.Addresses {
		own = append(own, prefix.Addr())
	}
	if address, ok := linkLocal(p.MAC); ok {
		own = append(own, address)
	}
	there, err := p.linkLocals()
	if err != nil {
		return nil, fmt.Errorf("reading the addresses of %s in %s: %w", p.IfName, p.Netns, err)
	}
	own = append(own, there...)
	own = append(own, p.Known...)
	slices.SortFunc(own, netip.Addr.Compare)
	return slices.Compact(own), nil
}

// linkLocal returns the link-local address that Linux makes of a MAC unless it is told otherwise: the
// modified EUI-64 behind fe80::/64 (RFC 4291, appendix A; addrconf_ifid_eui48() in
// include/net/addrconf.h).
func linkLocal(mac net.HardwareAddr) (netip.Addr, bool) {
	if len(mac) != 6 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16([16]byte{
		0xfe, 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5],
	}), true
}

// linkLocals returns the link-local addresses that the interface has; none if it cannot be found.
func (p Pod) linkLocals() ([]netip.Addr, error) {
	if p.Netns == "" {
		return nil, nil
	}
	space, err := netns.GetFromPath(p.Netns)
	if err != nil {
		return nil, nil
	}
	defer space.Close()
	handle, err := netlink.NewHandleAt(space, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	link, err := handle.LinkByName(p.IfName)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := handle.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		return nil, err
	}
	var addresses []netip.Addr
	for _, a := range list {
		if address, ok := netip.AddrFromSlice(a.IP); ok && address.IsLinkLocalUnicast() {
			addresses = append(addresses, address)
		}
	}
	return addresses, nil
}
