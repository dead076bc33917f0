package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/tests"
)

// What is expected of redirect: at least these ratios.
const (
	plainThroughputLimit = 1.05 // of tcx to the plain bridge
	bigThroughputLimit   = 2.0  // of tcx with big TCP to the node with iptables
	connectionsLimit     = 1.25 // of tcx on the node with iptables to the same without it
)

// bigGSO is the GSO limit that "bigTCP" gives a veth, bytes.
const bigGSO = 192 << 10

// shape is how a node's pods are connected.
type shape struct {
	name, about string
	conf        func(*tests.Node) tests.Conf // of the main plugin
	introduce   bool                         // the pods are neighbours
}

var shapes = []shape{
	{
		name: "bridge", about: "two pods of a bridge", introduce: true,
		conf: func(node *tests.Node) tests.Conf { return node.Bridge(tests.IPv4) },
	},
	{
		name: "ptp", about: "two pods, each with a routed veth",
		conf: func(node *tests.Node) tests.Conf { return node.PTP(tests.IPv4) },
	},
}

// track is a way from pod to pod that is measured.
type track struct {
	name string
	kube bool       // by the node's iptables
	xdp  tests.Conf // of the plugin; nil: without it
}

// The tracks that others are compared with, or of which something is expected.
const (
	trackPlain   = "plain"
	trackAgain   = "plain, again"
	trackKube    = "iptables"
	trackTCX     = "tcx"
	trackBig     = "tcx, big TCP"
	trackKubeTCX = "iptables, tcx"
)

// tracks are measured in this order, and back.
var tracks = []track{
	{name: trackPlain},
	{name: trackKube, kube: true},
	{name: trackTCX, xdp: tests.Conf{"mode": "tcx"}},
	{name: trackBig, xdp: tests.Conf{"mode": "tcx", "bigTCP": true}},
	{name: "generic", xdp: tests.Conf{"mode": "generic"}},
	{name: "native", xdp: tests.Conf{"mode": "native"}},
	{name: trackKubeTCX, kube: true, xdp: tests.Conf{"mode": "tcx"}},
	{name: trackAgain},
}

// redirect measures the direct way from pod to pod.
func (b *bench) redirect(ctx context.Context) error {
	// An end of a load that has waited in a system call goes on only where the Go runtime has a processor to spare, and
	// its threads that would see to that do not run as long as the ends do.
	const enough = 8
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(enough))
	if err := b.tracks(ctx); err != nil {
		return err
	}
	return b.frames(ctx)
}

// trackNodes are the nodes of tracks, by whether they have iptables.
type trackNodes map[bool]*tests.Node

// onNodes makes both.
func onNodes(ctx context.Context, measure func(trackNodes) error) error {
	return onNode(ctx, func(plain *tests.Node) error {
		return onNode(ctx, func(kube *tests.Node) error {
			// where there is no br_netfilter, bridged packets come to no iptables
			err := plain.Sysctl(bridgeFilter, "0")
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err := kube.Sysctl(bridgeFilter, "1"); err != nil {
				return fmt.Errorf("showing bridged packets to iptables, which needs br_netfilter: %w", err)
			}
			if err := loadKube(ctx, kube); err != nil {
				return err
			}
			return measure(trackNodes{false: plain, true: kube})
		})
	})
}

// bridgeFilter is the setting by which a node's iptables see what its bridges pass on, as kube-proxy wants it.
const bridgeFilter = "net/bridge/bridge-nf-call-iptables"

// course is what tracks are measured on.
type course struct {
	nodes  trackNodes
	tracks []track
	loads  []load
	laps   map[string][]laps // by shape and track, then by load
}

// laps are what was measured of a load on a track, round by round.
type laps struct {
	rate, cost, lost, direct series
}

func (c *course) of(s *shape, track string) []laps {
	key := s.name + " " + track
	if c.laps[key] == nil {
		c.laps[key] = make([]laps, len(c.loads))
	}
	return c.laps[key]
}

