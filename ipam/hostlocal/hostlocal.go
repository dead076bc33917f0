// Package hostlocal reads the leases that the host-local IPAM plugin keeps: a file for each
// address, named by it, in a directory for each network (plugins/ipam/host-local/backend/disk).
package hostlocal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/ipam/leases"
)

// DefaultDataDir is where host-local keeps its files if its configuration says nothing else.
const DefaultDataDir = "/var/lib/cni/networks"

const (
	lockName   = "lock"
	lastPrefix = "last_reserved_ip."
)

// Network is what host-local keeps of a network.
type Network struct {
	Leases []leases.Lease
	// Last is the address last handed out of each range set.
	Last map[int]netip.Addr

	lock *pins.Lock
}

// Close lets host-local go on.
func (n *Network) Close() { n.lock.Unlock() }

// Read reads a network's files and keeps host-local from changing them until Close. Leases that
// old releases wrote are without interface name, and get ifname. Files that are none of
// host-local's are passed over.
func Read(ctx context.Context, dataDir, network, ifname string) (_ *Network, err error) {
	dir := filepath.Join(dataDir, network)
	n := &Network{Last: map[int]netip.Addr{}}
	defer func() {
		if err != nil {
			n.Close()
			err = fmt.Errorf("reading host-local's leases of network %s: %w", network, err)
		}
	}()
	// host-local makes that file before it does anything else
	n.lock, err = pins.LockDir(ctx, filepath.Join(dir, lockName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		if err := n.add(dir, entry, ifname); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (n *Network) add(dir string, entry fs.DirEntry, ifname string) error {
	index, isLast := strings.CutPrefix(entry.Name(), lastPrefix)
	address, addrErr := netip.ParseAddr(entry.Name())
	if entry.IsDir() || !isLast && addrErr != nil {
		return nil
	}
	text, err := os.ReadFile(filepath.Join(dir, entry.Name()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if isLast {
		set, err := strconv.Atoi(index)
		if last, lastErr := netip.ParseAddr(strings.TrimSpace(string(text))); err == nil && lastErr == nil {
			n.Last[set] = last.Unmap()
		}
		return nil
	}
	info, err := entry.Info()
	if err != nil {
		return err
	}
	id, name, found := strings.Cut(strings.TrimSpace(string(text)), "\r\n")
	if !found {
		name = ifname
	}
	n.Leases = append(n.Leases, leases.Lease{
		Address: address.Unmap(), Owner: leases.Owner{ContainerID: id, IfName: name}, Time: info.ModTime(),
	})
	return nil
}
