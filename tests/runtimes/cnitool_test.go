package runtimes

import (
	"context"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
)

// cnitool runs pods that are a namespace and a process, by containernetworking's command.
type cnitool struct {
	node     *node
	networks string // directory of conflists
	spaces   map[*pod]*cnitoolPod
}

type cnitoolPod struct {
	*tests.Pod
	cmd  *exec.Cmd
	port int32
}

func newCnitool(t *testing.T, n *node, c chain) *cnitool {
	t.Helper()
	r := &cnitool{node: n, networks: filepath.Join(n.Dir, "net.d"), spaces: map[*pod]*cnitoolPod{}}
	if err := c.write(n, r.networks); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // registered behind the node's, hence done before
		for p := range r.spaces {
			if err := r.remove(context.Background(), p); err != nil {
				t.Error(err)
			}
		}
	})
	return r
}

// call runs a verb of cnitool for a namespace, which it wants also where it uses none.
func (r *cnitool) call(ctx context.Context, verb, netns string, port int32, name string) ([]byte, error) {
	capabilities := map[string]any{}
	if port != 0 {
		capabilities["portMappings"] = []any{map[string]any{"hostPort": port, "containerPort": serverPort, "protocol": "tcp"}}
	}
	text, err := json.Marshal(capabilities)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, r.node.programs.cnitool, verb, "net0", netns)
	cmd.Env = append(os.Environ(), "CNI_PATH="+r.node.plugins, "NETCONFPATH="+r.networks, "CAP_ARGS="+string(text))
	if name != "" {
		cmd.Env = append(cmd.Env, "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME="+name)
	}
	out, err := r.node.Run(cmd)
	if err != nil {
		return nil, fmt.Errorf("cnitool %s: %w: %s%s", verb, err, out.Stdout, out.Stderr)
	}
	return out.Stdout, nil
}

func (r *cnitool) verb(ctx context.Context, verb string, p *pod) error {
	s := r.spaces[p]
	_, err := r.call(ctx, verb, s.NetNS(), s.port, p.name)
	return err
}

func (r *cnitool) run(ctx context.Context, s spec) (*pod, error) {
	space, err := r.node.NewPod(s.name)
	if err != nil {
		return nil, err
	}
	hash := sha512.Sum512([]byte(space.NetNS())) // as cnitool has it
	p := &pod{spec: s, stats: "default/" + s.name, sandbox: fmt.Sprintf("cnitool-%x", hash[:10])}
	r.spaces[p] = &cnitoolPod{Pod: space, port: s.port}
	out, err := r.call(ctx, "add", space.NetNS(), s.port, s.name)
	if err != nil {
		return nil, err
	}
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return nil, fmt.Errorf("result of cnitool: %w: %s", err, out)
	}
	var addresses []netip.Addr
	for _, ip := range result.IPs {
		addresses = append(addresses, ip.Address.Addr())
	}
	if err := p.take(addresses); err != nil {
		return nil, err
	}
	cmd := r.app(s.args)
	r.spaces[p].cmd = cmd
	return p, space.Do(cmd.Start)
}

func (r *cnitool) app(args []string) *exec.Cmd { return exec.Command(r.node.programs.app, args...) }

func (r *cnitool) exec(_ context.Context, p *pod, args ...string) (string, error) {
	out, err := r.spaces[p].Run(r.app(args))
	if err != nil {
		err = fmt.Errorf("app %s: %w: %s", strings.Join(args, " "), err, out.Stderr)
	}
	return string(out.Stdout), err
}

func (r *cnitool) remove(ctx context.Context, p *pod) error {
	s := r.spaces[p]
	delete(r.spaces, p)
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Signal(unix.SIGKILL)
		_ = s.cmd.Wait()
	}
	var errs []error
	for range 2 { // as containerd does
		_, err := r.call(ctx, "del", s.NetNS(), s.port, p.name)
		errs = append(errs, err)
	}
	return errors.Join(append(errs, s.Close())...)
}

// TestCnitool runs the basics by cnitool with each chain, and every verb.
func TestCnitool(t *testing.T) {
	for _, c := range chains(!testing.Short()) {
		c.version = "1.1.0"
		t.Run(c.String(), func(t *testing.T) {
			n := newNode(t)
			r := newCnitool(t, n, c)
			basics(t, n, r, c)
			verbs(t, n, r)
			noCallFailed(t, n)
		})
	}
}

// verbs calls each verb: GC takes a pod that died, and no other if it is told of those that live.
func verbs(t *testing.T, n *node, r *cnitool) {
	t.Helper()
	ctx := t.Context()
	if _, err := r.call(ctx, "status", n.NetNS(), 0, ""); err != nil {
		t.Error(err)
	}
	p := mustRun(t, r, spec{name: "web", args: serveAs("web"), port: hostPort})
	for _, verb := range []string{"check", "status", "check"} {
		if err := r.verb(ctx, verb, p); err != nil {
			t.Error(err)
		}
	}
	if got := attached(t, n); len(got) != 1 {
		t.Errorf("xdpctl shows %q, want one", got)
	}
	// cnitool knows of no valid attachments: all are collected
	if _, err := r.call(ctx, "gc", n.NetNS(), 0, ""); err != nil {
		t.Error(err)
	}
	if got := attached(t, n); len(got) != 0 {
		t.Errorf("xdpctl shows %q after GC", got)
	}
	for _, verb := range []string{"ADD", "DEL", "CHECK", "GC", "STATUS"} {
		called := 0
		for _, c := range n.calls(t) {
			if c.Plugin == "xdp" && c.Command == verb {
				called++
			}
		}
		if called == 0 {
			t.Errorf("%s of xdp was never called", verb)
		}
	}
	mustRemove(t, r, p) // DEL of what GC has taken
}

// TestCnitoolLimits: an xdp before bandwidth cannot see limits when the pod is added, and sees them with the next
// STATUS: from then on nothing goes directly past them.
func TestCnitoolLimits(t *testing.T) {
	n := newNode(t)
	c := chain{main: "bridge", ipam: "host-local", mode: "tcx", redirect: true, xdpFirst: true, limit: 16_000_000, version: "1.1.0"}
	r := newCnitool(t, n, c)
	limits(t, n, statusRuntime{r, t}, c)
}

// statusRuntime asks for STATUS after each pod, as runtimes that poll do some time later.
type statusRuntime struct {
	*cnitool
	t *testing.T
}

func (r statusRuntime) run(ctx context.Context, s spec) (*pod, error) {
	p, err := r.cnitool.run(ctx, s)
	if err == nil {
		err = r.verb(ctx, "status", p)
	}
	return p, err
}
