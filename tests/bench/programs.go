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
	// how many user programs the node has loaded for all its pods, before the ADD and after it
	before, after int
}

// addPlain is what the others are compared with.
const addPlain = "no program"

// programSet are programs that ADDs are measured with: two without maps, and two with maps of their own.
type programSet struct {
	pass, other, small tests.Conf
	large              tests.Conf // nil: there is none
}

func newProgramSet(mode string) (set programSet, err error) {
	named := func(find func(string) (string, error), object, program string) tests.Conf {
		path, findErr := find(object)
		err = errors.Join(err, findErr)
		return tests.Conf{"object": path, "program": program}
	}
	if mode == "tcx" {
		return programSet{
			pass: named(tests.TestObject, "others", "at_tc"), other: named(tests.TestObject, "others", "tc_ok"),
			small: named(tests.TestObject, "tcverdicts", "tc_pass"),
		}, err
	}
	return programSet{
		pass:  named(tests.SampleObject, "verdicts", samples.VerdictsProgXdpPass),
		other: named(tests.SampleObject, "verdicts", samples.VerdictsProgXdpAbort),
		small: named(tests.SampleObject, "vlan", samples.VlanProgXdpVlanPush),
		large: named(tests.SampleObject, "ports", samples.PortsProgXdpRewritePorts),
	}, err
}

// addLarge is the ADD with the program that takes longest to load.
const addLarge = "one with a map of its own, large"

// programADDs measures ADDs by what they find loaded. Residents keep on each node what is to be there.
func (b *bench) programADDs(ctx context.Context, node *tests.Node) error {
	var (
		having  = filepath.Join(node.Mount, "having")
		without = filepath.Join(node.Mount, "without")
		first   = filepath.Join(node.Mount, "first")
	)
	addsOf := func(set programSet) []programADD {
		return []programADD{
			{name: addPlain, bpffs: having, before: 1, after: 1},
			{name: "a program, loaded already", bpffs: having, programs: []tests.Conf{set.pass}, before: 1, after: 1},
			{name: "a program, not loaded yet", bpffs: without, programs: []tests.Conf{set.pass}, before: 1, after: 2},
			{name: "one with a map of its own, small", bpffs: having, programs: []tests.Conf{set.small}, before: 1, after: 1},
			{name: addLarge, bpffs: having, programs: []tests.Conf{set.large}, before: 1, after: 1},
			{name: "no program, the node's first pod", bpffs: first},
			{name: "a program, the node's first pod", bpffs: first, programs: []tests.Conf{set.pass}, after: 1},
		}
	}
	residentsOf := func(set programSet) []programADD {
		return []programADD{
			// to attach what is attached nowhere else takes the kernel longer
			{name: "resident", bpffs: having},
			{name: "resident", bpffs: having, programs: []tests.Conf{set.pass}},
			{name: "resident", bpffs: without, programs: []tests.Conf{set.other}},
		}
	}
	targets, err := newTargets(ctx, node, 1+len(residentsOf(programSet{})))
	if err != nil {
		return err
	}
	t, homes := targets[0], targets[1:]
	modes := []string{"generic", "native", "tcx"}
	results := map[string]map[string]*times{}
	rounds := b.rounds(31)
	// a mode at a time: residents of the other would have loaded what both use
	for _, mode := range modes {
		set, err := newProgramSet(mode)
		if err != nil {
			return err
		}
		residents := residentsOf(set)
		for i, r := range residents {
			if _, err := r.in(node, mode).timed(ctx, "ADD", homes[i]); err != nil {
				return err
			}
		}
		var candidates []candidate
		for _, a := range addsOf(set) {
			if a.name == addLarge && set.large == nil {
				continue
			}
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
	return b.printProgramADDs(addsOf(programSet{}), modes, results, rounds)
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
			return fmt.Errorf("the node has %d user programs loaded for all pods, want %d", len(entries), want)
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
one xdp_rewrite_ports, which the verifier takes long for. In mode tcx they are tc programs, each with a link of its own,
the small one tc_pass. Quotients are to the same mode without a program.
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
				if results[mode][a.name] == nil { // there is no such program
					row = append(row, "", "", "", "")
					continue
				}
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
