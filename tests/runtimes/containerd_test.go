package runtimes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests/runtimes/cri"
)

// containerd is a containerd of a node, with its CRI plugin, and runc.
type containerd struct {
	*criRuntime
	node     *node
	dir, bin string // all of its state; the unpacked package
	cgroup   string
	forgets  bool // a pod in the middle of whose ADD it is killed
	cmd      *exec.Cmd
}

// configuration is what containerd 1.6 to 2.1 take. Where the capability SYS_RESOURCE is missing, as in many
// containers, the out-of-memory score of pause cannot be what it is otherwise. The state is one directory, so that a
// node can lose it.
const configuration = `version = 2
root = %[1]q
state = %[2]q
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp", "io.containerd.nri.v1.nri"]
[grpc]
  address = %[3]q
[plugins."io.containerd.internal.v1.opt"]
  path = %[4]q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %[5]q
  stream_server_address = "127.0.0.1"
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = %[10]t
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %[6]q
    conf_dir = %[7]q
    max_conf_num = %[9]d
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = %[8]q
`

// runcOf is the package with runc, which all versions of containerd run here.
const runcOf = "containerd-1.6"

// startContainerd starts a containerd on the node for pods of one network, the chain.
func startContainerd(t *testing.T, n *node, version string, c chain) *containerd {
	t.Helper()
	if c.version == "" && version == "2.1" {
		c.version = "1.1.0" // which 1.6 and 1.7 refuse
	}
	confDir := filepath.Join(n.Dir, "net.d")
	if err := c.write(n, confDir); err != nil {
		t.Fatal(err)
	}
	return startContainerdAt(t, n, version, directories{plugins: n.plugins, networks: confDir}, max(c.networks, 1))
}

// directories are those that a containerd is told.
type directories struct {
	plugins, networks string
	namespacesInRun   bool // the pods' network namespaces are in /var/run/netns, as they are by default, not below its state
}

// startContainerdAt starts a containerd on the node for pods of as many networks as told.
func startContainerdAt(t *testing.T, n *node, version string, at directories, networks int) *containerd {
	t.Helper()
	r := &containerd{node: n, dir: filepath.Join(n.Dir, "containerd"), bin: unpacked(t, "containerd-"+version)}
	r.cgroup, r.forgets = "/"+filepath.Base(n.Dir), version == "1.7"
	if err := os.Mkdir(r.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(n.Dir, 0o711); err != nil { // runc looks for the image's files as the user of the container
		t.Fatal(err)
	}
	text := fmt.Sprintf(configuration, r.path("root"), r.path("run"), r.socket(), r.path("opt"), imageName, at.plugins,
		at.networks, filepath.Join(unpacked(t, runcOf), "usr/sbin/runc"), networks, !at.namespacesInRun)
	if err := os.WriteFile(r.path("config.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := cri.Dial(r.socket())
	if err != nil {
		t.Fatal(err)
	}
	client.CgroupParent, client.Logs = r.cgroup, r.path("pods")
	r.criRuntime = &criRuntime{Client: client}
	t.Cleanup(func() { r.end(t) })
	if err := r.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	archive, err := n.archive()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.ctr(t.Context(), "images", "import", archive); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *containerd) path(name string) string { return filepath.Join(r.dir, name) }

func (r *containerd) socket() string { return r.path("containerd.sock") }

func (r *containerd) ctr(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(r.bin, "usr/bin/ctr"), append([]string{"-a", r.socket(), "-n", "k8s.io"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// start starts containerd, as the node does or after stop, and waits until it serves.
func (r *containerd) start(ctx context.Context) error {
	log, err := os.OpenFile(r.path("log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	r.cmd = exec.Command(filepath.Join(r.bin, "usr/bin/containerd"), "--config", r.path("config.toml"))
	r.cmd.Stdout, r.cmd.Stderr = log, log
	// the shim is looked for there
	r.cmd.Env = append(os.Environ(), "PATH="+filepath.Join(r.bin, "usr/bin")+":"+os.Getenv("PATH"))
	if err := r.node.Start(r.cmd); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	return eventually(patience, func() error {
		ctx, cancel := context.WithTimeout(ctx, patience/2)
		defer cancel()
		return r.Ready(ctx)
	})
}

// stop ends containerd by a signal; pods and their shims go on.
func (r *containerd) stop(signal os.Signal) {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Signal(signal)
	_ = r.cmd.Wait()
	r.cmd = nil
}

// removeAll stops and removes all pods that containerd knows, as kubelet does with those that it does not want.
func (r *containerd) removeAll(ctx context.Context) error {
	list, err := r.Sandboxes(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range list {
		errs = append(errs, r.remove(ctx, &pod{spec: spec{name: s.Name}, sandbox: s.ID}))
	}
	return errors.Join(errs...)
}

// end removes what is there and stops containerd, and checks that no process, mount or cgroup of it is left.
func (r *containerd) end(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	if r.cmd != nil {
		if err := r.removeAll(ctx); err != nil {
			t.Errorf("remove all pods: %v", err)
		}
	}
	_ = r.Close()
	r.stop(unix.SIGTERM)
	if t.Failed() {
		if log, err := os.ReadFile(r.path("log")); err == nil {
			lines := bytes.Split(log, []byte("\n"))
			t.Logf("the end of containerd's log:\n%s", bytes.Join(lines[max(0, len(lines)-30):], []byte("\n")))
		}
	}
	err := eventually(patience, func() error {
		if left, err := r.node.processes(); err != nil || len(left) > 0 {
			return fmt.Errorf("processes left: %v, %w", left, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
		r.node.kill("")
	}
	if err := removeCgroups(r.cgroup); err != nil {
		t.Errorf("cgroups left: %v", err)
	}
	_ = unix.Unmount(r.path("run"), unix.MNT_DETACH)
}

// processes are those of which the command line names the node's directory: containerd, its shims, plugins. By PID.
func (n *node) processes() (map[int]string, error) {
	list := map[int]string{}
	entries, err := os.ReadDir("/proc")
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline")) // it may be gone
		if strings.Contains(string(line), n.Dir) {
			list[pid] = strings.ReplaceAll(string(line), "\x00", " ")
		}
	}
	return list, err
}

// kill ends those processes of which the command line begins so. They are in the PID namespace of the tests, hence ours.
func (n *node) kill(prefixes ...string) {
	list, _ := n.processes()
	for pid, line := range list {
		if slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(line, prefix) }) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// removeCgroups removes the cgroup of a node's pods in each hierarchy. It fails if there still is one in it.
func removeCgroups(name string) error {
	dirs, err := filepath.Glob("/sys/fs/cgroup/*" + name)
	if err != nil {
		return err
	}
	dirs = append(dirs, "/sys/fs/cgroup"+name)
	for _, dir := range dirs {
		err := eventually(patience, func() error {
			if err := os.Remove(dir); !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
