package main

import (
	"context"

	"github.com/xdp-cni/xdp-cni/tests"
)

// filter measures what filters cost.
func (b *bench) filter(ctx context.Context) error {
	if err := onNode(ctx, func(node *tests.Node) error { return b.testRuns(ctx, node) }); err != nil {
		return err
	}
	return b.forward(ctx)
}
