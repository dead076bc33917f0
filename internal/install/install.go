// Package install puts the plugin on a node and takes it away: its binaries among those of CNI, and its
// entry in the network configuration that the runtime uses. It keeps what was there before.
package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/xdp-cni/xdp-cni/internal/conflist"
	"github.com/xdp-cni/xdp-cni/internal/textdiff"
	"github.com/xdp-cni/xdp-cni/internal/wholefile"
)

// Where runtimes look unless they are told otherwise (containerd, CRI-O, podman; CNI's cnitool).
const (
	DefaultConfDir = "/etc/cni/net.d"
	DefaultBinDir  = "/opt/cni/bin"
)

var (
	// ErrNoConf: there is no network configuration.
	ErrNoConf = errors.New("no network configuration")
	// ErrWatched: a Watch is under way, which would put the entry back.
	ErrWatched = errors.New("xdpctl install --watch is running, and would put the entry back: end it first")
	// ErrInUse: a file that would be written is there, and not ours.
	ErrInUse = errors.New("there is another file of that name")
)

// Options are what is installed, and where.
type Options struct {
	ConfDir string
	BinDir  string
	// From is the directory with our binaries.
	From string
	// File is the configuration to change, a name in ConfDir; "": the one that runtimes use.
	File string
	// Settings of the entry.
	Settings conflist.Settings
	// Subnet of the pods' addresses, if there is no configuration and one is to be made; invalid: none is.
	Subnet netip.Prefix
	// DryRun: nothing is changed.
	DryRun bool
	// Log gets what Watch sees but does not report; nil: nothing is logged.
	Log *slog.Logger

	// Looked is called when Watch has looked for the first time: what can be done by then is done. Nil: it is not.
	Looked func()

	// ours tells whether a binary is ours; tests have another.
	ours func(path string) (bool, error)
	// beforeReplace is called between reading a configuration and writing it, beforeLook before Watch looks
	// for what to do; for tests.
	beforeReplace, beforeLook func()
}

// Result says what became of a file.
type Result string

// What may become of a file; with DryRun, what would.
const (
	Created   Result = "created"
	Changed   Result = "changed"
	Unchanged Result = "unchanged"
	Restored  Result = "restored" // as it was before there was our entry
	Removed   Result = "removed"
	Kept      Result = "kept" // still in use
)

// Change is what was done to a file.
type Change struct {
	Path   string `json:"path"`
	Result Result `json:"result"`
	// Diff of a configuration, in unified format; "" if it did not change.
	Diff string `json:"diff"`
}

// active returns the names of the configurations, the one that runtimes use first: they are taken in
// lexical order (go-cni and ocicni sort what libcni.ConfFiles finds).
func (o Options) active() ([]string, error) {
	paths, err := libcni.ConfFiles(o.ConfDir, conflist.Extensions)
	if err != nil {
		return nil, fmt.Errorf("looking for network configurations: %w", err)
	}
	slices.Sort(paths)
	names := make([]string, len(paths))
	for i, path := range paths {
		names[i] = filepath.Base(path)
	}
	return names, nil
}

// Configure puts the entry into the node's network configuration. It may be called again: an entry that is
// there stays, but for the settings that are given.
//
// Errors: ErrNoConf, ErrInUse, conflist.ErrSyntax, conflist.ErrUnfit, pins.ErrBusy.
func (o Options) Configure(ctx context.Context) ([]Change, error) {
	if !o.DryRun {
		lock, err := o.lock(ctx)
		if err != nil {
			return nil, err
		}
		defer lock.Unlock()
		defer func() { _ = os.Remove(o.statePath("")) }() // if nothing is noted in it
	}
	s, err := o.readState()
	if err != nil {
		return nil, err
	}
	changes, err := o.configure(s)
	if err == nil && !o.DryRun && s.BinDir != o.BinDir {
		s.BinDir = o.BinDir
		err = o.writeState(s)
	}
	return changes, err
}

func (o Options) configure(s *state) ([]Change, error) {
	name := o.File
	if name == "" {
		names, err := o.active()
		if err != nil {
			return nil, err
		}
		if len(names) == 0 {
			return o.create(s)
		}
		name = names[0]
	}
	for range attempts {
		changes, err := o.edit(s, name)
		if !errors.Is(err, wholefile.ErrChanged) {
			return changes, err
		}
	}
	return nil, fmt.Errorf("adding the entry to %s: it %w, again and again", o.path(name), wholefile.ErrChanged)
}

// attempts is how often a file is tried that others are writing.
const attempts = 5

// path is where a configuration is: behind a symbolic link, which stays one.
func (o Options) path(name string) string {
	path := filepath.Join(o.ConfDir, name)
	if target, err := filepath.EvalSymlinks(path); err == nil {
		return target
	}
	return path
}

// file is a configuration that was read.
type file struct {
	name, path string
	text       []byte
	list       *conflist.List
	wholefile.Attributes
}

// read returns what there is to a file whose text is conflist.ErrSyntax, along with that.
func (o Options) read(name string) (*file, error) {
	f := &file{name: name, path: o.path(name)}
	opened, err := os.Open(f.path)
	if err != nil {
		return nil, fmt.Errorf("reading a network configuration: %w", err)
	}
	defer opened.Close()
	info, err := opened.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading a network configuration: %w", err)
	}
	f.Attributes = wholefile.Of(info)
	var text bytes.Buffer
	if _, err := text.ReadFrom(opened); err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.path, err)
	}
	f.text = text.Bytes()
	if f.list, err = conflist.Parse(name, f.text); err != nil {
		return f, fmt.Errorf("reading %s: %w", f.path, err)
	}
	return f, nil
}

