package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/xdp-cni/xdp-cni/internal/conflist"
	"github.com/xdp-cni/xdp-cni/internal/wholefile"
)

// Unconfigure takes the entry out of all configurations of the node. A file that nobody changed since the
// entry was put there is as it was before, bytes, owner and mode; of others only the entry goes. It goes
// on past files that cannot be read, and returns their errors joined: they may still have the entry. While a Watch is
// under way it does nothing, and returns ErrWatched.
func (o Options) Unconfigure(ctx context.Context) ([]Change, error) {
	if _, err := os.Stat(o.ConfDir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if !o.DryRun {
		lock, err := o.lock(ctx)
		if err != nil {
			return nil, err
		}
		defer lock.Unlock()
		alone, err := o.keepWatchersOut()
		if err != nil {
			return nil, err
		}
		defer alone.Close()
	}
	s, err := o.readState()
	if err != nil {
		return nil, err
	}
	names, err := o.active()
	if err != nil {
		return nil, err
	}
	var (
		changes []Change
		errs    error
	)
	for _, name := range names {
		var change *Change
		err := wholefile.ErrChanged
		for i := 0; i < attempts && errors.Is(err, wholefile.ErrChanged); i++ {
			change, err = o.restore(s.Files[name], name)
		}
		if change != nil && err == nil {
			changes = append(changes, *change)
		}
		errs = errors.Join(errs, err)
	}
	if errs != nil || o.DryRun {
		return changes, errs
	}
	if err := os.RemoveAll(o.statePath("")); err != nil {
		return changes, fmt.Errorf("removing the installation's state: %w", err)
	}
	return changes, nil
}

// restore takes the entry out of a file; nil: there was none.
func (o Options) restore(e *edited, name string) (*Change, error) {
	f, err := o.read(name)
	if f != nil && errors.Is(err, conflist.ErrSyntax) && !bytes.Contains(f.text, []byte(`"`+conflist.Type+`"`)) {
		return nil, nil // runtimes cannot read it either, and it has nothing of ours
	}
	if err != nil {
		return nil, err
	}
	if f.list.Entry() == nil {
		return nil, nil
	}
	ours := e != nil && e.Written == sum(f.text)
	if ours && e.Original != nil && e.Original.Name != name {
		return o.unwrap(f, e.Original)
	}
	change := &Change{Path: f.path, Result: Changed}
	rest, a := []byte(nil), f.Attributes
	switch {
	case ours && e.Created:
	case ours && e.Original != nil:
		change.Result, rest, a = Restored, e.Original.Text, e.Original.Attributes
	default:
		if rest, err = f.list.Without(); err != nil {
			return nil, fmt.Errorf("taking the entry out of %s: %w", f.path, err)
		}
	}
	if rest == nil {
		change.Result = Removed
		if o.DryRun {
			return change, nil
		}
		return change, o.remove(f)
	}
	change.Diff = diff(f.path, f.path, f.text, rest)
	if o.DryRun {
		return change, nil
	}
	if o.beforeReplace != nil {
		o.beforeReplace()
	}
	return change, wholefile.Replace(f.path, o.temporary(f.path), f.text, rest, a)
}

// unwrap puts the single plugin's configuration back that a list was made of, and removes the list. If
// another's installer wrote one of that name meanwhile, that stays.
func (o Options) unwrap(f *file, was *original) (*Change, error) {
	path := filepath.Join(o.ConfDir, was.Name)
	change := &Change{Path: path, Result: Restored, Diff: diff(f.path, path, f.text, was.Text)}
	if o.DryRun {
		return change, nil
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := wholefile.Put(path, o.temporary(path), was.Text, was.Attributes); err != nil {
			return nil, err
		}
	}
	return change, o.remove(f)
}

func (o Options) remove(f *file) error {
	if err := os.Remove(filepath.Join(o.ConfDir, f.name)); err != nil {
		return fmt.Errorf("removing a network configuration: %w", err)
	}
	if err := wholefile.SyncDir(o.ConfDir); err != nil {
		return fmt.Errorf("removing %s: %w", f.path, err)
	}
	return nil
}

// IPAMInUse tells whether a configuration of the node has its addresses from xdp-ipam: then that has to
// stay.
func (o Options) IPAMInUse() (bool, error) {
	names, err := o.active()
	if err != nil {
		return false, err
	}
	var errs error
	for _, name := range names {
		f, err := o.read(name)
		switch {
		case f != nil && errors.Is(err, conflist.ErrSyntax):
			if bytes.Contains(f.text, []byte(`"xdp-ipam"`)) {
				return true, nil // once it can be read
			}
		case err != nil:
			errs = errors.Join(errs, err)
		case f.list.UsesIPAM("xdp-ipam"):
			return true, nil
		}
	}
	return false, errs
}

// Installed returns where an installation has put the binaries; "" if none is noted.
func Installed(confDir string) (binDir string, err error) {
	s, err := Options{ConfDir: confDir}.readState()
	if err != nil {
		return "", err
	}
	return s.BinDir, nil
}

// Chains returns the network configurations of a node that have the entry, in the order in which runtimes
// look at them. It goes on past files that cannot be read and returns their errors joined.
func Chains(confDir string) ([]*conflist.List, error) {
	o := Options{ConfDir: confDir}
	names, err := o.active()
	if err != nil {
		return nil, err
	}
	var (
		lists []*conflist.List
		errs  error
	)
	for _, name := range names {
		f, err := o.read(name)
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		if f.list.Entry() != nil {
			lists = append(lists, f.list)
		}
	}
	return lists, errs
}
