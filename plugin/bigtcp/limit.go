package bigtcp

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Limit returns the largest packet, in bytes and at most Size, that every device of a default route takes without the
// stack segmenting it first; Size without a default route. The routes are those of the main table, in the caller's
// network namespace.
func Limit() (uint32, error) {
	indexes := map[int]bool{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteList(nil, family)
		if err != nil {
			return 0, fmt.Errorf("reading the routes: %w", err)
		}
		for _, route := range routes {
			if !isDefault(route) {
				continue
			}
			if len(route.MultiPath) == 0 {
				indexes[route.LinkIndex] = true
			}
			for _, hop := range route.MultiPath {
				indexes[hop.LinkIndex] = true
			}
		}
	}
	limit := uint32(Size)
	for index := range indexes {
		device, err := netlink.LinkByIndex(index)
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			continue // gone meanwhile, and its route with it
		}
		if err != nil {
			return 0, fmt.Errorf("looking up the device of a default route: %w", err)
		}
		limit = min(limit, largest(device))
	}
	return limit, nil
}

// isDefault tells whether it is a default route that packets take: not one that refuses them.
func isDefault(route netlink.Route) bool {
	if route.Type != unix.RTN_UNICAST {
		return false
	}
	if route.Dst == nil {
		return true
	}
	ones, _ := route.Dst.Mask.Size()
	return ones == 0
}

// largest is not what the device's hardware takes (tso_max_size) but what it is set to: what is larger the stack segments
// before, whole (gso_features_check() in net/core/dev.c). Kernels 6.7 to 6.11 go by the limit of IPv6 for IPv4 too.
func largest(device netlink.Link) uint32 {
	a := device.Attrs()
	if a.GSOIPv4MaxSize == 0 {
		return a.GSOMaxSize // below 6.3 it is both
	}
	return min(a.GSOMaxSize, a.GSOIPv4MaxSize)
}
