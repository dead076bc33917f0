// Package bigtcp raises how large the packets are that TCP and GRO make for the two ends of a veth.
package bigtcp

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/plugin/podend"
	"github.com/xdp-cni/xdp-cni/plugin/undo"
)

// Size is what the limits are raised to, in bytes. A veth takes up to 524280 (GSO_MAX_SIZE in
// include/linux/netdevice.h).
const Size = 196608

// ErrUnsupported: the kernel limits packets to 64 KiB.
var ErrUnsupported = errors.New("the kernel has no BIG TCP for IPv4")

// Limits are the largest packets, in bytes, that the stack makes for an interface: IFLA_GSO_MAX_SIZE and so on
// (include/uapi/linux/if_link.h).
type Limits struct {
	GSO, GRO, GSOIPv4, GROIPv4 uint32
}

// Both returns limits of size for IPv4 and IPv6.
func Both(size uint32) Limits { return Limits{size, size, size, size} }

// IPv4 returns limits of size for IPv4, and none for IPv6. On 6.18 IPv6 packets of more than 64 KiB do not get through a
// router whose next device has the same MTU as the one before: they carry a hop-by-hop header of 8 bytes that their
// segments will not have, but that ip6_forward() counts into these (measured: 20 MB took 9 seconds instead of 0.1). So
// pods that have routed IPv6 are better off without.
func IPv4(size uint32) Limits { return Limits{GSOIPv4: size, GROIPv4: size} }

// Sizes is what Set did, for Restore; the zero value is nothing.
type Sizes struct {
	// To is what limits below it were raised to.
	To Limits
	// Host and Pod are the limits of both ends as they were.
	Host, Pod Limits
}

// loopback has index 1 in every network namespace (LOOPBACK_IFINDEX in include/net/flow.h).
const loopback = 1

// Supported returns ErrUnsupported if the kernel has no BIG TCP for IPv4.
func Supported() error {
	lo, err := netlink.LinkByIndex(loopback)
	if err != nil {
		return fmt.Errorf("looking up the loopback interface: %w", err)
	}
	return supported(lo)
}

// supported asks what the kernel says of any interface: one that knows a limit tells it.
func supported(any netlink.Link) error {
	if any.Attrs().GSOIPv4MaxSize == 0 {
		return fmt.Errorf("%w: it is there from 6.3 on", ErrUnsupported)
	}
	return nil
}

// Set raises the limits of both ends of a veth to those given; what is higher stays. host is in the caller's network
// namespace. note is called before anything is changed, with what Set then returns. On failure all is undone.
// Errors: ErrUnsupported, podend.ErrGone.
func Set(host netlink.Link, pod *podend.End, to Limits, note func(Sizes) error) (_ Sizes, err error) {
	ends, err := look(host, pod)
	if err != nil {
		return Sizes{}, err
	}
	if err := supported(ends[0].link); err != nil {
		return Sizes{}, err
	}
	sizes := Sizes{To: to, Host: ends[0].limits(), Pod: ends[1].limits()}
	if err := note(sizes); err != nil {
		return Sizes{}, fmt.Errorf("noting the limits of %s: %w", host.Attrs().Name, err)
	}
	var done undo.Stack
	defer done.OnFailure(&err)
	for i, before := range []Limits{sizes.Host, sizes.Pod} {
		done.Push("restoring the limits of "+ends[i].name(), func() error {
			return ends[i].write(before.raised(to), before)
		})
		if err := ends[i].write(before, before.raised(to)); err != nil {
			return Sizes{}, err
		}
	}
	return sizes, nil
}

// Restore puts back what Set changed. A limit that is not as Set left it any more stays; so it may be repeated. It goes
// on past errors and returns them joined. pod is nil if the pod's end cannot be reached.
func Restore(host netlink.Link, pod *podend.End, sizes Sizes) error {
	if sizes == (Sizes{}) {
		return nil
	}
	ends, err := look(host, pod)
	if err != nil {
		return err
	}
	var errs []error
	for i, before := range []Limits{sizes.Host, sizes.Pod}[:len(ends)] {
		after := ends[i].limits()
		errs = append(errs, ends[i].write(after, after.restored(before, before.raised(sizes.To))))
	}
	return errors.Join(errs...)
}

// raised returns the limits with none below those of to.
func (l Limits) raised(to Limits) Limits {
	return Limits{max(l.GSO, to.GSO), max(l.GRO, to.GRO), max(l.GSOIPv4, to.GSOIPv4), max(l.GROIPv4, to.GROIPv4)}
}

// restored returns the limits with those that are still as raised put back.
func (l Limits) restored(before, raised Limits) Limits {
	for _, each := range []struct {
		limit          *uint32
		raised, before uint32
	}{
		{&l.GSO, raised.GSO, before.GSO},
		{&l.GRO, raised.GRO, before.GRO},
		{&l.GSOIPv4, raised.GSOIPv4, before.GSOIPv4},
		{&l.GROIPv4, raised.GROIPv4, before.GROIPv4},
	} {
		if *each.limit == each.raised {
			*each.limit = each.before
		}
	}
	return l
}

// setter is netlink in the network namespace of an interface: *netlink.Handle.
type setter interface {
	LinkSetGSOMaxSize(link netlink.Link, size int) error
	LinkSetGROMaxSize(link netlink.Link, size int) error
	LinkSetGSOIPv4MaxSize(link netlink.Link, size int) error
	LinkSetGROIPv4MaxSize(link netlink.Link, size int) error
}

// end is one end of a veth.
type end struct {
	netlink setter
	link    netlink.Link
}

// look returns the host end and, if there is one, the pod end, as they are now.
func look(host netlink.Link, pod *podend.End) ([]end, error) {
	now, err := netlink.LinkByIndex(host.Attrs().Index)
	if err != nil {
		return nil, fmt.Errorf("looking up %s: %w", host.Attrs().Name, err)
	}
	ends := []end{{&netlink.Handle{}, now}}
	if pod == nil {
		return ends, nil
	}
	link, err := pod.Link()
	if err != nil {
		return nil, err
	}
	return append(ends, end{pod.Handle(), link}), nil
}

func (e end) name() string { return e.link.Attrs().Name }

func (e end) limits() Limits {
	a := e.link.Attrs()
	return Limits{a.GSOMaxSize, a.GROMaxSize, a.GSOIPv4MaxSize, a.GROIPv4MaxSize}
}

// write sets all limits if one differs: the kernel sets those for IPv4 along with the others where these are 64 KiB or
// less (netif_set_gso_max_size() in include/linux/netdevice.h), so they come last.
func (e end) write(from, to Limits) error {
	if from == to {
		return nil
	}
	for _, each := range []struct {
		name string
		to   uint32
		set  func(netlink.Link, int) error
	}{
		{"gso_max_size", to.GSO, e.netlink.LinkSetGSOMaxSize},
		{"gro_max_size", to.GRO, e.netlink.LinkSetGROMaxSize},
		{"gso_ipv4_max_size", to.GSOIPv4, e.netlink.LinkSetGSOIPv4MaxSize},
		{"gro_ipv4_max_size", to.GROIPv4, e.netlink.LinkSetGROIPv4MaxSize},
	} {
		if err := each.set(e.link, int(each.to)); err != nil {
			return fmt.Errorf("setting %s of %s to %d: %w", each.name, e.name(), each.to, err)
		}
	}
	return nil
}
