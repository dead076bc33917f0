package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const (
	defaultInterval = interval(time.Second)
	// leastInterval: reading takes some microseconds for each attachment.
	leastInterval = 10 * time.Millisecond
	// firstInterval: nobody waits 10 s to see anything.
	firstInterval = 250 * time.Millisecond
)

// watch is the flags of stats that make it go on.
type watch struct {
	on       bool
	interval interval
	count    int
}

// interval is a flag's value: a duration of some length.
type interval time.Duration

// Set implements pflag.Value.
func (i *interval) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q is no interval such as 500ms or 2s", s)
	}
	if d < leastInterval {
		return fmt.Errorf("%s is too short, the least is %s", d, leastInterval)
	}
	*i = interval(d)
	return nil
}

// String and Type implement pflag.Value.
func (i *interval) String() string { return time.Duration(*i).String() }

// Type implements pflag.Value.
func (i *interval) Type() string { return "interval" }

func (w *watch) flags(cmd *cobra.Command) {
	w.interval = defaultInterval
	flag := cmd.Flags().VarPF(&w.interval, "watch", "w", "show it again each `interval`, with rates")
	flag.NoOptDefVal = w.interval.String()
	cmd.Flags().IntVar(&w.count, "count", 0, "end --watch after so many `times` (0: never)")
	_ = cmd.RegisterFlagCompletionFunc("watch", cobra.FixedCompletions(
		[]cobra.Completion{"500ms", "1s", "2s", "5s", "10s"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("count", cobra.NoFileCompletions)
}

// args checks the arguments, and takes from them the interval that stands apart from its flag.
func (w *watch) args(cmd *cobra.Command, args []string) error {
	w.on = cmd.Flags().Changed("watch")
	switch rest := w.pod(args); {
	case len(rest) > 1:
		return fmt.Errorf("takes one POD at most, not %d: %s", len(rest), strings.Join(rest, " "))
	case !w.on && cmd.Flags().Changed("count"):
		return errors.New("--count goes with --watch only")
	case w.count < 0:
		return fmt.Errorf("--count is %d, and must not be negative", w.count)
	}
	for _, arg := range args {
		if w.isInterval(arg) {
			if err := w.interval.Set(arg); err != nil {
				return fmt.Errorf("--watch: %w", err)
			}
		}
	}
	return nil
}

// pod returns the arguments without the interval.
func (w *watch) pod(args []string) []string {
	var rest []string
	for _, arg := range args {
		if !w.isInterval(arg) {
			rest = append(rest, arg)
		}
	}
	return rest
}

// isInterval: a flag whose value may be left out gets one only by "=", but people write
// "--watch 2s". No pod is called so: no container ID, interface or address ends in such a unit
// after digits alone, but for "0".
func (w *watch) isInterval(arg string) bool {
	_, err := time.ParseDuration(arg)
	return w.on && err == nil && arg != "0"
}

// run shows samples until ctx ends, which is no error, or count are shown.
func (w *watch) run(ctx context.Context, o *options, read func() (*sample, error)) error {
	before, err := read()
	if len(before.readings) == 0 && err != nil {
		return err
	}
	each := time.Duration(w.interval)
	ticker := time.NewTicker(min(each, firstInterval))
	defer ticker.Stop()
	terminal, told := isTerminal(o.out), ""
	for i := 0; w.count == 0 || i < w.count; i++ {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if i == 0 {
			ticker.Reset(each)
		}
		now, err := read()
		if len(now.readings) == 0 && err != nil {
			return err
		}
		reports := now.reports(before)
		if err := o.writeNext(reports, i == 0, terminal, func(s style) string {
			return watchTable(reports, s, now.at)
		}); err != nil {
			return err
		}
		// what stays wrong is told once; a terminal was cleared meanwhile
		if err != nil && (terminal || err.Error() != told) {
			told = err.Error()
			fmt.Fprintf(o.err, "xdpctl: %v\n", err)
		}
		before = now
	}
	return nil
}

func watchTable(reports []statsReport, s style, at time.Time) string {
	when := at.Format(time.TimeOnly)
	if len(reports) == 0 {
		return when + "  no attachments\n"
	}
	return when + "\n" + statsTable(reports, s)
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}
