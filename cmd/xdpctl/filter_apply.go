package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// What became of a filter that was to be applied.
const (
	resultApplied   = "applied"
	resultUnchanged = "unchanged"
	resultPending   = "pending" // with --dry-run
	resultFailed    = "failed"
)

// applyReport is what filter apply did, or would do.
type applyReport struct {
	DryRun   bool           `json:"dryRun"`
	Warnings []conf.Warning `json:"warnings"`
	Pods     []appliedTo    `json:"pods"`
}

type appliedTo struct {
	attachment
	Result  string   `json:"result"`
	Error   string   `json:"error"` // "" unless it failed
	Changes []change `json:"changes"`
}

const applyHelp = `Put the filter in FILE in force for pods, in place of the one they have. FILE holds what is "filter" in
a network configuration, as JSON or YAML; - is standard input.

The file is checked, and compiled for every pod, before any pod is touched. For each pod the whole
filter is replaced in one step: no packet is judged by half of one. Flows that the pod has stay, and are
judged anew by their next packet. If that fails for a pod it keeps its old filter, and the others are
gone on with. A pod whose filter is this one already is left alone, with its counters.

It lasts as long as the pod. What pods get that start later is in the network configuration.

--dry-run shows what would change, rule by rule: + added, - removed, ~ changed, > moved. Rules are the
same where their names are. Warnings, on stderr, do not keep the filter from being applied.`

func newFilterApplyCommand(o *options) *cobra.Command {
	var (
		file        filterFile
		all, dryRun bool
	)
	cmd := &cobra.Command{
		Use:   "apply (POD... | --all) -f FILE",
		Short: "Put a filter in force for pods that run",
		Long:  applyHelp,
		Example: `  xdpctl filter apply default/web -f filter.json --dry-run
  xdpctl filter apply --all -f filter.yaml
  xdpctl filter show default/web -o json | jq .filter | xdpctl filter apply default/db -f -`,
		Args: usageArgs(func(cmd *cobra.Command, args []string) error {
			if err := podsOrAll(&all)(cmd, args); err != nil {
				return err
			}
			if file.name == "" {
				return errors.New("-f FILE is missing; -f - is standard input")
			}
			return nil
		}),
		ValidArgsFunction:     o.completePods,
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, warnings, err := file.read(o.in)
			if err != nil {
				return err
			}
			o.warn(warnings)
			a := &application{o: o, node: o.filters(), filter: f, dryRun: dryRun}
			err = a.choose(args)
			if len(a.targets) == 0 && err != nil {
				return err
			}
			if compileErr := a.compile(); compileErr != nil {
				return errors.Join(compileErr, err)
			}
			report := &applyReport{DryRun: dryRun, Warnings: append([]conf.Warning{}, warnings...), Pods: []appliedTo{}}
			report.Pods = append(report.Pods, a.applyAll(cmd.Context())...)
			for _, t := range a.targets {
				if t.note != "" {
					fmt.Fprintf(o.err, "warning: %s: %s\n", longLabel(t.Attachment), t.note)
				}
				err = errors.Join(err, t.err)
			}
			if len(report.Pods) == 0 {
				o.noneNote()
			}
			return errors.Join(o.write(report, func(s style) string { return applyText(report) }), err)
		},
	}
	file.flag(cmd, "the `file` with the filter, - for standard input")
	cmd.Flags().BoolVar(&all, "all", false, "for every attachment on the node")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would change")
	return cmd
}

// application is one run of filter apply.
type application struct {
	o       *options
	node    filters
	filter  *conf.Filter
	dryRun  bool
	targets []target
}

// target is an attachment that the filter is for.
type target struct {
	datapath.Attachment
	before *conf.Filter // nil for none
	policy *datapath.Policy
	err    error
	note   string // what is worth knowing of it, though it was applied
}

