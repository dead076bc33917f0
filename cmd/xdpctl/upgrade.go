package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/internal/release"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// upgradeReport is what upgrade did, or would do.
type upgradeReport struct {
	DryRun   bool             `json:"dryRun"`
	From     string           `json:"from"` // "" if nothing is loaded
	To       string           `json:"to"`
	Needed   bool             `json:"needed"`
	Programs []programUpgrade `json:"programs"`
	Maps     []string         `json:"maps"` // made
	Pods     []changedPod     `json:"pods"`
}

type programUpgrade struct {
	Name    string `json:"name"`
	Release string `json:"release"` // of the one before, "" if it does not say
	Old     uint32 `json:"old"`     // 0: none
	New     uint32 `json:"new"`     // 0: not loaded
	Result  string `json:"result"`
}

const upgradeHelp = `Make the pods that run, run the programs of this xdpctl's release: after xdpctl install has put a new one
on the node, or an old one back. Install does not touch pods that run, and neither do new ones: they get
the programs that are loaded.

Programs are replaced one by one while packets pass, each of which is seen by the old or the new one: none
is lost, and none counted twice. Maps stay, and with them counters, flows, policies and what goes directly.
Before anything is changed the layouts of all maps are compared, and the new programs loaded. If the
releases do not read the maps in the same way, that is refused: go back to the other release, or take the
pods off the node; the first pod after the last one gets this release's maps.

If it fails for a pod, it goes on with the others, since both releases may run beside each other. It may be
repeated at any time, and ended: what is left, the next one does. To go back, run upgrade of the old xdpctl.
Programs are compared by what they are made of: a release that changed none has nothing to do.`

func newUpgradeCommand(o *options) *cobra.Command {
	dryRun := false
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Replace the programs of pods that run by this release's",
		Long:  upgradeHelp,
		Example: `  xdpctl upgrade --dry-run
  xdpctl install && /opt/cni/bin/xdpctl upgrade`,
		Args:              usageArgs(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return o.upgrade(cmd.Context(), dryRun) },
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would be done")
	return cmd
}

func (o *options) upgrade(ctx context.Context, dryRun bool) error {
	u, err := o.datapath().Upgrade(ctx, datapath.UpgradeOptions{DryRun: dryRun})
	if u == nil && errors.Is(err, fs.ErrNotExist) && !errors.Is(err, datapath.ErrLayout) {
		u, err = &datapath.Upgrade{To: release.Version()}, nil
	}
	if u == nil {
		return err // nothing was done
	}
	report := newUpgradeReport(u, dryRun)
	return errors.Join(o.write(report, func(style) string { return upgradeText(report) }), err)
}

func newUpgradeReport(u *datapath.Upgrade, dryRun bool) *upgradeReport {
	r := &upgradeReport{
		DryRun: dryRun, From: u.From, To: u.To, Needed: u.Needed(),
		Programs: []programUpgrade{}, Maps: append([]string{}, u.Maps...), Pods: []changedPod{},
	}
	for _, p := range u.Programs {
		r.Programs = append(r.Programs, programUpgrade{
			Name: p.Name, Release: p.Release, Old: uint32(p.Old), New: uint32(p.New), Result: programResult(p),
		})
	}
	byID := map[string]datapath.AttachmentUpgrade{}
	var list []datapath.Attachment
	for _, a := range u.Attachments {
		byID[a.ID] = a
		list = append(list, a.Attachment)
	}
	sortAttachments(list)
	for _, a := range list {
		pod := changedPod{newAttachment(a.Meta), string(byID[a.ID].Result), ""}
		if err := byID[a.ID].Err; err != nil {
			pod.Error = err.Error()
		}
		r.Pods = append(r.Pods, pod)
	}
	return r
}

// programResult says what became of a program, as the results of attachments do.
func programResult(p datapath.ProgramUpgrade) string {
	switch {
	case p.Current:
		return string(datapath.UpgradeNone)
	case p.Old == 0:
		return "loaded"
	}
	return string(datapath.UpgradeDone)
}

func upgradeText(r *upgradeReport) string {
	switch {
	case r.From == "":
		return "Nothing to do: nothing is loaded, there is no attachment.\n"
	case !r.Needed:
		return fmt.Sprintf("Nothing to do: all attachments run the programs of %s.\n", r.To)
	}
	var b strings.Builder
	if r.DryRun {
		fmt.Fprintf(&b, "Would be upgraded from %s to %s:\n\n", r.From, r.To)
	} else {
		fmt.Fprintf(&b, "Upgraded from %s to %s:\n\n", r.From, r.To)
	}
	programs := table{columns: append(text("PROGRAM", "RELEASE"), append(number("", "ID", "NEW ID"), text("RESULT")...)...)}
	for _, p := range r.Programs {
		programs.add(p.Name, p.Release, programNumber(p.Old), programNumber(p.New), p.Result)
	}
	b.WriteString(programs.String())
	for _, name := range r.Maps {
		fmt.Fprintf(&b, "\nMap %s is made.\n", name)
	}
	if len(r.Pods) > 0 {
		b.WriteString("\n" + changedPodsText(r.Pods))
	}
	return b.String()
}

func programNumber(id uint32) string {
	if id == 0 {
		return "-"
	}
	return strconv.FormatUint(uint64(id), 10)
}
