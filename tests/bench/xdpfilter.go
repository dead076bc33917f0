package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
)

// xdpFilter is the program of xdp-tools, attached to a pod's host end. Its pins are in a bpffs that only its own
// processes see, for as long as one of them runs.
type xdpFilter struct {
	cmd   *exec.Cmd
	stdin io.Closer
	out   strings.Builder
	// program is the name of what is attached: that of the filter itself, or of libxdp's dispatcher, if the kernel lets
	// it replace functions.
	program string
}

// xdpFilterLists is how many ports, and how many addresses, are denied.
const xdpFilterLists = 10

// xdpFilterScript loads it on $1 with the ports and addresses of the rest, says so, and waits.
const xdpFilterScript = `set -eu
mount -t bpf bpf /sys/fs/bpf
ifname=$1; shift
xdp-filter load --mode skb --policy allow --features udp,ipv4 "$ifname"
while [ $# -gt 0 ]; do
	xdp-filter port "$1" --proto udp --mode dst
	xdp-filter ip "$2" --mode dst
	shift 2
done
echo loaded
read -r _ || :
xdp-filter unload "$ifname"
`

// loadXDPFilter has xdp-filter deny, of what the pod sends, some ports and some addresses. It returns an error with what
// it said if it does not load here.
func loadXDPFilter(ctx context.Context, a *attached, denied []uint16) (x *xdpFilter, err error) {
	args := []string{"-c", xdpFilterScript, "sh", a.veth.HostName}
	for i, port := range denied {
		args = append(args, fmt.Sprint(port), fmt.Sprintf("192.0.2.%d", i+1))
	}
	x = &xdpFilter{cmd: exec.CommandContext(ctx, "sh", args...)}
	x.cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	x.cmd.Stderr = &x.out
	x.cmd.WaitDelay = time.Second
	if x.stdin, err = x.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := x.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := a.node.Start(x.cmd); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if lines.Text() == "loaded" {
			x.program, err = xdpProgramName(a.node, a.veth.HostIndex)
			if err != nil {
				err = errors.Join(err, x.close())
			}
			return x, err
		}
	}
	err = x.cmd.Wait()
	return nil, fmt.Errorf("%w: %s", err, strings.Join(strings.Fields(x.out.String()), " "))
}

// attached says how: libxdp puts programs into a dispatcher by freplace, which is not on all architectures and kernels.
func (x *xdpFilter) attached() string {
	if x.program == "xdp_dispatcher" {
		return "by libxdp's dispatcher"
	}
	return fmt.Sprintf("by itself (%s, without libxdp's dispatcher)", x.program)
}

// close detaches it.
func (x *xdpFilter) close() error {
	_ = x.stdin.Close()
	if err := x.cmd.Wait(); err != nil {
		return fmt.Errorf("xdp-filter: %w: %s", err, &x.out)
	}
	return nil
}

// xdpProgramName returns the name of the XDP program of an interface.
func xdpProgramName(node *tests.Node, index int) (string, error) {
	program, err := xdpProgram(node, index)
	if err != nil {
		return "", err
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return "", err
	}
	return info.Name, nil
}

// xdpProgram opens the XDP program of an interface.
func xdpProgram(node *tests.Node, index int) (program *ebpf.Program, err error) {
	err = node.Do(func() error {
		l, err := netlink.LinkByIndex(index)
		if err != nil {
			return err
		}
		xdp := l.Attrs().Xdp
		if xdp == nil || !xdp.Attached {
			return errors.New("no XDP program is attached")
		}
		program, err = ebpf.NewProgramFromID(ebpf.ProgramID(xdp.ProgId))
		return err
	})
	return program, err
}
