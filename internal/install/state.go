package install

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/internal/wholefile"
)

// stateDir is where an installation notes what it changed, in the directory of the configurations: it is
// on the same filesystem, lasts as long, and needs no other mount in a container. Runtimes look at files
// there, and pass over directories.
const stateDir = ".xdp-cni"

const (
	stateFile = "state.json"
	// temporaryFile is where files are made that become configurations.
	temporaryFile = "next"
)

// stateVersion is that of the file's format.
const stateVersion = 1

// state is what an installation notes.
type state struct {
	Version int    `json:"version"`
	BinDir  string `json:"binDir"`
	// Files by their names, as they are now.
	Files map[string]*edited `json:"files"`
}

// edited is a configuration with our entry in it.
type edited struct {
	// Written is the SHA-256 of what we wrote.
	Written string `json:"written"`
	// Original is what was there before; nil if that had an entry already, or is no longer what the rest of
	// the file says.
	Original *original `json:"original"`
	// Created: there was no configuration.
	Created bool `json:"created"`
}

// original is a file as it was.
type original struct {
	Name string `json:"name"` // another one's if it held a single plugin
	Text []byte `json:"text"`
	wholefile.Attributes
}

// newFile are the attributes of a file that was not there before: runtimes and people may read it.
var newFile = wholefile.Attributes{Mode: 0o644}

func (o Options) statePath(name string) string { return filepath.Join(o.ConfDir, stateDir, name) }

// lock makes the directory of the state, and takes its lock: installers, and watchers among them, take
// turns.
func (o Options) lock(ctx context.Context) (*pins.Lock, error) {
	for {
		if err := os.MkdirAll(o.statePath(""), 0o755); err != nil {
			return nil, fmt.Errorf("making the directory of the installation's state: %w", err)
		}
		lock, err := pins.LockDir(ctx, o.statePath(""))
		if !errors.Is(err, fs.ErrNotExist) { // removed by an uninstallation between the two steps
			return lock, err
		}
	}
}

// readState returns an empty state if there is none.
func (o Options) readState() (*state, error) {
	s := &state{Version: stateVersion, Files: map[string]*edited{}}
	path := o.statePath(stateFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the installation's state: %w", err)
	}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("reading the installation's state in %s: %w", path, err)
	}
	if s.Version != stateVersion {
		return nil, fmt.Errorf("reading the installation's state in %s: it is of version %d, made by another release", path, s.Version)
	}
	if s.Files == nil {
		s.Files = map[string]*edited{}
	}
	return s, nil
}

func (o Options) writeState(s *state) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the installation's state: %w", err)
	}
	return wholefile.Put(o.statePath(stateFile), o.statePath(stateFile+".next"), append(text, '\n'), newFile)
}

func sum(text []byte) string {
	digest := sha256.Sum256(text)
	return hex.EncodeToString(digest[:])
}
