package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/ipam/hostlocal"
	"github.com/xdp-cni/xdp-cni/ipam/leases"
)

// importReport is what import took over, and what not.
type importReport struct {
	Imported []leaseReport `json:"imported"`
	Skipped  []skipReport  `json:"skipped"`
}

type skipReport struct {
	leaseReport
	Reason string `json:"reason"`
}

type importOptions struct {
	network, dataDir, ifname string
	alive                    bool
}

func newIPAMImportCommand(o *options) *cobra.Command {
	from := importOptions{}
	cmd := &cobra.Command{
		Use:   "import NETWORK",
		Short: "Take over the leases of host-local",
		Long: `Take over the leases that the IPAM plugin host-local keeps of a network, so that a node can be
switched to xdp-ipam without draining it: import, change the network configuration, import again.

It may be repeated: what is there stays, and what host-local handed out meanwhile is added. Its files
are not changed. A lease of somebody else for the same address is an error, and stays.`,
		Example: `  xdpctl ipam import pods
  xdpctl ipam import pods --data-dir /run/cni/networks --alive`,
		Args:              usageArgs(cobra.ExactArgs(1)),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			from.network = args[0]
			report, err := o.importLeases(cmd.Context(), from)
			if report == nil {
				return err
			}
			return errors.Join(o.write(report, func(s style) string { return importTable(report, s, time.Now()) }), err)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&from.dataDir, "data-dir", hostlocal.DefaultDataDir, "host-local's `directory`, as \"dataDir\" in its configuration")
	flags.StringVar(&from.ifname, "ifname", "eth0", "interface `name` for leases that old releases wrote without one")
	flags.BoolVar(&from.alive, "alive", false, "only leases of addresses that interfaces of pods have now: not what host-local has leaked")
	_ = cmd.MarkFlagDirname("data-dir") // it is there, and has no completion yet
	return cmd
}

// importLeases returns a report if it came to importing anything.
func (o *options) importLeases(ctx context.Context, from importOptions) (*importReport, error) {
	known, err := o.knownPods(ctx)
	if err != nil {
		return nil, err
	}
	theirs, err := hostlocal.Read(ctx, from.dataDir, from.network, from.ifname)
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	options := o.leaseOptions(from.network)
	options.Entries = 2 * uint32(len(theirs.Leases)) // as the ranges are not known
	store, err := leases.Open(ctx, options)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	report := &importReport{Imported: []leaseReport{}, Skipped: []skipReport{}}
	var errs error
	for _, l := range theirs.Leases {
		shown := known.report(from.network, l)
		if from.alive && !known.inUse[l.Address] {
			report.Skipped = append(report.Skipped, skipReport{shown, "no interface has the address"})
			continue
		}
		made, err := store.Import([]leases.Lease{l})
		switch {
		case err != nil:
			report.Skipped = append(report.Skipped, skipReport{shown, err.Error()})
			errs = errors.Join(errs, err)
		case len(made) > 0:
			report.Imported = append(report.Imported, shown)
		}
	}
	for set, last := range theirs.Last {
		errs = errors.Join(errs, store.SetLast(set, last))
	}
	return report, errs
}

func importTable(report *importReport, s style, now time.Time) string {
	text := fmt.Sprintf("%d leases imported, %d skipped.\n", len(report.Imported), len(report.Skipped))
	if len(report.Imported) > 0 {
		text += "\n" + leasesTable(report.Imported, s, now)
	}
	if len(report.Skipped) == 0 {
		return text
	}
	t := table{columns: newColumns("", false, []string{"SKIPPED", "OWNER", "REASON"})}
	for i := range report.Skipped {
		skipped := &report.Skipped[i]
		t.add(skipped.Address, skipped.label(), skipped.Reason)
	}
	return text + "\n" + t.String()
}
