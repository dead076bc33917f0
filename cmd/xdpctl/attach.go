package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/internal/cnicache"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	addresses "github.com/xdp-cni/xdp-cni/plugin/attachment"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/request"
)

// What became of an attachment that was to be made or taken down; see also those of filter apply.
const (
	resultAttached = "attached"
	resultDetached = "detached"
)

// attachReport is what attach or detach did, or would do.
type attachReport struct {
	DryRun bool         `json:"dryRun"`
	Pods   []changedPod `json:"pods"`
}

const attachHelp = `Attach pods that were running already when the plugin came, as their ADD would have: with what the xdp
entry of their network says now. Those that are attached stay as they are.

They are found in what libcni notes of the pods that runtimes make through it (--cache-dir): a pod of a
runtime that has no such notes cannot be attached while it runs. Where such a runtime takes the chain
of a pod's DEL from there (CRI-O, podman), the entry is noted, so that the DEL comes to the plugin.

No packet is lost by it, but where the kernel has no tcx (below 6.6) a few that come to the pod just then.
With a filter, flows that the pod has are judged by its rules like new ones.`

func newAttachCommand(o *options) *cobra.Command {
	var (
		at          place
		all, dryRun bool
	)
	cmd := &cobra.Command{
		Use:   "attach (POD... | --all)",
		Short: "Attach pods that were running before the plugin came",
		Long:  attachHelp,
		Example: `  xdpctl attach --all --dry-run
  xdpctl attach default/web`,
		Args:                  podsOrAll(&all),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			a := &attaching{o: o, place: at, dryRun: dryRun}
			err := a.find()
			if err == nil {
				err = a.choose(args)
			}
			if err != nil {
				return err
			}
			report := &attachReport{DryRun: dryRun, Pods: a.attachAll(cmd.Context())}
			for i := range a.chosen {
				err = errors.Join(err, a.chosen[i].err)
			}
			if len(report.Pods) == 0 && o.format.isTable() {
				fmt.Fprintf(o.err, "No pods run of a network that has the entry, by what is noted in %s.\n", at.cacheDir)
			}
			return errors.Join(o.write(report, func(style) string { return attachText(report) }), err)
		},
	}
	at.confFlag(cmd)
	at.cacheFlag(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "every pod of a network that has the entry")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would be attached")
	return cmd
}

func (p *place) cacheFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.cacheDir, "cache-dir", cnicache.DefaultDir, "the `directory` of libcni's notes")
	_ = cmd.MarkFlagDirname("cache-dir") // it is there, and has no completion yet
}

// podsOrAll checks the arguments of a command that takes PODs, or --all.
func podsOrAll(all *bool) cobra.PositionalArgs {
	return usageArgs(func(_ *cobra.Command, args []string) error {
		switch {
		case *all && len(args) > 0:
			return fmt.Errorf("takes no POD with --all, got %s", strings.Join(args, " "))
		case !*all && len(args) == 0:
			return errors.New("takes a POD or more, or --all")
		}
		return nil
	})
}

func attachText(report *attachReport) string {
	if len(report.Pods) == 0 {
		return ""
	}
	return changedPodsText(report.Pods)
}

// attaching is one run of attach.
type attaching struct {
	o      *options
	place  place
	dryRun bool

	running []runningPod
	chosen  []runningPod
}

// runningPod is a pod that may be attached.
type runningPod struct {
	noted    cnicache.Attachment
	request  request.Request
	entry    json.RawMessage
	datapath *datapath.Datapath
	known    datapath.Attachment // as far as it is known before it is made
	attached bool
	err      error
}

// find looks for the pods that run of networks that have the entry.
func (a *attaching) find() error {
	chains, err := chainsByName(a.place.confDir)
	if err != nil {
		return err
	}
	if len(chains) == 0 {
		return fmt.Errorf("no network configuration in %s has the entry: see xdpctl install", a.place.confDir)
	}
	noted, err := cnicache.Read(a.place.cacheDir)
	if err != nil {
		return err
	}
	there := map[string]map[string]datapath.Attachment{} // by root and ID
	for _, n := range noted {
		list := chains[n.Network]
		if list == nil || !n.Alive() {
			continue
		}
		p := runningPod{noted: n, entry: list.Entry()}
		stdin, err := n.Stdin(list)
		if err != nil {
			return err
		}
		config, err := conf.Parse(stdin)
		if err != nil {
			return fmt.Errorf("reading the configuration of container %s, interface %s: %w", n.ContainerID, n.IfName, err)
		}
		p.request = request.Request{
			ContainerID: n.ContainerID, IfName: n.IfName, Netns: n.Netns, Args: n.Args, Conf: config, Running: true,
		}
		p.datapath = a.o.datapathAt(config.BPFFS)
		if there[config.BPFFS] == nil {
			there[config.BPFFS] = map[string]datapath.Attachment{}
			attachments, err := p.datapath.List()
			if err != nil {
				return err
			}
			for _, at := range attachments {
				there[config.BPFFS][at.ID] = at
			}
		}
		id := pins.ID(n.ContainerID, n.IfName)
		if at, ok := there[config.BPFFS][id]; ok && p.datapath.Verify(at) == nil {
			p.known, p.attached = at, true
		} else {
			p.known = datapath.Attachment{ID: id, Meta: p.meta()}
		}
		a.running = append(a.running, p)
	}
	return nil
}

