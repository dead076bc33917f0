package datapath

import (
	"fmt"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/ethtool"
)

// nativeVeth makes a host end fit for native XDP and notes in m what it changed, before it does:
//
//   - GRO on: native XDP takes segmentation offload from the pod end, and attaching it does not
//     turn GRO on, which merges the packets again (TCP at 2.97x instead of 4.9x the CPU).
//   - as many RX queues as the pod end has TX queues, or the kernel refuses (ENOSPC).
func nativeVeth(m *Meta, podTxQueues int, note func() error) error {
	channels, err := ethtool.GetChannels(m.HostName)
	if err == nil && int(channels.Rx) < podTxQueues && podTxQueues <= int(channels.MaxRx) {
		m.hostRxQueues = channels.Rx
		m.flags |= bpf.DatapathPodFlagPOD_SET_QUEUES
		if err := note(); err != nil {
			return err
		}
		channels.Rx = uint32(podTxQueues)
		if err := ethtool.SetChannels(m.HostName, channels); err != nil {
			return fmt.Errorf("setting %d RX queues on %s: %w", podTxQueues, m.HostName, err)
		}
	}
	gro, err := ethtool.GRO(m.HostName)
	if err != nil {
		return fmt.Errorf("reading GRO of %s: %w", m.HostName, err)
	}
	if gro {
		return nil
	}
	m.flags |= bpf.DatapathPodFlagPOD_SET_GRO
	if err := note(); err != nil {
		return err
	}
	if err := ethtool.SetGRO(m.HostName, true); err != nil {
		return fmt.Errorf("turning GRO on at %s: %w", m.HostName, err)
	}
	return nil
}

// restoreVeth undoes nativeVeth, if the interface is still there. The caller has detached.
func restoreVeth(m *Meta) error {
	if !m.has(bpf.DatapathPodFlagPOD_SET_GRO) && !m.has(bpf.DatapathPodFlagPOD_SET_QUEUES) {
		return nil
	}
	host, err := hostOf(m)
	if host == nil {
		return err // gone, and its settings with it
	}
	name := host.Attrs().Name
	if m.has(bpf.DatapathPodFlagPOD_SET_GRO) {
		if err := ethtool.SetGRO(name, false); err != nil {
			return fmt.Errorf("turning GRO off at %s: %w", name, err)
		}
	}
	if m.has(bpf.DatapathPodFlagPOD_SET_QUEUES) {
		channels, err := ethtool.GetChannels(name)
		if err != nil {
			return fmt.Errorf("reading the queues of %s: %w", name, err)
		}
		channels.Rx = m.hostRxQueues
		if err := ethtool.SetChannels(name, channels); err != nil {
			return fmt.Errorf("setting %d RX queues on %s: %w", m.hostRxQueues, name, err)
		}
	}
	return nil
}
