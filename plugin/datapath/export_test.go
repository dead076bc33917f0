package datapath

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// ChangeSpec makes a Datapath that of a release whose programs and maps differ as change makes them.
func (d *Datapath) ChangeSpec(change func(*ebpf.CollectionSpec)) {
	read := d.spec
	d.spec = func() (*ebpf.CollectionSpec, error) {
		spec, err := read()
		if err != nil {
			return nil, err
		}
		spec = spec.Copy()
		change(spec)
		return spec, nil
	}
}

// Obstacles is obstacles, for tests.
func Obstacles(host netlink.Link, programs []ebpf.ProgramID, links []link.ID, tcx bool) ([]string, error) {
	return obstacles(host, own{programs, links}, tcx)
}
