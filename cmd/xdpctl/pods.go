package main

import (
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// podReport is what pods says of an attachment.
type podReport struct {
	attachment
	PodInterface podInterface `json:"podInterface"`
	Created      string       `json:"created"`
	Release      string       `json:"release"`

	created time.Time
}

type podInterface struct {
	Index int    `json:"index"`
	MAC   string `json:"mac"`
}

func newPodReport(m *datapath.Meta) podReport {
	return podReport{
		attachment:   newAttachment(m),
		PodInterface: podInterface{m.PodIndex, m.PodMAC.String()},
		Created:      timestamp(m.Created),
		Release:      m.PluginVersion,
		created:      m.Created,
	}
}

func newPodsCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "pods [POD]",
		Short: "List the attachments",
		Long: `List the attachments of the xdp plugin on this node: one for each interface of each container.

IFNAME is the interface in the pod, HOST END its other end on the node, MODE how the pod's egress
is hooked. -o wide adds the network, the container and more.`,
		Example: `  xdpctl pods
  xdpctl pods -o wide
  xdpctl pods 10.88.0.7 -o json`,
		Args:              usageArgs(cobra.MaximumNArgs(1)),
		ValidArgsFunction: o.completePod,
		RunE: func(_ *cobra.Command, args []string) error {
			attachments, err := o.attachments(o.datapath(), args)
			if len(attachments) == 0 && err != nil {
				return err
			}
			reports := []podReport{}
			for _, a := range attachments {
				reports = append(reports, newPodReport(a.Meta))
			}
			if len(reports) == 0 {
				o.noneNote()
			}
			return errors.Join(o.write(reports, func(s style) string { return podsTable(reports, s, time.Now()) }), err)
		},
	}
}

func podsTable(reports []podReport, s style, now time.Time) string {
	t := table{columns: text("POD", "IFNAME", "HOST END", "MODE", "AGE", "ADDRESSES")}
	if s.wide {
		t.columns = append(t.columns, text("NETWORK", "MAC", "CONTAINER", "NETNS", "RELEASE")...)
	}
	for _, r := range reports {
		t.add(r.label(), r.IfName, r.HostInterface.Name, r.Mode, age(now.Sub(r.created)),
			strings.Join(r.Addresses, ","), r.Network, r.PodInterface.MAC, r.ContainerID, r.Netns, r.Release)
	}
	if len(t.rows) == 0 {
		return ""
	}
	return t.String()
}
