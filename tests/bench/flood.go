package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf/samples"
	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/internal/ethtool"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// floodPort is the destination port of what is dropped.
const floodPort = 9

// followLimit is the most that telling of drops may take of a processor.
const followLimit = 0.05

// dropper is a way to drop what a pod sends to floodPort.
type dropper struct {
	name string
	tool string // that load needs, "" for none
	load func(context.Context, *gateway, *attached) (undo func() error, err error)
	// alone: what it loads is the node's, and it needs one of its own.
	alone bool
	// counted is how many packets it says that it has dropped; nil: it does not say.
	counted func(*attached) (uint64, error)
	// reference is the name of what is the least that its hook allows.
	reference string
	// followed: somebody is told of drops meanwhile.
	followed bool
}

const (
	bareNative  = "a program that only drops, native"
	bareGeneric = "a program that only drops, generic"
	bareTCX     = "a program that only drops, tcx"
)

var droppers = []dropper{
	{name: bareNative, load: bareXDP(link.XDPDriverMode)},
	{name: "xdp native", counted: byRule, reference: bareNative, load: deny(datapath.ModeNative)},
	{
		name: "xdp native, followed", counted: byRule, followed: true, reference: bareNative,
		load: deny(datapath.ModeNative),
	},
	{name: "xdp native, xdp_drop", counted: byProgram, reference: bareNative, load: dropAll(datapath.ModeNative)},
	{name: bareGeneric, load: bareXDP(link.XDPGenericMode)},
	{name: "xdp generic", counted: byRule, reference: bareGeneric, load: deny(datapath.ModeGeneric)},
	{
		name: "xdp generic, followed", counted: byRule, followed: true, reference: bareGeneric,
		load: deny(datapath.ModeGeneric),
	},
	{name: "xdp generic, xdp_drop", counted: byProgram, reference: bareGeneric, load: dropAll(datapath.ModeGeneric)},
	{name: "xdp-filter, generic", tool: "xdp-filter", reference: bareGeneric, load: denyByXDPFilter},
	{name: bareTCX, load: bareTC},
	{name: "xdp tcx", counted: byRule, reference: bareTCX, load: deny(datapath.ModeTCX)},
	{
		name: "xdp tcx, followed", counted: byRule, followed: true, reference: bareTCX,
		load: deny(datapath.ModeTCX),
	},
	{name: "xdp tcx, tc_drop", counted: byTCProgram, reference: bareTCX, load: dropAllTC},
	{name: "nftables, netdev ingress", tool: "nft", alone: true, load: func(ctx context.Context, g *gateway, a *attached) (func() error, error) {
		return nil, g.command(ctx, fmt.Sprintf(`table netdev bench {
	chain drops {
		type filter hook ingress device "%s" priority 0; policy accept;
		udp dport %d drop
	}
}
`, a.veth.HostName, floodPort), "nft", "-f", "-")
	}},
	{name: "nftables, prerouting raw", tool: "nft", alone: true, load: func(ctx context.Context, g *gateway, _ *attached) (func() error, error) {
		return nil, g.command(ctx, fmt.Sprintf(`table ip bench {
	chain drops {
		type filter hook prerouting priority raw; policy accept;
		udp dport %d drop
	}
}
`, floodPort), "nft", "-f", "-")
	}},
	{name: "iptables -t raw, legacy", tool: "iptables-legacy", alone: true, load: denyByIptables("iptables-legacy")},
	{name: "iptables -t raw, nf_tables", tool: "iptables-nft", alone: true, load: denyByIptables("iptables-nft")},
}

func denyByIptables(tool string) func(context.Context, *gateway, *attached) (func() error, error) {
	return func(ctx context.Context, g *gateway, _ *attached) (func() error, error) {
		return nil, g.command(ctx, "", tool, "-t", "raw", "-A", "PREROUTING", "-p", "udp", "--dport", fmt.Sprint(floodPort), "-j", "DROP")
	}
}

func denyByXDPFilter(ctx context.Context, _ *gateway, a *attached) (func() error, error) {
	x, err := loadXDPFilter(ctx, a, []uint16{floodPort})
	if err != nil {
		return nil, err
	}
	return x.close, nil
}

