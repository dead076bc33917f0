package main

import (
	"context"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// check tells whether the attachment is as ADD made it, and its addresses are leased to it.
func check(ctx context.Context, c *call) error {
	if err := datapath.CheckPrivileges(); err != nil {
		return err
	}
	opts, err := c.attachOptions()
	if err != nil {
		return err
	}
	if err := c.datapath.Check(ctx, opts); err != nil {
		return err
	}
	return checkLeases(c, opts.Addresses)
}
