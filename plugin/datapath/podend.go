package datapath

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/plugin/bigtcp"
	"github.com/xdp-cni/xdp-cni/plugin/podend"
)

// BigTCP says whether TCP packets of more than 64 KiB go to and from a pod.
type BigTCP int

const (
	// BigTCPOff leaves the limits of GSO and GRO as they are.
	BigTCPOff BigTCP = iota
	// BigTCPOn raises them to bigtcp.Size.
	BigTCPOn
	// BigTCPAuto raises them no further than the devices of the default routes allow, and not at all where
	// the kernel or the mode cannot.
	BigTCPAuto
)

// podEnd opens the pod's end of the attachment: podend.ErrGone if it is not there.
func (m *Meta) podEnd() (*podend.End, error) {
	return podend.Open(podend.Options{
		Netns: m.Netns, IfName: m.IfName, PodIndex: m.PodIndex, HostIndex: m.HostIndex,
	})
}

// preparePodEnd makes the pod's end fit for native redirect as far as it can be, and for BIG TCP.
func (a *attaching) preparePodEnd(context.Context) error {
	// XDP_TX, too, brings frames to the pod's end, and a program is to find checksums as on a wire
	native := (a.Redirect != nil || a.meta.has(bpf.DatapathPodFlagPOD_PROGRAMS)) && a.Mode == ModeNative
	if !native && a.BigTCP == BigTCPOff {
		return nil
	}
	end, err := a.meta.podEnd()
	if err != nil {
		return err
	}
	defer end.Close()
	a.undo.Push("restoring the pod's end", func() error { return restorePodEnd(a.meta, 0) })
	if native {
		if _, err := end.PrepareNative(func(changes podend.Changes) error {
			a.meta.podEndChanges = changes
			return a.note()
		}); err != nil {
			return err
		}
	}
	return a.raiseLimits(end)
}

// raiseLimits makes room for BIG TCP at both ends.
func (a *attaching) raiseLimits(end *podend.End) error {
	if a.BigTCP == BigTCPOff {
		return nil
	}
	err := hasBigTCP(a.Mode)
	if a.BigTCP == BigTCPAuto && errors.Is(err, ErrUnsupported) {
		a.Log.Info("leaving the limits of GSO and GRO as they are", "because", err)
		return nil
	}
	if err != nil {
		return err
	}
	size := uint32(bigtcp.Size)
	if a.BigTCP == BigTCPAuto {
		if size, err = bigtcp.Limit(); err != nil {
			return err
		}
	}
	to := bigtcp.Both(size)
	routed, err := routesIPv6(end)
	if err != nil {
		return err
	}
	// larger IPv6 packets have a hop-by-hop header, with which they go by the stack, and the rest of their flow not
	if routed || a.Redirect != nil {
		to = bigtcp.IPv4(size)
	}
	_, err = bigtcp.Set(a.host, end, to, func(sizes bigtcp.Sizes) error {
		a.meta.bigTCP = sizes
		a.meta.flags |= bpf.DatapathPodFlagPOD_BIG_TCP
		return a.note()
	})
	return err
}

// hasBigTCP returns ErrUnsupported if a pod of that mode cannot have BIG TCP on this kernel.
func hasBigTCP(mode Mode) error {
	err := bigtcp.Supported()
	if errors.Is(err, bigtcp.ErrUnsupported) {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if err == nil && mode != ModeTCX {
		// auto is tcx only where the kernel has links at tc
		return fmt.Errorf("%w: BIG TCP in mode %s: it needs tcx", ErrUnsupported, mode)
	}
	return err
}

// routesIPv6 tells whether the pod sends IPv6 by a router: larger packets do not get through one (see bigtcp.IPv4).
func routesIPv6(end *podend.End) (bool, error) {
	link, err := end.Link()
	if err != nil {
		return false, err
	}
	routes, err := end.Handle().RouteList(link, netlink.FAMILY_V6)
	if err != nil {
		return false, fmt.Errorf("reading the routes of %s in %s: %w", end.IfName, end.Netns, err)
	}
	for _, route := range routes {
		if route.Gw != nil || len(route.MultiPath) > 0 {
			return true, nil
		}
	}
	return false, nil
}

// restorePodEnd puts back what was changed at the pod's end but for what is to be kept, and for BIG TCP at the host's, if
// they are there still.
func restorePodEnd(m *Meta, keep podend.Changes) error {
	if m.podEndChanges == 0 && !m.has(bpf.DatapathPodFlagPOD_BIG_TCP) {
		return nil
	}
	host, err := hostOf(m)
	if host == nil {
		return err
	}
	end, err := m.podEnd()
	if errors.Is(err, podend.ErrGone) {
		return bigtcp.Restore(host, nil, m.bigTCP)
	}
	if err != nil {
		return err
	}
	defer end.Close()
	return errors.Join(bigtcp.Restore(host, end, m.bigTCP), end.Restore(m.podEndChanges&^keep))
}
