package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/xdp-cni/xdp-cni/tests"
)

// What is expected of the plugin, against bandwidth's ADD and DEL.
const (
	addLimit      = 25 // ms more, in generic mode
	delLimit      = 10 // ms more
	togetherLimit = 1000
	together      = 16 // ADDs at once
)

var modes = []string{"generic", "native", "tcx"}

// bandwidthName is the plugin that others are compared with.
const bandwidthName = "bandwidth"

// references are the plugins to compare with, configured to do their work.
func references(node *tests.Node) []candidate {
	const gigabit = 1_000_000_000
	return []candidate{
		{name: "tuning", binary: node.Binaries.Reference("tuning"), conf: tests.Conf{
			"type": "tuning", "dataDir": filepath.Join(node.Dir, "tuning"),
			"sysctl": tests.Conf{"net.core.somaxconn": "500"},
		}},
		{name: bandwidthName, binary: node.Binaries.Reference("bandwidth"), tidy: removeQdiscs, conf: tests.Conf{
			"type": "bandwidth", "capabilities": tests.Conf{"bandwidth": true},
			"runtimeConfig": tests.Conf{"bandwidth": tests.Conf{
				"ingressRate": gigabit, "ingressBurst": gigabit, "egressRate": gigabit, "egressBurst": gigabit,
			}},
		}},
	}
}

// ours is the plugin in each mode: on a node that has a pod in each, and, if cold, on one that has none, where ADD loads
// the programs and DEL removes them.
func ours(node *tests.Node, cold bool) []candidate {
	list := make([]candidate, len(modes))
	for i, mode := range modes {
		list[i] = candidate{name: "xdp " + mode, binary: node.Binaries.Plugin(), conf: node.XDP(tests.Conf{"mode": mode})}
		if cold {
			list[i].name += ", first pod"
			list[i].conf["bpffs"] = filepath.Join(node.Mount, "cold")
		}
	}
	if !cold {
		list = append(list, candidate{name: filteredName, binary: node.Binaries.Plugin(), conf: node.XDP(tests.Conf{
			"mode": "generic", "filter": chainFilter(filterRules),
		})})
	}
	return list
}

// filterRules is how many rules the filter of a pod has.
const (
	filterRules  = 100
	filteredName = "xdp generic, 100 rules"
)

// chainFilter returns a filter with so many rules, each for a network and a few ports.
func chainFilter(rules int) tests.Conf {
	list := make([]tests.Conf, rules)
	for i := range list {
		list[i] = tests.Conf{
			"name": fmt.Sprintf("rule-%d", i), "direction": "ingress", "action": "allow", "protocol": "tcp",
			"from": []string{fmt.Sprintf("10.%d.%d.0/24", i/250, i%250)}, "ports": []string{fmt.Sprint(1000 + i), "8000-8999"},
		}
	}
	return tests.Conf{"default": tests.Conf{"ingress": "deny"}, "rules": list}
}

