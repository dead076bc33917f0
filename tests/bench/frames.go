package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/internal/ethtool"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// framesLimit is what native redirect is expected to do of frames of XDP, at least, over a bridge with br_netfilter: no
// program that redirects reaches it over a bridge without.
const framesLimit = 5.0

// framesEach is how many frames are sent in a round.
const framesEach = 100_000

// trackBare is a program at the host end that does nothing but redirect.
const trackBare = "a program that only redirects"

// frameTracks are the ways of frames from XDP to XDP. In tcx mode there is none: bpf_redirect_peer() hands
// packets to the target's stack, behind the XDP of its driver.
var frameTracks = []track{
	{name: trackPlain},
	{name: trackKube, kube: true},
	{name: trackBare},
	{name: "native", xdp: tests.Conf{"mode": "native"}},
	{name: "generic", xdp: tests.Conf{"mode": "generic"}},
	{name: trackAgain},
}

// frameCourse is two pods of XDP: one sends frames, the other counts and drops them.
type frameCourse struct {
	track  *track
	node   *tests.Node
	pods   [2]*tests.Pod
	source flooder
	frame  []byte
	sink   *sink
	links  []link.Link
	// by round
	costs, lost series // ns a frame that arrived
	direct      series
}

// frames measures frames from the XDP of one pod to that of another. The pods of all tracks are there all the time.
func (b *bench) frames(ctx context.Context) error {
	rounds := b.rounds(15)
	fmt.Fprintf(b.out, `
### Frames from XDP to XDP

A pod of XDP sends UDP frames of %d bytes without socket buffers (BPF_PROG_TEST_RUN with live frames, as AF_XDP and XDP_TX
do); an XDP program in the driver at the other pod's end counts and drops them. %d frames in each of %d rounds in turns, on
one processor, medians. Times are those of sending, of the way, and of dropping. The host end of plain has GRO on, without
which it does not take frames. iptables and plain are as above.
`, packets.MinFrame, framesEach, rounds)
	for i := range shapes {
		err := onNodes(ctx, func(nodes trackNodes) error { return b.framesOn(ctx, nodes, &shapes[i], rounds) })
		if err != nil {
			return fmt.Errorf("frames, %s: %w", shapes[i].name, err)
		}
	}
	return nil
}

func (b *bench) framesOn(ctx context.Context, nodes trackNodes, s *shape, rounds int) error {
	courses := make([]*frameCourse, len(frameTracks))
	for i := range courses {
		courses[i] = &frameCourse{track: &frameTracks[i], node: nodes[frameTracks[i].kube]}
	}
	return onFrameTracks(ctx, s, courses, func() error {
		for round := range rounds {
			order := slices.Clone(courses)
			if round%2 == 1 {
				slices.Reverse(order)
			}
			for _, c := range order {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := locked(c.measure); err != nil {
					return fmt.Errorf("%s: %w", c.track.name, err)
				}
			}
		}
		return b.printFrames(s, courses)
	})
}

// onFrameTracks makes the pods of all courses, one within the other.
func onFrameTracks(ctx context.Context, s *shape, courses []*frameCourse, measure func() error) error {
	if len(courses) == 0 {
		return measure()
	}
	c := courses[0]
	return onTrack(ctx, c.node, s, c.track, func(pods [2]*tests.Pod) (err error) {
		c.pods = pods
		defer func() { err = errors.Join(err, c.close()) }()
		if err := c.open(ctx); err != nil {
			return fmt.Errorf("%s: %w", c.track.name, err)
		}
		return onFrameTracks(ctx, s, courses[1:], measure)
	})
}

// open exchanges datagrams between the pods, so that their flow is known, and puts their programs in place.
func (c *frameCourse) open(ctx context.Context) (err error) {
	echo, err := tests.ServeEcho(ctx, c.pods[1], c.pods[1].IPv4())
	if err != nil {
		return err
	}
	port, err := tests.EchoUDPFrom(ctx, c.pods[0], echo.UDP, datagramSize)
	if err := errors.Join(err, echo.Close()); err != nil {
		return err
	}
	next, err := nextHop(c.pods[0], c.pods[1])
	if err != nil {
		return err
	}
	mac, err := c.pods[0].MAC()
	if err != nil {
		return err
	}
	c.frame = datagram(packets.Ethernet{Src: packets.MAC(mac), Dst: packets.MAC(next)},
		packets.IPv4{Src: c.pods[0].IPv4(), Dst: c.pods[1].IPv4()}, packets.Ports{Src: port, Dst: echo.UDP.Port()})
	host, err := c.pods[0].HostInterface()
	if err != nil {
		return err
	}
	if err := c.node.Do(func() error { return ethtool.SetGRO(host.Attrs().Name, true) }); err != nil {
		return err
	}
	index, err := interfaceIndex(c.pods[0])
	if err != nil {
		return err
	}
	source, err := frameSource(index, c.frame)
	if err != nil {
		return fmt.Errorf("loading the source: %w", err)
	}
	c.source = &frameSender{source, c.frame}
	if c.track.name == trackBare {
		if err := c.attachBare(host.Attrs().Index); err != nil {
			return err
		}
	}
	return c.attachSink()
}

