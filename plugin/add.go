package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/attachment"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/policy"
)

// add makes the attachment and prints prevResult as it came.
func add(ctx context.Context, c *call) error {
	c.datapath.Prepare()
	output, err := c.conf.ResultJSON()
	if err != nil {
		return err
	}
	if err := datapath.CheckPrivileges(); err != nil {
		return err
	}
	opts, err := c.attachOptions()
	if err != nil {
		return err
	}
	if f := c.conf.PodFilter(); f != nil {
		for _, warning := range f.Warnings() {
			c.log.Warn("a rule of the filter is odd", "rule", warning.Name, "number", warning.Rule, "warning", warning.Text)
		}
	}
	if err := c.datapath.Attach(ctx, opts); err != nil {
		return err
	}
	if _, err := os.Stdout.Write(output); err != nil {
		err = fmt.Errorf("printing the result: %w", err)
		return errors.Join(err, c.datapath.Detach(ctx, c.ContainerID, c.IfName))
	}
	c.log.Info("attached", "hostInterface", opts.HostName, "mode", opts.Mode.String(),
		"namespace", opts.PodNamespace, "pod", opts.PodName)
	return nil
}

// attachOptions finds out what an attachment of this call is to be, and checks that prevResult
// says the same. It changes nothing.
func (c *call) attachOptions() (datapath.AttachOptions, error) {
	var opts datapath.AttachOptions
	result, err := c.conf.Result()
	if err != nil {
		return opts, err
	}
	pod, err := conf.ParsePodArgs(c.Args)
	if err != nil {
		return opts, err
	}
	mode, err := c.mode()
	if err != nil {
		return opts, err
	}
	veth, err := attachment.Find(c.Netns, c.IfName)
	if err != nil {
		return opts, err
	}
	if err := veth.Check(result, c.Netns, c.IfName); err != nil {
		return opts, err
	}
	opts = datapath.AttachOptions{
		ContainerID: c.ContainerID, IfName: c.IfName, Netns: c.Netns, Network: c.conf.Name,
		PodNamespace: pod.Namespace, PodName: pod.Name, PodUID: pod.UID,
		HostName: veth.HostName, HostIndex: veth.HostIndex, PodIndex: veth.PodIndex,
		PodMAC: veth.PodMAC, PodMTU: veth.PodMTU, PodTxQueues: veth.PodTxQueues,
		Mode: mode, Peers: c.conf.Stats.Peers,
	}
	if r := c.conf.Redirect; r != nil {
		opts.Redirect = &datapath.Redirect{
			AcrossNetworks: r.AcrossNetworks, MaxEndpoints: r.MaxEndpoints, MaxFlows: r.MaxFlows,
		}
	}
	switch c.conf.BigTCP {
	case conf.BigTCPOn:
		opts.BigTCP = datapath.BigTCPOn
	case conf.BigTCPAuto:
		opts.BigTCP = datapath.BigTCPAuto
	}
	for _, address := range attachment.Addresses(result, c.Netns, c.IfName) {
		ip, ok := netip.AddrFromSlice(address.IP)
		if !ok {
			return opts, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("prevResult has no address in %q", address.String()), "")
		}
		bits, _ := address.Mask.Size()
		opts.Addresses = append(opts.Addresses, netip.PrefixFrom(ip.Unmap(), bits))
	}
	if f := c.conf.PodFilter(); f != nil {
		opts.Policy, err = policy.Make(f, policy.Pod{
			Addresses: opts.Addresses, MAC: opts.PodMAC, Netns: c.Netns, IfName: c.IfName,
		})
	}
	return opts, err
}

func (c *call) mode() (datapath.Mode, error) {
	switch c.conf.Mode {
	case conf.ModeNative:
		return datapath.ModeNative, nil
	case conf.ModeTCX:
		return datapath.ModeTCX, nil
	case conf.ModeAuto:
		return c.datapath.AutoMode()
	default:
		return datapath.ModeGeneric, nil
	}
}
