package main

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/internal/install"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/internal/release"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// versionReport says what runs here.
type versionReport struct {
	Release   string         `json:"release"` // of xdpctl
	Layout    string         `json:"layout"`
	BPFFS     string         `json:"bpffs"`
	Installed []binaryReport `json:"installed"`
	Node      *nodeReport    `json:"node"` // null: nothing is loaded
	Hints     []string       `json:"hints"`
}

// binaryReport is a file that a runtime starts.
type binaryReport struct {
	Path    string `json:"path"`
	Release string `json:"release"`
}

type nodeReport struct {
	Release     string          `json:"release"`
	Created     string          `json:"created"`
	Netns       uint64          `json:"netns"`
	XDPFrags    bool            `json:"xdpFrags"`
	Slots       int             `json:"slots"`
	Attachments int             `json:"attachments"`
	Upgrade     string          `json:"upgrade"` // to this release: see below
	Behind      int             `json:"behind"`  // attachments that do not run this release's programs
	Programs    []programReport `json:"programs"`

	created time.Time
}

// Values of nodeReport.Upgrade.
const (
	upgradeNone     = "none"     // the programs are this release's
	upgradePossible = "possible" // they are another's
	upgradeRefused  = "refused"  // and the releases do not read the maps in the same way
	upgradeUnknown  = "unknown"
)

type programReport struct {
	ID      uint32 `json:"id"`
	Name    string `json:"name"`
	Type    string `json:"type"`
	Tag     string `json:"tag"`
	Release string `json:"release"` // that loaded it, "" if it does not say
	Current bool   `json:"current"` // it is what this release would load
	Loaded  string `json:"loaded"`

	loaded time.Time
}

func newVersionCommand(o *options) *cobra.Command {
	var p place
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the release of xdpctl, what is installed and what is loaded",
		Long: `Show the release of xdpctl, the version of the layout of pins that it reads, the releases of the binaries that
runtimes start, and what is loaded on the node: its programs, of which release they are, and whether all
attachments run those of xdpctl's release. Programs are compared by what they are made of, not by name.`,
		Example: `  xdpctl version
  xdpctl version -o json | jq -r .node.release`,
		Args:              usageArgs(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report := versionReport{Release: release.Version(), Layout: pins.Version, BPFFS: o.bpffs, Installed: []binaryReport{}}
			binaries, binErr := install.InstalledBinaries(p.binDir)
			for _, b := range binaries {
				report.Installed = append(report.Installed, binaryReport(b))
			}
			d := o.datapath()
			info, err := d.NodeInfo()
			switch {
			case err == nil:
				report.Node = newNodeReport(info)
				report.Node.compare(d.Upgrade(cmd.Context(), datapath.UpgradeOptions{DryRun: true}))
			case errors.Is(err, fs.ErrNotExist):
				err = nil
			}
			report.Hints = report.hints()
			// the release is told whatever the node says
			return errors.Join(o.write(report, func(style) string { return versionText(&report, err == nil, time.Now()) }), err, binErr)
		},
	}
	p.binFlag(cmd, install.DefaultBinDir, "the runtime's `directory` of CNI plugins")
	return cmd
}

func newNodeReport(info *datapath.NodeInfo) *nodeReport {
	node := &nodeReport{
		Release: info.Release, Created: timestamp(info.Created), Netns: info.Netns, XDPFrags: info.XDPFrags,
		Slots: info.Slots, Attachments: info.Taken, Upgrade: upgradeUnknown, Programs: []programReport{}, created: info.Created,
	}
	for _, p := range info.Programs {
		node.Programs = append(node.Programs, programReport{
			ID: uint32(p.ID), Name: p.Name, Type: p.Type.String(), Tag: p.Tag, Release: p.Release,
			Loaded: timestamp(p.Loaded), loaded: p.Loaded,
		})
	}
	return node
}

// compare enters what an upgrade to this release would do.
func (n *nodeReport) compare(u *datapath.Upgrade, err error) {
	if errors.Is(err, datapath.ErrLayout) {
		n.Upgrade = upgradeRefused
	}
	if err != nil {
		return // which upgrade and doctor say
	}
	n.Upgrade = upgradeNone
	if u.Needed() {
		n.Upgrade = upgradePossible
	}
	for _, a := range u.Attachments {
		if a.Result == datapath.UpgradeDone {
			n.Behind++
		}
	}
	for i := range n.Programs {
		p := &n.Programs[i]
		p.Current = slices.ContainsFunc(u.Programs, func(planned datapath.ProgramUpgrade) bool {
			return planned.Current && planned.Name == p.Name
		})
	}
}

// hints say what to do where releases differ.
func (r *versionReport) hints() []string {
	hints := []string{}
	for _, b := range r.Installed {
		if b.Release != r.Release {
			hints = append(hints, fmt.Sprintf("%s is of %s, xdpctl of %s: xdpctl install puts this release there", b.Path, b.Release, r.Release))
		}
	}
	if r.Node == nil {
		return hints
	}
	switch r.Node.Upgrade {
	case upgradePossible:
		hints = append(hints, fmt.Sprintf("%d attachments do not run the programs of %s: xdpctl upgrade replaces them, without losing a packet",
			r.Node.Behind, r.Release))
	case upgradeRefused:
		hints = append(hints, fmt.Sprintf("what is loaded cannot be upgraded to %s, nor can it attach pods: xdpctl upgrade --dry-run says why", r.Release))
	}
	return hints
}

func versionText(report *versionReport, known bool, now time.Time) string {
	text := versionFacts(report, known, now)
	for _, hint := range report.Hints {
		text += "\n" + hint + "\n"
	}
	return text
}

func versionFacts(report *versionReport, known bool, now time.Time) string {
	since := func(t time.Time) string {
		return fmt.Sprintf("%s (%s ago)", t.Format(time.DateTime), age(now.Sub(t)))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "xdpctl  %s\n", report.Release)
	fmt.Fprintf(&b, "layout  %s, under %s\n", report.Layout, report.BPFFS)
	for i, binary := range report.Installed {
		fmt.Fprintf(&b, "%-6s  %s of %s\n", []string{"files", ""}[min(i, 1)], binary.Path, binary.Release)
	}
	if report.Node == nil {
		if known {
			b.WriteString("node    nothing is loaded: there is no attachment\n")
		}
		return b.String()
	}
	frags := "with"
	if !report.Node.XDPFrags {
		frags = "without"
	}
	fmt.Fprintf(&b, "node    runs %s, made %s\n", report.Node.Release, since(report.Node.created))
	fmt.Fprintf(&b, "        %d attachments of %d at most, in network namespace %d, %s XDP frags\n\n",
		report.Node.Attachments, report.Node.Slots, report.Node.Netns, frags)
	t := table{columns: append(number("", "ID"), text("PROGRAM", "RELEASE", "TYPE", "TAG", "LOADED")...)}
	for _, p := range report.Node.Programs {
		t.add(strconv.FormatUint(uint64(p.ID), 10), p.Name, p.Release, p.Type, p.Tag, since(p.loaded))
	}
	b.WriteString(t.String())
	return b.String()
}
