package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// dropsReport is what drops says of an attachment.
type dropsReport struct {
	attachment
	Filtered   bool              `json:"filtered"`
	Generation uint32            `json:"generation"` // 0 without a filter
	Drops      directions[tally] `json:"drops"`
	Rules      []ruleReport      `json:"rules"` // those that deny or audit
}

func newDropsReport(m *datapath.Meta, f *inForce, s *datapath.Stats) dropsReport {
	report := dropsReport{
		attachment: newAttachment(m),
		Drops:      directions[tally]{newReasons(&s.Egress), newReasons(&s.Ingress)},
		Rules:      []ruleReport{},
	}
	if f == nil {
		return report
	}
	report.Filtered, report.Generation = true, f.generation
	report.Rules = slices.DeleteFunc(newRuleReports(f), func(r ruleReport) bool { return r.Action == conf.Allow.String() })
	return report
}

const dropsHelp = `Show what the filters of pods dropped: by reason since the pod was attached, and by rule since its filter
came in force. Rules to audit are among them: what they decided passed.

Reasons: spoof (not the pod's own address or MAC), rule, default, malformed (it cannot be parsed), and
fragment (a later fragment of which the first is not known, and a rule would need its port).

With --follow, each packet is shown as it is dropped: the time, the pod, where it was going, how many
bytes it had, and why. Pods may come and go. The kernel limits how many are told of in a second, so that
a flood costs little: the counters have all, --follow a sample. As JSON each is one object on a line. One
process at a time can follow on a node. It ends with Ctrl-C, or after --count.`

func newDropsCommand(o *options) *cobra.Command {
	f := &follow{o: o}
	on := false
	cmd := &cobra.Command{
		Use:   "drops [POD...] [--follow]",
		Short: "Show what filters dropped, and watch it",
		Long:  dropsHelp,
		Example: `  xdpctl drops default/web
  xdpctl drops --follow
  xdpctl drops --follow default/web default/db -o json | jq -r .ruleName`,
		Args: usageArgs(func(cmd *cobra.Command, _ []string) error {
			switch {
			case !on && cmd.Flags().Changed("count"):
				return errors.New("--count goes with --follow only")
			case f.count < 0:
				return fmt.Errorf("--count is %d, and must not be negative", f.count)
			}
			return nil
		}),
		ValidArgsFunction:     o.completePods,
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if on {
				return f.run(cmd.Context(), args)
			}
			reports, err := o.readDrops(o.filters(), args)
			if len(reports) == 0 && err != nil {
				return err
			}
			if len(reports) == 0 {
				o.noneNote()
			}
			return errors.Join(o.write(reports, func(s style) string { return dropsText(reports, s, time.Now()) }), err)
		},
	}
	cmd.Flags().BoolVar(&on, "follow", false, "show each packet as it is dropped")
	cmd.Flags().IntVar(&f.count, "count", 0, "end --follow after so `many` (0: never)")
	_ = cmd.RegisterFlagCompletionFunc("count", cobra.NoFileCompletions)
	return cmd
}

// readDrops reads what was dropped of the pods named, or of all. Attachments that go meanwhile are
// left out, and those that cannot be read, which come as an error.
func (o *options) readDrops(node filters, names []string) ([]dropsReport, error) {
	reports := []dropsReport{}
	attachments, errs := o.attachments(node, names)
	for _, a := range attachments {
		f, err := readFilter(node, a)
		var stats *datapath.Stats
		if err == nil {
			stats, err = node.ReadStats(a)
		}
		switch {
		case isGone(o.root(), a, err):
		case err != nil:
			errs = errors.Join(errs, err)
		default:
			reports = append(reports, newDropsReport(a.Meta, f, stats))
		}
	}
	return reports, errs
}

func dropsText(reports []dropsReport, s style, now time.Time) string {
	var parts []string
	for i := range reports {
		r := &reports[i]
		title := fmt.Sprintf("%s %s (%s)", printable(r.label()), printable(r.IfName), printable(r.HostInterface.Name))
		if !r.Filtered {
			parts = append(parts, title+": no filter\n")
			continue
		}
		parts = append(parts, title+"\n"+indented(r.reasonsTable(s).String(), "  ")+r.rulesText(s, now))
	}
	return strings.Join(parts, "\n")
}

func (r *dropsReport) reasonsTable(s style) *table {
	t := &table{columns: text("REASON")}
	t.columns = append(t.columns, number("EGRESS", "PACKETS", "BYTES")...)
	t.columns = append(t.columns, number("INGRESS", "PACKETS", "BYTES")...)
	for i, egress := range r.Drops.Egress {
		ingress := r.Drops.Ingress[i]
		t.add(egress.name, s.packets(egress.Packets), s.bytes(egress.Bytes), s.packets(ingress.Packets), s.bytes(ingress.Bytes))
	}
	return t
}

// rulesText has a table of the rules that can drop something, if there are any.
func (r *dropsReport) rulesText(s style, now time.Time) string {
	if len(r.Rules) == 0 {
		return ""
	}
	t := table{columns: text("RULE", "NAME", "DIRECTION", "ACTION")}
	t.columns = append(t.columns, number("", "PACKETS", "BYTES", "LAST")...)
	for _, rule := range r.Rules {
		t.add(strconv.Itoa(rule.Rule), rule.Name, rule.Direction, rule.Action,
			s.packets(rule.Hits.Packets), s.bytes(rule.Hits.Bytes), lastText(rule.last, now))
	}
	return "\n" + indented(t.String(), "  ")
}
