package main

import (
	"errors"
	"fmt"
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
	Filtered     bool         `json:"filtered"`
	FilterRules  int          `json:"filterRules"`
	// User programs that run on what the pod sends.
	Programs []programPlace `json:"programs"`

	created time.Time
	// the filter, or the programs, could not be read
	unknown, unknownPrograms bool
}

type podInterface struct {
	Index int    `json:"index"`
	MAC   string `json:"mac"`
}

// newPodReport tells of an attachment and its filter, nil if there is none, and its user programs.
func newPodReport(m *datapath.Meta, f *datapath.PolicyState, programs []datapath.PodProgram) podReport {
	report := podReport{
		attachment:   newAttachment(m),
		PodInterface: podInterface{m.PodIndex, m.PodMAC.String()},
		Created:      timestamp(m.Created),
		Release:      m.PluginVersion,
		Programs:     newProgramPlaces(programs),
		created:      m.Created,
	}
	if f != nil {
		report.Filtered, report.FilterRules = true, len(f.Rules)
	}
	return report
}

func newPodsCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "pods [POD]",
		Short: "List the attachments",
		Long: `List the attachments of the xdp plugin on this node: one for each interface of each container.

IFNAME is the interface in the pod, HOST END its other end on the node, MODE how the pod's egress
is hooked, FILTER how many rules the pod's filter has. -o wide adds the network, the container, the
user programs that run on what the pod sends, and more.`,
		Example: `  xdpctl pods
  xdpctl pods -o wide
  xdpctl pods 10.88.0.7 -o json`,
		Args:              usageArgs(cobra.MaximumNArgs(1)),
		ValidArgsFunction: o.completePod,
		RunE: func(_ *cobra.Command, args []string) error {
			reports, err := o.readPods(o.filters(), args)
			if len(reports) == 0 && err != nil {
				return err
			}
			if len(reports) == 0 {
				o.noneNote()
			}
			return errors.Join(o.write(reports, func(s style) string { return podsTable(reports, s, time.Now()) }), err)
		},
	}
}

// readPods reads what is known of the attachments of the pods named, or of all. Those that go meanwhile
// are left out. One whose filter or programs cannot be read is an error, but for that it is told of.
func (o *options) readPods(node filters, names []string) ([]podReport, error) {
	reports := []podReport{}
	attachments, errs := o.attachments(node, names)
	for _, a := range attachments {
		f, err := node.ReadPolicy(a)
		switch {
		case errors.Is(err, datapath.ErrNoPolicy):
		case isGone(o.root(), a, err):
			continue
		default:
			errs = errors.Join(errs, err)
		}
		programs, programsErr := node.ReadPrograms(a)
		if isGone(o.root(), a, programsErr) {
			continue
		}
		errs = errors.Join(errs, programsErr)
		report := newPodReport(a.Meta, f, programs)
		report.unknown = err != nil && !errors.Is(err, datapath.ErrNoPolicy)
		report.unknownPrograms = programsErr != nil
		reports = append(reports, report)
	}
	return reports, errs
}

func podsTable(reports []podReport, s style, now time.Time) string {
	t := table{columns: text("POD", "IFNAME", "HOST END", "MODE", "FILTER", "AGE", "ADDRESSES")}
	if s.wide {
		t.columns = append(t.columns, text("NETWORK", "MAC", "CONTAINER", "NETNS", "RELEASE", "PROGRAMS")...)
	}
	for _, r := range reports {
		t.add(r.label(), r.IfName, r.HostInterface.Name, r.Mode, r.filterText(), age(now.Sub(r.created)),
			strings.Join(r.Addresses, ","), r.Network, r.PodInterface.MAC, r.ContainerID, r.Netns, r.Release,
			r.programsText())
	}
	if len(t.rows) == 0 {
		return ""
	}
	return t.String()
}

func (r *podReport) programsText() string {
	switch {
	case r.unknownPrograms:
		return "?"
	case len(r.Programs) == 0:
		return "-"
	}
	var names []string
	for _, p := range r.Programs {
		names = append(names, p.Name)
	}
	return strings.Join(names, ",")
}

func (r *podReport) filterText() string {
	switch {
	case r.unknown:
		return "?"
	case !r.Filtered:
		return "-"
	case r.FilterRules == 1:
		return "1 rule"
	}
	return fmt.Sprintf("%d rules", r.FilterRules)
}
