package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/attachment"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/policy"
	"github.com/xdp-cni/xdp-cni/tests"
)

// phasesEnv set to anything makes the program do what the plugin does on ADD, and report the times of its phases. It is
// a process of its own, like the plugin: much of what an ADD costs is paid once by each process.
const phasesEnv = "XDP_CNI_BENCH_PHASES"

// phase is a part of an ADD.
type phase struct {
	Name string
	Took time.Duration
}

// stopwatch notes phases that follow one another.
type stopwatch struct {
	phases []phase
	begin  time.Time
	name   string
}

// next ends a phase, if one is under way, and begins another.
func (s *stopwatch) next(name string) {
	now := time.Now()
	if s.name != "" {
		s.phases = append(s.phases, phase{s.name, now.Sub(s.begin)})
	}
	s.name, s.begin = name, time.Now()
}

// reportPhases does what the plugin's ADD does, with its environment and input, and prints the phases as JSON.
func reportPhases(ctx context.Context) error {
	var watch stopwatch
	watch.next("reading configuration and prevResult")
	stdin, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	config, err := conf.Parse(stdin)
	if err != nil {
		return err
	}
	result, err := config.Result()
	if err != nil {
		return err
	}

	watch.next("finding the host end")
	netns, ifname := os.Getenv("CNI_NETNS"), os.Getenv("CNI_IFNAME")
	veth, err := attachment.Find(netns, ifname)
	if err != nil {
		return err
	}
	if err := veth.Check(result, netns, ifname); err != nil {
		return err
	}
	opts := datapath.AttachOptions{
		ContainerID: os.Getenv("CNI_CONTAINERID"), IfName: ifname, Netns: netns, Network: config.Name,
		HostName: veth.HostName, HostIndex: veth.HostIndex, PodIndex: veth.PodIndex,
		PodMAC: veth.PodMAC, PodTxQueues: veth.PodTxQueues, Peers: config.Stats.Peers,
	}
	switch config.Mode {
	case conf.ModeGeneric:
		opts.Mode = datapath.ModeGeneric
	case conf.ModeNative:
		opts.Mode = datapath.ModeNative
	case conf.ModeTCX:
		opts.Mode = datapath.ModeTCX
	default:
		return fmt.Errorf("mode %v is none of those measured", config.Mode)
	}
	for _, address := range attachment.Addresses(result, netns, ifname) {
		ip, ok := netip.AddrFromSlice(address.IP)
		if !ok {
			return fmt.Errorf("prevResult has no address in %q", address.String())
		}
		bits, _ := address.Mask.Size()
		opts.Addresses = append(opts.Addresses, netip.PrefixFrom(ip.Unmap(), bits))
	}

	watch.next("compiling the filter")
	if f := config.PodFilter(); f != nil {
		_ = f.Warnings()
		opts.Policy, err = policy.Make(f, policy.Pod{Addresses: opts.Addresses, MAC: opts.PodMAC, Netns: netns, IfName: ifname})
		if err != nil {
			return err
		}
	}

	watch.next("probing the kernel")
	d := datapath.New(datapath.Options{Root: pins.NewRoot(config.BPFFS), BeforeStep: func(step string) error {
		watch.next(step)
		return nil
	}})
	if err := d.Attach(ctx, opts); err != nil {
		return err
	}
	watch.next("")
	return json.NewEncoder(os.Stdout).Encode(watch.phases)
}

// phases shows where the time of an ADD goes.
func (b *bench) phases(ctx context.Context, node *tests.Node, t *target) error {
	candidates := append(ours(node, false), ours(node, true)[0])
	rounds := b.rounds(31)
	const (
		process = "exec to exit of a process that does nothing"
		whole   = "ADD of the plugin, exec to exit"
	)
	var names []string
	times := make([]map[string]*series, len(candidates))
	note := func(i int, name string, took time.Duration) {
		if times[i] == nil {
			times[i] = map[string]*series{}
		}
		if times[i][name] == nil {
			times[i][name] = &series{}
			if i == 0 {
				names = append(names, name)
			}
		}
		times[i][name].add(took)
	}
	for range rounds {
		for i, c := range candidates {
			nothing, err := c.timed(ctx, "VERSION", t)
			if err != nil {
				return err
			}
			note(i, process, nothing)
			phases, err := c.phases(ctx, t)
			if err != nil {
				return err
			}
			for _, p := range phases {
				note(i, p.Name, p.Took)
			}
			if _, err := c.timed(ctx, "DEL", t); err != nil {
				return err
			}
			add, _, err := c.addDel(ctx, t)
			if err != nil {
				return err
			}
			note(i, whole, add)
		}
	}
	fmt.Fprintf(b.out, "\n### Where the time of ADD goes\n\nMilliseconds, medians of %d rounds. "+
		"Phases were measured in a process that does the same as the plugin; as medians they do not sum exactly.\n", rounds)
	table := table{header: []string{"phase of ADD"}}
	for _, c := range candidates {
		table.header = append(table.header, c.name)
	}
	for _, name := range names {
		row := []string{name}
		for i := range candidates {
			row = append(row, fmt.Sprintf("%.2f", times[i][name].median()))
		}
		table.add(row...)
	}
	return table.write(b.out)
}

// phases runs this program as the plugin.
func (c candidate) phases(ctx context.Context, t *target) ([]phase, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c.binary = self
	cmd, err := c.command(ctx, "ADD", t, phasesEnv+"=1")
	if err != nil {
		return nil, err
	}
	if err := pause(ctx, settle); err != nil {
		return nil, err
	}
	out, err := t.pod.Node.Run(cmd)
	if err != nil {
		return nil, fmt.Errorf("phases of %s: %w: %s", c.name, err, out.Stderr)
	}
	var phases []phase
	if err := json.Unmarshal(out.Stdout, &phases); err != nil {
		return nil, fmt.Errorf("phases of %s: %w: %q", c.name, err, out.Stdout)
	}
	if len(phases) == 0 {
		return nil, errors.New("no phases")
	}
	return phases, nil
}
