package install

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// watcher is a Watch under way.
type watcher struct {
	*node
	reports chan []Change
	log     *lines
	stop    func()
}

type lines struct{ c chan string }

func (l lines) Write(p []byte) (int, error) {
	l.c <- string(p)
	return len(p), nil
}

func (n *node) watch() *watcher {
	n.Helper()
	w := &watcher{node: n, reports: make(chan []Change, 100), log: &lines{make(chan string, 100)}}
	o := n.Options
	o.Log = slog.New(slog.NewTextHandler(w.log, nil))
	ctx, cancel := context.WithCancel(n.Context())
	done := make(chan error, 1)
	go func() {
		done <- o.Watch(ctx, func(c []Change) error {
			w.reports <- c
			return nil
		})
	}()
	w.stop = func() {
		n.Helper()
		cancel()
		if err := <-done; err != nil {
			n.Error(err)
		}
	}
	return w
}

// deadline is far past what anything here takes.
const deadline = time.Minute

func (w *watcher) reported() []Change {
	w.Helper()
	select {
	case c := <-w.reports:
		return c
	case <-time.After(deadline):
		w.Fatal("nothing was done")
		return nil
	}
}

func (w *watcher) logged(want string) {
	w.Helper()
	for {
		select {
		case line := <-w.log.c:
			if strings.Contains(line, want) {
				return
			}
		case <-time.After(deadline):
			w.Fatalf("nothing was logged of %q", want)
		}
	}
}

// TestWatch: the entry comes back whatever another's installer does: it renames a new file, writes in place,
// a piece at a time, removes the file, adds another that goes first.
func TestWatch(t *testing.T) {
	n := newNode(t)
	if err := os.Remove(n.ConfDir); err != nil {
		t.Fatal(err)
	}
	var looked atomic.Int32
	n.Looked = func() { looked.Add(1) }
	w := n.watch()
	w.logged("waiting for a network configuration")
	n.write("10.conflist", bridge)
	if c := w.reported(); c[0].Result != Changed || n.types("10.conflist") != "bridge portmap xdp" {
		t.Errorf("%+v", c)
	}

	n.write("new", strings.Replace(bridge, "portmap", "tuning", 1))
	if err := os.Rename(filepath.Join(n.ConfDir, "new"), filepath.Join(n.ConfDir, "10.conflist")); err != nil {
		t.Fatal(err)
	}
	w.reported()
	if have := n.types("10.conflist"); have != "bridge tuning xdp" {
		t.Error(have)
	}

	// a slow writer: what is half stays as it is until it is whole
	f, err := os.Create(filepath.Join(n.ConfDir, "10.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	half := len(bridge) / 2
	if _, err := f.WriteString(bridge[:half]); err != nil {
		t.Fatal(err)
	}
	w.logged("waiting for a network configuration to be whole")
	if have := n.text("10.conflist"); have != bridge[:half] {
		t.Errorf("half a file was changed:\n%s", have)
	}
	if _, err := f.WriteString(bridge[half:]); err != nil {
		t.Fatal(err)
	}
	f.Close()
	w.reported()
	if have := n.types("10.conflist"); have != "bridge portmap xdp" {
		t.Error(have)
	}

	if err := os.Remove(filepath.Join(n.ConfDir, "10.conflist")); err != nil {
		t.Fatal(err)
	}
	w.logged("waiting for a network configuration")
	n.write("20.conflist", bridge)
	w.reported()
	n.write("05-macvlan.conflist", strings.Replace(bridge, `"bridge"`, `"macvlan"`, 1))
	w.logged("makes no veth")
	if err := os.Rename(filepath.Join(n.ConfDir, "05-macvlan.conflist"), filepath.Join(n.ConfDir, "05")); err != nil {
		t.Fatal(err)
	}
	n.write("07.conf", `{"name":"n","cniVersion":"1.0.0","type":"ptp"}`)
	w.reported()
	if n.names() != "05 07.conflist 20.conflist" || n.types("07.conflist") != "ptp xdp" {
		t.Error(n.names())
	}
	// uninstallers wait for its end, or it would put the entry back; to look they may
	with := n.text("07.conflist")
	if changes, err := n.Unconfigure(t.Context()); !errors.Is(err, ErrWatched) || changes != nil || n.text("07.conflist") != with {
		t.Errorf("%v, %+v", err, changes)
	}
	dry := n.Options
	dry.DryRun = true
	if changes, err := dry.Unconfigure(t.Context()); err != nil || len(changes) == 0 {
		t.Errorf("%v, %+v", err, changes)
	}
	w.stop()
	if have := looked.Load(); have != 1 {
		t.Errorf("told %d times that it has looked", have)
	}
	n.unconfigure()
	if n.names() != "05 07.conf 20.conflist" || n.text("20.conflist") != bridge {
		t.Error(n.names())
	}
}

// TestWatchQuiet: a watch that has nothing to do does nothing, above all not because of itself.
func TestWatchQuiet(t *testing.T) {
	n := newNode(t)
	n.write("10.conflist", strings.Replace(bridge, `"bridge"`, `"macvlan"`, 1))
	var looks atomic.Int32
	n.beforeLook = func() { looks.Add(1) }
	w := n.watch()
	w.logged("makes no veth")
	time.Sleep(4 * settleTime) // one that woke itself would do so several times
	if have := looks.Load(); have != 1 {
		t.Errorf("looked %d times at what did not change", have)
	}
	n.write("10.conflist", bridge)
	w.reported()
	before := looks.Load()
	time.Sleep(4 * settleTime)
	if have := looks.Load() - before; have > 1 { // once more, because of what it wrote
		t.Errorf("looked %d times at what it wrote", have)
	}
	w.stop()
}
