package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// What is expected against the firewalls of the kernel, at so many rules.
const (
	comparedRules = 1000
	linearLimit   = 5.0 // a new flow in iptables' linear chain, over ours, at least
	knownLimit    = 1.0 // an established one of ours, over one in nftables, at most
)

// traffic is a kind of packets that a pod sends: as many of each flow as it takes, in turns.
type traffic struct {
	name           string
	flows, packets int
	// rule says which of the rules matches a flow.
	rule func(flow, rules int) int
	// known: the flows have had replies before they are measured. Else all that is known of flows is forgotten before.
	known bool
}

func lastRule(_, rules int) int { return rules - 1 }

// anyRule spreads flows over the rules, such that neighbours do not follow one another.
func anyRule(flow, rules int) int { return flow * 40503 % 65536 * rules / 65536 }

// traffics are those that are measured. New flows are twice as many as our flow table holds, so that it has forgotten
// each when it comes again.
var traffics = []traffic{
	{name: "new flow, matched by the last rule", flows: 8192, packets: 8192, rule: lastRule},
	{name: "new flow, matched by any rule", flows: 8192, packets: 8192, rule: anyRule},
	{name: "established flow", flows: 64, packets: 20_000, rule: lastRule, known: true},
}

// lane is a pod with what it has its packets judged by.
type lane struct {
	name    string
	rules   int
	judging judging
	gateway *gateway
	pod     *attached
	streams []*stream // by traffic
}

// judging is what can be read of how packets are judged.
type judging int

const (
	notJudged judging = iota
	byFilter          // the plugin's: its rules count
	byTracked         // conntrack knows flows
)

// stream is a traffic in a lane.
type stream struct {
	traffic
	requests, replies *sender
	costs             series // ns a packet
}

// The lanes without rules.
const (
	laneFirst, laneLast = "forwarding alone", "forwarding alone, again"
	laneStats           = ", no filter" // behind the name of a mode
	laneXDPFilter       = "xdp-filter"
)

// forward measures packets on their way through a node.
func (b *bench) forward(ctx context.Context) (err error) {
	there, versions := available(firewalls)
	f := &forwarding{}
	defer func() { err = errors.Join(err, f.close()) }()
	if err := f.build(ctx, there); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	rounds := b.rounds(15)
	for round := range rounds {
		order := slices.Clone(f.lanes)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for t := range traffics {
			for _, l := range order {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := locked(func() error { return l.measure(l.streams[t], round < 2) }); err != nil {
					return fmt.Errorf("%s, %s, %s: %w", l.name, ruleCount(l.rules), traffics[t].name, err)
				}
			}
		}
	}
	return b.printForwarding(f, there, versions, rounds)
}

// forwarding is the lanes that are compared. The first and the last are without anything.
type forwarding struct {
	gateways    []*gateway
	lanes       []*lane
	xdpFilter   *xdpFilter
	noXDPFilter error // why there is none
}

func (f *forwarding) build(ctx context.Context, firewalls []firewall) error {
	shared, err := f.gateway(ctx)
	if err != nil {
		return err
	}
	type loader func(context.Context, *gateway, *attached, int) error
	add := func(g *gateway, name string, rules int, judging judging, load loader) error {
		l := &lane{name: name, rules: rules, judging: judging, gateway: g}
		f.lanes = append(f.lanes, l)
		if l.pod, err = g.pod(ctx); err != nil {
			return err
		}
		if load != nil {
			if err := load(ctx, g, l.pod, rules); err != nil {
				return fmt.Errorf("%s, %s: %w", name, ruleCount(rules), err)
			}
		}
		return l.open()
	}
	plain := func(mode datapath.Mode) loader {
		return func(ctx context.Context, _ *gateway, a *attached, _ int) error { return a.attach(ctx, mode, nil) }
	}
	if err := errors.Join(
		add(shared, laneFirst, 1, notJudged, nil),
		add(shared, firewallTCX+laneStats, 1, notJudged, plain(datapath.ModeTCX)),
		add(shared, firewallGeneric+laneStats, 1, notJudged, plain(datapath.ModeGeneric)),
	); err != nil {
		return err
	}
	for _, n := range ruleCounts {
		for _, fw := range firewalls {
			g, judging := shared, byFilter
			if !fw.ours {
				judging = byTracked
				if g, err = f.gateway(ctx); err != nil {
					return err
				}
			}
			if err := add(g, fw.name, n, judging, fw.load); err != nil {
				return err
			}
		}
	}
	return errors.Join(
		add(shared, laneXDPFilter, 1, notJudged, func(ctx context.Context, _ *gateway, a *attached, _ int) error {
			// ports that nobody sends to
			denied := make([]uint16, xdpFilterLists)
			for i := range denied {
				denied[i] = uint16(i + 1)
			}
			f.xdpFilter, f.noXDPFilter = loadXDPFilter(ctx, a, denied)
			return nil
		}),
		add(shared, laneLast, 1, notJudged, nil))
}

