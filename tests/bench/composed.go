package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf/samples"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// composedPackets is how many packets a pod sends in a round.
const composedPackets = 20_000

// composed is a pod with programs of its own, each of which only passes packets.
type composed struct {
	mode      datapath.Mode
	number    int // of programs
	again     bool
	pod       *attached
	program   *ebpf.Program // as it is attached
	frame     []byte
	sender    *sender
	inProgram series // ns a packet by BPF_PROG_TEST_RUN
	forwarded series // ns a packet on its way through the node
}

// programNumbers are how many programs are compared.
var programNumbers = []int{0, 1, 3}

// composition measures what programs cost a packet: in the program that is attached, and forwarded by the node.
func (b *bench) composition(ctx context.Context) (err error) {
	g, err := newGateway(ctx)
	if err != nil {
		return err
	}
	var pods []*composed
	defer func() {
		var errs []error
		for _, c := range pods {
			errs = append(errs, c.close())
		}
		err = errors.Join(append(errs, g.close(), err)...)
	}()
	bare, err := verdictProgram(ebpf.XDP, actionPass)
	if err != nil {
		return err
	}
	defer bare.Close()
	verdicts, verdictsErr := tests.SampleObject("verdicts")
	tcVerdicts, tcErr := tests.TestObject("tcverdicts")
	if err := errors.Join(verdictsErr, tcErr); err != nil {
		return err
	}
	programs, err := passing(g.node.Dir, verdicts, samples.VerdictsProgXdpPass, slices.Max(programNumbers))
	if err != nil {
		return err
	}
	tcPrograms, err := passing(g.node.Dir, tcVerdicts, "tc_pass", slices.Max(programNumbers))
	if err != nil {
		return err
	}
	for _, mode := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeNative, datapath.ModeTCX} {
		programs := programs
		if mode == datapath.ModeTCX {
			programs = tcPrograms
		}
		for _, n := range append(slices.Clone(programNumbers), 0) {
			c := &composed{mode: mode, number: n, again: slices.ContainsFunc(pods, func(other *composed) bool {
				return other.mode == mode && other.number == n
			})}
			pods = append(pods, c)
			if err := c.open(ctx, g, programs[:n]); err != nil {
				return fmt.Errorf("%s, %d programs: %w", mode, n, err)
			}
		}
	}
	var bares series
	rounds := b.rounds(31)
	for round := range rounds {
		cost, err := pods[0].testRun(bare)
		if err != nil {
			return err
		}
		bares = append(bares, cost)
		order := slices.Clone(pods)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, c := range order {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := c.measure(g); err != nil {
				return fmt.Errorf("%s, %d programs: %w", c.mode, c.number, err)
			}
		}
	}
	return b.printComposition(pods, bares, rounds)
}

