package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/ipam/leases"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// leaseFacts are how attachments and leases agree.
type leaseFacts struct {
	networks int
	leases   int
	wrong    []string // an attachment has an address that is not leased to it
	err      error
}

// probeLeases compares each attachment's addresses with the leases of its network, as far as they
// are of the network's ranges: other addresses are another IPAM plugin's.
func probeLeases(root pins.Root, attachments []attachmentFacts) leaseFacts {
	var f leaseFacts
	views, err := leases.Views(root)
	defer closeViews(views)
	f.err = err
	for _, v := range views {
		list, err := v.Leases()
		if err != nil {
			f.err = errors.Join(f.err, err)
			continue
		}
		f.networks++
		f.leases += len(list)
		for _, a := range attachments {
			if a.stale || a.Meta.Network != v.Network {
				continue
			}
			wrong, err := checkLeased(v, a.Attachment)
			f.wrong = append(f.wrong, wrong...)
			f.err = errors.Join(f.err, err)
		}
	}
	return f
}

// checkLeased says which addresses the attachment has that are not leased to it.
func checkLeased(v *leases.View, a datapath.Attachment) ([]string, error) {
	var list []netip.Addr
	for _, address := range a.Meta.Addresses {
		list = append(list, address.Addr())
	}
	conflicts, err := v.NotLeased(ownerOf(a), list)
	var wrong []string
	for _, c := range conflicts {
		wrong = append(wrong, fmt.Sprintf("%s has %s, %s", labelOf(a), c.Address, c))
	}
	return wrong, err
}

func (f *facts) checkLeases() check {
	const name = "leases"
	switch l := f.leases; {
	case l.err != nil && !errors.Is(l.err, fs.ErrNotExist):
		return fail(name, l.err.Error(), "")
	case len(l.wrong) > 0:
		return fail(name, strings.Join(l.wrong, "\n"), "start the pod anew, before another one gets its address")
	case l.networks == 0:
		return ok(name, "xdp-ipam has handed out no address")
	default:
		return ok(name, fmt.Sprintf("%d in %d networks; no attachment has an address that is not leased to it", l.leases, l.networks))
	}
}
