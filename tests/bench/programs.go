package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/xdp-cni/xdp-cni/bpf/samples"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/tests"
)

// programs measures what programs of one's own cost: a packet, and an ADD.
func (b *bench) programs(ctx context.Context) error {
	if err := b.composition(ctx); err != nil {
		return err
	}
	return onNode(ctx, func(node *tests.Node) error { return b.programADDs(ctx, node) })
}

// programADD is an ADD with or without a program.
type programADD struct {
	name string
	// bpffs is the directory of the pins. Each stands for a node: pods of one do not know of the others.
	bpffs    string
	programs []tests.Conf
	// how many programs of others the node has loaded for all its pods, before the ADD and after it
	before, after int
}

// addPlain is what the others are compared with.
const addPlain = "no program"

// programADDs measures ADDs by what they find loaded. Residents keep on each node what is to be there.
func (b *bench) programADDs(ctx context.Context, node *tests.Node) error {
	sample := func(object, program string) (tests.Conf, error) {
		path, err := tests.SampleObject(object)
		return tests.Conf{"object": path, "program": program}, err
	}
	pass, passErr := sample("verdicts", samples.VerdictsProgXdpPass)
	other, otherErr := sample("verdicts", samples.VerdictsProgXdpAbort)
	small, smallErr := sample("vlan", samples.VlanProgXdpVlanPush)
	large, largeErr := sample("ports", samples.PortsProgXdpRewritePorts)
	if err := errors.Join(passErr, otherErr, smallErr, largeErr); err != nil {
		return err
	}
	var (
		having  = filepath.Join(node.Mount, "having")
		without = filepath.Join(node.Mount, "without")
		first   = filepath.Join(node.Mount, "first")
	)
	adds := []programADD{
		{name: addPlain, bpffs: having, before: 1, after: 1},
		{name: "a program, loaded already", bpffs: having, programs: []tests.Conf{pass}, before: 1, after: 1},
		{name: "a program, not loaded yet", bpffs: without, programs: []tests.Conf{pass}, before: 1, after: 2},
		{name: "one with a map of its own, small", bpffs: having, programs: []tests.Conf{small}, before: 1, after: 1},
		{name: "one with a map of its own, large", bpffs: having, programs: []tests.Conf{large}, before: 1, after: 1},
		{name: "no program, the node's first pod", bpffs: first},
		{name: "a program, the node's first pod", bpffs: first, programs: []tests.Conf{pass}, after: 1},
	}
	residents := []programADD{
		// to attach what is attached nowhere else takes the kernel longer
		{name: "resident", bpffs: having},
		{name: "resident", bpffs: having, programs: []tests.Conf{pass}},
		{name: "resident", bpffs: without, programs: []tests.Conf{other}},
	}
	targets, err := newTargets(ctx, node, 1+len(residents))
	if err != nil {
		return err
	}
	t, homes := targets[0], targets[1:]
	modes := []string{"generic", "native"}
	results := map[string]map[string]*times{}
	rounds := b.rounds(31)
	// a mode at a time: residents of the other would have loaded what both use
	for _, mode := range modes {
		for i, r := range residents {
			if _, err := r.in(node, mode).timed(ctx, "ADD", homes[i]); err != nil {
				return err
			}
		}
		var candidates []candidate
		for _, a := range adds {
			c := a.in(node, mode)
			if err := a.prove(ctx, c, t); err != nil {
				return fmt.Errorf("%s, %s: %w", mode, a.name, err)
			}
			candidates = append(candidates, c)
		}
		if results[mode], err = takeTurns(ctx, rounds, candidates, t); err != nil {
			return err
		}
		for i, r := range residents {
			if _, err := r.in(node, mode).timed(ctx, "DEL", homes[i]); err != nil {
				return err
			}
		}
	}
	return b.printProgramADDs(adds, modes, results, rounds)
}

// in is the plugin in a mode.
func (a programADD) in(node *tests.Node, mode string) candidate {
	conf := tests.Conf{"mode": mode, "bpffs": a.bpffs}
	if len(a.programs) > 0 {
		conf["programs"] = a.programs
	}
	return candidate{name: a.name, binary: node.Binaries.Plugin(), conf: node.XDP(conf)}
}

// prove makes sure once that the ADD finds and leaves loaded what it is said to.
func (a programADD) prove(ctx context.Context, c candidate, t *target) error {
	expect := func(want int) error {
		entries, err := os.ReadDir(filepath.Join(pins.NewRoot(a.bpffs).Node(), "programs"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if len(entries) != want {
			return fmt.Errorf("the node has %d programs of others loaded for all pods, want %d", len(entries), want)
		}
		return nil
	}
	if err := expect(a.before); err != nil {
		return err
	}
	if _, err := c.timed(ctx, "ADD", t); err != nil {
		return err
	}
	if err := expect(a.after); err != nil {
		return err
	}
	if _, err := c.timed(ctx, "DEL", t); err != nil {
		return err
	}
	return expect(a.before)
}

func (b *bench) printProgramADDs(
	adds []programADD, modes []string, results map[string]map[string]*times, rounds int,
) error {
	fmt.Fprintf(b.out, `
### ADD with a program of one's own

Milliseconds from exec to exit, medians of %d rounds in turns, on a pod of a bridge. The node has pods with a program
and without in the same mode, and so has loaded what calls programs, but where the pod is its first. A program without
maps is loaded once for the node, one with maps of its own for each pod: the small one is xdp_vlan_push, and the large
one xdp_rewrite_ports, which the verifier takes long for. Quotients are to the same mode without a program.
`, rounds)
	for _, verb := range []struct {
		name string
		of   func(*times) series
	}{
		{"ADD", func(t *times) series { return t.add }},
		{"DEL", func(t *times) series { return t.del }},
	} {
		out := table{header: []string{verb.name}}
		for _, mode := range modes {
			out.header = append(out.header, mode+", ms", "quartiles", "− "+addPlain, "÷ "+addPlain)
		}
		for _, a := range adds {
			row := []string{a.name}
			for _, mode := range modes {
				s, plain := verb.of(results[mode][a.name]), verb.of(results[mode][addPlain])
				row = append(row, fmt.Sprintf("%.1f", s.median()), s.quartiles("%.1f"),
					fmt.Sprintf("%+.1f", s.minus(plain).median()), fmt.Sprintf("%.2f", s.over(plain).median()))
			}
			out.add(row...)
		}
		if err := out.write(b.out); err != nil {
			return err
		}
	}
	return nil
}
