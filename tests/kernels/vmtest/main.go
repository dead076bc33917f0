// Command vmtest runs a program, such as a test binary, in a throw-away VM of a given kernel:
//
//	vmtest -kernel DIR PROGRAM ARGS...
//	go test -exec "vmtest -kernel DIR" ./...
//
// The VM's root is the host's, read-only, with an overlay in memory: the program finds its working directory, its
// environment and all tools as they are on the host, and changes nothing there. Its output and its exit code are those
// of vmtest. DIR is an unpacked Debian kernel package (tests/kernels/fetch.sh).
//
// The same static binary is the launcher and, as PID 1, the guest's init. It needs the standard library only, and on
// the host qemu-system-x86_64, virtiofsd, and xz, zstd and lz4 to unpack kernels. Without hardware for it QEMU emulates
// the processor in software, 10 to 20 times slower.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// failed is the exit code if the program could not be run, or its end is not known.
const failed = 125

func main() {
	if os.Getpid() == 1 {
		guest()
		return
	}
	var o options
	flag.StringVar(&o.kernel, "kernel", "", "directory of an unpacked kernel package")
	flag.StringVar(&o.cpus, "cpus", "2", "virtual CPUs")
	flag.StringVar(&o.memory, "memory", "2048", "MiB of memory")
	flag.BoolVar(&o.verbose, "v", false, "show the console and how long the boot took on standard error")
	timeout := flag.Duration("timeout", time.Hour, "how long the VM may run")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: vmtest -kernel DIR [flags] PROGRAM ARGS...")
		flag.PrintDefaults()
	}
	flag.Parse()
	if o.kernel == "" || flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	o.program = flag.Args()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeoutCause(ctx, *timeout, fmt.Errorf("it ran for %s", *timeout))
	code, err := run(ctx, o)
	if cause := context.Cause(ctx); cause != nil {
		err = errors.Join(cause, err)
	}
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmtest:", err)
		code = failed
	}
	os.Exit(code)
}
