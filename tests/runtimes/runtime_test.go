package runtimes

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests/runtimes/cri"
	"github.com/xdp-cni/xdp-cni/tests/runtimes/image"
)

// imageName is the image of all containers, which no registry has.
const imageName = "xdp-cni.local/app:1"

// spec says what a pod is to be.
type spec struct {
	name string
	args []string // of app
	port int32    // of the node, that leads to serverPort
}

// serveAs are the arguments of a server that calls itself by a name.
func serveAs(name string) []string { return []string{"serve", strconv.Itoa(serverPort), name} }

// pod is a pod that runs, of one container.
type pod struct {
	spec
	stats   string // what xdpctl knows it by
	sandbox string // the container ID that CNI knows it by
	id      string // of the container, as the runtime has it
	v4, v6  netip.Addr
}

func (p *pod) take(addresses []netip.Addr) error {
	for _, a := range addresses {
		if a.Is4() {
			p.v4 = a
		} else {
			p.v6 = a
		}
	}
	if !p.v4.IsValid() || !p.v6.IsValid() {
		return fmt.Errorf("pod %s has addresses %v, want one of each family", p.name, addresses)
	}
	return nil
}

func (p *pod) at(port uint16) []netip.AddrPort {
	return []netip.AddrPort{netip.AddrPortFrom(p.v4, port), netip.AddrPortFrom(p.v6, port)}
}

// runtime is what runs pods on a node.
type runtime interface {
	run(ctx context.Context, s spec) (*pod, error)
	exec(ctx context.Context, p *pod, args ...string) (stdout string, err error)
	remove(ctx context.Context, p *pod) error
}

// mustRun runs a pod, and removes it when the test ends if the test has not.
func mustRun(t *testing.T, r runtime, s spec) *pod {
	t.Helper()
	p, err := r.run(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustExec(t *testing.T, r runtime, p *pod, args ...string) string {
	t.Helper()
	out, err := r.exec(t.Context(), p, args...)
	if err != nil {
		t.Fatalf("in pod %s: %v", p.name, err)
	}
	return strings.TrimSpace(out)
}

func mustRemove(t *testing.T, r runtime, pods ...*pod) {
	t.Helper()
	for _, p := range pods {
		if err := r.remove(t.Context(), p); err != nil {
			t.Errorf("remove pod %s: %v", p.name, err)
		}
	}
}

// unpacked is where ./fetch has put a runtime.
func unpacked(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv(runtimesVariable)
	if dir == "" {
		dir = runtimesDefault
	}
	dir = filepath.Join(dir, name)
	if _, err := os.Stat(filepath.Join(dir, ".done")); err != nil {
		t.Fatalf("%s is not in %s: make test-runtimes fetches it", name, filepath.Dir(dir))
	}
	return dir
}

// overUsr lays the directories usr of others over /usr, for this test, in this mount namespace alone.
func overUsr(t *testing.T, dirs ...string) {
	t.Helper()
	var lower strings.Builder
	for _, dir := range dirs {
		lower.WriteString(filepath.Join(dir, "usr") + ":")
	}
	if err := unix.Mount("overlay", "/usr", "overlay", 0, "lowerdir="+lower.String()+"/usr"); err != nil {
		t.Fatalf("lay %q over /usr: %v", dirs, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount("/usr", unix.MNT_DETACH); err != nil {
			t.Errorf("unmount /usr: %v", err)
		}
	})
}

// archive writes the image of app and returns its path.
func (n *node) archive() (path string, err error) {
	app, err := os.ReadFile(n.programs.app)
	if err != nil {
		return "", err
	}
	path = filepath.Join(n.Dir, "image.tar")
	file, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	return path, image.Write(file, imageName, []string{"/app"}, []string{"pause"},
		image.File{Name: "app", Mode: 0o755, Content: app}, image.File{Name: "etc/passwd", Mode: 0o644, Content: []byte("root:x:0:0::/:\n")})
}

// counter, direction and stats are what tests read of `xdpctl stats -o json`.
type counter struct{ Packets, Bytes uint64 }

type direction map[string]counter

type stats struct {
	ContainerID, IfName, Mode string
	Pod                       struct{ Namespace, Name, UID string }
	Addresses                 []string
	Egress, Ingress           direction
	Protocols, Kinds          struct{ Egress, Ingress direction }
	Drops                     struct{ Egress, Ingress direction }
}

func (n *node) stats(ctx context.Context, name string) (stats, error) {
	out, err := n.RunXdpctl(ctx, "stats", "-o", "json", name)
	if err != nil {
		return stats{}, fmt.Errorf("xdpctl stats %s: %w: %s", name, err, out.Stderr)
	}
	var list []stats
	if err := json.Unmarshal(out.Stdout, &list); err != nil {
		return stats{}, err
	}
	if len(list) != 1 {
		return stats{}, fmt.Errorf("xdpctl stats %s: %d attachments, want 1", name, len(list))
	}
	return list[0], nil
}

func mustStats(t *testing.T, n *node, p *pod) stats {
	t.Helper()
	s, err := n.stats(t.Context(), p.stats)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// criRuntime runs pods by a CRI client, as kubelet does.
type criRuntime struct {
	*cri.Client
}

// kubernetesPod is a pod of that spec, in the namespace default.
func kubernetesPod(s spec) cri.Pod {
	p := cri.Pod{Namespace: "default", Name: s.name, UID: "uid-" + s.name}
	if s.port != 0 {
		p.Ports = []cri.Port{{Host: s.port, Container: serverPort}}
	}
	return p
}

func (r *criRuntime) run(ctx context.Context, s spec) (*pod, error) {
	return r.runPod(ctx, s, kubernetesPod(s))
}

func (r *criRuntime) runPod(ctx context.Context, s spec, k cri.Pod) (p *pod, err error) {
	p = &pod{spec: s, stats: k.Namespace + "/" + k.Name}
	if p.sandbox, err = r.RunPod(ctx, k); err != nil {
		return nil, err
	}
	if p.id, err = r.Run(ctx, k, p.sandbox, imageName, s.args...); err != nil {
		return nil, err
	}
	addresses, err := r.Addresses(ctx, p.sandbox)
	if err != nil || k.HostNetwork {
		return p, err
	}
	return p, p.take(addresses)
}

func (r *criRuntime) exec(ctx context.Context, p *pod, args ...string) (string, error) {
	return r.Exec(ctx, p.id, append([]string{"/app"}, args...)...)
}

func (r *criRuntime) remove(ctx context.Context, p *pod) error {
	if err := r.StopPod(ctx, p.sandbox); err != nil {
		return err
	}
	return r.RemovePod(ctx, p.sandbox)
}

func unmarshal(t *testing.T, text []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}
