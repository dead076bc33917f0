package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// Filters on the clsact qdisc are the tc hook of kernels without tcx. They have no links: the
// kernel keeps them until they are removed or the interface goes, and anybody may replace them.
const (
	// filterPriority is low among those that people and other tools choose (1 and up): others
	// keep their place. Chosen freely.
	filterPriority = 0xc41
	filterHandle   = 1
	filterName     = "xdp-cni"
)

func (h hook) filterParent() uint32 {
	if h.isEgress() {
		return netlink.HANDLE_MIN_INGRESS
	}
	return netlink.HANDLE_MIN_EGRESS
}

// ensureClsact makes the clsact qdisc, and tells whether it did.
func ensureClsact(host netlink.Link) (made bool, err error) {
	name := host.Attrs().Name
	err = netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: host.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("adding a clsact qdisc to %s: %w", name, err)
	}
	kind, err := ingressQdisc(host)
	if err != nil {
		return false, fmt.Errorf("reading the qdiscs of %s: %w", name, err)
	}
	if kind != "clsact" {
		return false, fmt.Errorf("%w: %s has an %s qdisc, such as the bandwidth plugin adds for a limit, which excludes the "+
			"clsact qdisc that this kernel needs (6.6 and later have tcx, which goes with it)", ErrUnsupported, name, kind)
	}
	return false, nil
}

// ingressQdisc returns the kind of the qdisc at the interface's ingress, "" if there is none.
func ingressQdisc(host netlink.Link) (string, error) {
	qdiscs, err := netlink.QdiscList(host)
	if err != nil {
		return "", err
	}
	for _, q := range qdiscs {
		if q.Attrs().Parent == netlink.HANDLE_CLSACT { // HANDLE_INGRESS is the same
			return q.Type(), nil
		}
	}
	return "", nil
}

// attachFilter attaches the program to the clsact qdisc, which must be there. A filter of ours
// outlives its pins if somebody removes them by hand: then it is replaced.
func (h hook) attachFilter(prog *ebpf.Program, host netlink.Link) error {
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: host.Attrs().Index, Parent: h.filterParent(), Handle: filterHandle,
			Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: prog.FD(), Name: filterName, DirectAction: true,
	}
	err := netlink.FilterAdd(filter)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	all, listErr := netlink.FilterList(host, h.filterParent())
	if listErr != nil {
		return fmt.Errorf("listing the filters of %s: %w", host.Attrs().Name, listErr)
	}
	for _, other := range all {
		f, ok := other.(*netlink.BpfFilter)
		if ok && f.Priority == filterPriority && f.Handle == filterHandle && f.Name == filterName {
			return netlink.FilterReplace(filter)
		}
	}
	return err
}

// filters returns our filters at the hook: those with our name and priority and the program that
// the attachment noted, or one that an upgrade whose process died put in its place.
func (h hook) filters(host netlink.Link, m *Meta) ([]*netlink.BpfFilter, error) {
	all, err := netlink.FilterList(host, h.filterParent())
	if err != nil {
		return nil, fmt.Errorf("listing the filters of %s: %w", m.HostName, err)
	}
	var ours []*netlink.BpfFilter
	for _, filter := range all {
		f, ok := filter.(*netlink.BpfFilter)
		if !ok || f.Priority != filterPriority || f.Name != filterName {
			continue
		}
		is, err := h.isOurs(ebpf.ProgramID(f.Id), m)
		if err != nil {
			return nil, err
		}
		if is {
			ours = append(ours, f)
		}
	}
	return ours, nil
}

func detachFilter(h hook, m *Meta) error {
	host, err := hostOf(m)
	if host == nil {
		return err
	}
	ours, err := h.filters(host, m)
	if err != nil {
		return err
	}
	for _, filter := range ours {
		if err := netlink.FilterDel(filter); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("removing a filter from %s: %w", m.HostName, err)
		}
	}
	return nil
}

// removeClsact removes the qdisc if we made it and nobody else's filter is on it.
func removeClsact(m *Meta) error {
	if !m.has(bpf.DatapathPodFlagPOD_MADE_CLSACT) {
		return nil
	}
	host, err := hostOf(m)
	if host == nil {
		return err
	}
	for _, h := range hooks(m.Mode) {
		left, err := netlink.FilterList(host, h.filterParent())
		if err != nil {
			return fmt.Errorf("listing the filters of %s: %w", m.HostName, err)
		}
		if len(left) > 0 {
			return nil
		}
	}
	err = netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: m.HostIndex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("removing the clsact qdisc of %s: %w", m.HostName, err)
	}
	return nil
}
