// Package survey finds out which addresses pods have, by other knowledge than that of leases: what
// the chained plugin noted of its attachments, and what is configured on interfaces.
package survey

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/ipam/leases"
)

// Do surveys a network: the attachments of the chained plugin under the same root, and the
// addresses that interfaces have, other than those in the network namespace at except (a path,
// which may be "" or gone).
func Do(root pins.Root, network, except string) (leases.Survey, error) {
	var (
		found leases.Survey
		err   error
	)
	if found.Attachments, err = attachments(root, network); err != nil {
		return found, err
	}
	found.InUse, err = InUse(except)
	return found, err
}

// Options are those to open a network's leases with, for who knows no more of it than its name. log
// may be nil.
func Options(root pins.Root, network string, log *slog.Logger) leases.Options {
	return leases.Options{
		Root: root, Network: network, Log: log,
		Survey: func() (leases.Survey, error) { return Do(root, network, "") },
	}
}

// attachments lists the addresses of the network's attachments, those on their way in or out too.
func attachments(root pins.Root, network string) ([]leases.Lease, error) {
	pods, err := root.Pods()
	if err != nil {
		return nil, err
	}
	staged, err := root.StagedPods()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, id := range pods {
		dirs = append(dirs, root.Pod(id))
	}
	for _, id := range staged {
		dirs = append(dirs, root.Staged(id))
	}
	var list []leases.Lease
	for _, dir := range dirs {
		meta, err := readMeta(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // went meanwhile; what it had, its interface tells
		}
		if err != nil {
			return nil, err
		}
		if cString(meta.Network[:]) != network {
			continue
		}
		for _, a := range meta.Addresses[:min(int(meta.AddressesLen), len(meta.Addresses))] {
			list = append(list, leases.Lease{
				Address: netip.AddrFrom16(a.Address).Unmap(),
				Owner:   leases.Owner{ContainerID: cString(meta.ContainerId[:]), IfName: cString(meta.Ifname[:])},
				Time:    time.Unix(0, int64(meta.Created)),
			})
		}
	}
	return list, nil
}

// metaVersion is that of struct pod_meta in bpf/lib/meta.h which this package reads.
const metaVersion = 1

func readMeta(dir string) (*bpf.DatapathPodMeta, error) {
	pin := filepath.Join(dir, "meta")
	m, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", pin, err)
	}
	defer m.Close()
	var meta bpf.DatapathPodMeta
	if err := m.Lookup(uint32(0), &meta); err != nil {
		return nil, fmt.Errorf("reading %s: %w", pin, err)
	}
	if meta.Version != metaVersion {
		return nil, fmt.Errorf("reading %s: %w: version %d, want %d", pin, leases.ErrLayout, meta.Version, metaVersion)
	}
	return &meta, nil
}

func cString(b []uint8) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

// openNetns opens a network namespace: nil if there is none at path.
func openNetns(path string) (*os.File, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return f, err
}
