package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// What is expected of a packet in the programs, at the most rules there may be over one rule.
const (
	newFlowLimit     = 2.0
	establishedLimit = 1.1
)

// testRepeat is how often a program is run on a packet in one go. All source ports but those of a flow table's length
// have been forgotten when a port comes again.
const testRepeat = 1 << 14

// Offsets in a frame of UDP over IPv4 without options.
const (
	sourceAddressOff      = 14 + 12
	destinationAddressOff = 14 + 16
	sourcePortOff         = 14 + 20
	destinationPortOff    = 14 + 22
	frameEnd              = 14 + 28
)

// hooked is a program of the plugin with the pods whose packets it is run on.
type hooked struct {
	name      string
	typ       ebpf.ProgramType
	program   *ebpf.Program
	direction conf.Direction
	pass      int32
	variants  []*variant
}

// variant is one figure of a program.
type variant struct {
	rules   int
	kind    string
	pod     *attached
	driver  driver
	frame   []byte
	context any
	decided func([]uint64) error // says whether the rules decided what they should; nil: there are none
	costs   series               // ns a packet
}

// The kinds of variants, in the order of the table.
const (
	kindRules       = "rules only"
	kindNew         = "new flow"
	kindSpread      = "new flow, any rule"
	kindEstablished = "established"
	kindBare        = "bare"
	kindStats       = "no filter"
	kindStatsAgain  = "no filter, again"
)

