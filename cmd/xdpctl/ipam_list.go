package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/ipam/leases"
)

func newIPAMListCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "list [NETWORK]",
		Short: "List leases",
		Long: `List the leases of a network, or of all.

IN USE says whether an interface of a pod has the address now: a lease that is not in use and not of
a moment ago has leaked, and CNI's GC frees it. An unknown owner is one that was there before the
leases, or whose lease was lost.`,
		Example: `  xdpctl ipam list
  xdpctl ipam list pods -o json | jq -r '.[] | select(.inUse | not) | .address'`,
		Args:              usageArgs(cobra.MaximumNArgs(1)),
		ValidArgsFunction: o.completeNetwork,
		RunE: func(cmd *cobra.Command, args []string) error {
			var known *knownPods // asked for once, if there are leases
			return ofNetworks(o, args, func(v *leases.View) ([]leaseReport, error) {
				var knownErr error
				if known == nil {
					known = &knownPods{}
					*known, knownErr = o.knownPods(cmd.Context())
				}
				list, err := v.Leases()
				var reports []leaseReport
				for _, l := range list {
					reports = append(reports, known.report(v.Network, l))
				}
				return reports, errors.Join(knownErr, err)
			}, func(reports []leaseReport, s style) string { return leasesTable(reports, s, time.Now()) })
		},
	}
}

// noSuchNetwork is the error for a network without leases, with those that have some.
func noSuchNetwork(root pins.Root, network string) error {
	views, err := leases.Views(root)
	defer closeViews(views)
	var names []string
	for _, v := range views {
		names = append(names, v.Network)
	}
	there := "no network has any"
	if len(names) > 0 {
		there = "there are those of " + strings.Join(names, ", ")
	}
	return errors.Join(fmt.Errorf("no leases of network %q under %s; %s", network, root, there), err)
}
