package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

func newDetachCommand(o *options) *cobra.Command {
	var all, dryRun bool
	cmd := &cobra.Command{
		Use:   "detach (POD... | --all)",
		Short: "Detach pods that go on running",
		Long: `Take down what the plugin made for pods, which go on running: they are neither counted nor filtered any
more, and their packets go by the stack. Their counters are gone. No packet is lost by it, but where the
kernel has no tcx (below 6.6) a few that come to the pod just then.

Their DEL finds nothing to do. To have them back: xdpctl attach.`,
		Example: `  xdpctl detach default/web
  xdpctl detach --all --dry-run`,
		Args:                  podsOrAll(&all),
		ValidArgsFunction:     o.completePods,
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			d := o.datapath()
			chosen, err := o.attachments(d, args)
			if err != nil && len(args) > 0 {
				return err // a name may be wrong
			}
			pods, detachErr := detach(cmd.Context(), d, chosen, dryRun)
			report := &attachReport{DryRun: dryRun, Pods: pods}
			if len(pods) == 0 {
				o.noneNote()
			}
			return errors.Join(o.write(report, func(style) string { return attachText(report) }), err, detachErr)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every attachment on the node")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would be detached")
	return cmd
}

// detach takes attachments down, and tells of each, in order.
func detach(ctx context.Context, d *datapath.Datapath, list []datapath.Attachment, dryRun bool) ([]changedPod, error) {
	errs := make([]error, len(list))
	pods := each(len(list), func(i int) changedPod {
		at := list[i]
		changed := changedPod{attachment: newAttachment(at.Meta), Result: resultDetached}
		if dryRun {
			changed.Result = resultPending
			return changed
		}
		err := ctx.Err() // interrupted: those left stay
		if err == nil {
			err = d.Detach(ctx, at.Meta.ContainerID, at.Meta.IfName)
		}
		if err != nil {
			errs[i] = fmt.Errorf("detaching %s: %w", longLabel(at), err)
			changed.Result, changed.Error = resultFailed, errs[i].Error()
		}
		return changed
	})
	return pods, errors.Join(errs...)
}
