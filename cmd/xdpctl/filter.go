package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/policy"
)

// filters is what the commands about filters need of the node.
type filters interface {
	lister
	ReadStats(datapath.Attachment) (*datapath.Stats, error)
	ReadPolicy(datapath.Attachment) (*datapath.PolicyState, error)
	ReplacePolicy(context.Context, datapath.Attachment, datapath.Policy) error
	FollowDrops(context.Context, func(datapath.DropEvent) error) error
	ReadPrograms(datapath.Attachment) ([]datapath.PodProgram, error)
}

const filterHelp = `Show, test and change the packet filters of pods.

A filter is a list of rules. The first rule of a packet's direction that matches decides: allow, deny,
or audit, which lets it through and reports it as one that would be denied. Where none matches, the
default of the direction does. docs/filter.md says more.`

func newFilterCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "filter",
		Short: "Show, test and change the packet filters of pods",
		Long:  filterHelp,
		Example: `  xdpctl filter show default/web
  xdpctl filter test default/web --egress --protocol tcp --to 10.0.0.1:443
  xdpctl filter apply default/web -f filter.json --dry-run`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newFilterShowCommand(o), newFilterApplyCommand(o), newFilterTestCommand(o))
	return cmd
}

// inForce is the filter of an attachment and what it did.
type inForce struct {
	*conf.Filter
	generation uint32
	rules      []datapath.RuleStats // by number
	addresses  []netip.Addr         // the pod's own, as antiSpoof knows them
}

// readFilter reads the filter in force: nil if there is none, fs.ErrNotExist if the attachment has
// gone.
func readFilter(node filters, a datapath.Attachment) (*inForce, error) {
	state, err := node.ReadPolicy(a)
	if errors.Is(err, datapath.ErrNoPolicy) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the filter of %s: %w", longLabel(a), err)
	}
	f, _, err := conf.ParseFilter(state.Source)
	if err != nil {
		return nil, fmt.Errorf("reading the filter of %s, as another release wrote it: %w", longLabel(a), err)
	}
	if len(state.Rules) != len(f.Rules) {
		return nil, fmt.Errorf("reading the filter of %s: it has %d rules, and counters for %d", longLabel(a), len(f.Rules), len(state.Rules))
	}
	return &inForce{f, state.Generation, state.Rules, state.Addresses}, nil
}

// makePolicy compiles a filter for an attachment, with the filter that is in force, nil for none.
func makePolicy(a datapath.Attachment, f *conf.Filter, before *inForce) (*datapath.Policy, error) {
	pod := policy.Pod{Addresses: a.Meta.Addresses, MAC: a.Meta.PodMAC}
	if before != nil {
		pod.Known = before.addresses
	}
	made, err := policy.Make(f, pod)
	if err != nil {
		return nil, fmt.Errorf("the filter for %s: %w", longLabel(a), err)
	}
	return made, nil
}

// goneError says in plain words that a pod went, if that is why err is there.
func (o *options) goneError(a datapath.Attachment, err error) error {
	if isGone(o.root(), a, err) {
		return fmt.Errorf("%s has just gone", labelOf(a))
	}
	return err
}

// longLabel names an attachment where its pod alone may have several.
func longLabel(a datapath.Attachment) string {
	return fmt.Sprintf("%s (%s)", labelOf(a), a.Meta.HostName)
}

// filterFile is the flag that names a file with a filter.
type filterFile struct{ name string }

func (f *filterFile) flag(cmd *cobra.Command, usage string) {
	cmd.Flags().StringVarP(&f.name, "file", "f", "", usage)
	_ = cmd.MarkFlagFilename("file", "json", "yaml", "yml")
}

