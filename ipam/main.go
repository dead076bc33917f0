// Command xdp-ipam is a CNI IPAM plugin that takes host-local's configuration. It keeps leases in
// pinned BPF maps: they last as long as pods can, and an ADD takes no longer with 50,000 of them
// than with ten.
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/internal/release"
	"github.com/xdp-cni/xdp-cni/ipam/config"
	"github.com/xdp-cni/xdp-cni/ipam/leases"
	"github.com/xdp-cni/xdp-cni/ipam/survey"
)

func main() {
	about := "CNI IPAM plugin xdp-ipam " + release.Version() + ": host-local's configuration, leases in BPF maps"
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add:    verb(strict, add),
		Check:  verb(strict, check),
		Del:    verb(lenient, del),
		GC:     verb(lenient, gc),
		Status: verb(strict, status),
	}, version.All, about)
}

// call is one invocation of the plugin.
type call struct {
	*skel.CmdArgs
	conf *config.Config
	log  *slog.Logger
}

func strict(args *skel.CmdArgs) (*config.Config, error) {
	return config.Parse(args.StdinData, args.Args)
}

func lenient(args *skel.CmdArgs) (*config.Config, error) { return config.ParseLenient(args.StdinData) }

// verb adapts the handling of a CNI command to skel.
func verb(parse func(*skel.CmdArgs) (*config.Config, error), run func(context.Context, *call) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		c, err := parse(args)
		if err != nil {
			return err
		}
		// standard output is the runtime's
		log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
		log = log.With("plugin", "xdp-ipam", "network", c.Name)
		if err := run(context.Background(), &call{args, c, log}); err != nil {
			return cniError(err)
		}
		return nil
	}
}

func (c *call) root() pins.Root { return pins.NewRoot(c.conf.BPFFS) }

func (c *call) owner() leases.Owner {
	return leases.Owner{ContainerID: c.ContainerID, IfName: c.IfName}
}

// options are for a survey that leaves out the network namespace at except.
func (c *call) options(except string) leases.Options {
	root, network := c.root(), c.conf.Name
	return leases.Options{
		Root: root, Network: network, Log: c.log, Entries: leases.EntriesFor(c.conf.Sets),
		Survey: func() (leases.Survey, error) { return survey.Do(root, network, except) },
	}
}
