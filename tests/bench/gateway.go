package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/tests"
)

// gateway is a node that forwards what its pods send to the addresses of the rules. It goes out of a veth, of which the
// node's end drops and counts it; at the other end is a pod that sends replies.
type gateway struct {
	node   *tests.Node
	server *tests.Pod
	out    *tests.Veth
	pods   int
	sink   *sink
	link   link.Link
}

// The addresses of the two ends of the way out.
var (
	outNear = netip.MustParsePrefix("198.51.100.1/24") // TEST-NET-2
	outFar  = netip.MustParseAddr("198.51.100.2")
)

func newGateway(ctx context.Context) (g *gateway, err error) {
	g = &gateway{}
	if g.node, err = tests.NewNode(tests.WithoutIPv6()); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	for _, setting := range []struct{ key, value string }{
		{"net/ipv4/ip_forward", "1"},
		// replies come in where packets to their source do not go out
		{"net/ipv4/conf/all/rp_filter", "0"}, {"net/ipv4/conf/default/rp_filter", "0"},
	} {
		if err := g.node.Sysctl(setting.key, setting.value); err != nil {
			return nil, err
		}
	}
	if g.server, err = g.node.NewPod("server"); err != nil {
		return nil, err
	}
	if g.out, err = tests.MakeVeth(ctx, g.node, g.server, tests.VethOptions{HostAddress: outNear}); err != nil {
		return nil, err
	}
	if err := g.node.Neighbour(g.out.HostName, outFar, g.out.PodMAC); err != nil {
		return nil, err
	}
	err = g.node.Do(func() error {
		return netlink.RouteAdd(&netlink.Route{
			LinkIndex: g.out.HostIndex, Gw: outFar.AsSlice(),
			Dst: &net.IPNet{IP: net.IPv4(ruleNet, 0, 0, 0), Mask: net.CIDRMask(8, 32)},
		})
	})
	if err != nil {
		return nil, fmt.Errorf("route: %w", err)
	}
	return g, g.makeSink()
}

// makeSink has all dropped and counted that goes out, before the veth takes it: what it costs there is not of interest.
func (g *gateway) makeSink() (err error) {
	if g.sink, err = newSink(ebpf.SchedCLS, 2); err != nil { // TCX_DROP
		return err
	}
	return g.node.Do(func() error {
		g.link, err = link.AttachTCX(link.TCXOptions{
			Interface: g.out.HostIndex, Program: g.sink.Programs["sink"], Attach: ebpf.AttachTCXEgress,
		})
		if err != nil {
			return fmt.Errorf("attaching the sink: %w", err)
		}
		return nil
	})
}

// forwarded is how many packets have gone out.
func (g *gateway) forwarded() (uint64, error) { return g.sink.counted() }

// sink is a program that counts packets and says the same of each.
type sink struct{ *ebpf.Collection }

func newSink(typ ebpf.ProgramType, verdict int32) (*sink, error) {
	collection, err := ebpf.NewCollection(&ebpf.CollectionSpec{
		Maps: map[string]*ebpf.MapSpec{"count": {Name: "bench_count", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}},
		Programs: map[string]*ebpf.ProgramSpec{"sink": {
			Name: "bench_sink", Type: typ, License: "BSD",
			Instructions: asm.Instructions{
				asm.LoadMapValue(asm.R1, 0, 0).WithReference("count"),
				asm.Mov.Imm(asm.R2, 1),
				asm.AddAtomic.Mem(asm.R1, asm.R2, asm.DWord, 0),
				asm.Mov.Imm(asm.R0, verdict),
				asm.Return(),
			},
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("loading the sink: %w", err)
	}
	return &sink{collection}, nil
}

func (s *sink) counted() (n uint64, err error) { return n, s.Maps["count"].Lookup(uint32(0), &n) }

// close deletes the node. Pods that the plugin is attached to are detached before.
func (g *gateway) close() error {
	var errs []error
	if g.link != nil {
		errs = append(errs, g.link.Close())
	}
	if g.sink != nil {
		g.sink.Close()
	}
	// left only by what failed
	return errors.Join(append(errs, g.node.Purge(), g.node.Close())...)
}

// pod makes another pod, which sends by the node.
func (g *gateway) pod(ctx context.Context) (*attached, error) {
	g.pods++
	return newVeth(ctx, g.node, g.pods-1)
}

// command runs a program in the gateway's network namespace.
func (g *gateway) command(ctx context.Context, stdin, name string, args ...string) error {
	return command(ctx, g.node, stdin, name, args...)
}

// command runs a program in a node's network namespace.
func command(ctx context.Context, node *tests.Node, stdin, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := node.Run(cmd)
	if err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, bytes.TrimSpace(out.Stderr))
	}
	return nil
}

// knownFlows is how many flows conntrack knows.
func (g *gateway) knownFlows() (n int, err error) {
	err = g.node.Do(func() error {
		n, err = strconv.Atoi(firstLine("/proc/sys/net/netfilter/nf_conntrack_count"))
		return err
	})
	return n, err
}
