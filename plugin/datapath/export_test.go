package datapath

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// Obstacles is obstacles, for tests.
func Obstacles(host netlink.Link, programs []ebpf.ProgramID, links []link.ID, tcx bool) ([]string, error) {
	return obstacles(host, own{programs, links}, tcx)
}
