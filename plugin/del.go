package main

import "context"

// del takes the attachment down. It needs neither network namespace nor prevResult nor the veth,
// and a second call finds nothing to do.
func del(ctx context.Context, c *call) error {
	if err := c.datapath.Detach(ctx, c.ContainerID, c.IfName); err != nil {
		return err
	}
	c.log.Info("detached")
	return nil
}