// choose finds the attachments of the pods that are named, or all. An error with targets is about
// attachments that could not be read, not about those that were named.
func (a *application) choose(names []string) error {
	all, err := a.node.List()
	sortAttachments(all)
	if len(names) == 0 {
		for _, attachment := range all {
			a.targets = append(a.targets, target{Attachment: attachment})
		}
		return err
	}
	var pickErrs error
	chosen := map[string]bool{}
	for _, name := range names {
		picked, pickErr := pickOne(all, name)
		if pickErr != nil {
			pickErrs = errors.Join(pickErrs, pickErr)
			continue
		}
		if !chosen[picked.ID] {
			chosen[picked.ID] = true
			a.targets = append(a.targets, target{Attachment: *picked})
		}
	}
	if pickErrs != nil {
		a.targets = nil
		return errors.Join(pickErrs, err)
	}
	return err
}

// compile makes the policy of each target, and reads what is in force. Nothing is changed by it.
func (a *application) compile() error {
	var errs error
	for i := range a.targets {
		t := &a.targets[i]
		before, err := readFilter(a.node, t.Attachment)
		switch {
		case err != nil:
			// what cannot be read can be replaced, as far as is known here
			before = nil
			fmt.Fprintf(a.o.err, "warning: %v\n", a.o.goneError(t.Attachment, err))
		case before != nil:
			t.before = before.Filter
		}
		if t.policy, err = makePolicy(t.Attachment, a.filter, before); err != nil {
			errs = errors.Join(errs, err)
		}
	}
	return errs
}

// applyAtOnce is how many pods get their policy at the same time: most of it is waiting for the kernel.
const applyAtOnce = 8

// applyAll applies the filter to each target, and tells of each, in order.
func (a *application) applyAll(ctx context.Context) []appliedTo {
	return each(len(a.targets), func(i int) appliedTo { return a.apply(ctx, &a.targets[i]) })
}

// apply puts the policy of a target in force, and tells of it.
func (a *application) apply(ctx context.Context, t *target) appliedTo {
	applied := appliedTo{attachment: newAttachment(t.Meta), Result: resultApplied, Changes: diffFilters(t.before, a.filter)}
	switch {
	case sameFilter(t.before, a.filter):
		applied.Result = resultUnchanged
		return applied
	case a.dryRun:
		applied.Result = resultPending
	default:
		t.err = ctx.Err() // interrupted: those left keep what they have
		if t.err == nil {
			t.err = a.node.ReplacePolicy(ctx, t.Attachment, *t.policy)
		}
		if t.err != nil {
			t.err = a.o.goneError(t.Attachment, fmt.Errorf("applying the filter to %s: %w", longLabel(t.Attachment), t.err))
			applied.Result, applied.Error = resultFailed, t.err.Error()
			return applied
		}
	}
	if t.before != nil && t.before.MaxFlows != a.filter.MaxFlows {
		t.note = "maxFlows stays what it was when the pod's first filter came in force"
	}
	return applied
}

// mostOfLine is how much of a change is shown to people: a rule may have thousands of addresses.
const mostOfLine = 300

// clip shortens a text to n characters.
func clip(text string, n int) string {
	if runes := []rune(text); len(runes) > n {
		return string(runes[:n-3]) + "..."
	}
	return text
}

func applyText(report *applyReport) string {
	if len(report.Pods) == 0 {
		return ""
	}
	t := table{columns: text("POD", "IFNAME", "HOST END", "RESULT", "CHANGES")}
	var details strings.Builder
	for i := range report.Pods {
		p := &report.Pods[i]
		changes := changesText(p.Changes)
		switch {
		case p.Result == resultFailed:
			changes = "-"
		case p.Result == resultPending:
			fmt.Fprintf(&details, "\n%s %s (%s)\n", printable(p.label()), printable(p.IfName), printable(p.HostInterface.Name))
			for _, c := range p.Changes {
				details.WriteString("  " + clip(printable(c.line()), mostOfLine) + "\n")
			}
		}
		t.add(p.label(), p.IfName, p.HostInterface.Name, p.Result, changes)
	}
	return t.String() + details.String()
}