// frameSource returns a program that redirects frames to an interface. What routing changes in a frame it puts back, as
// the frames' memory is used again.
func frameSource(index int, frame []byte) (*ebpf.Program, error) {
	const hopsOff, end = 14 + 8, 14 + 12 // TTL to checksum
	ins := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word),
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, end),
		asm.JGT.Reg(asm.R4, asm.R3, "out"),
	}
	for _, at := range []int16{0, 4, 8, hopsOff} {
		ins = append(ins, asm.StoreImm(asm.R2, at, int64(int32(binary.NativeEndian.Uint32(frame[at:]))), asm.Word))
	}
	ins = append(ins,
		asm.Mov.Imm(asm.R1, int32(index)).WithSymbol("out"), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return())
	return ebpf.NewProgram(&ebpf.ProgramSpec{Name: "bench_source", Type: ebpf.XDP, License: "BSD", Instructions: ins})
}

// attachSink has the second pod count and drop all frames.
func (c *frameCourse) attachSink() (err error) {
	if c.sink, err = newSink(ebpf.XDP, 1); err != nil { // XDP_DROP
		return err
	}
	index, err := interfaceIndex(c.pods[1])
	if err != nil {
		return err
	}
	return c.attach(c.pods[1], index, c.sink.Programs["sink"])
}

// attachBare has the host end of the first pod redirect all frames to the second.
func (c *frameCourse) attachBare(index int) error {
	target, err := c.pods[1].HostIndex()
	if err != nil {
		return err
	}
	program, err := frameSource(target, c.frame)
	if err != nil {
		return fmt.Errorf("loading a program that redirects: %w", err)
	}
	defer program.Close()
	return c.attach(c.node, index, program)
}

// attach attaches a program to an interface of a place, in the driver.
func (c *frameCourse) attach(place tests.Place, index int, program *ebpf.Program) error {
	return place.Do(func() error {
		l, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: index, Flags: link.XDPDriverMode})
		if err != nil {
			return fmt.Errorf("attaching a program: %w", err)
		}
		c.links = append(c.links, l)
		return nil
	})
}

func (c *frameCourse) close() error {
	var err error
	for _, l := range c.links {
		err = errors.Join(err, l.Close())
	}
	if c.sink != nil {
		c.sink.Close()
	}
	if c.source != nil {
		err = errors.Join(err, c.source.close())
	}
	return err
}

// measure sends frames once, and notes the processor time of each that arrived. Called in a thread that is locked.
func (c *frameCourse) measure() error {
	before, err := c.track.egress(c.node, c.pods[0])
	if err != nil {
		return err
	}
	first, err := c.sink.counted()
	if err != nil {
		return err
	}
	err = c.pods[0].Do(func() error {
		took, err := sendTime(func() error { return c.source.send(framesEach) })
		c.costs = append(c.costs, float64(took.Nanoseconds()))
		return err
	})
	if err != nil {
		return err
	}
	last, err := c.sink.counted()
	if err != nil {
		return err
	}
	after, err := c.track.egress(c.node, c.pods[0])
	if err != nil {
		return err
	}
	if last == first {
		return fmt.Errorf("of %d frames none arrived", framesEach)
	}
	c.costs[len(c.costs)-1] /= float64(last - first)
	c.lost = append(c.lost, 1-float64(last-first)/framesEach)
	c.direct = append(c.direct, after.directOf(before))
	return nil
}

func (b *bench) printFrames(s *shape, courses []*frameCourse) error {
	fmt.Fprintf(b.out, "\n#### %s: %s\n", s.name, s.about)
	first, again := courses[0].costs, courses[len(courses)-1].costs
	b.noise("plain", again.over(first))
	plain := first.with(again, func(a, b float64) float64 { return (a + b) / 2 })
	kube := courses[slices.IndexFunc(courses, func(c *frameCourse) bool { return c.track.kube })].costs
	out := table{header: []string{"XDP to XDP", "ns a frame", "quartiles", "million/s", "rate ÷ plain", "quartiles", "÷ iptables", "quartiles", "direct", "lost", "expected", "met"}}
	for _, c := range courses {
		overPlain, overKube := plain.over(c.costs), kube.over(c.costs)
		row := []string{
			c.track.name, fmt.Sprintf("%.0f", c.costs.median()), c.costs.quartiles("%.0f"), fmt.Sprintf("%.2f", 1e3/c.costs.median()),
			fmt.Sprintf("%.2f", overPlain.median()), overPlain.quartiles("%.2f"),
			fmt.Sprintf("%.2f", overKube.median()), overKube.quartiles("%.2f"), "", fmt.Sprintf("%.1f %%", 100*c.lost.median()),
		}
		if c.track.xdp != nil {
			row[8] = fmt.Sprintf("%.0f %%", 100*c.direct.median())
		}
		if c.track.xdp["mode"] == "native" && s.name == "bridge" {
			row = append(row, expectation(fmt.Sprintf("≥ %.2f ÷ %s", framesLimit, trackKube), overKube.median() >= framesLimit)...)
		}
		out.add(row...)
	}
	return out.write(b.out)
}

// nextHop is the MAC that a pod sends to when it sends to another, with which it has spoken.
func nextHop(from, to *tests.Pod) (net.HardwareAddr, error) {
	mac, err := tests.NeighbourMAC(from, from.IfName, to.IPv4())
	if mac == nil && err == nil {
		mac, err = tests.NeighbourMAC(from, from.IfName, from.GatewayIPv4())
	}
	if mac == nil && err == nil {
		err = fmt.Errorf("pod %s knows no MAC on the way to %s", from.Name, to.IPv4())
	}
	return mac, err
}

// interfaceIndex is that of a pod's end.
func interfaceIndex(pod *tests.Pod) (index int, err error) {
	err = pod.Do(func() error {
		l, err := netlink.LinkByName(pod.IfName)
		if err != nil {
			return fmt.Errorf("looking up %s: %w", pod.IfName, err)
		}
		index = l.Attrs().Index
		return nil
	})
	return index, err
}
