package runtimes

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// podman runs pods that are a container each, with CNI as its network backend.
type podman struct {
	node     *node
	dir      string
	networks string // those of each pod, separated by commas
}

// podmanConfiguration: without the capability SYS_RESOURCE podman's own limits cannot be set. Podman's end of a
// container looks for static_dir below graphroot, and waits for 20 seconds if it is elsewhere.
const podmanConfiguration = `[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
cgroupns = "host"
cgroups = "enabled"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
conmon_path = ["/usr/bin/conmon"]
static_dir = "%[1]s/graph/libpod"
volume_path = "%[1]s/volumes"
tmp_dir = "%[1]s/tmp"
[engine.runtimes]
runc = ["/usr/sbin/runc"]
[network]
network_backend = "cni"
cni_plugin_dirs = [%[2]q]
network_config_dir = "%[1]s/net.d"
default_network = "net0"
`

// startPodman prepares podman for pods of the chain's networks. Its packages are laid over /usr, in this mount namespace
// alone: podman and conmon start each other by their own paths, and look there for libraries.
func startPodman(t *testing.T, n *node, c chain) *podman {
	t.Helper()
	r := &podman{node: n, dir: filepath.Join(n.Dir, "podman")}
	for number := range max(c.networks, 1) {
		r.networks += fmt.Sprintf(",net%d", number)
	}
	r.networks = r.networks[1:]
	overUsr(t, unpacked(t, "podman-4.3"))
	if err := os.Mkdir(r.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(n.Dir, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := c.write(n, filepath.Join(r.dir, "net.d")); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"containers.conf": fmt.Sprintf(podmanConfiguration, r.dir, n.plugins),
		"storage.conf":    fmt.Sprintf("[storage]\ndriver = \"overlay\"\ngraphroot = \"%[1]s/graph\"\nrunroot = \"%[1]s/run\"\n", r.dir),
		"policy.json":     `{"default": [{"type": "insecureAcceptAnything"}]}`,
	} {
		if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { r.end(t) })
	archive, err := n.archive()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.podman(t.Context(), "load", "--signature-policy", filepath.Join(r.dir, "policy.json"), "-i", archive); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *podman) cgroup() string { return "/" + filepath.Base(r.node.Dir) }

func (r *podman) podman(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "/usr/bin/podman", args...)
	cmd.Env = append(os.Environ(),
		"CONTAINERS_CONF="+filepath.Join(r.dir, "containers.conf"), "CONTAINERS_STORAGE_CONF="+filepath.Join(r.dir, "storage.conf"))
	cmd.WaitDelay = time.Second
	out, err := r.node.Run(cmd)
	if err != nil {
		return "", fmt.Errorf("podman %s: %w: %s", strings.Join(args, " "), err, out.Stderr)
	}
	return strings.TrimSpace(string(out.Stdout)), nil
}

func (r *podman) run(ctx context.Context, s spec) (*pod, error) {
	args := []string{"run", "--detach", "--name", s.name, "--hostname", s.name, "--network", r.networks,
		"--cgroup-parent", r.cgroup()}
	if s.port != 0 {
		args = append(args, "--publish", fmt.Sprintf("%d:%d", s.port, serverPort))
	}
	id, err := r.podman(ctx, append(append(args, imageName), s.args...)...)
	if err != nil {
		return nil, err
	}
	out, err := r.podman(ctx, "inspect", id)
	if err != nil {
		return nil, err
	}
	var inspected []struct {
		NetworkSettings struct {
			Networks map[string]struct{ IPAddress, GlobalIPv6Address string }
		}
	}
	if err := json.Unmarshal([]byte(out), &inspected); err != nil || len(inspected) != 1 {
		return nil, fmt.Errorf("podman inspect: %w: %s", err, out)
	}
	network := inspected[0].NetworkSettings.Networks["net0"]
	var addresses []netip.Addr
	for _, text := range []string{network.IPAddress, network.GlobalIPv6Address} {
		if a, err := netip.ParseAddr(text); err == nil {
			addresses = append(addresses, a)
		}
	}
	p := &pod{spec: s, stats: s.name, sandbox: id, id: id}
	return p, p.take(addresses)
}

func (r *podman) exec(ctx context.Context, p *pod, args ...string) (string, error) {
	return r.podman(ctx, append([]string{"exec", p.id, "/app"}, args...)...)
}

func (r *podman) remove(ctx context.Context, p *pod) error {
	_, err := r.podman(ctx, "rm", "--force", "--time", "0", p.id)
	return err
}

// end removes what is there, and checks that no process or mount is left.
func (r *podman) end(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	if _, err := r.podman(ctx, "rm", "--all", "--force", "--time", "0"); err != nil {
		t.Error(err)
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
	if err := killCgroup(r.cgroup()); err != nil { // podman leaves its parent
		t.Errorf("cgroups left: %v", err)
	}
	for _, mount := range []string{"graph/overlay", "graph"} { // podman mounts its store on itself, for as long as the node is up
		_ = unix.Unmount(filepath.Join(r.dir, mount), unix.MNT_DETACH)
	}
}

// TestPodman runs the basics under podman, by the chains, and the filter and limits of one.
func TestPodman(t *testing.T) {
	list := chains(false)
	if testing.Short() {
		list = list[1:3]
	}
	for _, c := range list {
		t.Run(c.String(), func(t *testing.T) {
			n := newNode(t)
			basics(t, n, startPodman(t, n, c), c)
			noCallFailed(t, n)
		})
	}
	t.Run("first packet", func(t *testing.T) {
		n := newNode(t)
		c := chain{main: "bridge", ipam: "xdp-ipam", mode: "tcx", filter: denyPort}
		firstPacket(t, n, startPodman(t, n, c))
	})
	if testing.Short() {
		return
	}
	t.Run("limits", func(t *testing.T) {
		n := newNode(t)
		c := chain{main: "bridge", ipam: "host-local", mode: "generic", redirect: true, limit: 16_000_000}
		limits(t, n, startPodman(t, n, c), c)
	})
	t.Run("two networks", func(t *testing.T) {
		n := newNode(t)
		twoNetworks(t, n, startPodman(t, n, chain{main: "bridge", ipam: "host-local", mode: "tcx", networks: 2}))
	})
}
