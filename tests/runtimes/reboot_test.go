package runtimes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestReboot: a node starts again, with what containerd, libcni and host-local keep on disk, and without processes,
// namespaces, bpffs and interfaces. Kubelet stops the pods that containerd remembers, makes them anew, and removes the
// old ones. No address is lost by that, however often.
func TestReboot(t *testing.T) {
	for _, version := range versions() {
		for _, c := range []chain{
			{main: "bridge", ipam: "host-local", mode: "tcx", redirect: true},
			{main: "ptp", ipam: "xdp-ipam", mode: "generic"},
		} {
			t.Run(version+" "+c.String(), func(t *testing.T) {
				n := newNode(t)
				r := startContainerd(t, n, version, c)
				names := []string{"web", "client"}
				for _, name := range names {
					mustRun(t, r, kubeletSpec(name))
				}
				for range 2 {
					reboot(t, n, r)
					pods := kubeletSync(t, r, names)
					if err := reaches(t.Context(), r, pods["client"], pods["web"]); err != nil {
						t.Error(err)
					}
					leases, err := n.hostLocalLeases()
					if c.ipam == "xdp-ipam" {
						leases, err = n.leases(t.Context())
					}
					if err != nil || len(leases) != 2*len(names) {
						t.Errorf("leases of %d pods: %q, %v", len(names), leases, err)
					}
					if got := attached(t, n); len(got) != len(names) {
						t.Errorf("xdpctl shows %q", got)
					}
				}
				if err := r.removeAll(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func kubeletSpec(name string) spec {
	if name == "web" {
		return spec{name: name, args: serveAs(name), port: hostPort}
	}
	return spec{name: name, args: []string{"pause"}}
}

// kubeletSync is what kubelet does when it finds pods that have no sandbox that is ready: it stops what there is of each,
// makes a sandbox of the next attempt, and removes the old ones later.
func kubeletSync(t *testing.T, r *containerd, names []string) map[string]*pod {
	t.Helper()
	pods := map[string]*pod{}
	list, err := r.Sandboxes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		k := kubernetesPod(kubeletSpec(name))
		for _, s := range list {
			if s.Name != name {
				continue
			}
			if s.Ready {
				t.Errorf("sandbox %.12s of pod %s is ready", s.ID, name)
			}
			k.Attempt = max(k.Attempt, s.Attempt+1)
			if err := r.StopPod(t.Context(), s.ID); err != nil {
				t.Errorf("stop the old sandbox of pod %s: %v", name, err)
			}
		}
		p, err := r.runPod(t.Context(), kubeletSpec(name), k)
		if err != nil {
			t.Fatal(err)
		}
		pods[name] = p
	}
	for _, s := range list {
		if err := r.RemovePod(t.Context(), s.ID); err != nil {
			t.Errorf("remove the old sandbox of pod %s: %v", s.Name, err)
		}
	}
	return pods
}

// reaches tells whether a pod reaches another, with both families.
func reaches(ctx context.Context, r runtime, from, to *pod) error {
	for _, server := range to.at(serverPort) {
		err := eventually(patience, func() error { _, err := r.exec(ctx, from, "who", server.String()); return err })
		if err != nil {
			return fmt.Errorf("pod %s to pod %s: %w", from.name, to.name, err)
		}
	}
	return nil
}

// reboot takes from a node what a reboot takes, and starts containerd.
func reboot(t *testing.T, n *node, r *containerd) {
	t.Helper()
	r.stop(unix.SIGKILL)
	n.kill("")
	if err := killCgroup(r.cgroup); err != nil {
		t.Fatal(err)
	}
	mounts, err := n.mounts()
	for _, mount := range slices.Backward(mounts) {
		err = errors.Join(err, unix.Unmount(mount, unix.MNT_DETACH))
	}
	err = errors.Join(err, os.RemoveAll(r.path("run")), n.Purge(), n.Do(clearNetwork), n.flush())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// flush removes all rules and chains of NAT from the node.
func (n *node) flush() (err error) {
	for _, command := range []string{"iptables", "ip6tables"} {
		for _, action := range []string{"-F", "-X"} {
			if out, failed := n.Run(exec.Command(command, "-t", "nat", action)); failed != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w: %s", command, failed, out.Stderr))
			}
		}
	}
	return err
}

// clearNetwork deletes all interfaces of the calling thread's namespace but the uplink, which the next start would make
// just so. Those of pods are going by themselves meanwhile.
func clearNetwork() error {
	return eventually(patience, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("list interfaces: %w", err)
		}
		for _, l := range links {
			name := l.Attrs().Name
			if name == "lo" || name == "uplink" {
				continue
			}
			if err := netlink.LinkDel(l); err != nil {
				return fmt.Errorf("delete %s: %w", name, err)
			}
		}
		return nil
	})
}

// killCgroup ends all processes in the cgroups of a node's pods, and removes those.
func killCgroup(name string) error {
	return eventually(patience, func() error {
		roots, err := filepath.Glob("/sys/fs/cgroup/*" + name)
		for _, root := range roots {
			var dirs []string
			_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for _, dir := range slices.Backward(dirs) {
				procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
				for _, field := range strings.Fields(string(procs)) {
					if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
						_ = unix.Kill(pid, unix.SIGKILL)
					}
				}
				if removed := os.Remove(dir); removed != nil {
					err = removed
				}
			}
			if err != nil {
				return err
			}
		}
		return err
	})
}
