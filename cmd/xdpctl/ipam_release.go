package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/ipam/leases"
)

func newIPAMReleaseCommand(o *options) *cobra.Command {
	force := false
	cmd := &cobra.Command{
		Use:   "release NETWORK ADDRESS...",
		Short: "Free leases by hand",
		Long: `Free the leases of addresses, whoever has them, so that they can be handed out again.

An address that a pod has which is alive is refused without --force: it would be given to a second
one. So says an interface of the pod, or an attachment of the chained plugin whose interface is there. Leaked leases are freed by CNI's GC; this is for where the runtime does not call it.`,
		Example: `  xdpctl ipam release pods 10.88.0.7`,
		Args:    usageArgs(cobra.MinimumNArgs(2)),

		ValidArgsFunction: o.completeNetwork,
		RunE: func(cmd *cobra.Command, args []string) error {
			var addresses []netip.Addr
			for _, arg := range args[1:] {
				a, err := netip.ParseAddr(arg)
				if err != nil {
					return usagef("%q is no address", arg)
				}
				addresses = append(addresses, a.Unmap())
			}
			store, err := leases.OpenExisting(cmd.Context(), o.leaseOptions(args[0]))
			if errors.Is(err, fs.ErrNotExist) {
				return noSuchNetwork(o.root(), args[0])
			}
			if err != nil {
				return err
			}
			defer store.Close()
			known, err := o.knownPods(cmd.Context())
			if err != nil && !force {
				return err
			}
			reports := []leaseReport{}
			var errs error
			for _, a := range addresses {
				if who := known.holder(args[0], a); who != "" && !force {
					errs = errors.Join(errs, fmt.Errorf("%s has %s and is alive: --force frees it nonetheless, and two pods may come to have it", who, a))
					continue
				}
				l, err := store.ReleaseAddress(a)
				if err != nil {
					errs = errors.Join(errs, fmt.Errorf("network %s: %w", args[0], err))
					continue
				}
				reports = append(reports, known.report(args[0], l))
			}
			return errors.Join(o.write(reports, func(s style) string { return leasesTable(reports, s, time.Now()) }), errs)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "free even what a living pod has")
	return cmd
}
