package runtimes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
)

// TestRestart: containerd is restarted while pods run; nothing happens to them, and they are removed as ever.
func TestRestart(t *testing.T) {
	n := newNode(t)
	r := startContainerd(t, n, "1.6", chain{main: "bridge", ipam: "host-local", mode: "tcx", redirect: true})
	web := mustRun(t, r, kubeletSpec("web"))
	client := mustRun(t, r, kubeletSpec("client"))
	for _, signal := range []os.Signal{unix.SIGTERM, unix.SIGKILL} {
		r.stop(signal)
		if err := r.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := reaches(t.Context(), r, client, web); err != nil {
			t.Errorf("after %v: %v", signal, err)
		}
	}
	mustRemove(t, r, client, web)
	if counts := n.count(t, web.sandbox); counts["ADD"] != 1 {
		t.Errorf("calls for the pod: %v, want ADD once", counts)
	}
}

// TestKilledInADD: containerd is killed while our ADD runs, before and after that has done its work. The plugin is killed
// with it, or does its work and finds nobody to tell, or does so when the pod is deleted already. When containerd is back
// kubelet stops what there is of the pod and makes it anew, and nothing of the first is left; where containerd has
// forgotten it, nothing is left behind GC.
func TestKilledInADD(t *testing.T) {
	for _, version := range versions() {
		for _, when := range []string{"before", "after"} {
			for _, plugin := range []string{"killed", "goes on", "late"} {
				t.Run(strings.Join([]string{version, when, plugin}, " "), func(t *testing.T) {
					n := newNode(t)
					c := chain{main: "bridge", ipam: "xdp-ipam", mode: "tcx", redirect: true}
					r := startContainerd(t, n, version, c)
					killedInADD(t, n, r, when, plugin)
					if r.forgets {
						collect(t, n, c)
					} else if list := attached(t, n); len(list) > 0 {
						t.Errorf("attachments left: %q", list)
					}
				})
			}
		}
	}
}

func killedInADD(t *testing.T, n *node, r *containerd, when, plugin string) {
	hold := filepath.Join(n.Dir, "hold-"+when+"-xdp-ADD")
	if err := os.WriteFile(hold, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	made := make(chan error, 1)
	go func() {
		_, err := r.RunPod(t.Context(), kubernetesPod(spec{name: "web"}))
		made <- err
	}()
	err := eventually(patience, func() error { _, err := os.Stat(filepath.Join(n.Dir, "held")); return err })
	if err != nil {
		t.Fatalf("ADD of xdp: %v", err)
	}
	r.stop(unix.SIGKILL)
	if err := <-made; err == nil {
		t.Fatal("the pod was made, and containerd is dead")
	}
	switch plugin {
	case "killed":
		n.kill(n.plugins, filepath.Join(n.Dir, "real"))
	case "late":
		if err := r.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		stopAll(t, r)
	}
	if err := os.Remove(hold); err != nil {
		t.Fatal(err)
	}
	if err := n.pluginsEnd(); err != nil {
		t.Fatal(err)
	}
	if plugin != "late" {
		if err := r.start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	pods := kubeletSync(t, r, []string{"web", "client"})
	if err := reaches(t.Context(), r, pods["client"], pods["web"]); err != nil {
		t.Error(err)
	}
	if err := r.removeAll(t.Context()); err != nil {
		t.Error(err)
	}
}

// collect does what is left to do where a runtime has forgotten a pod: its namespace is freed by who cleans the node, and
// GC called, by libcni, of what has no valid attachment.
func collect(t *testing.T, n *node, c chain) {
	t.Helper()
	if list := attached(t, n); len(list) > 1 {
		t.Errorf("attachments left: %q", list)
	}
	mounts, err := n.mounts()
	for _, mount := range mounts {
		if strings.Contains(mount, "/netns/") {
			err = errors.Join(err, unix.Unmount(mount, unix.MNT_DETACH), os.Remove(mount))
		}
	}
	// portmap and bridge know no GC
	if err := errors.Join(err, n.flush(), os.RemoveAll("/var/lib/cni/results")); err != nil {
		t.Error(err)
	}
	c.version = "1.1.0" // from which on libcni calls GC
	if err := tests.MustNetwork(t, n.Node, c.conflist(n, "net0", 0)).GC(t.Context()); err != nil {
		t.Errorf("GC: %v", err)
	}
}

func stopAll(t *testing.T, r *containerd) {
	t.Helper()
	list, err := r.Sandboxes(t.Context())
	if err != nil || len(list) == 0 && !r.forgets {
		t.Fatalf("containerd knows the pods %v, %v", list, err)
	}
	for _, s := range list {
		if err := r.StopPod(t.Context(), s.ID); err != nil {
			t.Error(err)
		}
	}
}

// pluginsEnd waits until no plugin runs.
func (n *node) pluginsEnd() error {
	return eventually(patience, func() error {
		list, err := n.processes()
		for _, line := range list {
			if strings.HasPrefix(line, n.plugins) {
				err = fmt.Errorf("a plugin still runs: %s", line)
			}
		}
		return err
	})
}
