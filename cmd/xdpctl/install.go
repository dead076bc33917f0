package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/internal/conflist"
	"github.com/xdp-cni/xdp-cni/internal/install"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/request"
)

// installReport is what install or uninstall did, or would do.
type installReport struct {
	DryRun bool             `json:"dryRun"`
	Files  []install.Change `json:"files"`
	Pods   []changedPod     `json:"pods"`
}

// changedPod is what became of an attachment.
type changedPod struct {
	attachment
	Result string `json:"result"`
	Error  string `json:"error"` // "" unless it failed
}

const installHelp = `Put the plugin on this node: copy xdp, xdp-ipam and xdpctl to the directory of CNI's plugins, and add
the xdp entry to the network configuration that the runtime uses, the first in lexical order. Without
any configuration, one with a bridge is written. Pods that start from then on are attached; xdpctl
attach --all attaches those that run.

Files are written whole and renamed: a runtime that reads or starts one at that moment gets the old or
the new one. The configuration as it was is kept, and xdpctl uninstall puts it back. What is there
already stays: it may be repeated, with other flags to change what they say of the entry.

--watch stays, and puts the entry back when the network's own installer writes its configuration anew,
or another comes to go before it. It waits for one if there is none, and for what is being written until
it is whole.

Pods that run with an earlier release's programs keep them, and new ones get them too, until xdpctl
upgrade, or --upgrade here.

It refuses a chain whose main plugin makes no veth (macvlan, ipvlan, host-device, ...), and a kernel
that cannot do it.`

// place are the flags that say where a node has its CNI.
type place struct {
	confDir, binDir, cacheDir string
}

func (p *place) confFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.confDir, "conf-dir", install.DefaultConfDir, "the runtime's `directory` of network configurations")
	_ = cmd.MarkFlagDirname("conf-dir") // it is there, and has no completion yet
}

func (p *place) binFlag(cmd *cobra.Command, usual, usage string) {
	cmd.Flags().StringVar(&p.binDir, "bin-dir", usual, usage)
	_ = cmd.MarkFlagDirname("bin-dir")
}

type installOptions struct {
	place
	from, file, mode, subnet string
	filter                   filterFile
	redirect, watch, dryRun  bool
	upgrade                  bool
}

