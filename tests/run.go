package tests

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Output is what a process wrote.
type Output struct {
	Stdout, Stderr []byte
}

// PluginCommand prepares a run of our plugin as the CNI protocol has it, without libcni. CNI_COMMAND is set to command,
// CNI_PATH to the node's, and the rest of CNI_* from the pod, if there is one. Entries of env ("KEY=value") come last
// and win. The command is to be started by Start or Run.
func (n *Node) PluginCommand(ctx context.Context, command string, pod *Pod, stdin string, env ...string) *exec.Cmd {
	return n.Command(ctx, n.Binaries.Plugin(), command, pod, stdin, env...)
}

// Command is PluginCommand for the plugin at path.
func (n *Node) Command(ctx context.Context, path, command string, pod *Pod, stdin string, env ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(),
		"CNI_COMMAND="+command,
		"CNI_PATH="+strings.Join(n.Binaries.CNIPath(), string(os.PathListSeparator)))
	if pod != nil {
		cmd.Env = append(cmd.Env, "CNI_CONTAINERID="+pod.ContainerID, "CNI_NETNS="+pod.NetNS(), "CNI_IFNAME="+pod.IfName)
	}
	cmd.Env = append(cmd.Env, env...)
	cmd.WaitDelay = Patience(time.Second)
	return cmd
}

// RunPlugin runs our plugin once; the parameters are those of PluginCommand. The error is that of os/exec.
func (n *Node) RunPlugin(ctx context.Context, command string, pod *Pod, stdin string, env ...string) (Output, error) {
	return n.Run(n.PluginCommand(ctx, command, pod, stdin, env...))
}

// RunXdpctl runs xdpctl on the node, on the node's bpffs.
func (n *Node) RunXdpctl(ctx context.Context, args ...string) (Output, error) {
	cmd := exec.CommandContext(ctx, n.Binaries.Xdpctl(), append([]string{"--bpffs", n.BPFFS}, args...)...)
	cmd.WaitDelay = Patience(time.Second)
	return n.Run(cmd)
}

// Start starts a command in the node's network namespace. The caller waits for it, or kills it before.
func (n *Node) Start(cmd *exec.Cmd) error { return start(n, cmd) }

// Run runs a command in the node's network namespace, to its end.
func (n *Node) Run(cmd *exec.Cmd) (Output, error) { return run(n, cmd) }

// Run runs a command in the pod's network namespace, to its end.
func (p *Pod) Run(cmd *exec.Cmd) (Output, error) { return run(p, cmd) }

// start starts a command in a place: a process begins in the namespace of the thread that forks it.
func start(place Place, cmd *exec.Cmd) error { return place.Do(cmd.Start) }

func run(place Place, cmd *exec.Cmd) (Output, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = tee(cmd.Stdout, &stdout), tee(cmd.Stderr, &stderr)
	err := start(place, cmd)
	if err == nil {
		err = cmd.Wait()
	}
	return Output{Stdout: stdout.Bytes(), Stderr: stderr.Bytes()}, err
}

// tee keeps the writer that the caller gave a command, if any, beside our own.
func tee(given io.Writer, own *bytes.Buffer) io.Writer {
	if given == nil {
		return own
	}
	return io.MultiWriter(given, own)
}