func deny(mode datapath.Mode) func(context.Context, *gateway, *attached) (func() error, error) {
	filter := &conf.Filter{Stateful: true, AntiSpoof: true, MaxFlows: conf.DefaultMaxFlows, Rules: []conf.Rule{{
		Name: "flood", Direction: conf.Egress, Action: conf.Deny, Protocol: conf.ProtocolUDP,
		Ports: []conf.PortRange{{First: floodPort, Last: floodPort}},
	}}}
	return func(ctx context.Context, _ *gateway, a *attached) (func() error, error) {
		return func() error { return a.detach(context.Background()) }, a.attach(ctx, mode, filter)
	}
}

// byRule is what the filter's only rule has decided.
func byRule(a *attached) (uint64, error) { return only(a.decided()) }

// dropAll has the pod's own program drop all that it sends, before the policy of the plugin.
func dropAll(mode datapath.Mode) func(context.Context, *gateway, *attached) (func() error, error) {
	return func(ctx context.Context, _ *gateway, a *attached) (func() error, error) {
		object, err := tests.SampleObject("verdicts")
		if err != nil {
			return nil, err
		}
		return func() error { return a.detach(context.Background()) },
			a.attach(ctx, mode, nil, datapath.Program{Object: object, Program: samples.VerdictsProgXdpDrop})
	}
}

// dropAllTC has the pod's own tc program do so.
func dropAllTC(ctx context.Context, _ *gateway, a *attached) (func() error, error) {
	object, err := tests.TestObject("tcverdicts")
	if err != nil {
		return nil, err
	}
	return func() error { return a.detach(context.Background()) },
		a.attach(ctx, datapath.ModeTCX, nil, datapath.Program{Object: object, Program: "tc_drop"})
}

// byProgram is how often the pod's only program has dropped a packet.
func byProgram(a *attached) (uint64, error) { return only(a.ran(actionDrop)) }

// byTCProgram is how often it ran, by a map of its own: ours count nothing of tc programs.
func byTCProgram(a *attached) (uint64, error) { return only(a.ranTC()) }

func only(counts []uint64, err error) (uint64, error) {
	if err == nil && len(counts) != 1 {
		err = fmt.Errorf("there are %d counters, want 1", len(counts))
	}
	if err != nil {
		return 0, err
	}
	return counts[0], nil
}

// verdictProgram returns a program that says the same of every packet.
func verdictProgram(typ ebpf.ProgramType, verdict int32) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "bench_verdict", Type: typ, License: "BSD",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
	})
}

func bareXDP(mode link.XDPAttachFlags) func(context.Context, *gateway, *attached) (func() error, error) {
	return func(_ context.Context, _ *gateway, a *attached) (func() error, error) {
		program, err := verdictProgram(ebpf.XDP, actionDrop)
		if err != nil {
			return nil, err
		}
		defer program.Close()
		var l link.Link
		err = a.node.Do(func() error {
			l, err = link.AttachXDP(link.XDPOptions{Program: program, Interface: a.veth.HostIndex, Flags: mode})
			return err
		})
		if err != nil {
			return nil, err
		}
		return l.Close, nil
	}
}

func bareTC(_ context.Context, _ *gateway, a *attached) (func() error, error) {
	program, err := verdictProgram(ebpf.SchedCLS, 2) // TCX_DROP
	if err != nil {
		return nil, err
	}
	defer program.Close()
	var l link.Link
	err = a.node.Do(func() error {
		l, err = link.AttachTCX(link.TCXOptions{Program: program, Interface: a.veth.HostIndex, Attach: ebpf.AttachTCXIngress})
		return err
	})
	if err != nil {
		return nil, err
	}
	return l.Close, nil
}

// A source is what a pod floods from.
type source struct {
	name, about string
	packets     int // in a round
	open        func(*attached, []byte) (flooder, error)
}

// flooder sends so many frames.
type flooder interface {
	send(n int) error
	close() error
}

var sources = []source{
	{"a packet socket", "Most of it is that of\nsending, one socket buffer at a time.", 100_000, func(a *attached, frame []byte) (flooder, error) {
		return newSender(a.pod, a.veth.PodIndex, [][]byte{frame})
	}},
	{"XDP", `The pod sends frames without
socket buffers, as from AF_XDP or XDP_TX; where XDP in the driver does not drop them, they become socket buffers. The host
end has GRO on, without which it does not take such frames.`, 400_000, newFrameSender},
}

