package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/xdp-cni/xdp-cni/ipam/config"
	"github.com/xdp-cni/xdp-cni/ipam/leases"
)

// status tells whether an ADD could succeed: code 50 if leases can be kept nowhere, 51 if none is
// left to give (CNI SPEC, section "STATUS").
func status(_ context.Context, c *call) error {
	err := c.ready()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, leases.ErrExhausted), errors.Is(err, leases.ErrFull):
		return types.NewError(types.ErrLimitedConnectivity, err.Error(), "")
	}
	return types.NewError(types.ErrPluginNotAvailable, err.Error(), "")
}

func (c *call) ready() error {
	if c.conf.ResolvConf != "" {
		if _, err := config.ReadDNS(c.conf.ResolvConf); err != nil {
			return err
		}
	}
	root := c.root()
	mounted, err := root.Mounted()
	if err != nil {
		return err
	}
	if !mounted {
		return root.Mountable()
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("making BPF maps: %w: run as root", fs.ErrPermission)
	}
	view, err := leases.NewView(root, c.conf.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the first ADD makes them
	}
	if err != nil {
		return err
	}
	defer view.Close()
	return view.Room(c.conf.Sets)
}
