package main

import "context"

// check tells whether the attachment is as ADD made it.
func check(ctx context.Context, c *call) error {
	opts, err := c.attachOptions()
	if err != nil {
		return err
	}
	return c.datapath.Check(ctx, opts)
}
