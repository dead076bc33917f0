// Package request finds out what an attachment that is asked for is to be: by a runtime's ADD, or by
// xdpctl attach for a pod that runs.
package request

import (
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/attachment"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/policy"
)

// Request asks for an attachment, in the words of CNI.
type Request struct {
	ContainerID, IfName string
	Netns               string // the path of the pod's network namespace
	Args                string // CNI_ARGS
	// Conf has the result of the chain in front of the plugin.
	Conf *conf.Config
	// Running: the pod may have run for a while. Then an address that its interface has is its own only if
	// prevResult says so, for whoever may configure the interface could have added it.
	Running bool
}

// Options returns what the attachment is to be, after checking that prevResult says what is there. It
// changes nothing, and is called in the network namespace of the host end.
//
// Errors: types.Error for configuration, arguments and prevResult; those of attachment.Find, of
// Veth.Check and of policy.Make.
func (r Request) Options(d *datapath.Datapath) (datapath.AttachOptions, error) {
	var opts datapath.AttachOptions
	result, err := r.Conf.Result()
	if err != nil {
		return opts, err
	}
	pod, err := conf.ParsePodArgs(r.Args)
	if err != nil {
		return opts, err
	}
	mode, err := Mode(d, r.Conf)
	if err != nil {
		return opts, err
	}
	veth, err := attachment.Find(r.Netns, r.IfName)
	if err != nil {
		return opts, err
	}
	if err := veth.Check(result, r.Netns, r.IfName); err != nil {
		return opts, err
	}
	opts = datapath.AttachOptions{
		ContainerID: r.ContainerID, IfName: r.IfName, Netns: r.Netns, Network: r.Conf.Name,
		PodNamespace: pod.Namespace, PodName: pod.Name, PodUID: pod.UID,
		HostName: veth.HostName, HostIndex: veth.HostIndex, PodIndex: veth.PodIndex,
		PodMAC: veth.PodMAC, PodMTU: veth.PodMTU, PodTxQueues: veth.PodTxQueues,
		Mode: mode, Peers: r.Conf.Stats.Peers,
	}
	if to := r.Conf.Redirect; to != nil {
		opts.Redirect = &datapath.Redirect{
			AcrossNetworks: to.AcrossNetworks, MaxEndpoints: to.MaxEndpoints, MaxFlows: to.MaxFlows,
		}
	}
	opts.BigTCP = BigTCP(r.Conf)
	opts.Programs = Programs(r.Conf)
	for _, address := range attachment.Addresses(result, r.Netns, r.IfName) {
		ip, ok := netip.AddrFromSlice(address.IP)
		if !ok {
			return opts, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("prevResult has no address in %q", address.String()), "")
		}
		bits, _ := address.Mask.Size()
		opts.Addresses = append(opts.Addresses, netip.PrefixFrom(ip.Unmap(), bits))
	}
	if f := r.Conf.PodFilter(); f != nil {
		whom := policy.Pod{Addresses: opts.Addresses, MAC: opts.PodMAC}
		if !r.Running {
			whom.Netns, whom.IfName = r.Netns, r.IfName
		}
		opts.Policy, err = policy.Make(f, whom)
	}
	return opts, err
}

// Mode returns the mode that a configuration means on this kernel.
func Mode(d *datapath.Datapath, c *conf.Config) (datapath.Mode, error) {
	switch c.Mode {
	case conf.ModeNative:
		return datapath.ModeNative, nil
	case conf.ModeTCX:
		return datapath.ModeTCX, nil
	case conf.ModeAuto:
		if len(c.Programs) > 0 {
			return datapath.ModeGeneric, nil // they are XDP programs, or the user says tcx
		}
		return d.AutoMode()
	default:
		return datapath.ModeGeneric, nil
	}
}

// The configuration allows as many programs as the datapath runs: else this does not compile.
var _ [conf.MaxPrograms]struct{} = [datapath.MaxPrograms]struct{}{}

// Programs returns a configuration's user programs.
func Programs(c *conf.Config) []datapath.Program {
	var list []datapath.Program
	for _, p := range c.Programs {
		list = append(list, datapath.Program{
			Object: p.Object, Program: p.Program, Name: p.Name, After: p.Order == conf.OrderAfter, Optional: p.Optional,
		})
	}
	return list
}

// BigTCP returns what a configuration says of BIG TCP.
func BigTCP(c *conf.Config) datapath.BigTCP {
	switch c.BigTCP {
	case conf.BigTCPOn:
		return datapath.BigTCPOn
	case conf.BigTCPAuto:
		return datapath.BigTCPAuto
	default:
		return datapath.BigTCPOff
	}
}
