package tests

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Place is somewhere to be: a [Node] or a [Pod].
type Place interface {
	// Do runs f on a thread that is in the place's network namespace. Sockets opened and processes started by f belong
	// to the namespace; goroutines started by f do not.
	Do(f func() error) error
}

// namespace is a network namespace, made quiet: see newNamespace.
type namespace struct {
	ns ns.NetNS
}

var newNSMu sync.Mutex

// newNamespace makes a network namespace with lo up. IPv6 in it, if it has any, does without duplicate address
// detection and router solicitation, and reports multicast groups once; IPv4 does not report those of a link: addresses
// are usable at once, and little is sent that a test did not ask for.
func newNamespace(ipv6 bool) (*namespace, error) {
	// NewNS makes /var/run/netns a mount point the first time, and two at once would both do it.
	newNSMu.Lock()
	netNS, err := testutils.NewNS()
	newNSMu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("new network namespace: %w", err)
	}
	n := &namespace{ns: netNS}
	if err := n.Do(func() error { return setUp(ipv6) }); err != nil {
		return nil, errors.Join(fmt.Errorf("set up network namespace: %w", err), n.close())
	}
	return n, nil
}

func setUp(ipv6 bool) error {
	type setting struct{ key, value string }
	// a bridge joins 224.0.0.106 and would tell of it at some time in the next second
	settings := []setting{{"net/ipv4/igmp_link_local_mcast_reports", "0"}}
	for _, scope := range []string{"all", "default"} {
		conf := "net/ipv6/conf/" + scope + "/"
		settings = append(settings,
			setting{conf + "accept_dad", "0"}, setting{conf + "accept_ra", "0"}, setting{conf + "router_solicitations", "0"},
			// how many reports of a group there are is set for the whole machine (net/ipv6/mld_qrv, 2): have the
			// second one come at once, and not at some time in the next second (milliseconds)
			setting{conf + "mldv2_unsolicited_report_interval", "10"})
		if !ipv6 {
			settings = append(settings, setting{conf + "disable_ipv6", "1"})
		}
	}
	for _, s := range settings {
		// A kernel without IPv6 has none of these, and is as quiet as can be.
		if err := sysctl(s.key, s.value); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// sysctl sets a key, written with slashes. What is under net belongs to the namespace of the calling thread.
func sysctl(key, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0)
}

// Do implements [Place].
func (n *namespace) Do(f func() error) error {
	return n.ns.Do(func(ns.NetNS) error { return f() })
}

// NetNS is the path of the network namespace.
func (n *namespace) NetNS() string { return n.ns.Path() }

// Sysctl sets a kernel setting of the namespace; the key is written with slashes ("net/ipv4/ip_forward").
func (n *namespace) Sysctl(key, value string) error {
	return n.Do(func() error { return sysctl(key, value) })
}

// close removes the name of the namespace and this process's hold on it. The kernel frees it, and its interfaces,
// once no process or socket is left in it, and asynchronously.
func (n *namespace) close() error {
	return errors.Join(n.ns.Close(), testutils.UnmountNS(n.ns)) // in this order: it is busy while open
}

// addNeighbour adds a permanent neighbour entry in the calling thread's namespace.
func addNeighbour(ifname string, ip netip.Addr, mac net.HardwareAddr) error {
	l, err := netlink.LinkByName(ifname)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", ifname, err)
	}
	err = netlink.NeighSet(&netlink.Neigh{
		LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("set neighbour %s at %s on %s: %w", ip, mac, ifname, err)
	}
	return nil
}

// NeighbourMAC returns the MAC that a place has for a neighbour on an interface; nil if it has none.
func NeighbourMAC(place Place, ifname string, ip netip.Addr) (mac net.HardwareAddr, err error) {
	err = place.Do(func() error {
		l, err := netlink.LinkByName(ifname)
		if err != nil {
			return fmt.Errorf("find interface %s: %w", ifname, err)
		}
		list, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_ALL)
		for _, n := range list {
			if address, ok := netip.AddrFromSlice(n.IP); ok && address.Unmap() == ip.Unmap() {
				mac = n.HardwareAddr
			}
		}
		return err
	})
	return mac, err
}

// ForgetNeighbours makes a place forget the neighbours that it has on an interface.
func ForgetNeighbours(place Place, ifname string) error {
	return place.Do(func() error {
		l, err := netlink.LinkByName(ifname)
		if err != nil {
			return fmt.Errorf("find interface %s: %w", ifname, err)
		}
		list, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list the neighbours on %s: %w", ifname, err)
		}
		for _, n := range list {
			// ENOENT: it is forgotten already
			if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("forget neighbour %s on %s: %w", n.IP, ifname, err)
			}
		}
		return nil
	})
}

// settleTimeout bounds the waits for interfaces.
var settleTimeout = Patience(15 * time.Second)

// WaitAddress waits, 15 seconds at most, until ip can be used in the place: it is on an interface, and duplicate
// address detection is over.
func WaitAddress(ctx context.Context, place Place, ip netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return poll(ctx, 10*time.Millisecond, func() error {
		return place.Do(func() error {
			addresses, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
			if err != nil {
				return fmt.Errorf("list addresses: %w", err)
			}
			for _, a := range addresses {
				if got, ok := netip.AddrFromSlice(a.IP); !ok || got.Unmap() != ip.Unmap() {
					continue
				}
				if a.Flags&unix.IFA_F_TENTATIVE != 0 {
					return fmt.Errorf("address %s is tentative", ip)
				}
				if a.Flags&unix.IFA_F_DADFAILED != 0 {
					return fmt.Errorf("address %s is a duplicate", ip)
				}
				return nil
			}
			return fmt.Errorf("address %s is on no interface", ip)
		})
	})
}

// WaitQuiet waits, 15 seconds at most, until no packet has passed an interface, either way, for as long as idle. What
// the kernel sends by itself when an interface comes up (multicast reports, neighbour discovery) is over then, and exact
// counts can begin.
func WaitQuiet(ctx context.Context, place Place, ifname string, idle time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	var last uint64
	since := time.Now()
	return poll(ctx, idle/10, func() error {
		var now uint64
		err := place.Do(func() error {
			l, err := netlink.LinkByName(ifname)
			if err != nil {
				return fmt.Errorf("find interface %s: %w", ifname, err)
			}
			statistics := l.Attrs().Statistics
			now = statistics.RxPackets + statistics.TxPackets
			return nil
		})
		if err != nil {
			return err
		}
		if now != last {
			last, since = now, time.Now()
		}
		if quiet := time.Since(since); quiet < idle {
			return fmt.Errorf("interface %s was quiet for only %s", ifname, quiet.Round(time.Millisecond))
		}
		return nil
	})
}

// poll calls f until it succeeds or ctx is over, and then returns f's last error with the context's.
func poll(ctx context.Context, interval time.Duration, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(max(interval, time.Millisecond)):
		}
	}
}
