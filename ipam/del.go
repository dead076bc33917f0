package main

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"

	"github.com/xdp-cni/xdp-cni/ipam/leases"
)

// del frees what is leased to the attachment. It needs nothing but the network's name; a second
// call finds nothing to do.
func del(ctx context.Context, c *call) error {
	store, err := leases.OpenExisting(ctx, c.options(c.Netns))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer store.Close()
	freed, err := store.Release(c.owner())
	if err != nil || len(freed) > 0 {
		return err
	}
	// Addresses that were found in use after all leases were lost are nobody's, so this may be
	// their owner: by what ADD returned, and if no other pod has them.
	addresses, err := prevAddresses(c.conf)
	if err != nil || len(addresses) == 0 {
		return nil //nolint:nilerr // a prevResult that cannot be read says nothing
	}
	_, err = store.FreeUnknown(addresses)
	return err
}

func containsAll(list, wanted []netip.Addr) (netip.Addr, bool) {
	has := map[netip.Addr]bool{}
	for _, a := range list {
		has[a] = true
	}
	for _, a := range wanted {
		if !has[a] {
			return a, false
		}
	}
	return netip.Addr{}, true
}
