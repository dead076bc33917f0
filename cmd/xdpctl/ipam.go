package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/ipam/leases"
	"github.com/xdp-cni/xdp-cni/ipam/survey"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// leaseReport is a lease, and what is known of its owner.
type leaseReport struct {
	Network     string `json:"network"`
	Address     string `json:"address"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
	Pod         pod    `json:"pod"`
	Created     string `json:"created"`
	InUse       bool   `json:"inUse"`

	created time.Time
}

func newIPAMCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ipam",
		Short: "Show and change the leases of the IPAM plugin xdp-ipam",
		Long: `Show and change the leases of the IPAM plugin xdp-ipam: which address of which network is whose.

They are kept in the kernel, under --bpffs, until the node restarts.`,
		Example: `  xdpctl ipam show
  xdpctl ipam list pods`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newIPAMListCommand(o), newIPAMShowCommand(o), newIPAMReleaseCommand(o), newIPAMImportCommand(o))
	return cmd
}

func (o *options) root() pins.Root { return pins.NewRoot(o.bpffs) }

// views opens the leases of the network named, or of all.
func (o *options) views(args []string) ([]*leases.View, error) {
	if len(args) == 0 {
		return leases.Views(o.root())
	}
	v, err := leases.NewView(o.root(), args[0])
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noSuchNetwork(o.root(), args[0])
	}
	if err != nil {
		return nil, err
	}
	return []*leases.View{v}, nil
}

func closeViews(views []*leases.View) {
	for _, v := range views {
		v.Close()
	}
}

// openLeases opens a network's leases to change them.
func (o *options) openLeases(ctx context.Context, network string, open func(context.Context, leases.Options) (*leases.Store, error)) (*leases.Store, error) {
	return open(ctx, leases.Options{
		Root: o.root(), Network: network,
		Survey: func() (leases.Survey, error) { return survey.Do(o.root(), network, "") },
		Log:    slog.New(slog.NewTextHandler(o.err, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
}

// pods is what is known of pods, to show with their leases.
type knownPods struct {
	names map[leases.Owner]pod
	inUse map[netip.Addr]bool
}

// knownPods asks the chained plugin's attachments and the interfaces of all pods.
func (o *options) knownPods() (knownPods, error) {
	known := knownPods{names: map[leases.Owner]pod{}}
	var err error
	if known.inUse, err = survey.InUse(""); err != nil {
		return known, err
	}
	attachments, err := o.datapath().List()
	for _, a := range attachments {
		known.names[ownerOf(a)] = pod{a.Meta.PodNamespace, a.Meta.PodName, a.Meta.PodUID}
	}
	return known, err
}

func ownerOf(a datapath.Attachment) leases.Owner {
	return leases.Owner{ContainerID: a.Meta.ContainerID, IfName: a.Meta.IfName}
}

func (k knownPods) report(network string, l leases.Lease) leaseReport {
	return leaseReport{
		Network: network, Address: l.Address.String(), ContainerID: l.Owner.ContainerID, IfName: l.Owner.IfName,
		Pod: k.names[l.Owner], Created: timestamp(l.Time), InUse: k.inUse[l.Address], created: l.Time,
	}
}

// label is what people call the owner.
func (l *leaseReport) label() string {
	switch {
	case l.Pod.Name != "":
		return l.Pod.Namespace + "/" + l.Pod.Name
	case l.ContainerID == "":
		return "(unknown)"
	}
	return shortID(l.ContainerID)
}

func leasesTable(reports []leaseReport, s style, now time.Time) string {
	t := table{columns: text("NETWORK", "ADDRESS", "OWNER", "IFNAME", "AGE", "IN USE")}
	if s.wide {
		t.columns = append(t.columns, text("CONTAINER")...)
	}
	for i := range reports {
		r := &reports[i]
		t.add(r.Network, r.Address, r.label(), r.IfName, age(now.Sub(r.created)), yesNo(r.InUse), r.ContainerID)
	}
	if len(t.rows) == 0 {
		return ""
	}
	return t.String()
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}

// completeNetwork completes the name of a network that has leases.
func (o *options) completeNetwork(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []cobra.Completion
	if len(args) == 0 {
		views, _ := leases.Views(o.root()) // in the middle of a command line there is no place for an error
		defer closeViews(views)
		for _, v := range views {
			names = append(names, v.Network)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
