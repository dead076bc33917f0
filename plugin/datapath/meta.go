package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/plugin/bigtcp"
	"github.com/xdp-cni/xdp-cni/plugin/podend"
)

// Names of an attachment's pins.
const (
	pinMeta        = "meta"
	pinEgressLink  = "egress_link"
	pinIngressLink = "ingress_link"
	pinPeers       = "peers"
)

// metaVersion is that of struct pod_meta.
const metaVersion = 1

// Meta is what is known of an attachment, from its pinned meta map.
type Meta struct {
	ContainerID, IfName, Netns, Network string
	PodNamespace, PodName, PodUID       string
	HostName                            string
	HostIndex, PodIndex                 int
	PodMAC                              net.HardwareAddr
	Addresses                           []netip.Prefix
	Mode                                Mode
	Created                             time.Time
	PluginVersion                       string

	flags          bpf.DatapathPodFlag
	owner          uint64
	networkID      uint64
	podEndChanges  podend.Changes
	bigTCP         bigtcp.Sizes
	hostRxQueues   uint32
	egressProgram  ebpf.ProgramID
	ingressProgram ebpf.ProgramID
}

func (m *Meta) has(flag bpf.DatapathPodFlag) bool { return m.flags&flag != 0 }

// encode returns the meta map's value; an error names a field that does not fit.
func (m *Meta) encode() (*bpf.DatapathPodMeta, error) {
	v := &bpf.DatapathPodMeta{
		Version:        metaVersion,
		Mode:           uint32(m.Mode),
		Flags:          uint32(m.flags),
		HostIfindex:    uint32(m.HostIndex),
		PodIfindex:     uint32(m.PodIndex),
		HostRxQueues:   m.hostRxQueues,
		AddressesLen:   uint32(len(m.Addresses)),
		EgressProgram:  uint32(m.egressProgram),
		IngressProgram: uint32(m.ingressProgram),
		Created:        uint64(m.Created.UnixNano()),
		Owner:          m.owner,
		NetworkId:      m.networkID,
		PodEndChanges:  uint32(m.podEndChanges),
		BigTcp: bpf.DatapathBigTcp{
			To: encodeLimits(m.bigTCP.To), Host: encodeLimits(m.bigTCP.Host), Pod: encodeLimits(m.bigTCP.Pod),
		},
	}
	if len(m.Addresses) > len(v.Addresses) {
		return nil, fmt.Errorf("the pod has %d addresses, of which %d can be noted", len(m.Addresses), len(v.Addresses))
	}
	copy(v.PodMac[:], m.PodMAC)
	for i, address := range m.Addresses {
		v.Addresses[i] = bpf.DatapathPodAddress{Address: address.Addr().As16(), PrefixLen: uint8(address.Bits())}
	}
	for _, field := range []struct {
		name string
		to   []uint8
		from string
	}{
		{"container ID", v.ContainerId[:], m.ContainerID},
		{"interface name", v.Ifname[:], m.IfName},
		{"host interface name", v.HostIfname[:], m.HostName},
		{"network namespace", v.Netns[:], m.Netns},
		{"network name", v.Network[:], m.Network},
		{"pod namespace", v.PodNamespace[:], m.PodNamespace},
		{"pod name", v.PodName[:], m.PodName},
		{"pod UID", v.PodUid[:], m.PodUID},
		{"plugin version", v.PluginVersion[:], m.PluginVersion},
	} {
		// room for the NUL that ends it
		if len(field.from) >= len(field.to) {
			return nil, fmt.Errorf("the %s %q is longer than %d bytes", field.name, field.from, len(field.to)-1)
		}
		copy(field.to, field.from)
	}
	return v, nil
}

func decodeMeta(v *bpf.DatapathPodMeta) (*Meta, error) {
	if v.Version != metaVersion {
		return nil, fmt.Errorf("%w: meta version %d, want %d", ErrLayout, v.Version, metaVersion)
	}
	m := &Meta{
		ContainerID:   cString(v.ContainerId[:]),
		IfName:        cString(v.Ifname[:]),
		Netns:         cString(v.Netns[:]),
		Network:       cString(v.Network[:]),
		PodNamespace:  cString(v.PodNamespace[:]),
		PodName:       cString(v.PodName[:]),
		PodUID:        cString(v.PodUid[:]),
		HostName:      cString(v.HostIfname[:]),
		HostIndex:     int(v.HostIfindex),
		PodIndex:      int(v.PodIfindex),
		PodMAC:        net.HardwareAddr(v.PodMac[:]),
		Mode:          Mode(v.Mode),
		Created:       time.Unix(0, int64(v.Created)),
		PluginVersion: cString(v.PluginVersion[:]),
		flags:         bpf.DatapathPodFlag(v.Flags),
		hostRxQueues:  v.HostRxQueues,
		owner:         v.Owner,
		networkID:     v.NetworkId,
		podEndChanges: podend.Changes(v.PodEndChanges),
		bigTCP: bigtcp.Sizes{
			To: decodeLimits(v.BigTcp.To), Host: decodeLimits(v.BigTcp.Host), Pod: decodeLimits(v.BigTcp.Pod),
		},
		egressProgram:  ebpf.ProgramID(v.EgressProgram),
		ingressProgram: ebpf.ProgramID(v.IngressProgram),
	}
	for i := range min(int(v.AddressesLen), len(v.Addresses)) {
		address := v.Addresses[i]
		m.Addresses = append(m.Addresses, netip.PrefixFrom(netip.AddrFrom16(address.Address).Unmap(), int(address.PrefixLen)))
	}
	return m, nil
}

func encodeLimits(l bigtcp.Limits) bpf.DatapathOffloadLimits {
	return bpf.DatapathOffloadLimits{Gso: l.GSO, Gro: l.GRO, GsoIpv4: l.GSOIPv4, GroIpv4: l.GROIPv4}
}

func decodeLimits(l bpf.DatapathOffloadLimits) bigtcp.Limits {
	return bigtcp.Limits{GSO: l.Gso, GRO: l.Gro, GSOIPv4: l.GsoIpv4, GROIPv4: l.GroIpv4}
}

func cString(b []uint8) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// readMeta reads the meta map pinned in an attachment's directory: ErrNotFound if there is none.
func readMeta(dir string) (*Meta, error) {
	pinned, err := ebpf.LoadPinnedMap(filepath.Join(dir, pinMeta), &ebpf.LoadPinOptions{ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(dir, pinMeta), ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(dir, pinMeta), err)
	}
	defer pinned.Close()
	var v bpf.DatapathPodMeta
	if err := pinned.Lookup(uint32(0), &v); err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(dir, pinMeta), err)
	}
	m, err := decodeMeta(&v)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(dir, pinMeta), err)
	}
	return m, nil
}

func writeMeta(to *ebpf.Map, m *Meta) error {
	v, err := m.encode()
	if err != nil {
		return err
	}
	return to.Put(uint32(0), v)
}
