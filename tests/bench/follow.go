package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// followEnv set to a directory of pins makes the program follow the drops of that node, a line for each, until its input
// ends, and print how many there were. It is a process of its own, so that what it costs can be told apart.
const followEnv = "XDP_CNI_BENCH_FOLLOW"

// reportDrops is that program.
func reportDrops(ctx context.Context, root string) error {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	events := 0
	d := datapath.New(datapath.Options{Root: pins.NewRoot(root)})
	err := d.FollowDrops(ctx, func(e datapath.DropEvent) error {
		events++
		fmt.Fprintf(io.Discard, "%s %d %d %s %s %d\n", e.Time, e.HostIndex, e.Direction, e.Source, e.Destination, e.Rule)
		return nil
	})
	fmt.Println(events)
	return err
}

// follower is somebody who follows a node's drops.
type follower struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	stdout *bufio.Reader
	errors strings.Builder
	events int // that it was told of in all, once it has been stopped
}

func startFollower(ctx context.Context, g *gateway) (*follower, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	f := &follower{cmd: exec.CommandContext(ctx, self)}
	f.cmd.Env = append(os.Environ(), followEnv+"="+g.node.BPFFS)
	f.cmd.Stderr = &f.errors
	if f.stdin, err = f.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := f.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	f.stdout = bufio.NewReader(stdout)
	return f, g.node.Start(f.cmd)
}

// time is the processor time that it has taken.
func (f *follower) time() (time.Duration, error) {
	var t unix.Timespec
	// CPUCLOCK_SCHED of a process (include/linux/posix-timers_types.h), which is what clock_getcpuclockid(3) returns
	if err := unix.ClockGettime(int32(^f.cmd.Process.Pid)<<3|2, &t); err != nil {
		return 0, fmt.Errorf("time of the process that follows drops: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

// stop ends it. It may be called again.
func (f *follower) stop() error {
	if f.cmd.ProcessState != nil {
		return nil
	}
	_ = f.stdin.Close()
	line, _ := f.stdout.ReadString('\n')
	if err := f.cmd.Wait(); err != nil {
		return fmt.Errorf("following drops: %w: %s", err, &f.errors)
	}
	var err error
	f.events, err = strconv.Atoi(strings.TrimSpace(line))
	return err
}
