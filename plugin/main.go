// Command xdp is a chained CNI plugin: it attaches XDP and tc programs to the host end of a
// container's veth on ADD, to count the pod's packets, and takes all of it down on DEL.
package main

import (
	"context"
	"log/slog"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/internal/release"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// waits is how many system calls of one verb wait for RCU grace periods at once, and some more.
const waits = 16

// memory is what a verb may use before garbage is collected, in bytes.
const memory = 64 << 20

func main() {
	// A goroutine in a system call keeps its processor until the Go runtime's monitor takes it away,
	// up to 10 ms later (sysmon() in runtime/proc.go): on few CPUs all others would wait with it.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), waits))
	// collecting garbage takes a part of the time of a process that ends in a moment
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(memory)
	// a runtime that is gone must not keep ADD from undoing what it did: the write fails instead
	signal.Ignore(syscall.SIGPIPE)
	about := "CNI plugin xdp " + release.Version() +
		": per-pod packet statistics by XDP, chained after a plugin that makes a veth"
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add:    verb("ADD", conf.Parse, add),
		Check:  verb("CHECK", conf.Parse, check),
		Del:    verb("DEL", conf.ParseLenient, del),
		GC:     verb("GC", conf.ParseLenient, gc),
		Status: verb("STATUS", conf.Parse, status),
	}, version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0"), about)
}

// call is one invocation of the plugin.
type call struct {
	*skel.CmdArgs
	conf     *conf.Config
	log      *slog.Logger
	datapath *datapath.Datapath
}

// verb adapts the handling of a CNI command to skel: it parses the configuration, opens the log
// and turns errors into CNI's.
func verb(name string, parse func([]byte) (*conf.Config, error), run func(context.Context, *call) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		config, confErr := parse(args.StdinData)
		if config == nil {
			return confErr
		}
		log, closeLog := openLog(config)
		defer closeLog()
		log = log.With("command", name, "network", config.Name)
		if args.ContainerID != "" {
			log = log.With("containerID", args.ContainerID, "ifname", args.IfName)
		}
		if confErr != nil {
			log.Warn("passing over parts of the configuration", "error", confErr)
		}
		c := &call{CmdArgs: args, conf: config, log: log, datapath: datapath.New(datapath.Options{
			Root: pins.NewRoot(config.BPFFS), Version: release.Version(), Log: log,
		})}
		if err := run(context.Background(), c); err != nil {
			return cniError(err)
		}
		log.Debug("done")
		return nil
	}
}
