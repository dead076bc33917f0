// Package attachment finds the host end of a container's interface, and checks it against what
// the chain says it made.
package attachment

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/internal/ethtool"
)

var (
	// ErrNetns: the container's network namespace is not there.
	ErrNetns = errors.New("no such network namespace")
	// ErrInterface: the interface is not in the container's network namespace.
	ErrInterface = errors.New("no such interface")
	// ErrNotVeth: the interface is no veth, so it has no host end to attach to.
	ErrNotVeth = errors.New("not a veth")
	// ErrPeerElsewhere: the veth's other end is not in this network namespace.
	ErrPeerElsewhere = errors.New("the host end is not in the plugin's network namespace")
	// ErrMismatch: what was found is not what prevResult says.
	ErrMismatch = errors.New("prevResult does not match")
)

// Veth is the veth pair of an attachment.
type Veth struct {
	HostName  string
	HostIndex int // in the plugin's namespace
	PodIndex  int // in the container's namespace
	PodMAC    net.HardwareAddr
	PodMTU    int // bytes
	// PodTxQueues is how many TX queues the pod end uses; 0 if the kernel did not say.
	PodTxQueues int
}

// Find returns the veth pair whose pod end is ifname in the network namespace at netns, a path.
// The caller's network namespace is where the host end must be.
func Find(netns, ifname string) (*Veth, error) {
	// GetNS answers with errors of its own that hide which of the two it is
	space, err := ns.GetNS(netns)
	if err != nil {
		var missing ns.NSPathNotExistErr
		if errors.As(err, &missing) || errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %s", ErrNetns, netns)
		}
		return nil, fmt.Errorf("opening network namespace %s: %w: %w", netns, ErrNetns, err)
	}
	defer space.Close()

	var (
		pod    netlink.Link
		queues int
	)
	err = space.Do(func(ns.NetNS) error {
		if pod, err = netlink.LinkByName(ifname); err != nil {
			return err
		}
		queues = txQueues(ifname)
		return nil
	})
	if err != nil {
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			return nil, fmt.Errorf("%w: %s in %s", ErrInterface, ifname, netns)
		}
		return nil, fmt.Errorf("looking up interface %s in %s: %w", ifname, netns, err)
	}
	host, err := peer(space, pod)
	if err != nil {
		return nil, fmt.Errorf("finding the host end of %s in %s: %w", ifname, netns, err)
	}
	return &Veth{
		HostName:    host.Attrs().Name,
		HostIndex:   host.Attrs().Index,
		PodIndex:    pod.Attrs().Index,
		PodMAC:      pod.Attrs().HardwareAddr,
		PodMTU:      pod.Attrs().MTU,
		PodTxQueues: queues,
	}, nil
}

func txQueues(ifname string) int {
	channels, err := ethtool.GetChannels(ifname)
	if err != nil {
		return 0
	}
	return int(channels.Tx + channels.Combined)
}

// peer returns the other end of the veth pod, which is in space.
func peer(space ns.NetNS, pod netlink.Link) (netlink.Link, error) {
	if kind := pod.Type(); kind != "veth" {
		return nil, fmt.Errorf("%w but a %s: the xdp plugin works behind plugins that make a veth, such as bridge and ptp",
			ErrNotVeth, kindName(pod))
	}
	// IFLA_LINK is the peer's index in its own namespace, and IFLA_LINK_NETNSID names that
	// namespace if it is another (rtnl_fill_link_netnsid() in net/core/rtnetlink.c)
	index := pod.Attrs().ParentIndex
	if index == 0 || pod.Attrs().NetNsID < 0 {
		return nil, ErrPeerElsewhere
	}
	host, err := netlink.LinkByIndex(index)
	if err != nil {
		return nil, fmt.Errorf("%w: no interface has index %d here: %w", ErrPeerElsewhere, index, err)
	}
	// the index alone may be that of another namespace's interface: it must point back
	id, err := netlink.GetNetNsIdByFd(int(space.Fd()))
	if err != nil {
		return nil, fmt.Errorf("reading the ID of the network namespace: %w", err)
	}
	if host.Type() != "veth" || host.Attrs().ParentIndex != pod.Attrs().Index || host.Attrs().NetNsID != id {
		return nil, fmt.Errorf("%w: interface %d here is %s, which is not its peer", ErrPeerElsewhere, index, host.Attrs().Name)
	}
	return host, nil
}

func kindName(link netlink.Link) string {
	if link.Attrs().Flags&net.FlagLoopback != 0 {
		return "loopback"
	}
	if link.Type() == "device" {
		return "physical device (host-device?)"
	}
	return link.Type()
}

// Check compares the veth with the result of the plugins before: the pod end must be listed with
// its MAC, if interfaces of a sandbox are listed at all, and the host end, if interfaces of the
// host are. A plugin that lists neither says nothing to check.
func (v *Veth) Check(result *types100.Result, netns, ifname string) error {
	var (
		hosts, pods []string
		hostListed  bool
		podListed   bool
	)
	for _, iface := range result.Interfaces {
		switch {
		case iface.Sandbox != "":
			pods = append(pods, iface.Name+" in "+iface.Sandbox)
			if iface.Name != ifname || !sameSpace(iface.Sandbox, netns) {
				continue
			}
			podListed = true
			mac, err := net.ParseMAC(iface.Mac)
			if err == nil && mac.String() != v.PodMAC.String() {
				return fmt.Errorf("%w: it gives %s the MAC %s, but %s in %s has %s", ErrMismatch, ifname, mac, ifname, netns, v.PodMAC)
			}
		case iface.Name != ifname: // some plugins list the pod end without its sandbox
			hosts = append(hosts, iface.Name)
			hostListed = hostListed || iface.Name == v.HostName
		}
	}
	if len(pods) > 0 && !podListed {
		return fmt.Errorf("%w: it lists %s, not %s in %s", ErrMismatch, strings.Join(pods, ", "), ifname, netns)
	}
	if len(hosts) > 0 && !hostListed {
		return fmt.Errorf("%w: it lists %s, but the host end of %s in %s is %s", ErrMismatch,
			strings.Join(hosts, ", "), ifname, netns, v.HostName)
	}
	return nil
}

// sameSpace tells whether two paths lead to one network namespace.
func sameSpace(a, b string) bool {
	if a == b {
		return true
	}
	first, err := os.Stat(a)
	if err != nil {
		return false
	}
	second, err := os.Stat(b)
	return err == nil && os.SameFile(first, second)
}

// Addresses returns the addresses that the result gives to ifname in netns, or to no interface.
func Addresses(result *types100.Result, netns, ifname string) []net.IPNet {
	var addresses []net.IPNet
	for _, ip := range result.IPs {
		if ip.Interface != nil {
			i := *ip.Interface
			if i < 0 || i >= len(result.Interfaces) {
				continue
			}
			iface := result.Interfaces[i]
			if iface.Name != ifname || iface.Sandbox != "" && !sameSpace(iface.Sandbox, netns) {
				continue
			}
		}
		addresses = append(addresses, ip.Address)
	}
	return addresses
}
