package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/xdp-cni/xdp-cni/internal/conflist"
	"github.com/xdp-cni/xdp-cni/internal/wholefile"
)

// createdName sorts behind what network providers call theirs, which get the nodes as soon as they come.
const createdName = "90-xdp-cni.conflist"

// needed are the plugins of the chain that create makes.
var needed = []string{"bridge", "host-local", "portmap"}

// create makes a configuration where there is none: a bridge of the node's own.
func (o Options) create(s *state) ([]Change, error) {
	if !o.Subnet.IsValid() {
		return nil, fmt.Errorf("%w in %s", ErrNoConf, o.ConfDir)
	}
	for _, name := range needed {
		if _, err := os.Stat(filepath.Join(o.BinDir, name)); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w in %s, and none can be made: %s has no plugin %s (of containernetworking/plugins)",
				ErrNoConf, o.ConfDir, o.BinDir, name)
		}
	}
	everything := "0.0.0.0/0"
	if o.Subnet.Addr().Is6() {
		everything = "::/0"
	}
	text, err := json.MarshalIndent(map[string]any{
		"cniVersion": "1.0.0",
		"name":       "xdp-cni",
		"plugins": []map[string]any{
			{
				"type": "bridge", "bridge": "xdp-cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
				"ipam": map[string]any{
					"type":   "host-local",
					"ranges": [][]map[string]string{{{"subnet": o.Subnet.Masked().String()}}},
					"routes": []map[string]string{{"dst": everything}},
				},
			},
			{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
		},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("making a network configuration: %w", err)
	}
	list, err := conflist.Parse(createdName, append(text, '\n'))
	if err != nil {
		return nil, fmt.Errorf("making a network configuration: %w", err)
	}
	entry, err := o.Settings.Entry(list)
	if err != nil {
		return nil, fmt.Errorf("making a network configuration: %w", err)
	}
	if text, err = list.With(entry); err != nil {
		return nil, fmt.Errorf("making a network configuration: %w", err)
	}
	path := filepath.Join(o.ConfDir, createdName)
	changes := []Change{{path, Created, diff("/dev/null", path, nil, text)}}
	if o.DryRun {
		return changes, nil
	}
	s.Files[createdName] = &edited{Written: sum(text), Created: true}
	if err := o.writeState(s); err != nil {
		return nil, err
	}
	return changes, wholefile.Put(path, o.temporary(path), text, newFile)
}