// tracks measures every load on every track of either shape in turn. Every time the pods are new, so that nothing is
// attached anywhere when there is no plugin, and the node's iptables know none of their flows.
func (b *bench) tracks(ctx context.Context) error {
	const duration = 400 * time.Millisecond
	rounds := b.rounds(6)
	return onNodes(ctx, func(nodes trackNodes) error {
		c := &course{
			nodes: nodes, tracks: slices.Clone(tracks),
			loads: slices.Concat(loads[:2], []load{connections}, loads[2:]), laps: map[string][]laps{},
		}
		for i := range c.loads {
			c.loads[i].alone = true
		}
		big, err := takesBigTCP(ctx, nodes[false])
		if err != nil {
			return err
		}
		if !big {
			c.tracks = slices.DeleteFunc(c.tracks, func(t track) bool { return t.name == trackBig })
		}
		for round := range rounds {
			order := slices.Clone(c.tracks)
			if round%2 == 1 {
				slices.Reverse(order)
			}
			for _, t := range order {
				for i := range shapes {
					if err := c.lap(ctx, &shapes[i], &t, duration); err != nil {
						return fmt.Errorf("%s, %s: %w", shapes[i].name, t.name, err)
					}
				}
			}
		}
		return b.printTracks(c, rounds, duration, big)
	})
}

// lap measures the loads on one track.
func (c *course) lap(ctx context.Context, s *shape, t *track, d time.Duration) error {
	node := c.nodes[t.kube]
	all := c.of(s, t.name)
	return onTrack(ctx, node, s, t, func(pods [2]*tests.Pod) error {
		for i := range c.loads {
			if err := forgetFlows(node); err != nil {
				return err
			}
			before, err := t.egress(node, pods[0])
			if err != nil {
				return err
			}
			o, err := c.loads[i].measure(ctx, pods[0], pods[1], d)
			if err != nil {
				return err
			}
			after, err := t.egress(node, pods[0])
			if err != nil {
				return err
			}
			l := &all[i]
			l.rate = append(l.rate, o.rate)
			l.cost = append(l.cost, o.cost)
			l.lost = append(l.lost, o.lost)
			l.direct = append(l.direct, after.directOf(before))
		}
		return nil
	})
}

// onTrack makes the pods of a track, and removes them again.
func onTrack(ctx context.Context, node *tests.Node, s *shape, t *track, measure func([2]*tests.Pod) error) (err error) {
	var networks [2]*tests.Network
	var pods [2]*tests.Pod
	defer func() {
		// the run's own context may be over
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		for i, pod := range pods {
			if pod != nil {
				err = errors.Join(err, networks[i].Del(ctx, pod), pod.Close())
			}
		}
	}()
	for i := range pods {
		plugins := []tests.Conf{s.conf(node)}
		if t.xdp != nil {
			plugins = append(plugins, node.XDP(t.xdp, tests.Conf{"redirect": true}))
		}
		if networks[i], err = node.Network(tests.Conflist("bench", cniVersion, plugins...)); err != nil {
			return err
		}
		if pods[i], err = node.NewPod(fmt.Sprintf("pod%d", i)); err != nil {
			return err
		}
		if _, err = networks[i].Add(ctx, pods[i]); err != nil {
			return err
		}
	}
	if s.introduce {
		if err := tests.Introduce(pods[0], pods[1]); err != nil {
			return err
		}
	}
	return measure(pods)
}

// egressPackets is what a pod has sent, and how much of it went directly.
type egressPackets struct {
	all, direct uint64
}

// directOf is the share that went directly since an earlier reading; 0 of nothing.
func (e egressPackets) directOf(before egressPackets) float64 {
	if e.all == before.all {
		return 0
	}
	return float64(e.direct-before.direct) / float64(e.all-before.all)
}

// egress reads it from the plugin's counters; all 0 without the plugin.
func (t *track) egress(node *tests.Node, pod *tests.Pod) (e egressPackets, err error) {
	if t.xdp == nil {
		return e, nil
	}
	attachment, err := findAttachment(node, pod)
	if err != nil {
		return e, err
	}
	stats, err := datapathOf(node).ReadStats(attachment)
	if err != nil {
		return e, err
	}
	for verdict, counter := range stats.Egress.Verdicts {
		e.all += counter.Packets
		if verdict == int(bpf.DatapathVerdictVERDICT_REDIRECT) {
			e.direct = counter.Packets
		}
	}
	return e, nil
}

// takesBigTCP tells whether the plugin raises the GSO limits of a pod.
func takesBigTCP(ctx context.Context, node *tests.Node) (big bool, err error) {
	at := slices.IndexFunc(tracks, func(t track) bool { return t.name == trackBig })
	err = onTrack(ctx, node, &shapes[0], &tracks[at], func(pods [2]*tests.Pod) error {
		return pods[0].Do(func() error {
			link, err := netlink.LinkByName(pods[0].IfName)
			if err != nil {
				return fmt.Errorf("looking up %s: %w", pods[0].IfName, err)
			}
			big = link.Attrs().GSOIPv4MaxSize >= bigGSO
			return nil
		})
	})
	return big, err
}

