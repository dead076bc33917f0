// Package podend reaches the pod's end of a veth in its network namespace, and makes it fit for native
// redirect of XDP frames.
package podend

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

var (
	// ErrGone: the pod end is not there any more.
	ErrGone = errors.New("the pod's end is gone")
	// ErrNotPrepared: the pod end is not fit for native redirect.
	ErrNotPrepared = errors.New("the pod's end is not prepared for native redirect")
)

// Options say which veth it is.
type Options struct {
	// Netns is the path of the pod's network namespace.
	Netns string
	// IfName is the pod end's name when it was attached to; it may have another one now.
	IfName string
	// PodIndex and HostIndex are the interface indexes of both ends, each in its own network namespace.
	PodIndex, HostIndex int
}

// End is the pod's end of a veth. It holds the network namespace open. It is for one goroutine at a time.
type End struct {
	Options
	space  ns.NetNS
	handle *netlink.Handle
	// groPolls: with GRO on the driver polls (NAPI), as veth_xdp_xmit() needs it
	groPolls bool
}

// Open reaches the pod end. The host end must be in the caller's network namespace. ErrGone: the network namespace or
// the interface is not there, or it is not that veth's end: a path may lead to another namespace by now.
func Open(opts Options) (_ *End, err error) {
	e := &End{Options: opts}
	if e.groPolls, err = GROPolls(); err != nil {
		return nil, err
	}
	if e.space, err = ns.GetNS(opts.Netns); err != nil {
		var (
			missing ns.NSPathNotExistErr
			other   ns.NSPathNotNSErr // such as the file that a namespace was mounted on
		)
		if errors.As(err, &missing) || errors.As(err, &other) || errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: no network namespace at %q", ErrGone, opts.Netns)
		}
		return nil, fmt.Errorf("opening network namespace %s: %w", opts.Netns, err)
	}
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	e.handle, err = netlink.NewHandleAt(netns.NsHandle(e.space.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening netlink in %s: %w", opts.Netns, err)
	}
	pod, err := e.Link()
	if err != nil {
		return nil, err
	}
	id, err := e.callersID()
	if err != nil {
		return nil, err
	}
	if pod.Attrs().NetNsID != id {
		return nil, fmt.Errorf("%w: the peer of %s in %s is interface %d of another network namespace",
			ErrGone, pod.Attrs().Name, opts.Netns, opts.HostIndex)
	}
	return e, nil
}

// callersID returns what the pod's network namespace calls the caller's.
func (e *End) callersID() (int, error) {
	own, err := ns.GetCurrentNS()
	if err != nil {
		return 0, fmt.Errorf("opening the network namespace: %w", err)
	}
	defer own.Close()
	id, err := e.handle.GetNetNsIdByFd(int(own.Fd()))
	if err != nil {
		return 0, fmt.Errorf("reading the ID of the network namespace: %w", err)
	}
	return id, nil
}

// Close lets go of the network namespace.
func (e *End) Close() {
	if e.handle != nil {
		e.handle.Close()
	}
	_ = e.space.Close()
}

// Handle is netlink in the pod's network namespace, as long as the End is not closed.
func (e *End) Handle() *netlink.Handle { return e.handle }

// Link returns the pod end as it is now. ErrGone as for Open.
func (e *End) Link() (netlink.Link, error) {
	// by its index: who renames it makes it no other
	pod, err := e.handle.LinkByIndex(e.PodIndex)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, fmt.Errorf("%w: no interface %d (%s) in %s", ErrGone, e.PodIndex, e.IfName, e.Netns)
	}
	if err != nil {
		return nil, fmt.Errorf("looking up %s in %s: %w", e.IfName, e.Netns, err)
	}
	if pod.Type() != "veth" || pod.Attrs().ParentIndex != e.HostIndex {
		return nil, fmt.Errorf("%w: interface %d in %s is %s, another than the peer of interface %d",
			ErrGone, e.PodIndex, e.Netns, pod.Attrs().Name, e.HostIndex)
	}
	return pod, nil
}

// do runs f on a thread that is in the pod's network namespace, with the name that the pod end has now.
func (e *End) do(f func(name string) error) error {
	pod, err := e.Link()
	if err != nil {
		return err
	}
	return e.space.Do(func(ns.NetNS) error { return f(pod.Attrs().Name) })
}

// GROPolls tells whether GRO makes a veth poll: since 5.13 (commit d3256efd8e8b, "veth: allow enabling NAPI
// even without XDP"). Before, only an XDP program does, and GRO is on by default.
func GROPolls() (bool, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return false, fmt.Errorf("reading the kernel's release: %w", err)
	}
	return atLeast(unix.ByteSliceToString(name.Release[:]), 5, 13), nil
}

// atLeast compares a kernel's release, such as 6.1.0-13-amd64, with a version. One that cannot be read is not.
func atLeast(release string, major, minor int) bool {
	var haveMajor, haveMinor int
	if _, err := fmt.Sscanf(release, "%d.%d", &haveMajor, &haveMinor); err != nil {
		return false
	}
	return haveMajor > major || haveMajor == major && haveMinor >= minor
}
