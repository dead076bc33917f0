// Command bench measures what the plugin costs, and prints Markdown tables: ADD and DEL against other chained plugins,
// where the time of an ADD goes, a packet in the programs, traffic between pods, filters, redirect, programs of one's
// own, and drops. It needs root and Go; `make bench` runs it.
//
// Whatever is compared takes turns in one run (A B A B ...), and figures are medians: of the rounds, and of the ratios
// and differences within each round. What the issue expects stands beside what was measured. A machine that is busy
// with something else misses expectations; that is reported, and is no failure.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
)

// timeLimit is for each section, without its wait for the lock; one takes at most half of it.
const timeLimit = 20 * time.Minute

// bench is one run.
type bench struct {
	out   io.Writer
	short bool
}

// rounds is how often everything is measured: n times, or a third of it when the run is to be short.
func (b *bench) rounds(n int) int {
	if b.short {
		return max(n/3, 3)
	}
	return n
}

// section is a part of the run that can be had alone.
type section struct {
	name, about string
	run         func(*bench, context.Context) error
	// tests: it runs `go test`, which takes the lock of tests itself, and makes nothing else.
	tests bool
}

var sections = []section{
	{name: "chain", about: "ADD and DEL against other chained plugins, and where the time of ADD goes", run: (*bench).chain},
	{name: "packet", about: "what a packet costs in the programs, over one that only passes it", run: (*bench).packet, tests: true},
	{name: "traffic", about: "TCP and UDP between two pods, against the same without the plugin", run: (*bench).traffic},
	{name: "filter", about: "what a filter costs, by the number of its rules", run: (*bench).filter},
	{name: "redirect", about: "from pod to pod without the stack, against a bridge, routes and iptables", run: (*bench).redirect},
	{name: "blocklist", about: "a look-up in the blocklist of bpf/samples, by its length", run: (*bench).blocklist},
	{name: "programs", about: "programs of one's own: a packet that they run on, and an ADD", run: (*bench).programs},
	{name: "flood", about: "what it costs to drop a packet", run: (*bench).flood},
}

func main() {
	if os.Getenv(phasesEnv) != "" {
		if err := reportPhases(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if root := os.Getenv(followEnv); root != "" {
		if err := reportDrops(context.Background(), root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	short := flag.Bool("short", false, "a third of the rounds, for a first look")
	only := flag.String("only", "", "run one section: "+strings.Join(sectionNames(), ", "))
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, &bench{out: os.Stdout, short: *short}, *only, flag.Args())
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "\nbench: %v\n", err)
		os.Exit(1)
	}
}

func sectionNames() []string {
	names := make([]string, len(sections))
	for i, s := range sections {
		names[i] = s.name
	}
	return names
}

func run(ctx context.Context, b *bench, only string, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	if only != "" && !slices.Contains(sectionNames(), only) {
		return fmt.Errorf("no section %q: there are %s", only, strings.Join(sectionNames(), ", "))
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root: it makes network namespaces and loads BPF programs")
	}
	if _, err := tests.Build(ctx); err != nil {
		return err
	}
	if err := b.describeMachine(); err != nil {
		return err
	}
	for _, s := range sections {
		if only != "" && only != s.name {
			continue
		}
		if err := b.section(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// section runs a section and makes sure that it leaves nothing. Meanwhile no tests run, but those that are the section:
// they compare the kernel's BPF objects, and would cost it processors.
func (b *bench) section(ctx context.Context, s section) error {
	if !s.tests {
		unlock, err := tests.Lock(ctx)
		if err != nil {
			return err
		}
		defer unlock()
	}
	before, err := tests.Objects()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	fmt.Fprintf(b.out, "\n## %s: %s\n", s.name, s.about)
	err = b.measured(func() error { return s.run(b, ctx) })
	if s.tests {
		return err // what is new may be another's by now
	}
	return errors.Join(err, leftovers(before))
}

// leftovers returns an error if the kernel holds BPF objects that it did not hold before.
func leftovers(before tests.Snapshot) error {
	// the run's own context may be over
	return tests.WaitNoNew(context.Background(), before, 10*time.Second)
}

// onNode makes a node and measures on it. Pins that are left are an error, unless it was interrupted: then they are
// removed with all else.
func onNode(ctx context.Context, measure func(*tests.Node) error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	node, err := tests.NewNode(tests.WithoutIPv6())
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, node.Purge())
		}
		err = errors.Join(err, node.Close())
	}()
	return measure(node)
}

// pause waits, and returns an error when the run is over before that.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
