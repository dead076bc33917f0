// Command ipam measures ADD and DEL of the IPAM plugin against host-local's, with 10 to 50,000 leases held, one at a
// time and 16 at once, and prints Markdown tables. It needs root and Go; `make bench` runs it, in a few minutes.
//
// Whatever is compared takes turns in one run, and figures are medians: of the rounds, and of the ratios within each
// round. Times are of whole processes, as a runtime waits for them. What the issue expects stands beside what was
// measured; a machine that is busy with something else misses expectations, which is reported and is no failure.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/xdp-cni/xdp-cni/tests"
)

// timeLimit is for all of a run, without its wait for the lock; one takes about a third of it.
const timeLimit = 15 * time.Minute

// held is how many leases there are beside those that are measured.
var held = []int{10, 1_000, 10_000, 50_000}

const atOnce = 16

func main() {
	short := flag.Bool("short", false, "a third of the rounds")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *short); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, short bool) (err error) {
	if _, err := tests.Build(ctx); err != nil {
		return err
	}
	unlock, err := tests.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	n, err := tests.NewNode()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Purge(), n.Close()) }()
	rounds, parallel := 21, 5
	if short {
		rounds, parallel = 7, 3
	}
	networks := make([]*network, len(held))
	for i, count := range held {
		if networks[i], err = newNetwork(ctx, n, count); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "ADD and DEL of xdp-ipam and host-local: medians of %d rounds in turns, in ms, process start included.\n", rounds)
	one, err := measure(ctx, n, networks, rounds, 1)
	if err != nil {
		return err
	}
	if err := one.write(out); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nThe same, %d at once, until the last is done: medians of %d rounds.\n", atOnce, parallel)
	many, err := measure(ctx, n, networks, parallel, atOnce)
	if err != nil {
		return err
	}
	return many.write(out)
}