// testRuns measures what a packet costs in the programs, as they are attached to pods with filters.
func (b *bench) testRuns(ctx context.Context, node *tests.Node) error {
	rounds := b.rounds(31)
	var pods []*attached
	pod := func(mode datapath.Mode, filter *conf.Filter) (*attached, error) {
		a, err := newVeth(ctx, node, len(pods))
		if err != nil {
			return nil, err
		}
		pods = append(pods, a)
		return a, a.attach(ctx, mode, filter)
	}
	var hooks []*hooked
	defer func() {
		for _, h := range hooks {
			h.close()
		}
	}()
	for _, h := range []*hooked{
		{name: bpf.DatapathProgXdpEgress, typ: ebpf.XDP, direction: conf.Egress, pass: 2}, // XDP_PASS
		{name: bpf.DatapathProgTcEgress, typ: ebpf.SchedCLS, direction: conf.Egress, pass: -1},
		{name: bpf.DatapathProgTcIngress, typ: ebpf.SchedCLS, direction: conf.Ingress, pass: -1}, // TC_ACT_UNSPEC
	} {
		hooks = append(hooks, h)
		if err := h.prepare(pod); err != nil {
			return fmt.Errorf("%s: %w", h.name, err)
		}
	}
	for round := range rounds {
		for _, h := range hooks {
			// up, and down again
			order := slices.Clone(h.variants)
			if round%2 == 1 {
				slices.Reverse(order)
			}
			for _, v := range order {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := v.measure(h.pass, round < 2); err != nil {
					return fmt.Errorf("%s, %d rules, %s: %w", h.name, v.rules, v.kind, err)
				}
			}
		}
	}
	if err := b.printTestRuns(hooks, rounds); err != nil {
		return err
	}
	for _, a := range pods {
		if err := a.detach(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (h *hooked) close() {
	_ = h.program.Close()
	for _, v := range h.variants {
		v.driver.close()
	}
}

// prepare makes the pods and drivers of a program.
func (h *hooked) prepare(pod func(datapath.Mode, *conf.Filter) (*attached, error)) error {
	mode := datapath.ModeTCX
	if h.typ == ebpf.XDP {
		mode = datapath.ModeGeneric
	}
	plain, err := pod(mode, nil)
	if err != nil {
		return err
	}
	if h.program, err = plain.program(h.name); err != nil {
		return err
	}
	add := func(a *attached, rules int, kind string, program *ebpf.Program, c change, decided func([]uint64) error) error {
		v := &variant{rules: rules, kind: kind, pod: a, decided: decided}
		if v.driver, err = h.driver(program, c); err != nil {
			return fmt.Errorf("driver of %s: %w", kind, err)
		}
		v.frame, v.context = h.packet(a, max(rules, 1)-1)
		h.variants = append(h.variants, v)
		return nil
	}
	if err := add(plain, 0, kindBare, nil, change{}, nil); err != nil {
		return err
	}
	if err := add(plain, 0, kindStats, h.program, change{}, nil); err != nil {
		return err
	}
	for _, n := range ruleCounts {
		stateless, err := pod(mode, filterOf(n, h.direction, false))
		if err != nil {
			return err
		}
		stateful, err := pod(mode, filterOf(n, h.direction, true))
		if err != nil {
			return err
		}
		if err := errors.Join(
			add(stateless, n, kindRules, h.program, change{}, theLast),
			add(stateful, n, kindNew, h.program, change{nextPort: true}, theLast),
			add(stateful, n, kindSpread, h.program, change{nextPort: true, anyOf: n}, all),
			add(stateful, n, kindEstablished, h.program, change{}, none),
		); err != nil {
			return err
		}
	}
	return add(plain, 0, kindStatsAgain, h.program, change{}, nil)
}

// theLast: the last rule decided all packets.
func theLast(decided []uint64) error {
	if got := decided[len(decided)-1]; got != testRepeat {
		return fmt.Errorf("the last rule decided %d packets, want %d", got, testRepeat)
	}
	return nil
}

// all: the rules decided all packets, and as many each as chance has it.
func all(decided []uint64) error {
	var sum uint64
	for _, n := range decided {
		sum += n
	}
	if most := slices.Max(decided); sum != testRepeat || most > 2*testRepeat/uint64(len(decided)) {
		return fmt.Errorf("the rules decided %d packets, want %d, and one of them %d", sum, testRepeat, most)
	}
	return nil
}

// none: the rules decided no packet, but the first one perhaps.
func none(decided []uint64) error {
	for i, n := range decided {
		if n > 1 {
			return fmt.Errorf("rule %d decided %d packets of a flow that is known", i, n)
		}
	}
	return nil
}

// packet is one that the rule matches, as the smallest frame of UDP, and what its program is told of it.
func (h *hooked) packet(a *attached, rule int) (frame []byte, context any) {
	remote := matching(rule)
	ethernet := packets.Ethernet{Src: packets.MAC(a.veth.PodMAC), Dst: packets.MAC(a.veth.HostMAC)}
	ip := packets.IPv4{Src: a.address, Dst: remote.Addr()}
	if h.direction == conf.Ingress {
		ethernet.Src, ethernet.Dst = ethernet.Dst, ethernet.Src
		ip.Src, ip.Dst = ip.Dst, ip.Src
	}
	frame = packets.Pad(packets.Frame(ethernet, ip, packets.UDP{Ports: &packets.Ports{Src: 1, Dst: remote.Port()}}), packets.MinFrame)
	if h.typ == ebpf.XDP {
		return frame, packets.CameIn(frame, a.veth.HostIndex)
	}
	return frame, skBuff{Ifindex: uint32(a.veth.HostIndex)}
}

// skBuff is struct __sk_buff as far as it is used here (include/uapi/linux/bpf.h).
type skBuff struct {
	_       [40]byte
	Ifindex uint32
	_       [148]byte
}

// driver is a program that changes a packet and calls a program under test, whose verdict ends the run. What it changed
// stays in the packet from run to run.
type driver struct {
	program *ebpf.Program
	calls   *ebpf.Map // has the program under test; the kernel empties it when it is closed
}

func (d driver) close() {
	_ = d.program.Close()
	_ = d.calls.Close()
}

// change is what a driver changes in packets.
type change struct {
	// nextPort gives each packet another source port than the one before, so that it belongs to no flow that is known.
	nextPort bool
	// anyOf, if not 0, has each packet matched by another one of the first so many rules.
	anyOf int
}

// driver makes one for the program, or one that only passes packets if that is nil.
func (h *hooked) driver(program *ebpf.Program, c change) (d driver, err error) {
	data, dataEnd := int16(0), int16(4)
	if h.typ != ebpf.XDP {
		data, dataEnd = 76, 80
	}
	ins := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R1, data, asm.Word),
		asm.LoadMem(asm.R3, asm.R1, dataEnd, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R7),
		asm.Add.Imm(asm.R4, frameEnd),
		asm.JGT.Reg(asm.R4, asm.R3, "pass"),
	}
	ins = append(ins, c.instructions(h.direction)...)
	d.calls, err = ebpf.NewMap(&ebpf.MapSpec{Name: "bench_calls", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return d, err
	}
	if program != nil {
		if err := d.calls.Put(uint32(0), program); err != nil {
			return d, errors.Join(err, d.calls.Close())
		}
		ins = append(ins,
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.LoadMapPtr(asm.R2, d.calls.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call())
	}
	ins = append(ins, asm.Mov.Imm(asm.R0, h.pass).WithSymbol("pass"), asm.Return())
	spec := &ebpf.ProgramSpec{Name: "bench_driver", Type: h.typ, License: "BSD", Instructions: ins}
	if h.typ == ebpf.XDP {
		spec.AttachType = ebpf.AttachXDP // an array has programs of one attach type only
	}
	if d.program, err = ebpf.NewProgram(spec); err != nil {
		return d, errors.Join(err, d.calls.Close())
	}
	return d, nil
}

// instructions change the packet at R7.
func (c change) instructions(direction conf.Direction) asm.Instructions {
	if !c.nextPort {
		return nil
	}
	ins := asm.Instructions{
		asm.LoadMem(asm.R5, asm.R7, sourcePortOff, asm.Half),
		asm.Add.Imm(asm.R5, 1),
		asm.StoreMem(asm.R7, sourcePortOff, asm.R5, asm.Half),
	}
	if c.anyOf == 0 {
		return ins
	}
	address := int16(destinationAddressOff)
	if direction == conf.Ingress {
		address = sourceAddressOff
	}
	return append(ins,
		// one after the other would find its neighbours in the cache: Knuth's multiplicative hash
		asm.Mul.Imm(asm.R5, 40503),
		asm.And.Imm(asm.R5, 0xffff),
		asm.Mul.Imm(asm.R5, int32(c.anyOf)),
		asm.RSh.Imm(asm.R5, 16),
		// as ruleOf
		asm.Mov.Reg(asm.R4, asm.R5),
		asm.HostTo(asm.BE, asm.R4, asm.Half),
		asm.StoreMem(asm.R7, address+1, asm.R4, asm.Half),
		asm.Mul.Imm(asm.R5, portsPerRule),
		asm.Add.Imm(asm.R5, firstPort),
		asm.HostTo(asm.BE, asm.R5, asm.Half),
		asm.StoreMem(asm.R7, destinationPortOff, asm.R5, asm.Half))
}

// measure runs the program once over, and notes the processor time of a packet. With check it makes sure that the
// packets were what they are said to be, by what the rules decided.
func (v *variant) measure(pass int32, check bool) error {
	var before, after []uint64
	var err error
	if check = check && v.decided != nil; check {
		if before, err = v.pod.decided(); err != nil {
			return err
		}
	}
	cost, err := v.run(pass)
	if err != nil {
		return err
	}
	v.costs = append(v.costs, cost)
	if !check {
		return nil
	}
	if after, err = v.pod.decided(); err != nil {
		return err
	}
	for i := range after {
		after[i] -= before[i]
	}
	return v.decided(after)
}

// run returns the nanoseconds of a packet.
func (v *variant) run(pass int32) (cost float64, err error) {
	err = v.pod.node.Do(func() error {
		restore, err := pin(sendCPU)
		if err != nil {
			return err
		}
		defer restore()
		begin := threadTime()
		verdict, err := v.driver.program.Run(&ebpf.RunOptions{
			Data: v.frame, Context: v.context, Repeat: testRepeat,
		})
		took := threadTime() - begin
		if err != nil {
			return err
		}
		if int32(verdict) != pass {
			return fmt.Errorf("verdict %d, want %d", int32(verdict), pass)
		}
		cost = float64(took.Nanoseconds()) / testRepeat
		return nil
	})
	return cost, err
}

// pin binds the calling thread, which must be locked, to a processor, and keeps the signals from it by which the Go
// runtime shares out processors: they interrupt test runs, which then begin anew.
func pin(number int) (restore func(), err error) {
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	one.Set(number % runtime.NumCPU())
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return nil, fmt.Errorf("sched_setaffinity: %w", err)
	}
	var urgent, signals unix.Sigset_t
	urgent.Val[0] = 1 << (unix.SIGURG - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &urgent, &signals); err != nil {
		return nil, errors.Join(fmt.Errorf("blocking signals: %w", err), unix.SchedSetaffinity(0, &before))
	}
	return func() {
		_ = unix.PthreadSigmask(unix.SIG_SETMASK, &signals, nil)
		_ = unix.SchedSetaffinity(0, &before)
	}, nil
}

// threadTime is the processor time of the calling thread, with the softirqs that ran on top of it unless the kernel
// accounts for them apart (CONFIG_IRQ_TIME_ACCOUNTING).
func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err) // every kernel has it
	}
	return time.Duration(t.Nano())
}

