package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/ipam/leases"
	"github.com/xdp-cni/xdp-cni/ipam/survey"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// collectLeases does GC for the network's IPAM plugin, if that is xdp-ipam with its leases under
// the same root: no main plugin of containernetworking/plugins hands GC on to it.
func collectLeases(ctx context.Context, c *call) error {
	freed, err := leases.Collect(ctx, survey.Options(pins.NewRoot(c.conf.BPFFS), c.conf.Name, c.log), c.conf.ValidAttachments)
	for _, l := range freed {
		c.log.Info("collected a lease", "address", l.Address, "stale", l.Owner.ContainerID, "staleIfname", l.Owner.IfName)
	}
	return err
}

// checkLeases returns ErrCheck if the attachment has an address of the network's ranges that is
// leased to another one, or to nobody: two pods have it, or may come to. A network without leases
// under the same root has another IPAM plugin.
func checkLeases(c *call, addresses []netip.Prefix) error {
	view, err := leases.NewView(pins.NewRoot(c.conf.BPFFS), c.conf.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer view.Close()
	list := make([]netip.Addr, len(addresses))
	for i, a := range addresses {
		list[i] = a.Addr()
	}
	wrong, err := view.NotLeased(leases.Owner{ContainerID: c.ContainerID, IfName: c.IfName}, list)
	if err != nil || len(wrong) == 0 {
		return err
	}
	return fmt.Errorf("%w: %s, which the attachment has, is %s", datapath.ErrCheck, wrong[0].Address, wrong[0])
}