// chain measures the chained plugins.
func (b *bench) chain(ctx context.Context) error {
	return onNode(ctx, func(node *tests.Node) (err error) {
		warm := ours(node, false)
		targets, err := newTargets(ctx, node, together+len(warm))
		if err != nil {
			return err
		}
		targets, residents := targets[:together], targets[together:]
		for i, c := range warm {
			if _, err := c.timed(ctx, "ADD", residents[i]); err != nil {
				return err
			}
		}
		candidates := slices.Concat(references(node), warm, ours(node, true))
		if err := b.startOfProcess(ctx, append(references(node), warm[0]), targets[0]); err != nil {
			return err
		}
		if err := b.oneAtATime(ctx, candidates, targets[0]); err != nil {
			return err
		}
		if err := b.allAtOnce(ctx, candidates, targets); err != nil {
			return err
		}
		if err := b.phases(ctx, node, targets[0]); err != nil {
			return err
		}
		var errs []error
		for i, c := range warm {
			_, err := c.timed(ctx, "DEL", residents[i])
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}

// times are those of one candidate, in ms.
type times struct {
	add, del series
}

// takeTurns measures every candidate in each of the rounds, in alternating order.
func takeTurns(ctx context.Context, rounds int, candidates []candidate, targets ...*target) (map[string]*times, error) {
	all := make(map[string]*times, len(candidates))
	for _, c := range candidates {
		all[c.name] = &times{}
	}
	order := slices.Clone(candidates)
	for range rounds {
		for _, c := range order {
			add, del, err := c.addDel(ctx, targets...)
			if err != nil {
				return nil, err
			}
			all[c.name].add.add(add)
			all[c.name].del.add(del)
		}
		slices.Reverse(order)
	}
	return all, nil
}

func (b *bench) oneAtATime(ctx context.Context, candidates []candidate, t *target) error {
	rounds := b.rounds(31)
	all, err := takeTurns(ctx, rounds, candidates, t)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "\n### One at a time\n\nMilliseconds from exec to exit, %d rounds, on a pod of a bridge. "+
		"The node has a pod in each mode already; \"first pod\" is on one that has none.\n", rounds)
	for _, verb := range []struct {
		name  string
		of    func(*times) series
		limit float64
		on    func(string) bool // which rows the issue expects something of
	}{
		{"ADD", func(t *times) series { return t.add }, addLimit, func(name string) bool { return name == "xdp generic" }},
		{"DEL", func(t *times) series { return t.del }, delLimit, isOursWarm},
	} {
		t := table{header: []string{verb.name, "ms", "quartiles", "÷ bandwidth", "− bandwidth", "expected", "met"}}
		reference := verb.of(all[bandwidthName])
		for _, c := range candidates {
			s := verb.of(all[c.name])
			difference := s.minus(reference).median()
			row := []string{c.name, fmt.Sprintf("%.1f", s.median()), s.quartiles("%.1f"),
				fmt.Sprintf("%.2f", s.over(reference).median()), fmt.Sprintf("%+.1f", difference)}
			if verb.on(c.name) {
				row = append(row, expectation(fmt.Sprintf("≤ +%.0f", verb.limit), difference <= verb.limit)...)
			}
			t.add(row...)
		}
		if err := t.write(b.out); err != nil {
			return err
		}
	}
	return nil
}

func isOursWarm(name string) bool {
	return slices.ContainsFunc(modes, func(mode string) bool { return name == "xdp "+mode })
}

func (b *bench) allAtOnce(ctx context.Context, candidates []candidate, targets []*target) error {
	rounds := b.rounds(11)
	all, err := takeTurns(ctx, rounds, candidates, targets...)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "\n### %d at once\n\nMilliseconds until the last is done, %d rounds.\n", len(targets), rounds)
	t := table{header: []string{fmt.Sprintf("%d at once", len(targets)), "ADD ms", "quartiles", "÷ bandwidth", "expected",
		"met", "DEL ms", "quartiles", "÷ bandwidth"}}
	reference := all[bandwidthName]
	for _, c := range candidates {
		s := all[c.name]
		row := []string{c.name, fmt.Sprintf("%.0f", s.add.median()), s.add.quartiles("%.0f"),
			fmt.Sprintf("%.2f", s.add.over(reference.add).median())}
		if c.binary == targets[0].pod.Node.Binaries.Plugin() {
			row = append(row, expectation(fmt.Sprintf("< %d", togetherLimit), s.add.median() < togetherLimit)...)
		} else {
			row = append(row, "", "")
		}
		t.add(append(row, fmt.Sprintf("%.0f", s.del.median()), s.del.quartiles("%.0f"),
			fmt.Sprintf("%.2f", s.del.over(reference.del).median()))...)
	}
	return t.write(b.out)
}

// startOfProcess measures what each plugin costs before it does anything.
func (b *bench) startOfProcess(ctx context.Context, candidates []candidate, t *target) error {
	rounds := b.rounds(31)
	all := make([]series, len(candidates))
	for range rounds {
		for i, c := range candidates {
			took, err := c.timed(ctx, "VERSION", t)
			if err != nil {
				return err
			}
			all[i].add(took)
		}
	}
	fmt.Fprintf(b.out, "\n### A process that does nothing\n\nMilliseconds from exec to exit of CNI_COMMAND=VERSION, %d rounds.\n", rounds)
	table := table{header: []string{"VERSION", "ms", "quartiles", "size of the binary, MB"}}
	for i, c := range candidates {
		file, err := os.Stat(c.binary)
		if err != nil {
			return err
		}
		table.add(file.Name(), fmt.Sprintf("%.1f", all[i].median()), all[i].quartiles("%.1f"),
			fmt.Sprintf("%.1f", float64(file.Size())/1e6))
	}
	return table.write(b.out)
}
