package main

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/xdp-cni/xdp-cni/ipam/config"
	"github.com/xdp-cni/xdp-cni/ipam/leases"
	"github.com/xdp-cni/xdp-cni/ipam/survey"
)

// add leases the attachment an address of each range set and prints them. Called again for the
// same attachment it gives it the same ones, unless that is alive.
func add(ctx context.Context, c *call) error {
	result := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Routes: c.conf.Routes}
	if c.conf.ResolvConf != "" {
		dns, err := config.ReadDNS(c.conf.ResolvConf)
		if err != nil {
			return err
		}
		result.DNS = *dns
	}
	options := c.options("")
	options.Configured = func() (map[netip.Addr]bool, error) { return survey.In(c.Netns) }
	store, err := leases.Open(ctx, options)
	if err != nil {
		return err
	}
	defer store.Close()
	allocated, err := store.Allocate(c.owner(), c.conf.Sets, c.conf.Requested)
	if err != nil {
		return err
	}
	for _, a := range allocated {
		result.IPs = append(result.IPs, &types100.IPConfig{
			Address: net.IPNet{IP: a.Address.AsSlice(), Mask: net.CIDRMask(a.Range.Subnet.Bits(), a.Address.BitLen())},
			Gateway: gateway(a.Range.Gateway),
		})
	}
	if err := types.PrintResult(result, c.conf.CNIVersion); err != nil {
		// a runtime that got no addresses has none
		_, releaseErr := store.Release(c.owner())
		return errors.Join(err, releaseErr)
	}
	return nil
}

func gateway(a netip.Addr) net.IP { return a.AsSlice() }
