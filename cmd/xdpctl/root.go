package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/internal/release"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// Exit statuses.
const (
	exitFailure = 1
	exitUsage   = 2
)

// streams are where a command reads and writes.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// options are the flags that every command has.
type options struct {
	streams
	bpffs  string
	format format
	exact  bool

	// The node, as the commands about filters and about redirect see it; tests have another.
	filters       func() filters
	redirects     func() redirects
	nodeAddresses func() ([]netip.Addr, error)
}

// run runs xdpctl and returns its exit status.
func run(ctx context.Context, s streams, args []string) int {
	return newOptions(s).run(ctx, args)
}

func newOptions(s streams) *options {
	o := &options{streams: s, format: formatTable, nodeAddresses: nodeAddresses}
	o.filters = func() filters { return o.datapath() }
	o.redirects = func() redirects { return o.datapath() }
	return o
}

func (o *options) run(ctx context.Context, args []string) int {
	s := o.streams
	root := newRootCommand(o)
	root.SetArgs(append([]string{}, args...)) // nil would be those of the process
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(s.err, "xdpctl: %v\n", err)
	var usage *usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(s.err, "Try '%s --help'.\n", cmd.CommandPath())
		return exitUsage
	}
	if os.Geteuid() != 0 && (errors.Is(err, fs.ErrPermission) || errors.Is(err, datapath.ErrPrivileges)) {
		fmt.Fprintln(s.err, "Reading the pins and maps of the node takes root: try again with sudo.")
	}
	return exitFailure
}

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// usageArgs makes errors of a check of arguments usage errors.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &usageError{err}
		}
		return nil
	}
}

const rootHelp = `xdpctl shows what the xdp CNI plugin counts and runs on this node, changes the filters of pods, and puts the
plugin on a node and takes it away.

All of it is in the pins under --bpffs. It is read without a lock and without disturbing the packet
path; there is no daemon to ask. That takes root.

Egress is what a pod sends, ingress what it receives. POD, where a command takes one, is any of
  namespace/name        of the pod, in Kubernetes; under podman the container's name
  a container ID        or the first characters of one
  a host interface      the host end of the pod's veth
  an address            of the pod, with or without its prefix length

Exit status: 0, 1 if something failed, 2 if the command line is wrong.`

func newRootCommand(o *options) *cobra.Command {
	root := &cobra.Command{
		Use:   "xdpctl",
		Short: "Show, check and filter what the xdp CNI plugin sees of pods",
		Long:  rootHelp,
		Example: `  xdpctl install
  xdpctl stats
  xdpctl stats kube-system/coredns-5d78c9869d-x7v2k --watch 2s
  xdpctl stats -o json | jq '.[] | {pod: .pod.name, dropped: .egress.drop.packets}'
  xdpctl filter show default/web
  xdpctl drops --follow
  xdpctl doctor`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			message := fmt.Sprintf("unknown command %q", args[0])
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				message += ", did you mean " + strings.Join(near, " or ") + "?"
			}
			return usagef("%s", message)
		},
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,

		SuggestionsMinimumDistance: 2,
	}
	root.SetIn(o.in)
	root.SetOut(o.out)
	root.SetErr(o.err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })

	flags := root.PersistentFlags()
	flags.StringVar(&o.bpffs, "bpffs", conf.DefaultBPFFS, "the `directory` of the pins, as \"bpffs\" in the plugin's configuration")
	flags.VarP(&o.format, "output", "o", "output `format`: "+strings.Join(formatNames(), ", "))
	flags.BoolVar(&o.exact, "bytes", false, "exact numbers in tables, instead of 1.2k and 3.4 MiB")
	// both flags are there, and have no completion yet
	_ = root.MarkPersistentFlagDirname("bpffs")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formatNames(), cobra.ShellCompDirectiveNoFileComp))

	root.AddCommand(newPodsCommand(o), newStatsCommand(o), newPeersCommand(o), newProgramsCommand(o),
		newFilterCommand(o), newDropsCommand(o), newEndpointsCommand(o), newTraceCommand(o), newIPAMCommand(o),
		newDoctorCommand(o), newGCCommand(o), newVersionCommand(o),
		newInstallCommand(o), newUpgradeCommand(o), newUninstallCommand(o), newAttachCommand(o), newDetachCommand(o))
	return root
}

// datapath is the way to the node's attachments.
func (o *options) datapath() *datapath.Datapath { return o.datapathAt(o.bpffs) }

// datapathAt is the way to attachments that are pinned elsewhere.
func (o *options) datapathAt(bpffs string) *datapath.Datapath {
	return datapath.New(datapath.Options{
		Root:    pins.NewRoot(bpffs),
		Version: release.Version(),
		Log:     slog.New(slog.NewTextHandler(o.err, &slog.HandlerOptions{Level: slog.LevelWarn})),
		// a pod that goes has its DEL from the runtime
		PodsGoOn: true,
	})
}

// lister knows the node's attachments.
type lister interface {
	List() ([]datapath.Attachment, error)
}

// attachments returns those of the pods named, or all if there is no name, in the order they are
// shown in. Attachments that cannot be read are left out and come as an error; what can be read is
// returned along with it.
func (o *options) attachments(d lister, names []string) ([]datapath.Attachment, error) {
	all, listErr := d.List()
	sortAttachments(all)
	if len(names) == 0 {
		return all, listErr
	}
	var (
		picked   []datapath.Attachment
		pickErrs error
	)
	for _, name := range names {
		of, err := pick(all, name)
		pickErrs = errors.Join(pickErrs, err)
		for _, a := range of {
			if !slices.ContainsFunc(picked, func(other datapath.Attachment) bool { return other.ID == a.ID }) {
				picked = append(picked, a)
			}
		}
	}
	return picked, errors.Join(pickErrs, listErr)
}

// noneNote says on stderr why a table is empty.
func (o *options) noneNote() {
	if o.format.isTable() {
		fmt.Fprintf(o.err, "There are no attachments under %s.\n", o.bpffs)
	}
}
