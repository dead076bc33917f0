package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/tests"
)

// cniVersion is that of all configurations here.
const cniVersion = "1.1.0"

// candidate is a chained plugin as it is measured.
type candidate struct {
	name   string
	binary string // of the plugin
	conf   tests.Conf
	// tidy, if set, removes what the plugin's DEL leaves for the runtime to remove with the interface.
	tidy func(*target) error
}

// target is a pod whose interface is there already, so that chained plugins alone can run on it.
type target struct {
	pod        *tests.Pod
	host       netlink.Link
	prevResult *current.Result
}

// newTargets makes pods on a bridge.
func newTargets(ctx context.Context, node *tests.Node, n int) ([]*target, error) {
	network, err := node.Network(tests.Conflist("bench", cniVersion, node.Bridge(tests.IPv4)))
	if err != nil {
		return nil, err
	}
	targets := make([]*target, n)
	for i := range targets {
		pod, err := node.NewPod(fmt.Sprintf("pod%d", i))
		if err != nil {
			return nil, err
		}
		result, err := network.Add(ctx, pod)
		if err != nil {
			return nil, err
		}
		host, err := pod.HostInterface()
		if err != nil {
			return nil, err
		}
		targets[i] = &target{pod, host, result}
	}
	return targets, nil
}

// stdin is what a runtime gives the plugin for the pod.
func (c candidate) stdin(t *target) (string, error) {
	conf := maps.Clone(c.conf)
	maps.Copy(conf, tests.Conf{"cniVersion": cniVersion, "name": "bench", "prevResult": t.prevResult})
	data, err := json.Marshal(conf)
	if err != nil {
		return "", fmt.Errorf("configuration of %s: %w", c.name, err)
	}
	return string(data), nil
}

// command prepares a run of the plugin as the CNI protocol has it.
func (c candidate) command(ctx context.Context, verb string, t *target, env ...string) (*exec.Cmd, error) {
	stdin, err := c.stdin(t)
	if err != nil {
		return nil, err
	}
	cmd := t.pod.Node.PluginCommand(ctx, verb, t.pod, stdin, env...)
	cmd.Path, cmd.Args = c.binary, []string{filepath.Base(c.binary)}
	return cmd, nil
}

// settle is the time before each run in which the kernel ends what the last one started: it frees interfaces and
// programs by workers.
const settle = 20 * time.Millisecond

// timed runs the plugin for all targets at once, and returns the time from the start of the first process to the end of
// the last.
func (c candidate) timed(ctx context.Context, verb string, targets ...*target) (time.Duration, error) {
	commands := make([]*exec.Cmd, len(targets))
	outputs := make([]output, len(targets))
	for i, t := range targets {
		cmd, err := c.command(ctx, verb, t)
		if err != nil {
			return 0, err
		}
		cmd.Stdout, cmd.Stderr = &outputs[i], &outputs[i]
		commands[i] = cmd
	}
	if err := pause(ctx, settle); err != nil {
		return 0, err
	}
	var took time.Duration
	err := targets[0].pod.Node.Do(func() error { // processes start in the thread's network namespace
		begin := time.Now()
		errs := make([]error, 0, len(commands))
		for _, cmd := range commands {
			errs = append(errs, cmd.Start())
		}
		for i, cmd := range commands {
			if errs[i] == nil {
				errs[i] = cmd.Wait()
			}
		}
		took = time.Since(begin)
		for i, err := range errs {
			if err != nil {
				errs[i] = fmt.Errorf("%s of %s for %s: %w: %s", verb, c.name, targets[i].pod.Name, err, outputs[i])
			}
		}
		return errors.Join(errs...)
	})
	return took, err
}

// addDel times ADD and then DEL.
func (c candidate) addDel(ctx context.Context, targets ...*target) (add, del time.Duration, err error) {
	if add, err = c.timed(ctx, "ADD", targets...); err != nil {
		return 0, 0, err
	}
	if del, err = c.timed(ctx, "DEL", targets...); err != nil {
		return 0, 0, err
	}
	if c.tidy != nil {
		for _, t := range targets {
			if err := c.tidy(t); err != nil {
				return 0, 0, fmt.Errorf("tidying up after %s: %w", c.name, err)
			}
		}
	}
	return add, del, nil
}

// output keeps what a process writes; its writer is one goroutine.
type output []byte

func (o *output) Write(p []byte) (int, error) {
	*o = append(*o, p...)
	return len(p), nil
}

// removeQdiscs removes what bandwidth's DEL leaves on the host end: its qdiscs at root and ingress.
func removeQdiscs(t *target) error {
	return t.pod.Node.Do(func() error {
		index := t.host.Attrs().Index
		return errors.Join(
			netlink.QdiscDel(&netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{
				LinkIndex: index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(1, 0),
			}, QdiscType: "tbf"}),
			netlink.QdiscDel(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
				LinkIndex: index, Parent: netlink.HANDLE_INGRESS, Handle: netlink.MakeHandle(0xffff, 0),
			}}))
	})
}
