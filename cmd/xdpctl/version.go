package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/internal/release"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// versionReport says what runs here.
type versionReport struct {
	Release string      `json:"release"` // of xdpctl
	Layout  string      `json:"layout"`
	BPFFS   string      `json:"bpffs"`
	Node    *nodeReport `json:"node"` // null: nothing is loaded
}

type nodeReport struct {
	Release     string          `json:"release"`
	Created     string          `json:"created"`
	Netns       uint64          `json:"netns"`
	XDPFrags    bool            `json:"xdpFrags"`
	Slots       int             `json:"slots"`
	Attachments int             `json:"attachments"`
	Programs    []programReport `json:"programs"`

	created time.Time
}

type programReport struct {
	ID     uint32 `json:"id"`
	Name   string `json:"name"`
	Type   string `json:"type"`
	Tag    string `json:"tag"`
	Loaded string `json:"loaded"`

	loaded time.Time
}

func newVersionCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the release of xdpctl and what is loaded on the node",
		Long: `Show the release of xdpctl, the version of the layout of pins that it reads, and what is loaded on the
node: the release of the plugin that made it, when, and its programs.`,
		Example: `  xdpctl version
  xdpctl version -o json | jq -r .node.release`,
		Args:              usageArgs(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			report := versionReport{Release: release.Version(), Layout: pins.Version, BPFFS: o.bpffs}
			info, err := o.datapath().NodeInfo()
			switch {
			case err == nil:
				report.Node = newNodeReport(info)
			case errors.Is(err, fs.ErrNotExist):
				err = nil
			}
			// the release is told whatever the node says
			return errors.Join(o.write(report, func(style) string { return versionText(&report, err == nil, time.Now()) }), err)
		},
	}
}

func newNodeReport(info *datapath.NodeInfo) *nodeReport {
	node := &nodeReport{
		Release: info.Release, Created: timestamp(info.Created), Netns: info.Netns, XDPFrags: info.XDPFrags,
		Slots: info.Slots, Attachments: info.Taken, Programs: []programReport{}, created: info.Created,
	}
	for _, p := range info.Programs {
		node.Programs = append(node.Programs, programReport{
			ID: uint32(p.ID), Name: p.Name, Type: p.Type.String(), Tag: p.Tag, Loaded: timestamp(p.Loaded), loaded: p.Loaded,
		})
	}
	return node
}

func versionText(report *versionReport, known bool, now time.Time) string {
	since := func(t time.Time) string {
		return fmt.Sprintf("%s (%s ago)", t.Format(time.DateTime), age(now.Sub(t)))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "xdpctl  %s\n", report.Release)
	fmt.Fprintf(&b, "layout  %s, under %s\n", report.Layout, report.BPFFS)
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
	fmt.Fprintf(&b, "node    made by %s, %s\n", report.Node.Release, since(report.Node.created))
	fmt.Fprintf(&b, "        %d attachments of %d at most, in network namespace %d, %s XDP frags\n\n",
		report.Node.Attachments, report.Node.Slots, report.Node.Netns, frags)
	t := table{columns: append(number("", "ID"), text("PROGRAM", "TYPE", "TAG", "LOADED")...)}
	for _, p := range report.Node.Programs {
		t.add(strconv.FormatUint(uint64(p.ID), 10), p.Name, p.Type, p.Tag, since(p.loaded))
	}
	b.WriteString(t.String())
	return b.String()
}