// frameSender sends frames by BPF_PROG_TEST_RUN, as an XDP program of the pod's that redirects them.
type frameSender struct {
	program *ebpf.Program
	frame   []byte
}

func newFrameSender(a *attached, frame []byte) (flooder, error) {
	if err := a.node.Do(func() error { return ethtool.SetGRO(a.veth.HostName, true) }); err != nil {
		return nil, err
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "bench_source", Type: ebpf.XDP, License: "BSD",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, int32(a.veth.PodIndex)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return(),
		},
	})
	if err != nil {
		return nil, err
	}
	return &frameSender{program, frame}, nil
}

func (f *frameSender) close() error { return f.program.Close() }

func (f *frameSender) send(n int) error {
	_, err := f.program.Run(&ebpf.RunOptions{Data: f.frame, Repeat: uint32(n), Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES})
	return err
}

// flooded is a pod that sends what a dropper drops.
type flooded struct {
	dropper *dropper
	gateway *gateway
	pod     *attached
	source  flooder
	undo    func() error
	costs   series // ns a packet
	reader  series // share of a processor that the follower took
}

// flood measures drops.
func (b *bench) flood(ctx context.Context) error {
	for _, s := range sources {
		if err := b.floodFrom(ctx, s); err != nil {
			return fmt.Errorf("from %s: %w", s.name, err)
		}
	}
	return nil
}

func (b *bench) floodFrom(ctx context.Context, s source) (err error) {
	var gateways []*gateway
	var pods []*flooded
	defer func() {
		var errs []error
		for _, p := range pods {
			errs = append(errs, p.close())
		}
		for _, g := range gateways {
			errs = append(errs, g.close())
		}
		err = errors.Join(append(errs, err)...)
	}()
	newNode := func() (*gateway, error) {
		g, err := newGateway(ctx)
		if err == nil {
			gateways = append(gateways, g)
		}
		return g, err
	}
	shared, err := newNode()
	if err != nil {
		return err
	}
	followed, err := newNode() // a node has one that follows
	if err != nil {
		return err
	}
	var left []string
	for i := range droppers {
		d := &droppers[i]
		if d.tool != "" {
			if _, err := exec.LookPath(d.tool); err != nil {
				left = append(left, fmt.Sprintf("%s is left out: %s is not installed", d.name, d.tool))
				continue
			}
		}
		g := shared
		switch {
		case d.followed:
			g = followed
		case d.alone:
			if g, err = newNode(); err != nil {
				return err
			}
		}
		p := &flooded{dropper: d, gateway: g}
		pods = append(pods, p)
		if err := p.open(ctx, s); err != nil {
			if d.tool != "" && p.undo == nil && ctx.Err() == nil {
				left = append(left, fmt.Sprintf("%s is left out: %v", d.name, err))
				pods = pods[:len(pods)-1]
				continue
			}
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	reader, err := startFollower(ctx, followed)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reader.stop()) }()

	rounds := b.rounds(15)
	for round := range rounds {
		order := slices.Clone(pods)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, p := range order {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := p.measure(s.packets, reader); err != nil {
				return fmt.Errorf("%s: %w", p.dropper.name, err)
			}
		}
	}
	if err := reader.stop(); err != nil {
		return err
	}
	return b.printFlood(s, pods, left, rounds, reader)
}

// open loads what drops, and makes what sends. What has to be closed is noted even if it fails.
func (p *flooded) open(ctx context.Context, s source) (err error) {
	if p.pod, err = p.gateway.pod(ctx); err != nil {
		return err
	}
	frame := datagram(packets.Ethernet{Src: packets.MAC(p.pod.veth.PodMAC), Dst: packets.MAC(p.pod.veth.HostMAC)},
		packets.IPv4{Src: p.pod.address, Dst: matching(0).Addr()}, packets.Ports{Src: 1024, Dst: floodPort})
	if p.source, err = s.open(p.pod, frame); err != nil {
		return err
	}
	// It comes through as long as nothing drops it. Frames of XDP are sent again from the same memory, in which forwarding
	// has put other Ethernet addresses: so no more than one batch.
	got, err := p.send(sendBatch)
	if err != nil {
		return err
	}
	if got != sendBatch {
		return fmt.Errorf("without anything that drops, of %d packets %d came through", sendBatch, got)
	}
	p.costs = nil
	p.undo, err = p.dropper.load(ctx, p.gateway, p.pod)
	return err
}

