package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/internal/conflist"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/internal/wholefile"
)

// Times of Watch.
const (
	// settleTime is how long the directory has to be quiet before a configuration is taken for finished.
	settleTime = 250 * time.Millisecond
	// rescanTime is how often Watch looks without being told: the directory may have been replaced, events
	// lost in an overflow, an error over.
	rescanTime = 30 * time.Second
)

// Watch puts the entry into the node's network configuration, and back when another program rewrites
// that, or adds one that goes before it, until ctx ends, which is no error. It tells report of what it
// did. A configuration that does not parse, as one that is being written, is waited for; one whose
// chain the plugin does not fit is left alone, and watched on.
func (o Options) Watch(ctx context.Context, report func([]Change) error) error {
	if o.DryRun {
		return errors.New("watching is no dry run")
	}
	if err := os.MkdirAll(o.ConfDir, 0o755); err != nil {
		return fmt.Errorf("watching for network configurations: %w", err)
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching %s: %w", o.ConfDir, err)
	}
	defer watcher.Close()
	presence, err := o.showPresence()
	if err != nil {
		return err
	}
	defer func() { presence.Close() }()
	w := &watch{Options: o, report: report}
	looked := sync.OnceFunc(func() {
		if o.Looked != nil {
			o.Looked()
		}
	})
	var (
		look   = time.NewTimer(0)
		rescan = time.NewTicker(rescanTime)
	)
	defer look.Stop()
	defer rescan.Stop()
	if err := watcher.Add(o.ConfDir); err != nil {
		return fmt.Errorf("watching %s: %w", o.ConfDir, err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, open := <-watcher.Events:
			if !open {
				return fmt.Errorf("watching %s: the watch has ended", o.ConfDir)
			}
			// a look makes and removes these itself; what else it changes leads to another, which finds
			// nothing to do
			if !strings.HasPrefix(filepath.Base(event.Name), stateDir) {
				look.Reset(settleTime)
			}
		case err := <-watcher.Errors:
			w.log("watching for network configurations", err)
			look.Reset(settleTime)
		case <-rescan.C:
			// no effect as long as it is the same directory
			if err := watcher.Add(o.ConfDir); err != nil {
				w.log("watching for network configurations", err)
			}
			if again, err := o.showPresence(); err != nil {
				w.log("watching for network configurations", err)
			} else {
				presence.Close()
				presence = again
			}
			look.Reset(0)
		case <-look.C:
			if err := w.look(ctx); err != nil {
				return err
			}
			looked()
		}
	}
}

// showPresence has a Watch known to uninstallers, as long as what it returns is open: by a shared lock of the directory
// of configurations, which is there anyway, and the same in every container. Only they have the other lock, for a moment.
func (o Options) showPresence() (*os.File, error) { return o.flock(unix.LOCK_SH) }

// keepWatchersOut keeps a Watch from beginning, as long as what it returns is open. It returns ErrWatched if there is one.
func (o Options) keepWatchersOut() (*os.File, error) {
	dir, err := o.flock(unix.LOCK_EX | unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, ErrWatched
	}
	return dir, err
}

func (o Options) flock(how int) (*os.File, error) {
	dir, err := os.Open(o.ConfDir)
	if err != nil {
		return nil, fmt.Errorf("opening the directory of configurations: %w", err)
	}
	for {
		err := unix.Flock(int(dir.Fd()), how)
		if err == nil {
			return dir, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", o.ConfDir, err), dir.Close())
		}
	}
}

type watch struct {
	Options
	report func([]Change) error
	said   string // what was logged last: it is not repeated while it stays so
}

// look puts the entry where it is missing. What is wrong is logged, as it may pass; an error is the
// report's.
func (w *watch) look(ctx context.Context) error {
	if w.beforeLook != nil {
		w.beforeLook()
	}
	ctx, cancel := context.WithTimeout(ctx, rescanTime)
	defer cancel()
	changes, err := w.Configure(ctx)
	switch {
	case err == nil:
		w.said = ""
	case errors.Is(err, ErrNoConf), errors.Is(err, fs.ErrNotExist), errors.Is(err, wholefile.ErrChanged):
		w.log("waiting for a network configuration", err)
	case errors.Is(err, conflist.ErrSyntax):
		w.log("waiting for a network configuration to be whole", err)
	case errors.Is(err, pins.ErrBusy):
		w.log("waiting for another installer", err)
	default:
		w.log("leaving the network configuration as it is", err)
	}
	for _, c := range changes {
		if err == nil && c.Result != Unchanged {
			return w.report(changes)
		}
	}
	return nil
}

func (w *watch) log(what string, err error) {
	if w.Log == nil || w.said == err.Error() {
		return
	}
	w.said = err.Error()
	w.Log.Warn(what, "error", err)
}
