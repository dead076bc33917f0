package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/request"
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
	return request.Request{
		ContainerID: c.ContainerID, IfName: c.IfName, Netns: c.Netns, Args: c.Args, Conf: c.conf,
	}.Options(c.datapath)
}
