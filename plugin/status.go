package main

import (
	"context"
	"errors"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/request"
)

// status tells whether an ADD could succeed: code 50 if none can (CNI SPEC, section "STATUS"),
// 51 if the node can take no more.
func status(ctx context.Context, c *call) error {
	mode, err := request.Mode(c.datapath, c.conf)
	if err == nil {
		err = c.datapath.Ready(datapath.ReadyOptions{
			Mode: mode, Peers: c.conf.Stats.Peers, Redirect: c.conf.Redirect != nil, BigTCP: request.BigTCP(c.conf),
			Programs: request.Programs(c.conf),
		})
	}
	// runtimes ask often: it is the time to see what has become of the pods
	if refitErr := c.datapath.Refit(ctx); refitErr != nil {
		c.log.Warn("not all pods with redirect could be looked at", "error", refitErr)
	}
	if errors.Is(err, datapath.ErrFull) {
		return types.NewError(types.ErrLimitedConnectivity, err.Error(), "")
	}
	if err != nil {
		return types.NewError(types.ErrPluginNotAvailable, err.Error(), "")
	}
	return nil
}
