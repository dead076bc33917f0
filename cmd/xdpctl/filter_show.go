package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// filterReport is what filter show says of an attachment.
type filterReport struct {
	attachment
	// Filter is nil if there is none; then there is nothing else either.
	Filter     *conf.Filter              `json:"filter"`
	Generation uint32                    `json:"generation"`
	Defaults   directions[defaultReport] `json:"defaults"`
	Rules      []ruleReport              `json:"rules"`
}

// defaultReport is the default of a direction and what it dropped.
type defaultReport struct {
	Action string  `json:"action"`
	Drops  counter `json:"drops"`
}

// ruleReport is a rule and what it decided.
type ruleReport struct {
	Rule      int     `json:"rule"`
	Name      string  `json:"name"`
	Direction string  `json:"direction"`
	Action    string  `json:"action"`
	Hits      counter `json:"hits"`
	Last      string  `json:"last"` // "" for never

	last time.Time
}

func newRuleReports(f *inForce) []ruleReport {
	reports := []ruleReport{}
	for i := range f.Rules {
		r := ruleReport{
			Rule: i, Name: f.Rules[i].Name,
			Direction: f.Rules[i].Direction.String(), Action: f.Rules[i].Action.String(),
			Hits: counter(f.rules[i].Counter), last: f.rules[i].Last,
		}
		if !r.last.IsZero() {
			r.Last = timestamp(r.last)
		}
		reports = append(reports, r)
	}
	return reports
}

func newFilterReport(m *datapath.Meta, f *inForce, s *datapath.Stats) filterReport {
	report := filterReport{attachment: newAttachment(m), Rules: []ruleReport{}}
	if f == nil {
		return report
	}
	report.Filter, report.Generation, report.Rules = f.Filter, f.generation, newRuleReports(f)
	report.Defaults = directions[defaultReport]{
		Egress:  defaultReport{f.Default.Egress.String(), newReasons(&s.Egress).of("default")},
		Ingress: defaultReport{f.Default.Ingress.String(), newReasons(&s.Ingress).of("default")},
	}
	return report
}

func newFilterShowCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "show POD",
		Short: "Show a pod's filter and what each rule decided",
		Long: `Show the filter in force for a pod: its rules in the order they are asked in, and what each decided.

PACKETS and BYTES of a rule are of the packets that it was asked about and decided, since this filter
came in force: of a flow that is let through that is the first packet. LAST is how long ago. Those of
a default are what it dropped, since the pod was attached.

-o wide shows lists of addresses and ports in full. The field "filter" of the JSON is what apply reads.`,
		Example: `  xdpctl filter show default/web
  xdpctl filter show 10.88.0.7 -o json | jq .filter > filter.json`,
		Args:              usageArgs(onePod),
		ValidArgsFunction: o.completePod,
		RunE: func(_ *cobra.Command, args []string) error {
			node := o.filters()
			a, err := attachmentOf(node, args[0])
			if err != nil {
				return err
			}
			f, err := readFilter(node, *a)
			if err != nil {
				return o.goneError(*a, err)
			}
			stats := &datapath.Stats{}
			if f != nil {
				if stats, err = node.ReadStats(*a); err != nil {
					return o.goneError(*a, err)
				}
			} else if o.format.isTable() {
				fmt.Fprintf(o.err, "%s has no filter: all its packets pass.\n", longLabel(*a))
			}
			report := newFilterReport(a.Meta, f, stats)
			return o.write(report, func(s style) string { return filterTable(&report, s, time.Now()) })
		},
	}
}

func filterTable(report *filterReport, s style, now time.Time) string {
	if report.Filter == nil {
		return ""
	}
	f := report.Filter
	most := mostShown
	if s.wide {
		most = 0
	}
	t := table{columns: text("RULE", "NAME", "DIRECTION", "ACTION", "REMOTE", "PROTOCOL", "PORTS")}
	t.columns = append(t.columns, number("", "PACKETS", "BYTES", "LAST")...)
	for i, r := range report.Rules {
		rule := &f.Rules[i]
		t.add(strconv.Itoa(i), r.Name, r.Direction, r.Action, remoteText(rule, most), rule.Protocol.String(), portsText(rule, most),
			s.packets(r.Hits.Packets), s.bytes(r.Hits.Bytes), lastText(r.last, now))
	}
	for _, d := range []struct {
		direction conf.Direction
		defaultReport
	}{{conf.Egress, report.Defaults.Egress}, {conf.Ingress, report.Defaults.Ingress}} {
		packets, bytes := "-", "-" // what a default lets through is not counted
		if d.Action == conf.Deny.String() {
			packets, bytes = s.packets(d.Drops.Packets), s.bytes(d.Drops.Bytes)
		}
		t.add("-", "default", d.direction.String(), d.Action, "any", "any", "-", packets, bytes, "-")
	}
	return fmt.Sprintf("%s %s (%s): %s, at most %d flows\n\n%s", printable(report.label()), printable(report.IfName),
		printable(report.HostInterface.Name), flagWords(f), f.MaxFlows, t.String())
}

// lastText writes how long ago something was.
func lastText(last, now time.Time) string {
	if last.IsZero() {
		return "never"
	}
	return age(now.Sub(last))
}
