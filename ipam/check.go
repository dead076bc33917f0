package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/xdp-cni/xdp-cni/ipam/addrs"
	"github.com/xdp-cni/xdp-cni/ipam/config"
	"github.com/xdp-cni/xdp-cni/ipam/leases"
)

var errCheck = errors.New("not leased as ADD did")

// check tells whether the attachment has an address of each range set leased to it, and all those
// that ADD returned.
func check(_ context.Context, c *call) error {
	view, err := leases.NewView(c.root(), c.conf.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("xdp-ipam: Failed to find address added by container %s: %w: there are no leases", c.ContainerID, errCheck)
	}
	if err != nil {
		return err
	}
	defer view.Close()
	held, err := view.Held(c.owner())
	if err != nil {
		return err
	}
	if len(held) == 0 {
		return fmt.Errorf("xdp-ipam: Failed to find address added by container %s: %w", c.ContainerID, errCheck)
	}
	for _, set := range c.conf.Sets {
		if !slices.ContainsFunc(held, func(a netip.Addr) bool { _, in := set.RangeOf(a); return in }) {
			return fmt.Errorf("container %s, interface %s: %w: no address of range set %s", c.ContainerID, c.IfName, errCheck, set)
		}
	}
	returned, err := prevAddresses(c.conf)
	if err != nil {
		return err
	}
	if missing, all := containsAll(held, c.ofSets(returned)); !all {
		return fmt.Errorf("container %s, interface %s: %w: %s, which prevResult has, is not its", c.ContainerID, c.IfName, errCheck, missing)
	}
	return nil
}

// ofSets leaves out addresses that are of no set: in a chain, others may have added some.
func (c *call) ofSets(list []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(list, func(a netip.Addr) bool {
		return !slices.ContainsFunc(c.conf.Sets, func(set addrs.Set) bool { _, in := set.RangeOf(a); return in })
	})
}

// prevAddresses lists the addresses in prevResult, if there is one.
func prevAddresses(conf *config.Config) ([]netip.Addr, error) {
	if len(conf.PrevResult) == 0 || string(conf.PrevResult) == "null" {
		return nil, nil
	}
	// in its own version, which results from before 1.0.0 need not state
	var stated struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(conf.PrevResult, &stated); err != nil {
		return nil, fmt.Errorf("reading prevResult: %w", err)
	}
	v := cmp.Or(stated.CNIVersion, conf.CNIVersion)
	result, err := create.Create(v, conf.PrevResult)
	if err != nil {
		return nil, fmt.Errorf("reading prevResult: %w", err)
	}
	newest, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, fmt.Errorf("reading prevResult: %w", err)
	}
	var list []netip.Addr
	for _, ip := range newest.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			list = append(list, a.Unmap())
		}
	}
	return list, nil
}
