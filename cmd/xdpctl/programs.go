package main

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// programsReport is what programs says of an attachment.
type programsReport struct {
	attachment
	Programs []podProgram `json:"programs"`
}

type podProgram struct {
	Name     string         `json:"name"`
	Object   string         `json:"object"`
	Function string         `json:"function"`
	Order    string         `json:"order"`
	Optional bool           `json:"optional"`
	Shared   bool           `json:"shared"`
	ID       ebpf.ProgramID `json:"id"`
	Runs     uint64         `json:"runs"`
	Verdicts struct {
		Aborted  uint64 `json:"aborted"`
		Drop     uint64 `json:"drop"`
		Pass     uint64 `json:"pass"`
		TX       uint64 `json:"tx"`
		Redirect uint64 `json:"redirect"`
	} `json:"verdicts"`
	// MeanNanoseconds of the runs that were timed, 0 if none was.
	MeanNanoseconds uint64   `json:"meanNanoseconds"`
	TimedRuns       uint64   `json:"timedRuns"`
	Maps            []string `json:"maps"`
}

func newProgramsReport(m *datapath.Meta, list []datapath.PodProgram) programsReport {
	report := programsReport{attachment: newAttachment(m), Programs: []podProgram{}}
	for _, p := range list {
		one := podProgram{
			Name: p.Name, Object: p.Object, Function: p.Function, Order: "before", Optional: p.Optional, Shared: p.Shared,
			ID: p.ID, TimedRuns: p.Timed, Maps: []string{},
		}
		if p.After {
			one.Order = "after"
		}
		for _, runs := range p.Runs {
			one.Runs += runs
		}
		v := &one.Verdicts
		v.Aborted, v.Drop, v.Pass, v.TX, v.Redirect = p.Runs[0], p.Runs[1], p.Runs[2], p.Runs[3], p.Runs[4]
		if p.Timed > 0 {
			one.MeanNanoseconds = uint64(p.Time.Nanoseconds()) / p.Timed
		}
		for _, path := range p.Maps {
			one.Maps = append(one.Maps, filepath.Base(path))
		}
		report.Programs = append(report.Programs, one)
	}
	return report
}

func newProgramsCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "programs POD",
		Short: "Show the XDP programs of others that run on what a pod sends",
		Long: `Show the programs that "programs" of the configuration gave a pod, in the order in which they run.

RUNS are counted by the verdict that they ended with. One run in 64 of each CPU is timed: NS is the mean of those, and
has the cost of reading the clock in it. The kernel's own statistics know nothing of programs that are called so.`,
		Example: `  xdpctl programs default/web
  xdpctl programs default/web -o json | jq '.programs[] | {name, runs}'
  xdpctl programs load default/web blocklist_v4 blocklist_v6 -f blocklist.txt`,
		Args:              usageArgs(onePod),
		ValidArgsFunction: o.completePod,
		RunE: func(_ *cobra.Command, args []string) error {
			d := o.datapath()
			a, err := attachmentOf(d, args[0])
			if err != nil {
				return err
			}
			list, err := d.ReadPrograms(*a)
			if err != nil {
				if isGone(d.Root, *a, err) {
					return fmt.Errorf("%s has just gone", labelOf(*a))
				}
				return err
			}
			report := newProgramsReport(a.Meta, list)
			if len(list) == 0 && o.format.isTable() {
				fmt.Fprintf(o.err, "%s has no programs of others.\n", report.label())
			}
			return o.write(report, func(s style) string { return programsTable(&report, s) })
		},
	}
	cmd.AddCommand(newProgramsDumpCommand(o), newProgramsLoadCommand(o))
	return cmd
}

func programsTable(report *programsReport, s style) string {
	if len(report.Programs) == 0 {
		return ""
	}
	t := table{columns: text("PROGRAM", "ORDER")}
	t.columns = append(t.columns, number("RUNS", "ALL", "PASS", "DROP", "TX", "REDIRECT", "ABORTED")...)
	t.columns = append(t.columns, number("", "NS")...)
	t.columns = append(t.columns, text("MAPS", "OBJECT")...)
	for _, p := range report.Programs {
		mean := ""
		if p.TimedRuns > 0 {
			mean = strconv.FormatUint(p.MeanNanoseconds, 10)
		}
		v := p.Verdicts
		t.add(p.Name, p.Order, s.packets(p.Runs), s.packets(v.Pass), s.packets(v.Drop), s.packets(v.TX),
			s.packets(v.Redirect), s.packets(v.Aborted), mean, strings.Join(p.Maps, ","), p.Object)
	}
	return t.String()
}
