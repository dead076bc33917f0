package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vishvananda/netlink"
)

// alive tells whether the interface that the attachment in dir is for is still there. here says
// that it would be in the caller's network namespace; netns is the inode of the one it is in.
func alive(dir string, here bool, netns uint64) (bool, error) {
	m, err := readMeta(dir)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return false, err
	}
	if here && m != nil {
		host, err := hostOf(m)
		return host != nil, err
	}
	// a link knows its interface, whatever network namespace the caller is in
	links := 0
	for _, pin := range []string{pinEgressLink, pinIngressLink} {
		state, err := readLink(filepath.Join(dir, pin))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		if state.ifindex != 0 {
			return true, nil
		}
		links++
	}
	if links > 0 || m == nil {
		return false, nil
	}
	return netnsExists(netns), nil
}

// hostOf returns an attachment's host end, nil if it is gone. Its name may be another one now, and
// its index another interface's: it is the veth whose peer has the index of the pod end.
func hostOf(m *Meta) (netlink.Link, error) {
	host, err := netlink.LinkByIndex(m.HostIndex)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking up interface %s: %w", m.HostName, err)
	}
	if host.Type() != "veth" || host.Attrs().ParentIndex != m.PodIndex {
		return nil, nil
	}
	return host, nil
}

// netnsExists tells whether a process or a file under /run/netns holds the network namespace of
// that inode. One that is held otherwise is taken for gone.
func netnsExists(inode uint64) bool {
	for _, pattern := range []string{"/proc/[0-9]*/ns/net", "/run/netns/*", "/var/run/netns/*"} {
		paths, _ := filepath.Glob(pattern) // fails only for a malformed pattern
		for _, path := range paths {
			info, err := os.Stat(path)
			if err != nil {
				continue // ended meanwhile
			}
			if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Ino == inode {
				return true
			}
		}
	}
	return false
}
