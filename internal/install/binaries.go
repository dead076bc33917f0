package install

import (
	"bytes"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/xdp-cni/xdp-cni/internal/release"
	"github.com/xdp-cni/xdp-cni/internal/wholefile"
)

// Binaries are the files that are installed: the plugin, its IPAM plugin, and the tool.
var Binaries = []string{"xdp", "xdp-ipam", "xdpctl"}

// modulePath is what every binary of ours says it is made of.
const modulePath = "github.com/xdp-cni/xdp-cni"

// binaryMode is for root, whom the runtime runs as, to write and for all to read.
const binaryMode = 0o755

// builtOfOurs tells whether a file is a binary built of this project, of whatever release.
func builtOfOurs(path string) (bool, error) {
	info, err := buildinfo.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return err == nil && (info.Path == modulePath || strings.HasPrefix(info.Path, modulePath+"/")), nil
}

func (o Options) isOurs(path string) (bool, error) {
	if o.ours != nil {
		return o.ours(path)
	}
	return builtOfOurs(path)
}

// CopyBinaries puts the binaries in their place. One that runs there goes on running, and a runtime that
// starts one gets the old or the new one, whole. All are looked at before one is written.
//
// Errors: ErrInUse if there is a program of somebody else under the name; fs.ErrNotExist if a binary is
// missing.
func (o Options) CopyBinaries() ([]Change, error) {
	texts := map[string][]byte{}
	for _, name := range Binaries {
		from, to := filepath.Join(o.From, name), filepath.Join(o.BinDir, name)
		ours, err := o.isOurs(from)
		if err != nil {
			return nil, fmt.Errorf("copying the binaries: %w", err)
		}
		if !ours {
			return nil, fmt.Errorf("copying the binaries: %s is not %s of this project", from, name)
		}
		ours, err = o.isOurs(to)
		if err == nil && !ours {
			return nil, fmt.Errorf("copying the binaries: %w: %s", ErrInUse, to)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("copying the binaries: %w", err)
		}
		if texts[name], err = os.ReadFile(from); err != nil {
			return nil, fmt.Errorf("copying the binaries: %w", err)
		}
	}
	var changes []Change
	for _, name := range Binaries {
		change, err := o.copyBinary(name, texts[name])
		if err != nil {
			return changes, fmt.Errorf("copying the binaries: %w", err)
		}
		changes = append(changes, change)
	}
	return changes, nil
}

func (o Options) copyBinary(name string, text []byte) (Change, error) {
	change := Change{Path: filepath.Join(o.BinDir, name), Result: Created}
	there, err := os.ReadFile(change.Path)
	if err == nil {
		info, err := os.Stat(change.Path)
		if err != nil {
			return change, err
		}
		if bytes.Equal(there, text) && info.Mode().Perm() == binaryMode {
			change.Result = Unchanged
			return change, nil
		}
		change.Result = Changed
	} else if !errors.Is(err, fs.ErrNotExist) {
		return change, err
	}
	if o.DryRun {
		return change, nil
	}
	if err := os.MkdirAll(o.BinDir, 0o755); err != nil {
		return change, err
	}
	return change, wholefile.Put(change.Path, filepath.Join(o.BinDir, stateDir+"."+name), text,
		wholefile.Attributes{Mode: binaryMode, UID: os.Geteuid(), GID: os.Getegid()})
}

// Binary is an installed file of ours.
type Binary struct {
	Path    string
	Release string
}

// InstalledBinaries returns those of ours that are in a directory, with their releases.
func InstalledBinaries(binDir string) ([]Binary, error) {
	var (
		found []Binary
		errs  error
	)
	for _, name := range Binaries {
		path := filepath.Join(binDir, name)
		ours, err := builtOfOurs(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !ours {
			continue
		}
		b := Binary{Path: path}
		if err == nil {
			b.Release, err = release.Of(path)
		}
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		found = append(found, b)
	}
	return found, errs
}

// RemoveBinaries removes those of the binaries that are ours, but for those to keep.
func (o Options) RemoveBinaries(keep ...string) ([]Change, error) {
	var (
		changes []Change
		errs    error
	)
	for _, name := range Binaries {
		path := filepath.Join(o.BinDir, name)
		ours, err := o.isOurs(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !ours {
			continue
		}
		change := Change{Path: path, Result: Removed}
		if slices.Contains(keep, name) {
			change.Result = Kept
		} else if err == nil && !o.DryRun {
			err = os.Remove(path)
		}
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("removing the binaries: %w", err))
			continue
		}
		changes = append(changes, change)
	}
	return changes, errs
}
