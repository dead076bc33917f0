package datapath

import (
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// own is what is ours at the tc hooks of a host end: programs, whoever attached them, and links.
type own struct {
	programs []ebpf.ProgramID
	links    []link.ID
}

// plainQdiscs only queue: a packet that does not pass them misses nothing. mq is one such for each queue, and those are
// listed too.
var plainQdiscs = []string{
	"noqueue", "noop", "pfifo", "bfifo", "pfifo_head_drop", "pfifo_fast", "mq", "fq", "fq_codel", "fq_pie", "codel", "pie", "sfq",
}

// obstacles returns, in words, what the stack applies to packets at a host end that redirected ones would jump over: what
// shapes them, and programs and filters of others at the tc hooks. tcx says that the kernel has it.
func obstacles(host netlink.Link, own own, tcx bool) ([]string, error) {
	found, err := qdiscObstacles(host)
	if err != nil || !tcx {
		return found, err
	}
	for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		foreign, err := tcxObstacles(host, own, hook)
		if err != nil {
			return nil, err
		}
		found = append(found, foreign...)
	}
	return found, nil
}

func qdiscObstacles(host netlink.Link) ([]string, error) {
	name := host.Attrs().Name
	qdiscs, err := netlink.QdiscList(host)
	if err != nil {
		return nil, fmt.Errorf("reading the qdiscs of %s: %w", name, err)
	}
	var found []string
	for _, q := range qdiscs {
		kind, handle := q.Type(), q.Attrs().Handle
		parents := map[uint32]string{handle: "its " + kind + " qdisc"}
		switch {
		case q.Attrs().Parent == netlink.HANDLE_CLSACT: // HANDLE_INGRESS is the same
			// an ingress qdisc has one list of filters, whatever the minor number of the parent
			parents = map[uint32]string{netlink.HANDLE_MIN_INGRESS: "its " + kind + " qdisc at ingress"}
			if kind == "clsact" {
				parents[netlink.HANDLE_MIN_EGRESS] = "its clsact qdisc at egress"
			}
		case !slices.Contains(plainQdiscs, kind):
			found = append(found, fmt.Sprintf("%s has a %s qdisc", name, kind))
			continue
		case handle == 0: // the kernel's own, which takes no filters; and 0 would ask for the root's
			continue
		}
		for parent, where := range parents {
			kinds, err := foreignFilters(host, parent)
			if err != nil {
				return nil, err
			}
			for _, kind := range kinds {
				found = append(found, fmt.Sprintf("%s has a %s filter on %s", name, kind, where))
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}

// foreignFilters returns the kinds of the filters there that are not ours, with their names if they have one.
func foreignFilters(host netlink.Link, parent uint32) ([]string, error) {
	filters, err := netlink.FilterList(host, parent)
	if err != nil {
		return nil, fmt.Errorf("listing the filters of %s: %w", host.Attrs().Name, err)
	}
	var kinds []string
	for _, filter := range filters {
		kind := filter.Type()
		if f, ok := filter.(*netlink.BpfFilter); ok {
			if f.Priority == filterPriority && f.Name == filterName {
				continue
			}
			kind += " (" + f.Name + ")"
		}
		kinds = append(kinds, kind)
	}
	return kinds, nil
}

func tcxObstacles(host netlink.Link, own own, hook ebpf.AttachType) ([]string, error) {
	where := map[ebpf.AttachType]string{ebpf.AttachTCXIngress: "ingress", ebpf.AttachTCXEgress: "egress"}[hook]
	result, err := link.QueryPrograms(link.QueryOptions{Target: host.Attrs().Index, Attach: hook})
	if err != nil {
		return nil, fmt.Errorf("reading the programs of %s: %w", host.Attrs().Name, err)
	}
	var found []string
	for _, prog := range result.Programs {
		id, isLink := prog.LinkID()
		if isLink && slices.Contains(own.links, id) || slices.Contains(own.programs, prog.ID) {
			continue
		}
		found = append(found, fmt.Sprintf("%s runs tcx program %d (%s) at %s", host.Attrs().Name, prog.ID, programName(prog.ID), where))
	}
	return found, nil
}

// programName returns the name that a program was loaded with.
func programName(id ebpf.ProgramID) string {
	const unknown = "of unknown name"
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return unknown
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil || info.Name == "" {
		return unknown
	}
	return info.Name
}