// edit puts the entry into a configuration. If that is wholefile.ErrChanged, nothing was done.
func (o Options) edit(s *state, name string) ([]Change, error) {
	f, err := o.read(name)
	if err != nil {
		return nil, err
	}
	if err := o.fit(f); err != nil {
		return nil, fmt.Errorf("adding the entry to %s: %w", f.path, err)
	}
	entry, err := o.Settings.Entry(f.list)
	if err != nil {
		return nil, fmt.Errorf("adding the entry to %s: %w", f.path, err)
	}
	text, err := f.list.With(entry)
	if err != nil {
		return nil, fmt.Errorf("adding the entry to %s: %w", f.path, err)
	}
	if f.list.Single {
		return o.wrap(s, f, text)
	}
	if bytes.Equal(text, f.text) {
		return []Change{{Path: f.path, Result: Unchanged}}, nil
	}
	changes := []Change{{f.path, Changed, diff(f.path, f.path, f.text, text)}}
	if o.DryRun {
		return changes, nil
	}
	// noted first: if we are killed in between, uninstalling finds what it would restore
	s.Files[name] = s.Files[name].next(f, text)
	if err := o.writeState(s); err != nil {
		return nil, err
	}
	if o.beforeReplace != nil {
		o.beforeReplace()
	}
	if err := wholefile.Replace(f.path, o.temporary(f.path), f.text, text, f.Attributes); err != nil {
		return nil, err
	}
	return changes, nil
}

// next is what is to be noted of a file when text is written in the place of what it holds; e is what
// is noted so far, nil for nothing.
func (e *edited) next(f *file, text []byte) *edited {
	n := &edited{Written: sum(text)}
	if f.list.Entry() == nil {
		// as it was, or another's installer wrote it anew
		n.Original = &original{Name: f.name, Text: f.text, Attributes: f.Attributes}
		return n
	}
	if e == nil || e.Written != sum(f.text) {
		return n // an entry, or a change, of somebody else: only the entry is to go
	}
	n.Original, n.Created = e.Original, e.Created
	return n
}

// fit returns nil if the chain can have the entry.
func (o Options) fit(f *file) error {
	if err := f.list.Fit(); err != nil {
		return err
	}
	if f.list.Inlined {
		return nil
	}
	// libcni puts these behind all that is in the list
	more, err := libcni.ConfFiles(filepath.Join(o.ConfDir, f.list.Name), []string{".conf"})
	if err != nil {
		return fmt.Errorf("looking for the network's other plugins: %w", err)
	}
	if len(more) > 0 && f.list.Entry() == nil {
		return fmt.Errorf("%w: it goes on in %s, and the entry has to come last", conflist.ErrUnfit, more[0])
	}
	return nil
}

// temporary is where a file is made that is to be at path: in the directory of the state, if that is on
// the same filesystem, else beside it under a name that runtimes pass over.
func (o Options) temporary(path string) string {
	if filepath.Dir(path) == o.path("") || filepath.Dir(path) == filepath.Clean(o.ConfDir) {
		return o.statePath(temporaryFile)
	}
	return filepath.Join(filepath.Dir(path), stateDir+"."+temporaryFile)
}

// wrap makes a list of the configuration of a single plugin, in a file of its own: runtimes tell lists by
// the file's extension. At each moment one of the two is what runtimes use.
func (o Options) wrap(s *state, f *file, text []byte) ([]Change, error) {
	name := strings.TrimSuffix(f.name, filepath.Ext(f.name)) + ".conflist"
	path := filepath.Join(o.ConfDir, name)
	there, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("making a list of %s: %w", f.path, err)
	case bytes.Equal(there, text):
	default:
		e := s.Files[name]
		if e == nil || e.Original == nil || e.Original.Name != f.name || e.Written != sum(there) {
			return nil, fmt.Errorf("making a list of %s: %w: %s", f.path, ErrInUse, path)
		}
	}
	changes := []Change{
		{path, Created, diff(f.path, path, f.text, text)},
		{filepath.Join(o.ConfDir, f.name), Removed, ""},
	}
	if o.DryRun {
		return changes, nil
	}
	s.Files[name] = &edited{Written: sum(text), Original: &original{Name: f.name, Text: f.text, Attributes: f.Attributes}}
	if err := o.writeState(s); err != nil {
		return nil, err
	}
	if err := wholefile.Put(path, o.temporary(path), text, f.Attributes); err != nil {
		return nil, err
	}
	if o.beforeReplace != nil {
		o.beforeReplace()
	}
	if now, err := os.ReadFile(f.path); err == nil && !bytes.Equal(now, f.text) {
		return nil, fmt.Errorf("making a list of %s: %w", f.path, wholefile.ErrChanged)
	}
	if err := os.Remove(filepath.Join(o.ConfDir, f.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("making a list of a single plugin: %w", err)
	}
	if err := wholefile.SyncDir(o.ConfDir); err != nil {
		return nil, fmt.Errorf("making a list of %s: %w", f.path, err)
	}
	return changes, nil
}

func diff(fromName, toName string, from, to []byte) string {
	return textdiff.Unified(fromName, toName, string(from), string(to))
}