func (f *forwarding) gateway(ctx context.Context) (*gateway, error) {
	g, err := newGateway(ctx)
	if err == nil {
		f.gateways = append(f.gateways, g)
	}
	return g, err
}

func (f *forwarding) close() error {
	var errs []error
	if f.xdpFilter != nil {
		errs = append(errs, f.xdpFilter.close())
	}
	for _, l := range f.lanes {
		errs = append(errs, l.close())
	}
	for _, g := range f.gateways {
		errs = append(errs, g.close())
	}
	return errors.Join(errs...)
}

// open makes the packets of the traffics.
func (l *lane) open() error {
	port := uint16(1024)
	for _, t := range traffics {
		s := &stream{traffic: t}
		l.streams = append(l.streams, s)
		requests, replies := make([][]byte, t.flows), make([][]byte, t.flows)
		for i := range t.flows {
			remote := matching(t.rule(i, l.rules))
			there := packets.Ports{Src: port, Dst: remote.Port()}
			port++ // no traffic has a flow of another
			back := packets.Ports{Src: there.Dst, Dst: there.Src}
			pod, out := l.pod.veth, l.gateway.out
			requests[i] = datagram(packets.Ethernet{Src: packets.MAC(pod.PodMAC), Dst: packets.MAC(pod.HostMAC)},
				packets.IPv4{Src: l.pod.address, Dst: remote.Addr()}, there)
			replies[i] = datagram(packets.Ethernet{Src: packets.MAC(out.PodMAC), Dst: packets.MAC(out.HostMAC)},
				packets.IPv4{Src: remote.Addr(), Dst: l.pod.address}, back)
		}
		var err error
		if s.requests, err = newSender(l.pod.pod, l.pod.veth.PodIndex, requests); err != nil {
			return err
		}
		if t.known {
			if s.replies, err = newSender(l.gateway.server, l.gateway.out.PodIndex, replies); err != nil {
				return err
			}
		}
	}
	return nil
}

// datagram is the smallest frame of UDP.
func datagram(ethernet packets.Ethernet, ip packets.IPv4, ports packets.Ports) []byte {
	return packets.Pad(packets.Frame(ethernet, ip, packets.UDP{Ports: &ports}), packets.MinFrame)
}

func (l *lane) close() error {
	var errs []error
	for _, s := range l.streams {
		for _, x := range []*sender{s.requests, s.replies} {
			if x != nil {
				errs = append(errs, x.close())
			}
		}
	}
	if l.pod != nil {
		// without the run's context, which may be over; nothing attached is no error
		errs = append(errs, l.pod.detach(context.Background()))
	}
	return errors.Join(errs...)
}

// measure sends the packets of a stream once, and notes the processor time of one. All must come through. With check it
// makes sure that flows were new, or were known, as they should.
func (l *lane) measure(s *stream, check bool) error {
	if err := forgetFlows(l.gateway.node); err != nil {
		return err
	}
	if s.known {
		if _, err := sendTime(func() error {
			return errors.Join(s.requests.send(s.flows), s.replies.send(s.flows))
		}); err != nil {
			return err
		}
	}
	before, err := l.state(check)
	if err != nil {
		return err
	}
	took, err := sendTime(func() error { return s.requests.send(s.packets) })
	if err != nil {
		return err
	}
	s.costs = append(s.costs, float64(took.Nanoseconds())/float64(s.packets))
	after, err := l.state(check)
	if err != nil {
		return err
	}
	if got := after.forwarded - before.forwarded; got != uint64(s.packets) {
		return fmt.Errorf("of %d packets %d came through", s.packets, got)
	}
	fresh := uint64(s.packets)
	if s.known {
		fresh = 0
	}
	if got := after.fresh - before.fresh; check && l.judging != notJudged && got != fresh {
		return fmt.Errorf("%d of %d packets were those of new flows, want %d", got, s.packets, fresh)
	}
	return nil
}

// laneState is how many packets have been forwarded, and how many of those were a new flow's.
type laneState struct {
	forwarded, fresh uint64
}

// state reads it; fresh only with check, as that takes time.
func (l *lane) state(check bool) (s laneState, err error) {
	if s.forwarded, err = l.gateway.forwarded(); err != nil || !check {
		return s, err
	}
	switch l.judging {
	case byFilter:
		decided, err := l.pod.decided()
		for _, n := range decided {
			s.fresh += n
		}
		return s, err
	case byTracked:
		n, err := l.gateway.knownFlows()
		s.fresh = uint64(n)
		return s, err
	}
	return s, nil
}

