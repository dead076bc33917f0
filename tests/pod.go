package tests

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
)

// Pod is a network namespace of a node, with what a CNI runtime knows of it. The fields may be changed before it is
// added to a network. Its methods are for one goroutine at a time.
type Pod struct {
	*namespace

	Node        *Node
	Name        string
	ContainerID string
	IfName      string
	Result      *current.Result // of the last Add; nil before

	closed bool
}

// Close deletes the pod's network namespace. It does not tell the CNI plugins: so does a container that dies.
func (p *Pod) Close() error {
	p.Node.mu.Lock()
	defer p.Node.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	p.Node.pods = slices.DeleteFunc(p.Node.pods, func(other *Pod) bool { return other == p })
	if err := p.close(); err != nil {
		return fmt.Errorf("close pod %s: %w", p.Name, err)
	}
	return nil
}

// IPv4 is the pod's IPv4 address by the result of the last Add; the zero Addr if it has none.
func (p *Pod) IPv4() netip.Addr { address, _ := p.addresses(netip.Addr.Is4); return address }

// IPv6 is the pod's IPv6 address by the result of the last Add; the zero Addr if it has none.
func (p *Pod) IPv6() netip.Addr { address, _ := p.addresses(netip.Addr.Is6); return address }

// GatewayIPv4 is the address of the pod's IPv4 gateway, which is the node, by the result of the last Add.
func (p *Pod) GatewayIPv4() netip.Addr { _, gateway := p.addresses(netip.Addr.Is4); return gateway }

// GatewayIPv6 is the address of the pod's IPv6 gateway, which is the node, by the result of the last Add.
func (p *Pod) GatewayIPv6() netip.Addr { _, gateway := p.addresses(netip.Addr.Is6); return gateway }

func (p *Pod) addresses(family func(netip.Addr) bool) (address, gateway netip.Addr) {
	if p.Result == nil {
		return netip.Addr{}, netip.Addr{}
	}
	for _, ip := range p.Result.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok && family(a.Unmap()) {
			g, _ := netip.AddrFromSlice(ip.Gateway)
			return a.Unmap(), g.Unmap()
		}
	}
	return netip.Addr{}, netip.Addr{}
}

// MAC is the hardware address of the pod's interface.
func (p *Pod) MAC() (mac net.HardwareAddr, err error) {
	err = p.Do(func() error {
		l, err := netlink.LinkByName(p.IfName)
		if err != nil {
			return fmt.Errorf("find interface %s of pod %s: %w", p.IfName, p.Name, err)
		}
		mac = l.Attrs().HardwareAddr
		return nil
	})
	return mac, err
}

// Neighbour sets a permanent neighbour entry, so that the pod sends no ARP or neighbour solicitation for ip.
func (p *Pod) Neighbour(ip netip.Addr, mac net.HardwareAddr) error {
	return p.Do(func() error { return addNeighbour(p.IfName, ip, mac) })
}

// Introduce makes two pods of one bridge permanent neighbours: they need no ARP or neighbour discovery between them.
func Introduce(a, b *Pod) error {
	return errors.Join(introduce(a, b), introduce(b, a))
}

func introduce(p, other *Pod) error {
	mac, err := other.MAC()
	if err != nil {
		return err
	}
	for _, ip := range []netip.Addr{other.IPv4(), other.IPv6()} {
		if !ip.IsValid() {
			continue
		}
		if err := p.Neighbour(ip, mac); err != nil {
			return err
		}
	}
	return nil
}

// HostIndex is the interface index, in the node, of the other end of the pod's veth.
func (p *Pod) HostIndex() (index int, err error) {
	err = p.Do(func() error {
		l, err := netlink.LinkByName(p.IfName)
		if err != nil {
			return fmt.Errorf("find interface %s of pod %s: %w", p.IfName, p.Name, err)
		}
		if _, ok := l.(*netlink.Veth); !ok {
			return fmt.Errorf("interface %s of pod %s is no veth but %s", p.IfName, p.Name, l.Type())
		}
		index = l.Attrs().ParentIndex
		return nil
	})
	return index, err
}

// HostInterface is the other end of the pod's veth, found in the node.
func (p *Pod) HostInterface() (host netlink.Link, err error) {
	index, err := p.HostIndex()
	if err != nil {
		return nil, err
	}
	err = p.Node.Do(func() error {
		host, err = netlink.LinkByIndex(index)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find the host end of pod %s: %w", p.Name, err)
	}
	return host, nil
}
