package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/ipam/addrs"
	"github.com/xdp-cni/xdp-cni/ipam/leases"
)

// networkReport is how much of a network's ranges is leased.
type networkReport struct {
	Network string      `json:"network"`
	Leases  int         `json:"leases"`
	Sets    []setReport `json:"sets"`
}

type setReport struct {
	Ranges []rangeReport `json:"ranges"`
	Used   uint64        `json:"used"`
	Usable uint64        `json:"usable"`
	Last   string        `json:"last"`
}

type rangeReport struct {
	First   string `json:"first"`
	Last    string `json:"last"`
	Subnet  string `json:"subnet"`
	Gateway string `json:"gateway"`
	Used    uint64 `json:"used"`
}

func newIPAMShowCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "show [NETWORK]",
		Short: "Show how much of each range is leased",
		Long: `Show how much of each range is leased, of a network or of all.

Each attachment gets an address of each SET. The ranges are those of the configuration that the last
ADD came with. LAST is the address handed out last: the next is looked for from there.`,
		Example: `  xdpctl ipam show
  xdpctl ipam show pods -o json`,
		Args:              usageArgs(cobra.MaximumNArgs(1)),
		ValidArgsFunction: o.completeNetwork,
		RunE: func(_ *cobra.Command, args []string) error {
			return ofNetworks(o, args, func(v *leases.View) ([]networkReport, error) {
				report, err := newNetworkReport(v)
				if err != nil {
					return nil, err
				}
				return []networkReport{report}, nil
			}, func(reports []networkReport, _ style) string { return networksTable(reports) })
		},
	}
}

func newNetworkReport(v *leases.View) (networkReport, error) {
	list, err := v.Leases()
	if err != nil {
		return networkReport{}, err
	}
	report := networkReport{Network: v.Network, Leases: len(list), Sets: []setReport{}}
	for i, set := range v.Sets {
		s := setReport{Ranges: []rangeReport{}, Usable: set.Usable()}
		if last := v.Last(i); last.IsValid() {
			s.Last = last.String()
		}
		for _, r := range set {
			used := usedIn(r, list)
			s.Used += used
			s.Ranges = append(s.Ranges, rangeReport{r.First.String(), r.Last.String(), r.Subnet.String(), r.Gateway.String(), used})
		}
		report.Sets = append(report.Sets, s)
	}
	return report, nil
}

func usedIn(r addrs.Range, list []leases.Lease) uint64 {
	var n uint64
	for _, l := range list {
		if r.Contains(l.Address) {
			n++
		}
	}
	return n
}

func networksTable(reports []networkReport) string {
	t := table{columns: text("NETWORK", "SET", "LEASED", "RANGES", "LAST")}
	for _, r := range reports {
		if len(r.Sets) == 0 {
			t.add(r.Network, "-", fmt.Sprint(r.Leases), "not known before the first ADD", "")
		}
		for i, s := range r.Sets {
			var ranges []string
			for _, one := range s.Ranges {
				ranges = append(ranges, one.First+"-"+one.Last)
			}
			usable := fmt.Sprint(s.Usable)
			if s.Usable == math.MaxUint64 {
				usable = "2^64"
			}
			t.add(r.Network, fmt.Sprint(i), fmt.Sprintf("%d of %s", s.Used, usable), strings.Join(ranges, ","), s.Last)
		}
	}
	if len(t.rows) == 0 {
		return ""
	}
	return t.String()
}
