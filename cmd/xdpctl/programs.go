package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// programsReport is what programs says of an attachment.
type programsReport struct {
	attachment
	Programs []podProgram `json:"programs"`
}

type podProgram struct {
	Name     string         `json:"name"`
	Object   string         `json:"object"`
	Function string         `json:"function"`
	Type     string         `json:"type"` // "XDP" or "SchedCLS"
	Order    string         `json:"order"`
	Optional bool           `json:"optional"`
	Shared   bool           `json:"shared"`
	ID       ebpf.ProgramID `json:"id"`
	Runs     uint64         `json:"runs"`
	Verdicts struct {
		Aborted  uint64 `json:"aborted"`
		Drop     uint64 `json:"drop"`
		Pass     uint64 `json:"pass"`
		TX       uint64 `json:"tx"`
		Redirect uint64 `json:"redirect"`
	} `json:"verdicts"`
	// MeanNanoseconds of the runs that were timed, 0 if none was.
	MeanNanoseconds uint64 `json:"meanNanoseconds"`
	TimedRuns       uint64 `json:"timedRuns"`
	// Kernel is what the kernel counted, nil if it counted nothing.
	Kernel *kernelRuns `json:"kernel"`
	Maps   []string    `json:"maps"`
	// NodeMaps are those of Maps that are one for all pods.
	NodeMaps []string `json:"nodeMaps"`
}

type kernelRuns struct {
	Runs        uint64 `json:"runs"`
	Nanoseconds uint64 `json:"nanoseconds"`
}

// programPlace is a user program and where it stands.
type programPlace struct {
	Name  string `json:"name"`
	Order string `json:"order"`
}

// ofNode is behind the name of a map that is one for all pods of the node.
const ofNode = "(node)"

// newProgramPlaces returns an attachment's programs, in the order in which they run.
func newProgramPlaces(list []datapath.PodProgram) []programPlace {
	places := []programPlace{} // never null
	for _, p := range list {
		places = append(places, programPlace{p.Name, orderOf(p)})
	}
	return places
}

func orderOf(p datapath.PodProgram) string {
	if p.After {
		return orderAfter
	}
	return orderBefore
}

const (
	orderBefore = "before"
	orderAfter  = "after"
)

// newProgramsReport tells of an attachment's programs, with what the kernel says of each. ofNode are the maps that are
// the node's, as datapath.NodeMaps has them.
func newProgramsReport(
	m *datapath.Meta, list []datapath.PodProgram, kernel []*datapath.KernelProgram, ofNode map[string]string,
) programsReport {
	report := programsReport{attachment: newAttachment(m), Programs: []podProgram{}}
	for i, p := range list {
		one := podProgram{
			Name: p.Name, Object: p.Object, Function: p.Function, Type: kernel[i].Type.String(), Order: orderOf(p),
			Optional: p.Optional, Shared: p.Shared, ID: p.ID, TimedRuns: p.Timed, Maps: []string{}, NodeMaps: []string{},
		}
		if k := kernel[i]; k.Runs > 0 {
			one.Kernel = &kernelRuns{k.Runs, uint64(k.Time.Nanoseconds())}
		}
		for _, runs := range p.Runs {
			one.Runs += runs
		}
		v := &one.Verdicts
		v.Aborted, v.Drop, v.Pass, v.TX, v.Redirect = p.Runs[0], p.Runs[1], p.Runs[2], p.Runs[3], p.Runs[4]
		if p.Timed > 0 {
			one.MeanNanoseconds = uint64(p.Time.Nanoseconds()) / p.Timed
		}
		for _, path := range p.Maps {
			one.Maps = append(one.Maps, filepath.Base(path))
			if ofNode[path] != "" {
				one.NodeMaps = append(one.NodeMaps, filepath.Base(path))
			}
		}
		report.Programs = append(report.Programs, one)
	}
	return report
}

const programsHelp = `Show a pod's user programs: those that "programs" of the configuration gave it, in the order
in which they run.

RUNS are counted by the verdict that they ended with. One run in 64 of each CPU is timed: NS is the mean of
those, and has the cost of reading the clock in it. Both are of this pod, also of a program that is loaded
once for all pods (SHARED, in -o wide). A map that is shown as MAP(node) is one for all pods of the node whose
programs have it; all others that programs write are the pod's own.

KERNEL is what the kernel itself counts while its BPF statistics are on (sysctl kernel.bpf_stats_enabled=1):
of a shared program, the runs of all pods. It counts where it enters a program, and so nothing of XDP
programs, which ours tail call; of tc programs there are only these numbers.

xdpctl programs dump shows what is in their maps.`

func newProgramsCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "programs POD",
		Short: "Show the user programs, XDP or tc, that run on what a pod sends",
		Long:  programsHelp,
		Example: `  xdpctl programs default/web
  xdpctl programs default/web -o json | jq '.programs[] | {name, runs}'
  xdpctl programs dump default/web sources
  xdpctl programs load default/web blocklist_v4 blocklist_v6 -f blocklist.txt`,
		Args:              usageArgs(onePod),
		ValidArgsFunction: o.completePod,
		RunE: func(_ *cobra.Command, args []string) error {
			d := o.datapath()
			a, err := attachmentOf(d, args[0])
			if err != nil {
				return err
			}
			list, err := d.ReadPrograms(*a)
			kernel := make([]*datapath.KernelProgram, len(list))
			for i := range list {
				if err == nil {
					kernel[i], err = list[i].ReadKernel()
				}
			}
			if err != nil {
				return o.goneError(*a, err)
			}
			ofNode, err := d.NodeMaps(list)
			if err != nil {
				return o.goneError(*a, err)
			}
			report := newProgramsReport(a.Meta, list, kernel, ofNode)
			if len(list) == 0 && o.format.isTable() {
				fmt.Fprintf(o.err, "%s has no user programs.\n", report.label())
			}
			return o.write(report, func(s style) string { return programsTable(&report, s) })
		},
	}
	cmd.AddCommand(newProgramsDumpCommand(o), newProgramsLoadCommand(o))
	return cmd
}

func programsTable(report *programsReport, s style) string {
	if len(report.Programs) == 0 {
		return ""
	}
	byKernel := slices.ContainsFunc(report.Programs, func(p podProgram) bool { return p.Kernel != nil })
	t := table{columns: text("PROGRAM", "ORDER")}
	t.columns = append(t.columns, number("RUNS", "ALL", "PASS", "DROP", "TX", "REDIRECT", "ABORTED")...)
	t.columns = append(t.columns, number("", "NS")...)
	if byKernel {
		t.columns = append(t.columns, number("KERNEL", "RUNS", "NS")...)
	}
	t.columns = append(t.columns, text("MAPS", "OBJECT")...)
	if s.wide {
		t.columns = append(t.columns, text("FUNCTION", "TYPE", "ID", "SHARED", "OPTIONAL")...)
	}
	for _, p := range report.Programs {
		cells := append([]string{p.Name, p.Order}, p.runs(s)...)
		if byKernel {
			cells = append(cells, p.Kernel.cells(s)...)
		}
		t.add(append(cells, p.maps(), p.Object, p.Function, p.Type, strconv.Itoa(int(p.ID)),
			yesNo(p.Shared), yesNo(p.Optional))...)
	}
	return t.String()
}

// runs are the cells of what we count, which is nothing of tc programs: they are not called by ours.
func (p *podProgram) runs(s style) []string {
	if p.Type == ebpf.SchedCLS.String() {
		return make([]string, 7)
	}
	v := p.Verdicts
	cells := []string{}
	for _, runs := range []uint64{p.Runs, v.Pass, v.Drop, v.TX, v.Redirect, v.Aborted} {
		cells = append(cells, s.packets(runs))
	}
	return append(cells, mean(p.MeanNanoseconds, p.TimedRuns))
}

// maps names its maps, and says which are the node's.
func (p *podProgram) maps() string {
	names := slices.Clone(p.Maps)
	for i, name := range names {
		if slices.Contains(p.NodeMaps, name) {
			names[i] = name + ofNode
		}
	}
	return strings.Join(names, ",")
}

func (k *kernelRuns) cells(s style) []string {
	if k == nil {
		return []string{"", ""}
	}
	return []string{s.packets(k.Runs), mean(k.Nanoseconds/k.Runs, k.Runs)}
}

// mean writes the mean of some runs, "" if there are none.
func mean(nanoseconds, runs uint64) string {
	if runs == 0 {
		return ""
	}
	return strconv.FormatUint(nanoseconds, 10)
}
