package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// peersReport is what peers says of an attachment.
type peersReport struct {
	attachment
	Peers []peer `json:"peers"`
}

type peer struct {
	Address string `json:"address"`
	directions[counter]
}

func newPeersCommand(o *options) *cobra.Command {
	top := 0
	cmd := &cobra.Command{
		Use:   "peers POD",
		Short: "Show whom a pod exchanges packets with",
		Long: `Show what a pod and each remote address sent each other, the most bytes first.

The plugin counts by peer where its configuration asks for it, as by {"stats": {"peers": 1024}}.
When there are more peers than that, those not heard of for longest are forgotten. What is not IP,
and packets that are truncated or malformed, have no peer.`,
		Example: `  xdpctl peers default/web
  xdpctl peers 10.88.0.7 --top 10
  xdpctl peers vethd1f6b2a3 -o json | jq '.peers[].address'`,
		Args: usageArgs(func(cmd *cobra.Command, args []string) error {
			if top < 0 {
				return fmt.Errorf("--top is %d, and must not be negative", top)
			}
			return onePod(cmd, args)
		}),
		ValidArgsFunction: o.completePod,
		RunE: func(_ *cobra.Command, args []string) error {
			d := o.datapath()
			a, err := attachmentOf(d, args[0])
			if err != nil {
				return err
			}
			peers, err := d.ReadPeers(*a)
			if errors.Is(err, datapath.ErrNoPeers) {
				if isGone(d.Root, *a, err) {
					return fmt.Errorf("%s has just gone", labelOf(*a))
				}
				return fmt.Errorf(`%s has no counters by peer: its network configuration lacks {"stats": {"peers": 1024}}, or a number like it`, labelOf(*a))
			}
			if err != nil {
				return err
			}
			report := newPeersReport(a.Meta, peers, top)
			if len(report.Peers) == 0 && o.format.isTable() {
				fmt.Fprintf(o.err, "%s has not exchanged a packet with anyone.\n", report.label())
			}
			return o.write(report, func(s style) string { return peersTable(&report, s) })
		},
	}
	cmd.Flags().IntVar(&top, "top", 0, "show only so `many` (0: all)")
	_ = cmd.RegisterFlagCompletionFunc("top", cobra.NoFileCompletions)
	return cmd
}

// newPeersReport sorts peers by bytes, and keeps the top ones, if top is not 0.
func newPeersReport(m *datapath.Meta, peers []datapath.PeerStats, top int) peersReport {
	bytes := func(p datapath.PeerStats) uint64 { return p.Egress.Bytes + p.Ingress.Bytes }
	// one that moved while it was read is there twice: the later reading counts
	latest := map[netip.Addr]datapath.PeerStats{}
	for _, p := range peers {
		if bytes(p) >= bytes(latest[p.Address]) {
			latest[p.Address] = p
		}
	}
	var sorted []datapath.PeerStats
	for _, p := range latest {
		sorted = append(sorted, p)
	}
	slices.SortFunc(sorted, func(a, b datapath.PeerStats) int {
		return cmp.Or(cmp.Compare(bytes(b), bytes(a)), a.Address.Compare(b.Address))
	})
	if top > 0 && len(sorted) > top {
		sorted = sorted[:top]
	}
	report := peersReport{attachment: newAttachment(m), Peers: []peer{}}
	for _, p := range sorted {
		report.Peers = append(report.Peers, peer{p.Address.String(), directions[counter]{counter(p.Egress), counter(p.Ingress)}})
	}
	return report
}

func peersTable(report *peersReport, s style) string {
	if len(report.Peers) == 0 {
		return ""
	}
	t := table{columns: text("PEER")}
	t.columns = append(t.columns, number("EGRESS", "PACKETS", "BYTES")...)
	t.columns = append(t.columns, number("INGRESS", "PACKETS", "BYTES")...)
	for _, p := range report.Peers {
		t.add(p.Address, s.packets(p.Egress.Packets), s.bytes(p.Egress.Bytes),
			s.packets(p.Ingress.Packets), s.bytes(p.Ingress.Bytes))
	}
	return t.String()
}