func newInstallCommand(o *options) *cobra.Command {
	var f installOptions
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Put the plugin on this node, and into its network configuration",
		Long:  installHelp,
		Example: `  xdpctl install --dry-run
  xdpctl install --mode tcx --filter filter.yaml
  xdpctl install --watch`,
		Args: usageArgs(func(cmd *cobra.Command, args []string) error {
			switch {
			case f.watch && f.dryRun:
				return errors.New("--watch and --dry-run do not go together")
			case f.upgrade && f.watch:
				return errors.New("--upgrade and --watch do not go together")
			case f.upgrade && f.from != "":
				return errors.New("--upgrade and --from do not go together: this xdpctl's programs would be loaded, not those of --from")
			}
			return cobra.NoArgs(cmd, args)
		}),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			options, err := o.installOptions(cmd, &f)
			if err != nil {
				return err
			}
			if err := o.canAttach(&options.Settings); err != nil {
				return err
			}
			if err := o.install(cmd.Context(), options, f.watch); err != nil {
				return err
			}
			if f.upgrade {
				return o.upgrade(cmd.Context(), f.dryRun)
			}
			o.hintUpgrade(cmd.Context())
			return nil
		},
	}
	f.confFlag(cmd)
	f.binFlag(cmd, install.DefaultBinDir, "the runtime's `directory` of CNI plugins")
	flags := cmd.Flags()
	flags.StringVar(&f.from, "from", "", "the `directory` of the binaries to copy (default: where xdpctl is)")
	flags.StringVar(&f.file, "conf", "", "the `file` of --conf-dir to change (default: the first)")
	flags.StringVar(&f.mode, "mode", "", "the entry's `mode`: generic, native, tcx, auto (default: auto in a new entry)")
	flags.StringVar(&f.filter.name, "filter", "", "a `file` with the filter of all pods, - for standard input")
	flags.BoolVar(&f.redirect, "redirect", false, "packets between pods of the node go directly")
	flags.StringVar(&f.subnet, "subnet", "10.88.0.0/16", "`addresses` of pods, where a configuration has to be made")
	flags.BoolVar(&f.watch, "watch", false, "stay, and put the entry back when it is lost")
	flags.BoolVar(&f.upgrade, "upgrade", false, "then do what xdpctl upgrade does: pods that run get this release's programs")
	flags.BoolVar(&f.dryRun, "dry-run", false, "only show what would change")
	_ = cmd.MarkFlagDirname("from")
	_ = cmd.MarkFlagFilename("filter", "json", "yaml", "yml")
	_ = cmd.RegisterFlagCompletionFunc("mode",
		cobra.FixedCompletions([]string{"generic", "native", "tcx", "auto"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// installOptions reads the flags.
func (o *options) installOptions(cmd *cobra.Command, f *installOptions) (install.Options, error) {
	options := install.Options{
		ConfDir: f.confDir, BinDir: f.binDir, From: f.from, File: f.file, DryRun: f.dryRun,
		Log: slog.New(slog.NewTextHandler(o.err, nil)),
	}
	if f.file != "" && f.file != filepath.Base(f.file) {
		return options, usagef("--conf is %q, and has to be the name of a file in --conf-dir", f.file)
	}
	switch conf.Mode(f.mode) {
	case "", conf.ModeGeneric, conf.ModeNative, conf.ModeTCX, conf.ModeAuto:
		options.Settings.Mode = conf.Mode(f.mode)
	default:
		return options, usagef("--mode is %q, and has to be generic, native, tcx or auto", f.mode)
	}
	if f.from == "" {
		self, err := os.Executable()
		if err != nil {
			return options, fmt.Errorf("looking for the binaries: %w", err)
		}
		options.From = filepath.Dir(self)
	}
	if cmd.Flags().Changed("redirect") {
		options.Settings.Redirect = &f.redirect
	}
	if o.bpffs != conf.DefaultBPFFS {
		options.Settings.BPFFS = o.bpffs
	}
	if f.filter.name != "" {
		filter, warnings, err := f.filter.read(o.in)
		if err != nil {
			return options, err
		}
		o.warn(warnings)
		options.Settings.Filter = filter
	}
	if f.watch {
		return options, nil // the network's own installer may be on its way
	}
	subnet, err := netip.ParsePrefix(f.subnet)
	if err != nil {
		return options, usagef("--subnet is %q, and has to be addresses such as 10.88.0.0/16", f.subnet)
	}
	options.Subnet = subnet
	return options, nil
}

// canAttach returns an error if the plugin could not work here: no pod would start any more. Where the
// privileges to find out are missing, as in a container that only writes files, it says so.
func (o *options) canAttach(s *conflist.Settings) error {
	if err := datapath.CheckPrivileges(); err != nil {
		fmt.Fprintf(o.err, "Whether the kernel can do it is not checked: %v\n", err)
		return nil
	}
	d := o.datapath()
	c := &conf.Config{Mode: s.Mode}
	if s.Mode == "" {
		c.Mode = conf.ModeAuto
	}
	mode, err := request.Mode(d, c)
	if err == nil {
		err = d.Ready(datapath.ReadyOptions{Mode: mode, Redirect: s.Redirect != nil && *s.Redirect})
	}
	if errors.Is(err, datapath.ErrFull) {
		return nil // pods end
	}
	if err != nil {
		return fmt.Errorf("not installing, as no pod would start: %w", err)
	}
	return nil
}

// install copies the binaries first: the entry must not name what is not there. It copies none for a chain
// that cannot have it.
func (o *options) install(ctx context.Context, options install.Options, watch bool) error {
	if !watch {
		try := options
		try.DryRun = true
		if _, err := try.Configure(ctx); err != nil {
			return err
		}
	}
	copied, err := options.CopyBinaries()
	if err != nil {
		return err
	}
	first := true
	report := func(changes []install.Change) error {
		r := &installReport{DryRun: options.DryRun, Files: changes, Pods: []changedPod{}}
		defer func() { first = false }()
		if watch {
			return o.writeNext(r, first, false, func(style) string { return installText(r) })
		}
		return o.write(r, func(style) string { return installText(r) })
	}
	if watch {
		if err := report(copied); err != nil {
			return err
		}
		options.Looked = func() {
			// only under systemd, which then starts what is to come after us
			if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
				options.Log.Warn("telling systemd that the entry is there", "error", err)
			}
		}
		return options.Watch(ctx, report)
	}
	configured, err := options.Configure(ctx)
	if err := errors.Join(report(append(copied, configured...)), err); err != nil {
		return err
	}
	if o.format.isTable() && !options.DryRun {
		fmt.Fprintln(o.err, "Pods that start from now on are attached. For those that run: xdpctl attach --all")
	}
	return nil
}

// hintUpgrade says that pods run with another release's programs, where that is so and can be seen.
func (o *options) hintUpgrade(ctx context.Context) {
	if !o.format.isTable() || datapath.CheckPrivileges() != nil {
		return
	}
	u, err := o.datapath().Upgrade(ctx, datapath.UpgradeOptions{DryRun: true})
	switch {
	case errors.Is(err, datapath.ErrLayout):
		fmt.Fprintf(o.err, "Pods do not start before those that run are gone, or the release before is back: %v\n", err)
	case err == nil && u.Needed():
		fmt.Fprintf(o.err, "Pods run with the programs of %s, and so will new ones: xdpctl upgrade replaces them, without losing a packet.\n", u.From)
	}
}

// installText writes files and pods with what became of them; with a dry run the differences, too.
func installText(r *installReport) string {
	var diffs strings.Builder
	files := table{columns: text("FILE", "RESULT")}
	for _, f := range r.Files {
		files.add(f.Path, string(f.Result))
		if r.DryRun && f.Diff != "" {
			diffs.WriteString("\n" + f.Diff)
		}
	}
	var parts []string
	if len(r.Files) > 0 {
		parts = append(parts, files.String())
	}
	if len(r.Pods) > 0 {
		parts = append(parts, changedPodsText(r.Pods))
	}
	return strings.Join(parts, "\n") + diffs.String()
}

func changedPodsText(pods []changedPod) string {
	t := table{columns: text("POD", "IFNAME", "HOST END", "MODE", "RESULT")}
	for i := range pods {
		p := &pods[i]
		t.add(p.label(), p.IfName, p.HostInterface.Name, p.Mode, p.Result)
	}
	return t.String()
}

// entryOf returns the entry of a chain as the plugin would read it.
func entryOf(list *conflist.List) (*conf.Config, error) {
	config, err := conf.Parse(list.Entry())
	if err != nil {
		return nil, fmt.Errorf("reading the entry of network %s: %w", list.Name, err)
	}
	return config, nil
}

// chainsByName returns the chains that have the entry, by the names of their networks. Of two of one name
// the runtime takes the first.
func chainsByName(confDir string) (map[string]*conflist.List, error) {
	lists, err := install.Chains(confDir)
	if err != nil {
		return nil, err
	}
	chains := map[string]*conflist.List{}
	for _, list := range lists {
		if chains[list.Name] == nil {
			chains[list.Name] = list
		}
	}
	return chains, nil
}
