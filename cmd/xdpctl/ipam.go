package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
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

// ofNetworks writes what read says of the network named, or of all. It goes on past errors.
func ofNetworks[R any](o *options, args []string, read func(*leases.View) ([]R, error), table func([]R, style) string) error {
	views, err := o.views(args)
	if len(views) == 0 && err != nil {
		return err
	}
	defer closeViews(views)
	reports := []R{}
	for _, v := range views {
		list, readErr := read(v)
		reports = append(reports, list...)
		err = errors.Join(err, readErr)
	}
	if len(reports) == 0 && err == nil && o.format.isTable() {
		fmt.Fprintf(o.err, "There are no leases under %s.\n", o.bpffs)
	}
	return errors.Join(o.write(reports, func(s style) string { return table(reports, s) }), err)
}

// leaseOptions are those to open a network's leases with, to change them.
func (o *options) leaseOptions(network string) leases.Options {
	log := slog.New(slog.NewTextHandler(o.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return survey.Options(o.root(), network, log)
}

// pods is what is known of pods, to show with their leases.
type knownPods struct {
	names map[leases.Owner]pod
	inUse map[netip.Addr]bool
	alive []datapath.Attachment
}

// knownPods asks the chained plugin's attachments and the interfaces of all pods. What it returns
// with an error is what it found out nonetheless.
func (o *options) knownPods(ctx context.Context) (knownPods, error) {
	known := knownPods{names: map[leases.Owner]pod{}}
	var useErr error
	known.inUse, useErr = survey.InUse("")
	d := o.datapath()
	attachments, err := d.List()
	stale, staleErr := d.Collect(ctx, datapath.CollectOptions{DryRun: true})
	if err == nil {
		err = staleErr // else it says the same again
	}
	for _, a := range attachments {
		known.names[ownerOf(a)] = pod{a.Meta.PodNamespace, a.Meta.PodName, a.Meta.PodUID}
		if !slices.ContainsFunc(stale, func(other datapath.Attachment) bool { return other.ID == a.ID }) {
			known.alive = append(known.alive, a)
		}
	}
	return known, errors.Join(useErr, err)
}

// holder returns who has an address of a network, "" if nobody who is alive is known to.
func (k knownPods) holder(network string, a netip.Addr) string {
	for _, attachment := range k.alive {
		if attachment.Meta.Network == network && slices.ContainsFunc(attachment.Meta.Addresses, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return labelOf(attachment)
		}
	}
	if k.inUse[a] {
		return "a pod"
	}
	return ""
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
		return l.Pod.label()
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
