package main

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

const statsHelp = `Show what was counted for each attachment since it was made.

EGRESS is what the pod sent, INGRESS what came for it. BYTES are those of whole frames. DIRECT packets, of
those that it sent, were handed to another pod of the node without its stack; that one has them in INGRESS.
DROPPED packets were dropped or aborted, BROKEN ones are truncated or malformed; both of both directions.
-o wide adds what the packets were, in packets: by verdict, by protocol, by kind, and by why a filter
dropped them.

In mode tcx, and for ingress in every mode, a packet is one on the wire: the segments of a large
TCP packet count each. In modes generic and native a large packet counts as one: XDP is not told.

With --watch the table is shown again and again, with rates: on a terminal in place, else one after
the other; as JSON, an array on a line of its own each time. It ends with Ctrl-C, or after --count.`

func newStatsCommand(o *options) *cobra.Command {
	w := &watch{}
	cmd := &cobra.Command{
		Use:   "stats [POD] [--watch [interval]]",
		Short: "Show packets and bytes by pod",
		Long:  statsHelp,
		Example: `  xdpctl stats
  xdpctl stats default/web -o wide
  xdpctl stats --watch
  xdpctl stats vethd1f6b2a3 --watch 500ms --count 10 -o json
  xdpctl stats -o json | jq -r '.[] | select(.egress.drop.packets > 0) | .pod.name'`,
		Args:                  usageArgs(w.args),
		ValidArgsFunction:     o.completePod,
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			d := o.datapath()
			read := func() (*sample, error) { return o.readSample(d, w.pod(args)) }
			if w.on {
				return w.run(cmd.Context(), o, read)
			}
			now, err := read()
			if len(now.readings) == 0 && err != nil {
				return err
			}
			reports := now.reports(nil)
			if len(reports) == 0 {
				o.noneNote()
			}
			return errors.Join(o.write(reports, func(s style) string { return statsTable(reports, s) }), err)
		},
	}
	w.flags(cmd)
	return cmd
}

// reading is an attachment's counters.
type reading struct {
	datapath.Attachment
	stats *datapath.Stats
}

// sample is all that was read at one time.
type sample struct {
	at       time.Time
	readings []reading
}

// readSample reads the counters of POD's attachments, or of all. Those that go meanwhile are left
// out, and those that cannot be read, which come as an error.
func (o *options) readSample(d *datapath.Datapath, args []string) (*sample, error) {
	attachments, errs := o.attachments(d, args)
	s := &sample{at: time.Now()}
	for _, a := range attachments {
		stats, err := d.ReadStats(a)
		if isGone(d.Root, a, err) {
			continue
		}
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		s.readings = append(s.readings, reading{a, stats})
	}
	return s, errs
}

// isGone tells whether an error is there because the attachment no longer is.
func isGone(root pins.Root, a datapath.Attachment, err error) bool {
	if err == nil {
		return false
	}
	_, statErr := os.Stat(root.Pod(a.ID))
	return errors.Is(statErr, fs.ErrNotExist)
}

// reports returns what is said of the sample, with rates if there is one before it.
func (s *sample) reports(before *sample) []statsReport {
	reports := []statsReport{}
	for _, r := range s.readings {
		report := newStatsReport(r.Meta, r.stats)
		if before != nil {
			report.Rates = r.rates(before, s.at)
		}
		reports = append(reports, report)
	}
	return reports
}

// rates since the sample before; of what has been made since, all that it counted.
func (r *reading) rates(before *sample, now time.Time) *directions[rate] {
	earlier := &datapath.Stats{}
	if r.Meta.Created.Before(before.at) {
		earlier = r.stats // nothing, unless it is found
	}
	for _, other := range before.readings {
		if other.ID == r.ID && other.Meta.Created.Equal(r.Meta.Created) {
			earlier = other.stats
		}
	}
	over := now.Sub(before.at)
	return &directions[rate]{
		Egress:  rateOf(newVerdicts(&earlier.Egress).total(), newVerdicts(&r.stats.Egress).total(), over),
		Ingress: rateOf(newVerdicts(&earlier.Ingress).total(), newVerdicts(&r.stats.Ingress).total(), over),
	}
}

func statsTable(reports []statsReport, s style) string {
	if len(reports) == 0 {
		return ""
	}
	rates := reports[0].Rates != nil
	counted := []string{"PACKETS", "BYTES"}
	if rates {
		counted = append(counted, "PACKETS/S", "BYTES/S")
	}
	t := table{columns: text("POD", "HOST END", "MODE")}
	t.columns = append(t.columns, number("EGRESS", counted...)...)
	t.columns = append(t.columns, number("INGRESS", counted...)...)
	t.columns = append(t.columns, number("", "DIRECT", "DROPPED", "BROKEN")...)
	if s.wide {
		t.columns = append(t.columns, newColumns("EGRESS", false, []string{"VERDICTS", "PROTOCOLS", "KINDS", "DROPS"})...)
		t.columns = append(t.columns, newColumns("INGRESS", false, []string{"VERDICTS", "PROTOCOLS", "KINDS", "DROPS"})...)
		t.columns = append(t.columns, text("NETWORK", "IFNAME", "ADDRESSES", "CONTAINER")...)
	}
	for i := range reports {
		t.add(statsRow(&reports[i], s)...)
	}
	return t.String()
}

func statsRow(r *statsReport, s style) []string {
	row := []string{r.label(), r.HostInterface.Name, r.Mode}
	count := func(c counter) { row = append(row, s.packets(c.Packets), s.bytes(c.Bytes)) }
	speed := func(v rate) { row = append(row, s.packetRate(v.PacketsPerSecond), s.byteRate(v.BytesPerSecond)) }
	count(r.Egress.total())
	if r.Rates != nil {
		speed(r.Rates.Egress)
	}
	count(r.Ingress.total())
	if r.Rates != nil {
		speed(r.Rates.Ingress)
	}
	row = append(row, s.packets(r.Egress.of("redirect").Packets), s.packets(dropped(r.Egress)+dropped(r.Ingress)),
		s.packets(broken(r.Kinds.Egress)+broken(r.Kinds.Ingress)))
	if !s.wide {
		return row
	}
	for _, t := range []tally{
		r.Egress, r.Protocols.Egress, r.Kinds.Egress, r.Drops.Egress,
		r.Ingress, r.Protocols.Ingress, r.Kinds.Ingress, r.Drops.Ingress,
	} {
		row = append(row, s.nonzero(t))
	}
	return append(row, r.Network, r.IfName, strings.Join(r.Addresses, ","), r.ContainerID)
}
