package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// doctorReport is what doctor found.
type doctorReport struct {
	Checks []check      `json:"checks"`
	Modes  []modeReport `json:"modes"`
}

func newDoctorCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check the kernel, the node and each attachment",
		Long: `Check what the xdp plugin needs of this node, and that each attachment is as it was made: its programs
attached, in its mode, counting in its maps. It changes nothing.

Then it says what each hook mode would cost here and why: TCP CPU is what a byte of TCP costs,
against the same without the plugin.

Exit status 1 if a check fails; warnings are no failure.`,
		Example: `  xdpctl doctor
  xdpctl doctor -o json | jq '.checks[] | select(.status != "ok")'`,
		Args:              usageArgs(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f := gather(cmd.Context(), o.datapath())
			report := newDoctorReport(f)
			return errors.Join(o.write(report, func(style) string { return doctorText(report) }), report.err())
		},
	}
}

func newDoctorReport(f *facts) *doctorReport {
	report := &doctorReport{Checks: judge(f), Modes: []modeReport{}}
	if f.privileges == nil && f.featuresErr == nil {
		report.Modes = modeReports(f.features)
	}
	return report
}

// err returns an error if a check failed.
func (r *doctorReport) err() error {
	failed := 0
	for _, c := range r.Checks {
		if c.Status == statusFail {
			failed++
		}
	}
	switch failed {
	case 0:
		return nil
	case 1:
		return errors.New("1 check failed")
	}
	return fmt.Errorf("%d checks failed", failed)
}

func doctorText(report *doctorReport) string {
	t := table{columns: text("STATUS", "CHECK", "DETAIL")}
	for _, c := range report.Checks {
		// an error joined of several has a line for each
		for i, line := range strings.Split(c.Detail, "\n") {
			if i == 0 {
				t.add(string(c.Status), c.Name, line)
			} else {
				t.add("", "", line)
			}
		}
		if c.Hint != "" {
			t.add("", "", "-> "+c.Hint)
		}
	}
	if len(report.Modes) == 0 {
		return t.String()
	}
	return t.String() + "\n" + modesText(report.Modes)
}
