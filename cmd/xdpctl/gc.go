package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// gcReport is what gc removed, or would.
type gcReport struct {
	DryRun  bool         `json:"dryRun"`
	Removed []attachment `json:"removed"`
}

func newGCCommand(o *options) *cobra.Command {
	dryRun := false
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove what containers that are gone have left",
		Long: `Remove stale attachments, of all networks: those whose host interface is gone, because the container
went without a DEL. It removes what killed processes have left, too. What is alive stays.

A runtime that knows the CNI verb GC (spec 1.1.0) does the same by itself.`,
		Example: `  xdpctl gc --dry-run
  xdpctl gc`,
		Args:              usageArgs(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := o.datapath()
			if err := refuseElsewhere(d); err != nil {
				return err
			}
			removed, err := d.Collect(cmd.Context(), datapath.CollectOptions{DryRun: dryRun})
			sortAttachments(removed)
			report := newGCReport(dryRun, removed)
			return errors.Join(o.write(report, func(s style) string { return gcTable(&report, s) }), err)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would be removed")
	return cmd
}

// refuseElsewhere: without tcx an attachment is alive if its interface is found by index and name,
// and in another network namespace it is not.
func refuseElsewhere(d *datapath.Datapath) error {
	info, err := d.NodeInfo()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	features, err := datapath.ProbeFeatures()
	if err != nil {
		return err
	}
	if !info.Here && !features.TCX {
		return fmt.Errorf("the attachments under %s are of another network namespace (inode %d): run xdpctl gc in that one", d.Root, info.Netns)
	}
	return nil
}

func newGCReport(dryRun bool, removed []datapath.Attachment) gcReport {
	report := gcReport{DryRun: dryRun, Removed: []attachment{}}
	for _, a := range removed {
		report.Removed = append(report.Removed, newAttachment(a.Meta))
	}
	return report
}

func gcTable(report *gcReport, s style) string {
	if len(report.Removed) == 0 {
		return "Nothing is stale.\n"
	}
	done := "REMOVED"
	if report.DryRun {
		done = "WOULD REMOVE"
	}
	t := table{columns: text(done, "IFNAME", "HOST END", "NETWORK", "CONTAINER")}
	for i := range report.Removed {
		r := &report.Removed[i]
		container := shortID(r.ContainerID)
		if s.wide {
			container = r.ContainerID
		}
		t.add(r.label(), r.IfName, r.HostInterface.Name, r.Network, container)
	}
	return t.String()
}
