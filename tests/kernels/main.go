// Command kernels runs the tests that need root on other kernels than this machine's, each package in a VM of its own,
// and prints what each kernel has and how the plugin does with it:
//
//	tests/kernels/fetch.sh DIR
//	go run ./tests/kernels -dir DIR [-only "5.10 newest"] [-short] [-v] [-run REGEXP] [PACKAGE[=REGEXP]...]
//
// `make test-kernels` runs both. VMs run one after the other: two would be in each other's way where the processor is
// emulated in software.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
)

// packages are those whose tests need root.
var packages = []string{
	"tests/integration", "plugin/datapath", "plugin/podend", "plugin/bigtcp", "plugin/policy", "plugin/programs", "plugin", "bpf",
	"bpf/samples", "cmd/xdpctl", "ipam/leases", "internal/firewall", "internal/prefixset", "internal/btfdump", "tests",
}

// short is what -short runs of them: what meets the kernel most, by each way that a packet or a verb may go, and does not
// take long in software. None of it is left out for want of anything on any kernel.
var short = map[string][]string{
	"tests/integration": {
		"^TestPaths$", "^TestExactCounts$/^(generic_bridge|native_ptp|tcx_ptp)$", "^TestRedirect$/^ptp_",
		"^TestFilterThroughChain$/^(generic|native|tcx)$", "^TestLeasesOfPods$/^bridge_1.1.0$",
		"^(TestProgramsOrder|TestSampleEcho)$/^(generic|native)$",
	},
	"plugin/datapath": {
		"^(TestAttachIsWhole|TestCheckClsact|TestNativeLimits|TestForeignXDPStays|TestForeignFilterStays|TestIngressQdisc|TestMemlock)$",
		"^(TestPolicyBeforeHook|TestReplacePolicy|TestMixedNode|TestShapes)$",
		"^TestUserPrograms$/^(generic|native)$",
	},
	"plugin/podend":   {"^"},
	"plugin/programs": {"^(TestLoad|TestTutorial)$"},
	"bpf": {
		"^(TestVerifier|TestObjects|TestEthernet|TestIPv4|TestIPv6|TestTransport|TestPrograms)$",
		"^(TestRuleCounters|TestDropEvents|TestRedirectBegins|TestRedirectTargetFilter|TestRedirectTranslated)$",
	},
	"bpf/samples":      {"^(TestLoad|TestObjects|TestVLAN.*|TestEcho|TestPortsChecksums|TestSources|TestSwitch)$"},
	"cmd/xdpctl":       {"^TestInstall$"},
	"ipam/leases":      {"^(TestAllocate|TestCollect|TestGrows|TestLostPins)$"},
	"internal/btfdump": {"^TestMaps$"},
}

type options struct {
	dir, logs string
	only      []string
	run       string
	short     bool
	verbose   bool
	timeout   time.Duration
	packages  []string
}

func main() {
	var o options
	var only string
	flag.StringVar(&o.dir, "dir", "/var/cache/kernels", "where fetch.sh put the kernels")
	flag.StringVar(&o.logs, "logs", "bin/kernels", "where all output of the tests goes, a file for each kernel and package")
	flag.StringVar(&only, "only", "", "kernels to run on, with spaces between; all that are there if empty")
	flag.StringVar(&o.run, "run", "", "tests to run, as with go test; PACKAGE=REGEXP says it for one, which may come in parts")
	flag.BoolVar(&o.verbose, "v", false, "print how each test ended, as go test -v does, with the kernel before its name")
	flag.BoolVar(&o.short, "short", false, "run a part of the tests, chosen for continuous integration")
	// what go test allows a package is 10 minutes
	flag.DurationVar(&o.timeout, "timeout", 100*time.Minute, "how long the tests of a package may take on a kernel")
	flag.Parse()
	o.only = strings.Fields(only)
	o.packages = flag.Args()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	kernels, err := find(o.dir, o.only)
	if err != nil {
		return err
	}
	jobs, err := o.jobs()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "xdp-cni-kernels-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.logs, err = filepath.Abs(o.logs); err != nil {
		return err
	}
	if err := os.MkdirAll(o.logs, 0o755); err != nil {
		return err
	}
	binaries, err := tests.Build(ctx)
	if err != nil {
		return err
	}
	if _, err := tests.BuildNext(ctx); err != nil {
		return err
	}
	suite := suite{options: o, vmtest: filepath.Join(dir, "vmtest"), binaries: binaries.Dir}
	if err := goTool(ctx, "build", "-o", suite.vmtest, "./tests/kernels/vmtest"); err != nil {
		return err
	}
	for i := range jobs {
		jobs[i].binary = filepath.Join(dir, jobs[i].base+".test")
		if err := goTool(ctx, "test", "-c", "-o", jobs[i].binary, "./"+jobs[i].pkg); err != nil {
			return err
		}
	}
	failed := 0
	for i := range kernels {
		for _, j := range jobs {
			ok, err := suite.runJob(ctx, &kernels[i], j)
			if err != nil {
				return err
			}
			if !ok {
				failed++
			}
		}
	}
	printTable(os.Stdout, kernels)
	if failed > 0 {
		return fmt.Errorf("%d packages failed; all they wrote is in %s", failed, o.logs)
	}
	return nil
}

// job is the tests of a package, or a part of them.
type job struct {
	pkg, run, binary string
	base             string // what files of it are called
}

func (o options) jobs() (jobs []job, err error) {
	names := o.packages
	if len(names) == 0 {
		names = packages
	}
	parts := map[string]int{}
	for _, name := range names {
		pkg, run, ok := strings.Cut(name, "=")
		if !ok {
			run = o.run
		}
		j := job{pkg: strings.TrimPrefix(filepath.Clean(pkg), "./"), run: run}
		if o.short && j.run == "" {
			part, ok := short[j.pkg]
			if !ok {
				continue
			}
			j.run = strings.Join(part, "|")
		}
		j.base = strings.ReplaceAll(j.pkg, "/", "_")
		if parts[j.pkg]++; parts[j.pkg] > 1 {
			j.base += fmt.Sprintf("-%d", parts[j.pkg])
		}
		jobs = append(jobs, j)
	}
	if len(jobs) == 0 {
		return nil, fmt.Errorf("-short runs nothing of %s", strings.Join(o.packages, ", "))
	}
	return jobs, nil
}
