package survey

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// InUse returns the addresses of the interfaces in all network namespaces in which an interface
// of this one has its other end: of all pods with a veth, whichever plugin made it and wherever
// their namespaces are mounted. That at except (a path, which may be "" or gone) is left out.
//
// The kernel tells them across namespaces (IFA_TARGET_NETNSID, since 4.20), so none is entered.
func InUse(except string) (map[netip.Addr]bool, error) {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	skip, err := netnsID(except)
	if err != nil {
		return nil, err
	}
	sockets, err := strictSocket()
	if err != nil {
		return nil, err
	}
	defer sockets[unix.NETLINK_ROUTE].Close()
	seen := map[int]bool{}
	used := map[netip.Addr]bool{}
	for _, l := range links {
		id := l.Attrs().NetNsID
		if id < 0 || id == skip || seen[id] {
			continue
		}
		seen[id] = true
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			if err := addressesIn(sockets, id, family, used); err != nil {
				return nil, fmt.Errorf("listing the addresses behind interface %s: %w", l.Attrs().Name, err)
			}
		}
	}
	return used, nil
}

// In returns the addresses of the interfaces in the network namespace at path; none if there is no
// such namespace.
func In(path string) (map[netip.Addr]bool, error) {
	f, err := openNetns(path)
	if err != nil || f == nil {
		return nil, err
	}
	defer f.Close()
	socket, err := netlink.NewHandleAt(netns.NsHandle(f.Fd()), unix.NETLINK_ROUTE)
	if errors.Is(err, unix.EINVAL) {
		return nil, nil // no network namespace, as a file that a namespace was mounted on
	}
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket in %s: %w", path, err)
	}
	defer socket.Close()
	list, err := socket.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing the addresses in %s: %w", path, err)
	}
	has := map[netip.Addr]bool{}
	for _, one := range list {
		if a, ok := netip.AddrFromSlice(one.IP); ok {
			has[a.Unmap()] = true
		}
	}
	return has, nil
}

// netnsID returns the number that the namespace at path has in this one, -1 if it has none.
func netnsID(path string) (int, error) {
	f, err := openNetns(path)
	if err != nil || f == nil {
		return -1, err
	}
	defer f.Close()
	id, err := netlink.GetNetNsIdByFd(int(f.Fd()))
	if err != nil {
		return -1, nil //nolint:nilerr // no network namespace, as a file that a namespace was mounted on
	}
	return id, nil
}

// strictSocket opens a socket on which the kernel heeds, or refuses, what a request for a list
// says: without that it would pass over the namespace and list our own addresses.
func strictSocket() (map[int]*nl.SocketHandle, error) {
	socket, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	if err := unix.SetsockoptInt(socket.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		socket.Close()
		return nil, fmt.Errorf("asking for strict netlink checks, which kernel 4.20 and later have: %w", err)
	}
	return map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: socket}}, nil
}

// addressesIn adds the addresses of the interfaces in the namespace of that number.
func addressesIn(sockets map[int]*nl.SocketHandle, id, family int, to map[netip.Addr]bool) error {
	for {
		request := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
		request.Sockets = sockets
		request.AddData(nl.NewIfAddrmsg(family))
		request.AddData(nl.NewRtAttr(unix.IFA_TARGET_NETNSID, nl.Uint32Attr(uint32(id))))
		messages, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
		if errors.Is(err, nl.ErrDumpInterrupted) {
			continue
		}
		if errors.Is(err, unix.EINVAL) {
			return nil // it went meanwhile
		}
		if err != nil {
			return err
		}
		for _, m := range messages {
			attributes, err := nl.ParseRouteAttr(m[unix.SizeofIfAddrmsg:])
			if err != nil {
				return fmt.Errorf("reading an address: %w", err)
			}
			for _, attribute := range attributes {
				if attribute.Attr.Type != unix.IFA_ADDRESS && attribute.Attr.Type != unix.IFA_LOCAL {
					continue
				}
				if a, ok := netip.AddrFromSlice(attribute.Value); ok {
					to[a.Unmap()] = true
				}
			}
		}
		return nil
	}
}
