package tests

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
)

// VethOptions says what [MakeVeth] is to make. The zero value is a veth as container runtimes have it.
type VethOptions struct {
	HostName                string           // a random name if empty
	Queues                  int              // of each end, each way; 1 if zero
	MTU                     int              // the kernel's choice if zero
	HostIndex               int              // the host end's interface index; the kernel's choice if zero
	PodMAC                  net.HardwareAddr // the kernel's choice if nil
	HostAddress, PodAddress netip.Prefix     // none if zero
}

// Veth is what a test needs to know of a veth.
type Veth struct {
	HostName            string
	HostIndex, PodIndex int
	HostMAC, PodMAC     net.HardwareAddr
}

// MakeVeth makes a veth between the node, or another place, and the pod, up at both ends; the pod end has the pod's
// IfName. It is for tests that do without a plugin that does the same. The addresses are usable when it returns. It goes
// away with the pod.
func MakeVeth(ctx context.Context, node Place, pod *Pod, options VethOptions) (*Veth, error) {
	veth, err := makeVeth(ctx, node, pod, options)
	if err != nil {
		return nil, fmt.Errorf("make a veth for pod %s: %w", pod.Name, err)
	}
	return veth, nil
}

func makeVeth(ctx context.Context, node Place, pod *Pod, o VethOptions) (*Veth, error) {
	if o.HostName == "" {
		o.HostName = "veth" + rand.Text()[:8]
	}
	queues := max(o.Queues, 1)
	err := node.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{
				Name: o.HostName, Index: o.HostIndex, MTU: o.MTU, TxQLen: -1, NumTxQueues: queues, NumRxQueues: queues,
			},
			PeerName:         pod.IfName,
			PeerNamespace:    netlink.NsFd(pod.ns.Fd()),
			PeerMTU:          uint32(o.MTU),
			PeerHardwareAddr: o.PodMAC,
			PeerNumTxQueues:  uint32(queues),
			PeerNumRxQueues:  uint32(queues),
		})
	})
	if err != nil {
		return nil, err
	}
	podEnd, err := bringUp(pod, pod.IfName, o.PodAddress)
	if err != nil {
		return nil, err
	}
	hostEnd, err := bringUp(node, o.HostName, o.HostAddress)
	if err != nil {
		return nil, err
	}
	// IPv6 addresses are tentative until both ends are up and the kernel has noticed.
	ctx, cancel := context.WithTimeout(ctx, Patience(5*time.Second))
	defer cancel()
	if o.PodAddress.IsValid() {
		if err := WaitAddress(ctx, pod, o.PodAddress.Addr()); err != nil {
			return nil, err
		}
	}
	if o.HostAddress.IsValid() {
		if err := WaitAddress(ctx, node, o.HostAddress.Addr()); err != nil {
			return nil, err
		}
	}
	return &Veth{
		HostName: o.HostName, HostIndex: hostEnd.Index, PodIndex: podEnd.Index,
		HostMAC: hostEnd.HardwareAddr, PodMAC: podEnd.HardwareAddr,
	}, nil
}

// bringUp sets an interface up, with an address if one is given.
func bringUp(place Place, ifname string, prefix netip.Prefix) (attrs *netlink.LinkAttrs, err error) {
	err = place.Do(func() error {
		l, err := netlink.LinkByName(ifname)
		if err != nil {
			return fmt.Errorf("find %s: %w", ifname, err)
		}
		attrs = l.Attrs()
		if prefix.IsValid() {
			ipNet := &net.IPNet{
				IP:   prefix.Addr().AsSlice(),
				Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
			}
			if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet}); err != nil {
				return fmt.Errorf("add %s to %s: %w", prefix, ifname, err)
			}
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return fmt.Errorf("set %s up: %w", ifname, err)
		}
		return nil
	})
	return attrs, err
}
