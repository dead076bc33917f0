package main

import (
	"context"

	"github.com/xdp-cni/xdp-cni/ipam/leases"
)

// gc frees the leases of all attachments that the runtime does not list as valid. A list that is
// absent, not empty, says nothing of any attachment: then those go that are known to be nobody's.
func gc(ctx context.Context, c *call) error {
	_, err := leases.Collect(ctx, c.options(""), c.conf.Valid)
	return err
}
