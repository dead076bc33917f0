package main

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/policy"
	"github.com/xdp-cni/xdp-cni/tests"
)

// attached is a pod whose host end the plugin's programs are attached to, by the plugin's own packages: a chain in front
// of it would add nothing to what is measured.
type attached struct {
	node    *tests.Node
	pod     *tests.Pod
	veth    *tests.Veth
	address netip.Addr
}

// podAddress is that of pod number i, which is its network's only one beside the node's.
func podAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{172, byte(16 + i>>8), byte(i), 2}) }

// nodeAddress is the node's on the veth of pod number i.
func nodeAddress(i int) netip.Prefix {
	return netip.PrefixFrom(podAddress(i).Prev(), 24)
}

// newVeth makes pod number i of a node. The pod's end has no address, and so answers nothing.
func newVeth(ctx context.Context, node *tests.Node, i int) (*attached, error) {
	pod, err := node.NewPod(fmt.Sprintf("pod%d", i))
	if err != nil {
		return nil, err
	}
	a := &attached{node: node, pod: pod, address: podAddress(i)}
	if a.veth, err = tests.MakeVeth(ctx, node, pod, tests.VethOptions{HostAddress: nodeAddress(i)}); err != nil {
		return nil, err
	}
	return a, node.Neighbour(a.veth.HostName, a.address, a.veth.PodMAC)
}

// datapath is the node's.
func (a *attached) datapath() *datapath.Datapath { return datapathOf(a.node) }

func datapathOf(node *tests.Node) *datapath.Datapath {
	return datapath.New(datapath.Options{Root: pins.NewRoot(node.BPFFS), Version: "bench"})
}

// findAttachment finds what is attached to a pod.
func findAttachment(node *tests.Node, pod *tests.Pod) (datapath.Attachment, error) {
	list, err := datapathOf(node).List()
	if err != nil {
		return datapath.Attachment{}, err
	}
	at := slices.IndexFunc(list, func(a datapath.Attachment) bool { return a.Meta.ContainerID == pod.ContainerID })
	if at < 0 {
		return datapath.Attachment{}, fmt.Errorf("pod %s: %w", pod.Name, datapath.ErrNotFound)
	}
	return list[at], nil
}

// attach attaches the plugin with a filter, nil for none, and with user programs.
func (a *attached) attach(
	ctx context.Context, mode datapath.Mode, filter *conf.Filter, programs ...datapath.Program,
) error {
	opts := datapath.AttachOptions{
		ContainerID: a.pod.ContainerID, IfName: a.pod.IfName, Netns: a.pod.NetNS(), Network: "bench",
		HostName: a.veth.HostName, HostIndex: a.veth.HostIndex, PodIndex: a.veth.PodIndex, PodMAC: a.veth.PodMAC,
		PodTxQueues: 1, Addresses: []netip.Prefix{netip.PrefixFrom(a.address, 24)}, Mode: mode, Programs: programs,
	}
	if filter != nil {
		var err error
		opts.Policy, err = policy.Make(filter, policy.Pod{
			Addresses: opts.Addresses, MAC: opts.PodMAC, Netns: opts.Netns, IfName: opts.IfName,
		})
		if err != nil {
			return err
		}
	}
	return a.node.Do(func() error { return a.datapath().Attach(ctx, opts) })
}

// detach undoes attach.
func (a *attached) detach(ctx context.Context) error {
	return a.node.Do(func() error { return a.datapath().Detach(ctx, a.pod.ContainerID, a.pod.IfName) })
}

// decided returns how many packets each rule of the filter has decided.
func (a *attached) decided() ([]uint64, error) {
	attachment, err := findAttachment(a.node, a.pod)
	if err != nil {
		return nil, err
	}
	state, err := a.datapath().ReadPolicy(attachment)
	if err != nil {
		return nil, err
	}
	packets := make([]uint64, len(state.Rules))
	for i, r := range state.Rules {
		packets[i] = r.Packets
	}
	return packets, nil
}

// programs returns the pod's user programs.
func (a *attached) programs() ([]datapath.PodProgram, error) {
	attachment, err := findAttachment(a.node, a.pod)
	if err != nil {
		return nil, err
	}
	return a.datapath().ReadPrograms(attachment)
}

// ran returns how many of the runs of each of the user programs ended with a verdict.
func (a *attached) ran(verdict uint32) ([]uint64, error) {
	list, err := a.programs()
	if err != nil {
		return nil, err
	}
	runs := make([]uint64, len(list))
	for i, p := range list {
		runs[i] = p.Runs[verdict]
	}
	return runs, nil
}

// ranTC returns how often each of the pod's tc programs ran, by their maps: of tcverdicts.bpf.o.
func (a *attached) ranTC() ([]uint64, error) {
	list, err := a.programs()
	if err != nil {
		return nil, err
	}
	runs := make([]uint64, len(list))
	for i, p := range list {
		if len(p.Maps) != 1 {
			return nil, fmt.Errorf("program %s has the maps %v, want one", p.Name, p.Maps)
		}
		var cpus []uint64
		m, err := ebpf.LoadPinnedMap(p.Maps[0], nil)
		if err == nil {
			err = m.Lookup(uint32(0), &cpus)
			_ = m.Close()
		}
		if err != nil {
			return nil, fmt.Errorf("reading what program %s counted: %w", p.Name, err)
		}
		for _, n := range cpus {
			runs[i] += n
		}
	}
	return runs, nil
}

// program opens one that the node's pods share.
func (a *attached) program(name string) (*ebpf.Program, error) {
	return ebpf.LoadPinnedProgram(filepath.Join(pins.NewRoot(a.node.BPFFS).Node(), name), nil)
}