func (p *flooded) close() error {
	var errs []error
	if p.undo != nil {
		errs = append(errs, p.undo())
	}
	if p.source != nil {
		errs = append(errs, p.source.close())
	}
	return errors.Join(errs...)
}

// send sends packets and returns how many have come through.
func (p *flooded) send(n int) (through uint64, err error) {
	before, err := p.gateway.forwarded()
	if err != nil {
		return 0, err
	}
	err = p.pod.pod.Do(func() error {
		took, err := sendTime(func() error { return p.source.send(n) })
		if err == nil {
			p.costs = append(p.costs, float64(took.Nanoseconds())/float64(n))
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	after, err := p.gateway.forwarded()
	return after - before, err
}

// measure floods once. Nothing may come through, and what counts must have dropped every packet.
func (p *flooded) measure(n int, reader *follower) error {
	before, readerBefore, err := p.state(reader)
	if err != nil {
		return err
	}
	begin := time.Now()
	through, err := p.send(n)
	if err != nil {
		return err
	}
	took := time.Since(begin)
	if p.dropper.followed {
		time.Sleep(followerLag)
	}
	after, readerAfter, err := p.state(reader)
	if err != nil {
		return err
	}
	if through != 0 {
		return fmt.Errorf("of %d packets %d came through", n, through)
	}
	if p.dropper.counted != nil && after-before != uint64(n) {
		return fmt.Errorf("%d of %d packets are counted as dropped", after-before, n)
	}
	if p.dropper.followed {
		p.reader = append(p.reader, (readerAfter-readerBefore).Seconds()/took.Seconds())
	}
	return nil
}

// followerLag is how long somebody who follows drops may take to read the last of a flood.
const followerLag = 50 * time.Millisecond

// state is how many packets are counted as dropped, and how long the follower has run.
func (p *flooded) state(reader *follower) (dropped uint64, took time.Duration, err error) {
	if p.dropper.counted != nil {
		if dropped, err = p.dropper.counted(p.pod); err != nil {
			return 0, 0, err
		}
	}
	if p.dropper.followed {
		took, err = reader.time()
	}
	return dropped, took, err
}

func (b *bench) printFlood(s source, pods []*flooded, left []string, rounds int, reader *follower) error {
	fmt.Fprintf(b.out, `
### A flood from %s

What a pod sends is dropped at the host end of its veth: %d UDP packets of 60 bytes in each of %d rounds, in turns, on one
processor; medians. Times are those of sending and dropping a packet. xdp_drop (of bpf/samples) and tc_drop are the pod's
own programs, before a policy that is not there; tc_drop has a link of its own, and counts in a map of its own. The other
rows of ours are a rule of the filter. %s
`, s.name, s.packets, rounds, s.about)
	costs := func(name string) series {
		at := slices.IndexFunc(pods, func(p *flooded) bool { return p.dropper.name == name })
		return pods[at].costs
	}
	out := table{header: []string{"dropped by", "ns a packet", "quartiles", "million/s", "over a bare drop, ns", "of a processor to tell", "expected", "met"}}
	for _, p := range pods {
		d := p.dropper
		row := []string{d.name, fmt.Sprintf("%.0f", p.costs.median()), p.costs.quartiles("%.0f"), fmt.Sprintf("%.2f", 1e3/p.costs.median()), "", ""}
		if d.reference != "" {
			row[4] = fmt.Sprintf("%+.0f", p.costs.minus(costs(d.reference)).median())
		}
		if d.followed {
			share := p.reader.median()
			row[5] = fmt.Sprintf("%.1f %%", 100*share)
			row = append(row, expectation(fmt.Sprintf("≤ %.0f %%", 100*followLimit), share <= followLimit)...)
		}
		out.add(row...)
	}
	if err := out.write(b.out); err != nil {
		return err
	}
	fmt.Fprintf(b.out, "\n%s.\n", strings.Join(append(left,
		fmt.Sprintf("Whoever followed drops was told of %d of %d", reader.events, 3*s.packets*rounds)), ". "))
	return nil
}
