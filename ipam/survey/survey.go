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
	"unsafe"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/ipam/bpfmap"
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

// podMeta is struct pod_meta. Package bpf, which has it as generated from C, would add to the start
// of every process what loading programs needs; a test compares the two.
type podMeta struct {
	Version, Mode, Flags                  uint32
	HostIfindex, PodIfindex, HostRxQueues uint32
	AddressesLen                          uint32
	EgressProgram, IngressProgram, Pad0   uint32
	Created, Owner                        uint64
	PodMac                                [6]uint8
	Pad                                   [2]uint8
	Addresses                             [16]podAddress
	ContainerId                           [256]uint8
	Ifname, HostIfname                    [16]uint8
	Netns                                 [512]uint8
	Network                               [256]uint8
	PodNamespace                          [64]uint8
	PodName                               [256]uint8
	PodUid, PluginVersion                 [64]uint8
}

type podAddress struct {
	Address   [16]uint8
	PrefixLen uint8
	Pad       [7]uint8
}

func readMeta(dir string) (*podMeta, error) {
	pin := filepath.Join(dir, "meta")
	m, err := bpfmap.Load(pin, true)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", pin, err)
	}
	defer m.Close()
	var meta podMeta
	if uintptr(m.ValueSize) != unsafe.Sizeof(meta) {
		return nil, fmt.Errorf("reading %s: %w: %d bytes", pin, leases.ErrLayout, m.ValueSize)
	}
	if err := bpfmap.Lookup(m, new(uint32), &meta); err != nil {
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