// meta returns what can be known of an attachment without asking much of the kernel.
func (p *runningPod) meta() *datapath.Meta {
	m := &datapath.Meta{
		ContainerID: p.noted.ContainerID, IfName: p.noted.IfName, Netns: p.noted.Netns, Network: p.noted.Network,
	}
	if args, err := conf.ParsePodArgs(p.noted.Args); err == nil {
		m.PodNamespace, m.PodName, m.PodUID = args.Namespace, args.Name, args.UID
	}
	// what is wrong with these is told by attaching
	if veth, err := addresses.Find(p.noted.Netns, p.noted.IfName); err == nil {
		m.HostName, m.HostIndex, m.PodIndex, m.PodMAC = veth.HostName, veth.HostIndex, veth.PodIndex, veth.PodMAC
	}
	if result, err := p.request.Conf.Result(); err == nil {
		for _, address := range addresses.Addresses(result, p.noted.Netns, p.noted.IfName) {
			if ip, ok := netip.AddrFromSlice(address.IP); ok {
				bits, _ := address.Mask.Size()
				m.Addresses = append(m.Addresses, netip.PrefixFrom(ip.Unmap(), bits))
			}
		}
	}
	m.Mode, _ = request.Mode(p.datapath, p.request.Conf)
	return m
}

// choose picks those that are named, or all. Nothing is attached if a name is wrong.
func (a *attaching) choose(names []string) error {
	all := make([]datapath.Attachment, len(a.running))
	byID := map[string]runningPod{}
	for i, p := range a.running {
		all[i] = p.known
		byID[p.known.ID] = p
	}
	sortAttachments(all)
	picked := all
	if len(names) > 0 {
		picked = nil
		var errs error
		seen := map[string]bool{}
		for _, name := range names {
			of, err := pick(all, name)
			errs = errors.Join(errs, err)
			for _, at := range of {
				if !seen[at.ID] {
					seen[at.ID] = true
					picked = append(picked, at)
				}
			}
		}
		if errs != nil {
			return errs
		}
	}
	for _, at := range picked {
		a.chosen = append(a.chosen, byID[at.ID])
	}
	return nil
}

// attachAll attaches what was chosen, and tells of each, in order. Most of it is waiting for the kernel.
func (a *attaching) attachAll(ctx context.Context) []changedPod {
	return each(len(a.chosen), func(i int) changedPod {
		p := &a.chosen[i]
		result := a.attach(ctx, p)
		changed := changedPod{attachment: newAttachment(p.known.Meta), Result: result}
		if p.err != nil {
			p.err = fmt.Errorf("attaching %s: %w", longLabel(p.known), p.err)
			changed.Result, changed.Error = resultFailed, p.err.Error()
		}
		return changed
	})
}

// attach attaches a pod, and returns what became of it unless it sets the pod's error.
func (a *attaching) attach(ctx context.Context, p *runningPod) string {
	if p.attached {
		return resultUnchanged
	}
	var opts datapath.AttachOptions
	opts, p.err = p.request.Options(p.datapath)
	if p.err != nil {
		return ""
	}
	if a.dryRun {
		return resultPending
	}
	if p.err = ctx.Err(); p.err != nil { // interrupted
		return ""
	}
	if p.err = p.datapath.Attach(ctx, opts); p.err != nil {
		return ""
	}
	// A DEL that came before could not know of it. One that comes now finds it, or the interface goes and
	// it is stale.
	if p.err = p.noted.SetEntry(p.entry); p.err == nil && !p.noted.Alive() {
		p.err = errors.Join(errors.New("the pod has just gone"), p.datapath.Detach(ctx, p.noted.ContainerID, p.noted.IfName))
	}
	return resultAttached
}

// each calls do for the numbers up to n, several at a time, and returns what it returned, in order.
func each[T any](n int, do func(int) T) []T {
	results := make([]T, n)
	var (
		workers sync.WaitGroup
		next    atomic.Int64
	)
	for range min(applyAtOnce, n) {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				results[i] = do(int(i))
			}
		})
	}
	workers.Wait()
	return results
}
