package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/xdp-cni/xdp-cni/tests"
)

// figure is what one plugin took for one command in each round, in milliseconds.
type figure []float64

func (f figure) median() float64 {
	sorted := slices.Sorted(slices.Values(f))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// over returns the ratios of the rounds.
func (f figure) over(other figure) figure {
	ratios := make(figure, len(f))
	for i := range f {
		ratios[i] = f[i] / other[i]
	}
	return ratios
}

// result is the figures by network, command and plugin.
type result struct {
	networks []*network
	at       map[key]figure
	parallel bool
}

type key struct {
	network, command string
	ours             bool
}

// commands are in the order in which they are run. Runtimes repeat DEL, and so do main plugins that undo an ADD:
// the second one finds nothing.
var commands = []string{"VERSION", "ADD", "DEL", "DEL again"}

// measure runs the commands of both plugins in turns, on all networks in each round.
func measure(ctx context.Context, n *tests.Node, networks []*network, rounds, parallel int) (*result, error) {
	r := &result{networks: networks, at: map[key]figure{}, parallel: parallel > 1}
	for round := range rounds + 1 {
		ids := make([]string, parallel)
		for i := range ids {
			ids[i] = fmt.Sprintf("b%031x%032x", round, i)
		}
		for _, w := range networks {
			for _, command := range commands {
				for _, ours := range []bool{true, false} {
					path := n.Binaries.Reference("host-local")
					if ours {
						path = n.Binaries.IPAM()
					}
					// not timed: what reading 50,000 files threw out of the caches is not the next one's time
					if _, err := w.call(ctx, n, path, "VERSION", ids[:1]); err != nil {
						return nil, err
					}
					took, err := w.call(ctx, n, path, strings.TrimSuffix(command, " again"), ids)
					if err != nil {
						return nil, err
					}
					if round > 0 { // the first warms the caches
						k := key{w.name, command, ours}
						r.at[k] = append(r.at[k], float64(took)/float64(time.Millisecond))
					}
				}
			}
		}
	}
	return r, nil
}

// expected is how many times as fast as host-local ADD is to be, by leases held.
var expected = map[int]float64{1_000: 5, 10_000: 50}

func (r *result) write(out io.Writer) error {
	var b strings.Builder
	for _, command := range commands {
		name := command
		if command == "VERSION" {
			name = "VERSION: process start alone"
		}
		fmt.Fprintf(&b, "\n| %s, leases held | xdp-ipam | over 10 held | host-local | host-local / xdp-ipam | expected | met |\n|---|--:|--:|--:|--:|--:|--:|\n", name)
		first := r.at[key{r.networks[0].name, command, true}]
		for _, w := range r.networks {
			ours, theirs := r.at[key{w.name, command, true}], r.at[key{w.name, command, false}]
			flat, faster := ours.over(first).median(), theirs.over(ours).median()
			want, met := "", ""
			if least, ok := expected[w.held]; ok && (command == "ADD" || command == "DEL") && !r.parallel {
				want, met = fmt.Sprintf(">= %.0fx", least), yesNo(faster >= least)
			}
			if w.held == 50_000 && command != "VERSION" {
				want, met = "<= 1.3x of 10 held", yesNo(flat <= 1.3)
			}
			fmt.Fprintf(&b, "| %d | %.2f | %.2fx | %.2f | %.1fx | %s | %s |\n", w.held, ours.median(), flat, theirs.median(), faster, want, met)
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}
