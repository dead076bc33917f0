package datapath_test

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// TestNodeMaps: a map pinned by name is told from one of the pod's own, also where the node has another of its name.
func TestNodeMaps(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	r.opts.Programs = someXDPPrograms(t)
	r.mustAttach(r.opts)
	defer r.mustDetach(r.opts)
	list := r.podPrograms()
	dir := filepath.Join(r.node.BPFFS, "v1", "node", "program_maps")
	another, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer another.Close()
	pin := filepath.Join(dir, "seen")
	if err := another.Pin(pin); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(pin)
	var have map[string]string
	if err := r.do(func(d *datapath.Datapath) (err error) { have, err = d.NodeMaps(list); return err }); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{filepath.Join(filepath.Dir(list[0].Maps[0]), "all_seen"): filepath.Join(dir, "all_seen")}
	if !maps.Equal(have, want) {
		t.Errorf("%v, want %v", have, want)
	}
}