// passing returns so many programs that only pass packets, from copies of an object in dir. Each is loaded apart, as
// programs of different subjects are: one more byte at its end makes an object another one.
func passing(dir, object, program string, n int) ([]datapath.Program, error) {
	content, err := os.ReadFile(object)
	if err != nil {
		return nil, err
	}
	list := make([]datapath.Program, n)
	for i := range list {
		name := fmt.Sprintf("%s%d", program, i)
		list[i] = datapath.Program{Object: filepath.Join(dir, name+".o"), Program: program, Name: name}
		content = append(content, 0)
		if err := os.WriteFile(list[i].Object, content, 0o600); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// open attaches the programs. What has to be closed is noted even if it fails.
func (c *composed) open(ctx context.Context, g *gateway, programs []datapath.Program) (err error) {
	if c.pod, err = g.pod(ctx); err != nil {
		return err
	}
	if err := c.pod.attach(ctx, c.mode, nil, programs...); err != nil {
		return err
	}
	if c.called() {
		if c.program, err = xdpProgram(c.pod.node, c.pod.veth.HostIndex); err != nil {
			return err
		}
	}
	c.frame = datagram(packets.Ethernet{Src: packets.MAC(c.pod.veth.PodMAC), Dst: packets.MAC(c.pod.veth.HostMAC)},
		packets.IPv4{Src: c.pod.address, Dst: matching(0).Addr()}, packets.Ports{Src: 1024, Dst: floodPort})
	c.sender, err = newSender(c.pod.pod, c.pod.veth.PodIndex, [][]byte{c.frame})
	return err
}

func (c *composed) close() error {
	var errs []error
	if c.sender != nil {
		errs = append(errs, c.sender.close())
	}
	_ = c.program.Close()
	if c.pod != nil {
		// without the run's context, which may be over
		errs = append(errs, c.pod.detach(context.Background()))
	}
	return errors.Join(errs...)
}

// called tells whether the programs are called by the one that is attached; tc programs have links of their own.
func (c *composed) called() bool { return c.mode != datapath.ModeTCX }

// passed is how many packets the pod has passed, and each of its programs.
func (c *composed) passed() ([]uint64, error) {
	attachment, err := findAttachment(c.pod.node, c.pod.pod)
	if err != nil {
		return nil, err
	}
	stats, err := c.pod.datapath().ReadStats(attachment)
	if err != nil {
		return nil, err
	}
	var runs []uint64
	if c.called() {
		runs, err = c.pod.ran(actionPass)
	} else {
		runs, err = c.pod.ranTC()
	}
	if err == nil && len(runs) != c.number {
		err = fmt.Errorf("the pod has %d programs", len(runs))
	}
	return append(runs, stats.Egress.Verdicts[actionPass].Packets), err
}

// measure notes the processor time of a packet in the program that is attached, and on its way through the node. All
// packets must be counted as passed, by each program and for the pod.
func (c *composed) measure(g *gateway) error {
	before, err := c.passed()
	if err != nil {
		return err
	}
	packets := uint64(composedPackets)
	if c.called() {
		cost, err := c.testRun(c.program)
		if err != nil {
			return err
		}
		c.inProgram = append(c.inProgram, cost)
		packets += testRepeat
	}
	first, err := g.forwarded()
	if err != nil {
		return err
	}
	err = locked(func() error {
		took, err := sendTime(func() error { return c.sender.send(composedPackets) })
		c.forwarded = append(c.forwarded, float64(took.Nanoseconds())/composedPackets)
		return err
	})
	if err != nil {
		return err
	}
	last, err := g.forwarded()
	if err != nil {
		return err
	}
	if last-first != composedPackets {
		return fmt.Errorf("of %d packets %d came through", composedPackets, last-first)
	}
	after, err := c.passed()
	if err != nil {
		return err
	}
	for i := range after {
		if got := after[i] - before[i]; got != packets {
			return fmt.Errorf("counter %d of %d has %d packets more, want %d", i+1, len(after), got, packets)
		}
	}
	return nil
}

// testRun returns the nanoseconds of a packet of the pod's in a program.
func (c *composed) testRun(program *ebpf.Program) (cost float64, err error) {
	err = c.pod.node.Do(func() error {
		restore, err := pin(sendCPU)
		if err != nil {
			return err
		}
		defer restore()
		begin := threadTime()
		verdict, err := program.Run(&ebpf.RunOptions{
			Data: c.frame, Repeat: testRepeat,
			Context: packets.CameIn(c.frame, c.pod.veth.HostIndex),
		})
		took := threadTime() - begin
		if err != nil {
			return err
		}
		if verdict != actionPass {
			return fmt.Errorf("verdict %d, want %d", verdict, actionPass)
		}
		cost = float64(took.Nanoseconds()) / testRepeat
		return nil
	})
	return cost, err
}

func (b *bench) printComposition(pods []*composed, bares series, rounds int) error {
	fmt.Fprintf(b.out, `
### A packet with programs of one's own

Processor nanoseconds a packet, medians of %d rounds in turns: in the program that is attached, by BPF_PROG_TEST_RUN of
%d packets, over a program that only passes them; and sent by the pod from a packet socket, %d of them, and forwarded by
the node to where they are counted and dropped. Programs pass all packets, and run before a policy that is not there;
each is loaded from an object of its own. In mode tcx the kernel runs them, each by a link of its own, and they count in
maps of their own, as ours count those that they call. Quotients are to the same without programs.
`, rounds, testRepeat, composedPackets)
	none := func(mode datapath.Mode) *composed { // the first: the other is to be compared with it
		return pods[slices.IndexFunc(pods, func(c *composed) bool { return c.mode == mode && c.number == 0 })]
	}
	out := table{header: []string{"mode, programs", "in the program", "quartiles", "− none", "÷ none",
		"forwarded", "quartiles", "− none", "÷ none", "quartiles"}}
	for _, c := range pods {
		plain := none(c.mode)
		if c.again {
			if c.called() {
				b.noise(fmt.Sprintf("a test run in mode %s without programs", c.mode), c.inProgram.over(plain.inProgram))
			}
			b.noise(fmt.Sprintf("forwarding in mode %s without programs", c.mode), c.forwarded.over(plain.forwarded))
			continue
		}
		row := []string{fmt.Sprintf("%s, %d", c.mode, c.number), "", "", "", ""}
		if c.called() {
			cost, without := c.inProgram.minus(bares), plain.inProgram.minus(bares)
			row = append(row[:1], fmt.Sprintf("%.0f", cost.median()), cost.quartiles("%.0f"),
				fmt.Sprintf("%+.0f", cost.minus(without).median()), fmt.Sprintf("%.2f", cost.over(without).median()))
		}
		forwarded := c.forwarded.over(plain.forwarded)
		out.add(append(row, fmt.Sprintf("%.0f", c.forwarded.median()), c.forwarded.quartiles("%.0f"),
			fmt.Sprintf("%+.0f", c.forwarded.minus(plain.forwarded).median()),
			fmt.Sprintf("%.3f", forwarded.median()), forwarded.quartiles("%.3f"))...)
	}
	return out.write(b.out)
}