// read returns the filter in the file, of standard input for "-", and what is odd about it.
func (f *filterFile) read(in io.Reader) (*conf.Filter, []conf.Warning, error) {
	var (
		text []byte
		err  error
	)
	name := f.name
	if name == "-" {
		name = "standard input"
		text, err = io.ReadAll(in)
	} else {
		text, err = os.ReadFile(name)
	}
	var path *fs.PathError
	switch {
	case errors.As(err, &path):
		return nil, nil, err // it names the file
	case err != nil:
		return nil, nil, fmt.Errorf("reading %s: %w", name, err)
	}
	parsed, warnings, err := parseFilter(text)
	if err != nil {
		return nil, nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return parsed, warnings, nil
}

// parseFilter reads a filter in JSON or YAML. What begins as a JSON object is read as it is, so that
// errors have its bytes.
func parseFilter(text []byte) (*conf.Filter, []conf.Warning, error) {
	if trimmed := bytes.TrimSpace(text); len(trimmed) > 0 && trimmed[0] != '{' {
		converted, err := yaml.YAMLToJSONStrict(text)
		if err != nil {
			return nil, nil, err
		}
		text = converted
	}
	return conf.ParseFilter(text)
}

// warn writes what is odd in a filter on stderr.
func (o *options) warn(warnings []conf.Warning) {
	for _, w := range warnings {
		fmt.Fprintf(o.err, "warning: %s\n", w)
	}
}

// flagWords lists the flags of a filter as "stateful, allowHost".
func flagWords(f *conf.Filter) string {
	var words []string
	for _, flag := range []struct {
		name string
		set  bool
	}{{"stateful", f.Stateful}, {"allowHost", f.AllowHost}, {"antiSpoof", f.AntiSpoof}} {
		if flag.set {
			words = append(words, flag.name)
		} else {
			words = append(words, "not "+flag.name)
		}
	}
	return strings.Join(words, ", ")
}

// mostShown is how many addresses or ports of a rule a table shows, unless it is wide.
const mostShown = 3

// listed writes a list, for people: "all" if it is empty, and no more than most of it unless that is 0.
func listed[V fmt.Stringer](values []V, all string, most int) string {
	if len(values) == 0 {
		return all
	}
	var words []string
	for i, v := range values {
		if most > 0 && i == most {
			words = append(words, fmt.Sprintf("(%d more)", len(values)-most))
			break
		}
		words = append(words, v.String())
	}
	return strings.Join(words, ",")
}

// remoteText writes the remote addresses of a rule.
func remoteText(r *conf.Rule, most int) string {
	remote := listed(r.Remote(), "any", most)
	if len(r.Except) > 0 {
		remote += " except " + listed(r.Except, "", most)
	}
	return remote
}

// portsText writes the ports of a rule, or the ICMP type.
func portsText(r *conf.Rule, most int) string {
	switch {
	case r.ICMP != nil:
		return "type " + icmpText(r.ICMP)
	case r.Protocol.HasPorts():
		return listed(r.Ports, "any", most)
	}
	return "-"
}

// icmpText writes an ICMP type as "8" or, with a code, "3/4".
func icmpText(i *conf.ICMP) string {
	if i.Code == nil {
		return fmt.Sprint(i.Type)
	}
	return fmt.Sprintf("%d/%d", i.Type, *i.Code)
}

// remoteKey is the key of a rule's remote addresses.
func remoteKey(d conf.Direction) string {
	if d == conf.Egress {
		return "to"
	}
	return "from"
}

// ruleText writes a rule as "egress deny to 10.0.0.0/8, tcp, ports 80,443".
func ruleText(r *conf.Rule, most int) string {
	text := fmt.Sprintf("%s %s %s %s, %s", r.Direction, r.Action, remoteKey(r.Direction), remoteText(r, most), protocolText(r.Protocol))
	switch {
	case r.ICMP != nil:
		text += " " + portsText(r, most)
	case len(r.Ports) > 0:
		text += ", ports " + portsText(r, most)
	}
	return text
}

// protocolText writes a protocol where a number alone would not be known for one.
func protocolText(p conf.Protocol) string {
	word := p.String()
	switch {
	case p == conf.ProtocolAny:
		return "any protocol"
	case word[0] >= '0' && word[0] <= '9':
		return "protocol " + word
	}
	return word
}
