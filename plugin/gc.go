package main

import (
	"context"
	"errors"
	"io/fs"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/ipam/leases"
	"github.com/xdp-cni/xdp-cni/ipam/survey"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// gc removes the attachments of the network that the runtime does not list as valid. A list that
// is absent, not empty, says nothing of any attachment: then those go whose interface is gone.
func gc(ctx context.Context, c *call) error {
	if err := datapath.CheckPrivileges(); err != nil {
		return err
	}
	opts := datapath.CollectOptions{Network: c.conf.Name}
	if c.conf.ValidAttachments != nil {
		valid := []datapath.Key{}
		for _, a := range *c.conf.ValidAttachments {
			valid = append(valid, datapath.Key{ContainerID: a.ContainerID, IfName: a.IfName})
		}
		opts.Valid = &valid
	}
	removed, err := c.datapath.Collect(ctx, opts)
	for _, a := range removed {
		c.log.Info("collected", "stale", a.Meta.ContainerID, "staleIfname", a.Meta.IfName)
	}
	return errors.Join(err, collectLeases(ctx, c))
}

// collectLeases does GC for the network's IPAM plugin, if that is xdp-ipam with its leases under
// the same root: no main plugin of containernetworking/plugins hands GC on to it.
func collectLeases(ctx context.Context, c *call) error {
	root, network := pins.NewRoot(c.conf.BPFFS), c.conf.Name
	store, err := leases.OpenExisting(ctx, leases.Options{
		Root: root, Network: network, Log: c.log,
		Survey: func() (leases.Survey, error) { return survey.Do(root, network, "") },
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer store.Close()
	var valid *[]leases.Owner
	if c.conf.ValidAttachments != nil {
		valid = &[]leases.Owner{}
		for _, a := range *c.conf.ValidAttachments {
			*valid = append(*valid, leases.Owner{ContainerID: a.ContainerID, IfName: a.IfName})
		}
	}
	freed, err := store.Collect(valid)
	for _, l := range freed {
		c.log.Info("collected a lease", "address", l.Address, "stale", l.Owner.ContainerID, "staleIfname", l.Owner.IfName)
	}
	return err
}
