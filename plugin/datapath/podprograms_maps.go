package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// NodeMaps tells which maps of an attachment's programs are the node's, one for all pods whose programs ask for it: it
// returns the paths of the node's pins, by the paths in PodProgram.Maps.
func (d *Datapath) NodeMaps(list []PodProgram) (map[string]string, error) {
	dir := filepath.Join(d.Root.Node(), pinProgramMaps)
	found := map[string]string{}
	for _, p := range list {
		for _, path := range p.Maps {
			for _, suffix := range []string{"", suffixFrags} {
				pin := filepath.Join(dir, filepath.Base(path)+suffix)
				same, err := sameMap(path, pin)
				if err != nil {
					return nil, fmt.Errorf("looking for the node's maps: %w", err)
				}
				if same {
					found[path] = pin
				}
			}
		}
	}
	return found, nil
}

// sameMap tells whether two pins are of one map. It is the node's pin that may not be there.
func sameMap(path, nodePin string) (bool, error) {
	want, err := pinnedMapID(nodePin)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	have, err := pinnedMapID(path)
	return have == want, err
}

func pinnedMapID(path string) (ebpf.MapID, error) {
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return 0, fmt.Errorf("opening map %s: %w", path, err)
	}
	defer m.Close()
	return mapID(m)
}
