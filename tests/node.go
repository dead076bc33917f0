package tests

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrPinsLeft is what [Node.Close] returns, with their names, when there are pins in the node's bpffs.
var ErrPinsLeft = errors.New("pins left in the bpffs")

// Node stands in for a host: a network namespace, a bpffs and a CNI state of its own.
type Node struct {
	*namespace

	Dir      string   // everything below is in here
	Mount    string   // the private bpffs
	BPFFS    string   // what the plugin's "bpffs" is to be: a directory of the bpffs, not made yet
	CacheDir string   // libcni's cache
	DataDir  string   // host-local's state
	Binaries Binaries // may not be built yet: see Build

	ipv6     bool
	preexist []string // entries that the kernel puts into every bpffs (BPF_PRELOAD)

	mu   sync.Mutex
	pods []*Pod
}

// NodeOption changes what [NewNode] makes.
type NodeOption func(*Node)

// WithoutIPv6 leaves the node and its pods without IPv6, hence without packets of its neighbour and multicast
// listener discovery: then every packet of a pod but ARP is one that a test sent.
func WithoutIPv6() NodeOption { return func(n *Node) { n.ipv6 = false } }

// NewNode makes a node. Call Close when done.
func NewNode(options ...NodeOption) (*Node, error) {
	b, _, err := binaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "xdp-cni-node-")
	if err != nil {
		return nil, err
	}
	n := &Node{
		Dir:      dir,
		Mount:    filepath.Join(dir, "bpf"),
		BPFFS:    filepath.Join(dir, "bpf", "xdp-cni"),
		CacheDir: filepath.Join(dir, "cache"),
		DataDir:  filepath.Join(dir, "host-local"),
		Binaries: b,
		ipv6:     true,
	}
	for _, option := range options {
		option(n)
	}
	if err := n.make(); err != nil {
		return nil, errors.Join(fmt.Errorf("make node: %w", err), n.Close())
	}
	return n, nil
}

func (n *Node) make() (err error) {
	for _, dir := range []string{n.Mount, n.CacheDir, n.DataDir} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	if err := unix.Mount("bpf", n.Mount, "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount bpffs on %s: %w", n.Mount, err)
	}
	n.preexist = n.Tree()
	n.namespace, err = newNamespace(n.ipv6)
	return err
}

// Close deletes the node with its pods. It does all it can whatever fails. It returns [ErrPinsLeft] if there were pins
// in the bpffs; the kernel has let go of them by then. Do not use the node afterwards.
func (n *Node) Close() error {
	var errs []error
	if pins := n.Pins(); len(pins) > 0 {
		errs = append(errs, fmt.Errorf("%w: %s", ErrPinsLeft, strings.Join(pins, ", ")))
	}
	n.mu.Lock()
	pods := slices.Clone(n.pods)
	n.mu.Unlock()
	for _, p := range pods {
		errs = append(errs, p.Close())
	}
	if n.namespace != nil {
		errs = append(errs, n.close())
	}
	// EINVAL: nothing was mounted there.
	if err := unix.Unmount(n.Mount, 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		errs = append(errs, fmt.Errorf("unmount %s: %w", n.Mount, err))
		// Never descend into a bpffs that is in use: let it go when its last user does.
		if err := unix.Unmount(n.Mount, unix.MNT_DETACH); err != nil {
			return errors.Join(append(errs, fmt.Errorf("detach %s: %w", n.Mount, err))...)
		}
	}
	return errors.Join(append(errs, os.RemoveAll(n.Dir))...)
}

// Pins returns the paths of all pinned objects in the node's bpffs, in order. Empty directories do not count: see Tree.
func (n *Node) Pins() []string {
	return slices.DeleteFunc(n.Tree(), func(path string) bool { return strings.HasSuffix(path, "/") })
}

// Tree returns the paths of all there is in the node's bpffs, in order; those of directories end in a slash.
func (n *Node) Tree() []string {
	var paths []string
	_ = filepath.WalkDir(n.Mount, func(path string, d fs.DirEntry, err error) error {
		switch {
		case d == nil || path == n.Mount:
			return nil // what cannot be read is gone
		case err == nil && d.IsDir():
			path += "/"
		case err != nil: // its directory entry was already noted
			return nil
		}
		if !slices.Contains(n.preexist, path) {
			paths = append(paths, path)
		}
		return nil
	})
	return paths
}

// Purge removes all pins from the node's bpffs, for tests that mean to leave some.
func (n *Node) Purge() error {
	entries, err := os.ReadDir(n.Mount)
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		path := filepath.Join(n.Mount, entry.Name())
		if !slices.Contains(n.preexist, path) {
			errs = append(errs, os.RemoveAll(path))
		}
	}
	return errors.Join(errs...)
}

// Neighbour sets a permanent neighbour entry, so that the node sends no ARP or neighbour solicitation for ip.
func (n *Node) Neighbour(ifname string, ip netip.Addr, mac net.HardwareAddr) error {
	return n.Do(func() error { return addNeighbour(ifname, ip, mac) })
}

// NewPod makes a pod of the node: an empty network namespace, to which a network or [MakeVeth] brings an interface.
// The node's Close closes it too. It may be called concurrently.
func (n *Node) NewPod(name string) (*Pod, error) {
	space, err := newNamespace(n.ipv6)
	if err != nil {
		return nil, fmt.Errorf("make pod %s: %w", name, err)
	}
	id := make([]byte, 32) // as long as containerd's
	_, _ = rand.Read(id)   // never fails
	p := &Pod{namespace: space, Node: n, Name: name, ContainerID: fmt.Sprintf("%x", id), IfName: "eth0"}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pods = append(n.pods, p)
	return p, nil
}