// cost returns the costs of a variant over those of a bare program, round by round.
func (h *hooked) cost(rules int, kind string) series {
	return h.variant(rules, kind).costs.minus(h.variant(0, kindBare).costs)
}

func (h *hooked) variant(rules int, kind string) *variant {
	return h.variants[slices.IndexFunc(h.variants, func(v *variant) bool { return v.rules == rules && v.kind == kind })]
}

func (b *bench) printTestRuns(hooks []*hooked, rounds int) error {
	fmt.Fprintf(b.out, `
### A packet in the programs

Nanoseconds a packet by BPF_PROG_TEST_RUN over a program that only passes it, medians of %d rounds of %d packets. Each is
the smallest of UDP over IPv4, and matched by the last rule of its list, or, in the column of any rule, by one after the
other of all. "Rules only" is a filter without state, which judges each packet by the rules. A new flow's packet is
looked up in the flow table, judged by the rules and entered in the table, which is full and forgets another flow.
Quotients are to the list of one rule. Without a filter, statistics cost`, rounds, testRepeat)
	for i, h := range hooks {
		fmt.Fprintf(b.out, "%s %.0f in %s", []string{"", ",", ","}[i], h.cost(0, kindStats).median(), h.name)
	}
	fmt.Fprintln(b.out, ".")
	for _, h := range hooks {
		b.noise("a test run of "+h.name+" without a filter", h.variant(0, kindStatsAgain).costs.over(h.variant(0, kindStats).costs))
		t := table{header: []string{h.name, kindRules, "÷ 1 rule", kindNew, "÷ 1 rule", "expected", "met",
			kindSpread, "÷ 1 rule", kindEstablished, "÷ 1 rule", "expected", "met"}}
		for _, n := range ruleCounts {
			row := []string{ruleCount(n)}
			for _, kind := range []string{kindRules, kindNew, kindSpread, kindEstablished} {
				cost := h.cost(n, kind)
				over := cost.over(h.cost(ruleCounts[0], kind)).median()
				row = append(row, fmt.Sprintf("%.0f", cost.median()), fmt.Sprintf("%.2f", over))
				limit := newFlowLimit
				switch kind {
				case kindRules, kindSpread:
					continue
				case kindEstablished:
					limit = establishedLimit
				}
				if n == conf.MaxRules {
					row = append(row, expectation(fmt.Sprintf("≤ %.1f", limit), over <= limit)...)
				} else {
					row = append(row, "", "")
				}
			}
			t.add(row...)
		}
		if err := t.write(b.out); err != nil {
			return err
		}
	}
	return nil
}