// costs returns what a packet costs in a lane over forwarding alone, round by round.
func (f *forwarding) costs(t int, name string, rules int) series {
	at := slices.IndexFunc(f.lanes, func(l *lane) bool { return l.name == name && l.rules == rules })
	return f.lanes[at].streams[t].costs.minus(f.alone(t))
}

// alone is what it costs without anything: before and after all else, on average.
func (f *forwarding) alone(t int) series {
	return f.lanes[0].streams[t].costs.with(f.lanes[len(f.lanes)-1].streams[t].costs, func(a, b float64) float64 { return (a + b) / 2 })
}

func (b *bench) printForwarding(f *forwarding, firewalls []firewall, versions []string, rounds int) error {
	fmt.Fprintf(b.out, `
### A packet on its way through a node

Processor nanoseconds a packet over forwarding alone, medians of %d rounds in turns. A pod sends the smallest UDP packets
from a packet socket; the node routes them to where they are counted and dropped. iptables is one chain, the rules of
which are asked one after the other; nftables is one lookup in a verdict map of address and port intervals. Both let
established flows of conntrack pass first. %s.
`, rounds, strings.Join(versions, "; "))
	for i, t := range traffics {
		alone := f.alone(i)
		fmt.Fprintf(b.out, "\n#### %s\n\nForwarding alone costs %.0f", strings.ToUpper(t.name[:1])+t.name[1:], alone.median())
		for _, name := range []string{firewallTCX, firewallGeneric} {
			fmt.Fprintf(b.out, ", %s, without a filter, %.0f more", name, f.costs(i, name+laneStats, 1).median())
		}
		fmt.Fprintln(b.out, ".")
		b.noise("forwarding alone", f.lanes[len(f.lanes)-1].streams[i].costs.over(f.lanes[0].streams[i].costs))
		out := table{header: []string{"rules"}}
		for _, fw := range firewalls {
			out.header = append(out.header, fw.name)
		}
		for _, n := range ruleCounts {
			row := []string{fmt.Sprint(n)}
			for _, fw := range firewalls {
				row = append(row, fmt.Sprintf("%.0f", f.costs(i, fw.name, n).median()))
			}
			out.add(row...)
		}
		if err := out.write(b.out); err != nil {
			return err
		}
	}
	if f.noXDPFilter != nil {
		fmt.Fprintf(b.out, "\nxdp-filter does not load here: %v.\n", f.noXDPFilter)
	} else {
		costs := make([]string, len(traffics))
		for i, t := range traffics {
			costs[i] = fmt.Sprintf("%.0f (%s)", f.costs(i, laneXDPFilter, 1).median(), t.name)
		}
		fmt.Fprintf(b.out, `
xdp-filter, attached to socket buffers %s, with %d ports and %d addresses that it denies and none of which is met, costs
%s. It knows no prefixes, no flows, and no port of an address.
`, f.xdpFilter.attached(), xdpFilterLists, xdpFilterLists, strings.Join(costs, ", "))
	}
	return b.printComparison(f, firewalls)
}

// printComparison prints what is expected.
func (b *bench) printComparison(f *forwarding, firewalls []firewall) error {
	out := table{header: []string{fmt.Sprintf("at %d rules", comparedRules), "ratio", "quartiles", "expected", "met"}}
	for i, t := range traffics {
		for _, ours := range []string{firewallTCX, firewallGeneric} {
			cost := f.costs(i, ours, comparedRules)
			for _, fw := range firewalls {
				if fw.ours {
					continue
				}
				theirs := f.costs(i, fw.name, comparedRules)
				if t.known {
					over := cost.over(theirs)
					row := []string{fmt.Sprintf("%s: %s ÷ %s", t.name, ours, fw.name), fmt.Sprintf("%.2f", over.median()), over.quartiles("%.2f")}
					if fw.name == firewallNft {
						row = append(row, expectation(fmt.Sprintf("≤ %.1f", knownLimit), over.median() <= knownLimit)...)
					}
					out.add(row...)
					continue
				}
				over := theirs.over(cost)
				row := []string{fmt.Sprintf("%s: %s ÷ %s", t.name, fw.name, ours), fmt.Sprintf("%.2f", over.median()), over.quartiles("%.2f")}
				if fw.linear {
					row = append(row, expectation(fmt.Sprintf("≥ %.0f", linearLimit), over.median() >= linearLimit)...)
				}
				out.add(row...)
			}
		}
	}
	return out.write(b.out)
}