// plain is the mean of the two measurements without anything, in each round.
func (c *course) plain(s *shape, of func([]laps) series) series {
	return of(c.of(s, trackPlain)).with(of(c.of(s, trackAgain)), func(a, b float64) float64 { return (a + b) / 2 })
}

func (b *bench) printTracks(c *course, rounds int, d time.Duration, big bool) error {
	fmt.Fprintf(b.out, `
Pod to pod on one node, IPv4, MTU 1500, %d rounds of %s for each in turns, sender and receiver each bound to a processor (the
same one for round trips and connections) that nothing else runs on, medians. Plain is without the plugin, without
iptables and with br_netfilter turned off, the mean of one before and one after all else. The node with iptables has
kube-proxy's rules for %d services of %d pods each, tracks connections, and shows its iptables what its bridges pass on
(br_netfilter), as kube-proxy wants it. %[5]s: the plugin on that node. All others have "redirect" on a node without
iptables. Direct is the share of the client's packets that did not go by the stack. CPU is what the two ends took, with
the way of what they sent.
`, rounds, d, kubeServices, kubeEndpoints, trackKubeTCX)
	if !big {
		fmt.Fprintf(b.out, "\n%s is left out: the plugin does not raise GSO limits.\n", trackBig)
	}
	for i := range shapes {
		s := &shapes[i]
		for l := range c.loads {
			if err := b.printLoad(c, s, l); err != nil {
				return err
			}
		}
	}
	return nil
}

// printLoad prints one load on the tracks of one shape.
func (b *bench) printLoad(c *course, s *shape, number int) error {
	load := &c.loads[number]
	fmt.Fprintf(b.out, "\n### %s, %s: %s, between %s\n", s.name, load.name, load.about, s.about)
	rate := func(l []laps) series { return l[number].rate }
	cost := func(l []laps) series { return l[number].cost }
	again, first := c.of(s, trackAgain), c.of(s, trackPlain)
	b.noise("the plain rate", rate(again).over(rate(first)))
	b.noise("the plain processor time", cost(again).over(cost(first)))
	out := table{header: []string{load.name, load.unit, "÷ plain", "quartiles", "÷ iptables", "quartiles",
		load.costUnit, "÷ plain", "÷ iptables", "direct"}}
	if load.lossy {
		out.header = append(out.header, "lost")
	}
	out.header = append(out.header, "expected", "met")
	plain, plainCost := c.plain(s, rate), c.plain(s, cost)
	kube, kubeCost := rate(c.of(s, trackKube)), cost(c.of(s, trackKube))
	for _, t := range c.tracks {
		all := c.of(s, t.name)
		overPlain, overKube := rate(all).over(plain), rate(all).over(kube)
		row := []string{
			t.name, fmt.Sprintf("%.2f", rate(all).median()/load.scale),
			fmt.Sprintf("%.2f", overPlain.median()), overPlain.quartiles("%.2f"),
			fmt.Sprintf("%.2f", overKube.median()), overKube.quartiles("%.2f"),
			fmt.Sprintf("%.2f", cost(all).median()*load.costScale),
			fmt.Sprintf("%.2f", cost(all).over(plainCost).median()), fmt.Sprintf("%.2f", cost(all).over(kubeCost).median()), "",
		}
		if t.xdp != nil {
			row[len(row)-1] = fmt.Sprintf("%.0f %%", 100*all[number].direct.median())
		}
		if load.lossy {
			row = append(row, fmt.Sprintf("%.1f %%", 100*all[number].lost.median()))
		}
		out.add(append(row, t.expected(s, load, overPlain, overKube)...)...)
	}
	return out.write(b.out)
}

// expected is the last two cells of a row, if something is expected of it.
func (t *track) expected(s *shape, l *load, overPlain, overKube series) []string {
	atLeast := func(ratios series, limit float64, of string) []string {
		return expectation(fmt.Sprintf("≥ %.2f ÷ %s", limit, of), ratios.median() >= limit)
	}
	switch {
	case l.name == throughputLoad && t.name == trackTCX && s.name == "bridge":
		return atLeast(overPlain, plainThroughputLimit, trackPlain)
	case l.name == throughputLoad && t.name == trackBig:
		return atLeast(overKube, bigThroughputLimit, trackKube)
	case l.name == connections.name && strings.HasPrefix(t.name, trackKubeTCX):
		return atLeast(overKube, connectionsLimit, trackKube)
	}
	return nil
}
