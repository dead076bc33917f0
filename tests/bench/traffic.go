package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/xdp-cni/xdp-cni/tests"
)

// throughputLimit is the least ratio of TCP throughput that is expected of tcx.
const throughputLimit = 0.97

// path is a way from pod to pod: over the bridge, with or without the plugin.
type path struct {
	name string
	conf tests.Conf // of the plugin; nil: without it
}

// nothing is the path that the others are compared with.
var nothing = path{name: "no plugin"}

var paths = []path{
	{"xdp generic", tests.Conf{"mode": "generic"}},
	{"xdp native", tests.Conf{"mode": "native"}},
	{"xdp tcx", tests.Conf{"mode": "tcx"}},
	{"xdp tcx, peers", tests.Conf{"mode": "tcx", "stats": tests.Conf{"peers": 1024}}},
}

// traffic measures every load on every path. Before and after each path comes one without the plugin, and what counts is
// the ratio to the mean of those two. Every measurement has pods of its own: nothing is left of what the one before did
// to an interface, and without the plugin no program is attached anywhere.
func (b *bench) traffic(ctx context.Context) error {
	rounds := b.rounds(9)
	duration := time.Second
	fmt.Fprintf(b.out, "\nPod to pod over a bridge, IPv4, MTU 1500, %d rounds of %s for each, sender and receiver each bound to a processor "+
		"(the same one for round trips), medians. The first row compares paths without the plugin with one another: what it is off 1 is noise. "+
		"CPU is all that the machine spent.\n", rounds, duration)
	return onNode(ctx, func(node *tests.Node) error {
		for i := range loads {
			t := trial{node: node, load: &loads[i], duration: duration}
			if err := t.run(ctx, rounds); err != nil {
				return err
			}
			if err := t.print(b); err != nil {
				return err
			}
		}
		return nil
	})
}

// trial is one load on all paths.
type trial struct {
	node     *tests.Node
	load     *load
	duration time.Duration
	results  []result // of nothing, then of the paths
}

// result is what was measured on one path, and its ratios to the path without the plugin.
type result struct {
	rate, cost, lost     series
	rateRatio, costRatio series
}

// add notes an outcome, and how it compares with the two beside it.
func (r *result) add(o, before, after outcome) {
	r.rate = append(r.rate, o.rate)
	r.cost = append(r.cost, o.cost)
	r.lost = append(r.lost, o.lost)
	r.rateRatio = append(r.rateRatio, 2*o.rate/(before.rate+after.rate))
	r.costRatio = append(r.costRatio, 2*o.cost/(before.cost+after.cost))
}

func (t *trial) run(ctx context.Context, rounds int) error {
	t.results = make([]result, 1+len(paths))
	for range rounds {
		plain, err := t.plain(ctx, nil)
		if err != nil {
			return err
		}
		for i, p := range paths {
			o, err := t.on(ctx, p)
			if err != nil {
				return err
			}
			if plain, err = t.plain(ctx, plain); err != nil {
				return err
			}
			t.results[1+i].add(o, plain[len(plain)-2], plain[len(plain)-1])
		}
		for i := 1; i+1 < len(plain); i++ {
			t.results[0].add(plain[i], plain[i-1], plain[i+1])
		}
	}
	return nil
}

// plain appends a measurement without the plugin.
func (t *trial) plain(ctx context.Context, to []outcome) ([]outcome, error) {
	o, err := t.on(ctx, nothing)
	return append(to, o), err
}

// on measures on a path, with new pods.
func (t *trial) on(ctx context.Context, p path) (o outcome, err error) {
	plugins := []tests.Conf{t.node.Bridge(tests.IPv4)}
	if p.conf != nil {
		plugins = append(plugins, t.node.XDP(p.conf))
	}
	network, err := t.node.Network(tests.Conflist("bench", cniVersion, plugins...))
	if err != nil {
		return outcome{}, err
	}
	var pods [2]*tests.Pod
	defer func() {
		// the run's own context may be over
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		for _, pod := range pods {
			if pod != nil {
				err = errors.Join(err, network.Del(ctx, pod), pod.Close())
			}
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", p.name, err)
		}
	}()
	for i := range pods {
		if pods[i], err = t.node.NewPod(fmt.Sprintf("pod%d", i)); err != nil {
			return outcome{}, err
		}
		if _, err = network.Add(ctx, pods[i]); err != nil {
			return outcome{}, err
		}
	}
	if err := tests.Introduce(pods[0], pods[1]); err != nil {
		return outcome{}, err
	}
	return t.load.measure(ctx, pods[0], pods[1], t.duration)
}

func (t *trial) print(b *bench) error {
	fmt.Fprintf(b.out, "\n### %s: %s\n", t.load.name, t.load.about)
	b.noise("the rate without the plugin", t.results[0].rateRatio)
	b.noise("the processor time without the plugin", t.results[0].costRatio)
	out := table{header: []string{"path", t.load.unit, "÷ no plugin", "quartiles", t.load.costUnit, "÷ no plugin", "quartiles"}}
	if t.load.lossy {
		out.header = append(out.header, "lost")
	} else if t.load.name == throughputLoad {
		out.header = append(out.header, "expected", "met")
	}
	for i, p := range append([]path{nothing}, paths...) {
		r := t.results[i]
		row := []string{
			p.name, fmt.Sprintf("%.2f", r.rate.median()/t.load.scale), fmt.Sprintf("%.3f", r.rateRatio.median()), r.rateRatio.quartiles("%.3f"),
			fmt.Sprintf("%.2f", r.cost.median()*t.load.costScale), fmt.Sprintf("%.3f", r.costRatio.median()), r.costRatio.quartiles("%.3f"),
		}
		switch {
		case t.load.lossy:
			row = append(row, fmt.Sprintf("%.1f %%", 100*r.lost.median()))
		case t.load.name == throughputLoad && p.conf["mode"] == "tcx":
			row = append(row, expectation(fmt.Sprintf("≥ %.2f", throughputLimit), r.rateRatio.median() >= throughputLimit)...)
		}
		out.add(row...)
	}
	return out.write(b.out)
}
