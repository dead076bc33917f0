package main

import (
	"context"
	"errors"

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
	return errors.Join(err, c.datapath.Refit(ctx), collectLeases(ctx, c))
}
