package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/internal/cnicache"
	"github.com/xdp-cni/xdp-cni/internal/install"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

const uninstallHelp = `Take the plugin off this node: the xdp entry out of its network configurations, the attachments of the
pods that run, the pins, and the binaries.

A configuration that nobody changed since xdpctl install is as it was before, to the byte; from others
only the entry is taken. Pods go on running, and no packet of theirs is lost. Where runtimes take the
chain of a pod's DEL from libcni's notes (--cache-dir), the entry is taken out of them too.

While xdpctl install --watch runs on the node it refuses: that would put the entry back.

--keep-running leaves the pods that run attached, with what that needs: pins and binaries. Do it again
without, or xdpctl gc, when they have gone.

What is not ours stays. xdp-ipam and its leases stay as long as a network configuration uses it.`

type uninstallOptions struct {
	place
	keepRunning, stay, dryRun bool
}

func newUninstallCommand(o *options) *cobra.Command {
	var f uninstallOptions
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take the plugin off this node",
		Long:  uninstallHelp,
		Example: `  xdpctl uninstall --dry-run
  xdpctl uninstall --keep-running`,
		Args:              usageArgs(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			u := &uninstalling{o: o, uninstallOptions: f}
			report := &installReport{DryRun: f.dryRun, Files: []install.Change{}, Pods: []changedPod{}}
			err := u.run(cmd.Context(), report)
			if err == nil && len(report.Files) == 0 && len(report.Pods) == 0 && o.format.isTable() {
				fmt.Fprintln(o.err, "There is nothing of it on this node.")
			}
			err = errors.Join(o.write(report, func(style) string { return installText(report) }), err)
			if err == nil && f.stay {
				<-cmd.Context().Done()
			}
			return err
		},
	}
	f.confFlag(cmd)
	f.binFlag(cmd, "", "the runtime's `directory` of CNI plugins (default: where they were installed)")
	f.cacheFlag(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&f.keepRunning, "keep-running", false, "leave the pods that run attached")
	flags.BoolVar(&f.stay, "stay", false, "stay when it is done, until told to end: for a container that would be started again")
	flags.BoolVar(&f.dryRun, "dry-run", false, "only show what would change")
	return cmd
}

// uninstalling is one run of uninstall.
type uninstalling struct {
	o *options
	uninstallOptions
	files install.Options
	roots []string // bpffs of all the chains
}

// run goes from what makes attachments to what they need, so that nothing is left without what takes it
// down; it ends at the first step that fails.
func (u *uninstalling) run(ctx context.Context, report *installReport) error {
	installed, err := install.Installed(u.confDir)
	if err != nil {
		return err
	}
	u.files = install.Options{
		ConfDir: u.confDir, BinDir: cmp.Or(u.binDir, installed, install.DefaultBinDir), DryRun: u.dryRun,
	}
	u.findRoots()
	changes, err := u.files.Unconfigure(ctx)
	report.Files = append(report.Files, changes...)
	if err != nil || u.keepRunning {
		return err
	}
	if err := u.detachAll(ctx, report); err != nil {
		return err
	}
	if err := u.forget(); err != nil {
		return err
	}
	ipam, err := u.files.IPAMInUse()
	if err != nil {
		return err
	}
	var keep []string
	if ipam {
		keep = append(keep, "xdp-ipam")
	}
	changes, err = u.files.RemoveBinaries(keep...)
	report.Files = append(report.Files, changes...)
	if err != nil || u.dryRun {
		return err
	}
	// an ADD that was under way has made its attachment by now, or finds nothing to run
	if err := u.detachAll(ctx, report); err != nil {
		return err
	}
	if err := u.forget(); err != nil || ipam {
		return err
	}
	for _, root := range u.roots {
		err = errors.Join(err, removeLeases(ctx, pins.NewRoot(root)))
	}
	return err
}

// findRoots: a chain may have its own; one that cannot be read has no attachments that another would not
// have.
func (u *uninstalling) findRoots() {
	u.roots = []string{u.o.bpffs}
	seen := map[string]bool{u.o.bpffs: true}
	lists, _ := install.Chains(u.confDir) // Unconfigure tells what is wrong with them
	for _, list := range lists {
		if entry, err := entryOf(list); err == nil && !seen[entry.BPFFS] {
			seen[entry.BPFFS] = true
			u.roots = append(u.roots, entry.BPFFS)
		}
	}
}

// detachAll takes down every attachment, and what killed processes left.
func (u *uninstalling) detachAll(ctx context.Context, report *installReport) error {
	var errs error
	for _, root := range u.roots {
		d := u.o.datapathAt(root)
		list, err := d.List()
		sortAttachments(list)
		pods, detachErr := detach(ctx, d, list, u.dryRun)
		report.Pods = append(report.Pods, pods...)
		errs = errors.Join(errs, err, detachErr)
		if !u.dryRun {
			_, err := d.Collect(ctx, datapath.CollectOptions{})
			errs = errors.Join(errs, err)
		}
	}
	return errs
}

// forget, before the binaries go and again when no ADD can have noted one since, takes the entry out of the chains from which runtimes take DELs.
func (u *uninstalling) forget() error {
	if u.dryRun {
		return nil
	}
	noted, err := cnicache.Read(u.cacheDir)
	for _, n := range noted {
		if n.HasEntry() {
			err = errors.Join(err, n.SetEntry(nil))
		}
	}
	return err
}

// removeLeases removes the pins of xdp-ipam, and the directories that are empty then.
func removeLeases(ctx context.Context, root pins.Root) error {
	dirs, err := root.LeaseDirs()
	if err != nil || len(dirs) == 0 {
		return err
	}
	lock, err := root.Lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	for _, dir := range dirs {
		err = errors.Join(err, pins.RemoveAll(dir))
	}
	// what is not empty, or in use, refuses
	_ = os.Remove(filepath.Dir(dirs[0]))
	root.Prune()
	return err
}
