package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/filter"
	"github.com/xdp-cni/xdp-cni/plugin/filter/model"
)

const tryHelp = `Say what a filter does with a packet, and why: which rule decides, and why each one before it does not.

The filter is that of POD, or the one in FILE as apply takes it. With FILE alone, nothing of the node is
read, and no privileges are needed. No packet is sent.

The packet is the first one of a flow: answers pass with the flow, if the filter is stateful. What it is
is said by --egress or --ingress, --protocol or --icmp, and --to or --from, which is the other side. TCP,
UDP and SCTP are judged by the destination port: for --ingress that is the pod's, as in --to :80. The
pod's own address can be given too; else its first one is taken.

Exit status 0 whatever the verdict is.`

func newFilterTestCommand(o *options) *cobra.Command {
	var (
		file  filterFile
		flags packetFlags
	)
	cmd := &cobra.Command{
		Use:   "test [POD] (--egress | --ingress) --protocol PROTOCOL --to ADDRESS[:PORT] [--from ADDRESS[:PORT]]",
		Short: "Say which rule decides about a packet, and why",
		Long:  tryHelp,
		Example: `  xdpctl filter test default/web --egress --protocol tcp --to 10.0.0.1:443
  xdpctl filter test default/web --ingress --protocol tcp --from [fd00::7]:40000 --to :80
  xdpctl filter test --egress --icmp 8 --to 192.0.2.1 -f filter.yaml`,
		Args: usageArgs(func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) > 1:
				return onePod(cmd, args)
			case len(args) == 0 && file.name == "":
				return errors.New("takes a POD, or -f FILE, or both")
			}
			_, err := flags.parse()
			return err
		}),
		ValidArgsFunction:     o.completePod,
		DisableFlagsInUseLine: true,
		RunE: func(_ *cobra.Command, args []string) error {
			p, err := flags.parse()
			if err != nil {
				return err
			}
			report, err := o.tryPacket(&file, *p, args)
			if err != nil {
				return err
			}
			return o.write(report, func(style) string { return tryText(report) })
		},
	}
	file.flag(cmd, "test the filter in this `file` instead of the one in force, - for standard input")
	flags.flags(cmd)
	return cmd
}

// tryPacket asks the filter in the file, or else that of the pod, about a packet of the pod, if there
// is one.
func (o *options) tryPacket(file *filterFile, p packet, pods []string) (*testReport, error) {
	var f *conf.Filter
	if file.name != "" {
		var (
			warnings []conf.Warning
			err      error
		)
		if f, warnings, err = file.read(o.in); err != nil {
			return nil, err
		}
		o.warn(warnings)
	}
	if len(pods) == 0 {
		compiled, err := filter.Compile(f, nil)
		if err != nil {
			return nil, err
		}
		return explain(f, compiled, p, subjectPod{})
	}
	node := o.filters()
	a, err := attachmentOf(node, pods[0])
	if err != nil {
		return nil, err
	}
	inForce, err := readFilter(node, *a)
	if f == nil {
		if err != nil {
			return nil, o.goneError(*a, err)
		}
		if inForce == nil {
			return nil, fmt.Errorf("%s has no filter, and all its packets pass; test one with -f FILE", longLabel(*a))
		}
		f = inForce.Filter
	}
	// one that cannot be read is none to a file
	made, err := makePolicy(*a, f, inForce)
	if err != nil {
		return nil, err
	}
	pod := subjectPod{known: true, others: otherPods(node, *a)}
	copy(pod.mac[:], a.Meta.PodMAC)
	// those that it was given first; without antiSpoof the policy has none
	for _, prefix := range a.Meta.Addresses {
		pod.addresses = append(pod.addresses, prefix.Addr())
	}
	for _, address := range made.Compiled.Addresses {
		if !slices.Contains(pod.addresses, address) {
			pod.addresses = append(pod.addresses, address)
		}
	}
	if pod.hosts, err = o.nodeAddresses(); err != nil {
		return nil, err
	}
	return explain(f, made.Compiled, p, pod)
}

// otherPods returns the labels of the other pods of the node, by address.
func otherPods(node lister, than datapath.Attachment) map[netip.Addr]string {
	others := map[netip.Addr]string{}
	all, _ := node.List() // for a note; what cannot be read has none
	for _, a := range all {
		for _, address := range a.Meta.Addresses {
			if a.ID != than.ID {
				others[address.Addr()] = labelOf(a)
			}
		}
	}
	return others
}

func tryText(r *testReport) string {
	var b strings.Builder
	decided := map[string]string{
		conf.Allow.String(): "is allowed", conf.Deny.String(): "is denied", conf.Audit.String(): "is allowed, and audited,",
	}[r.Verdict]
	by := map[string]string{
		deciderRule:               fmt.Sprintf("by rule %q (rules[%d])", r.Name, r.Rule),
		deciderSpoof:              "by antiSpoof",
		deciderHost:               "by allowHost",
		deciderNeighbour:          "as neighbour discovery",
		deciders[model.StepRules]: fmt.Sprintf("by the default of %s", r.Packet.Direction),
	}[r.DecidedBy]
	fmt.Fprintf(&b, "%s %s %s\n", r.Packet, decided, by)
	if len(r.Rules) > 0 {
		t := table{columns: text("RULE", "NAME", "WHY")}
		for _, asked := range r.Rules {
			why := asked.Detail
			if !asked.Matches {
				why = asked.Why + ": " + asked.Detail
			}
			t.add(strconv.Itoa(asked.Rule), asked.Name, why)
		}
		b.WriteString("\n" + t.String())
	}
	for i, note := range r.Notes {
		if i == 0 {
			b.WriteString("\n")
		}
		b.WriteString(wrap("- "+printable(note), wrapAt, "  "))
	}
	return b.String()
}
