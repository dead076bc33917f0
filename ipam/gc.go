package main

import (
	"context"
	"errors"
	"io/fs"

	"github.com/xdp-cni/xdp-cni/ipam/leases"
)

// gc frees the leases of all attachments that the runtime does not list as valid. A list that is
// absent, not empty, says nothing of any attachment: then those go that are known to be nobody's.
func gc(ctx context.Context, c *call) error {
	store, err := leases.OpenExisting(ctx, c.options(""))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer store.Close()
	var valid *[]leases.Owner
	if c.conf.Valid != nil {
		valid = &[]leases.Owner{}
		for _, a := range *c.conf.Valid {
			*valid = append(*valid, leases.Owner{ContainerID: a.ContainerID, IfName: a.IfName})
		}
	}
	_, err = store.Collect(valid)
	return err
}
