package datapath_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// child is what the test tells a child process of itself.
type child struct {
	BPFFS    string
	Options  datapath.AttachOptions
	Filter   []byte // of the options' policy, which is compiled again
	Features *datapath.Features
	Release  string
	Replace  bool // else, or
	Upgrade  bool // else attach
}

func (c child) encode(t *testing.T) string {
	t.Helper()
	if c.Options.Policy != nil {
		c.Filter, c.Options.Policy = c.Options.Policy.Source, nil
	}
	data, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// runAndDie does as its environment says and is killed before the named step.
func runAndDie(step string) {
	fmt.Fprintln(os.Stderr, "not killed:", runChild(step))
	os.Exit(1)
}

func runChild(step string) error {
	var c child
	if err := json.Unmarshal([]byte(os.Getenv(envChild)), &c); err != nil {
		return err
	}
	if c.Filter != nil {
		policy, err := makePolicy(string(c.Filter))
		if err != nil {
			return err
		}
		c.Options.Policy = policy
	}
	d := newDatapath(datapath.Options{
		Root: pins.NewRoot(c.BPFFS), Features: c.Features, Version: c.Release,
		BeforeStep: func(now string) error {
			if now == step {
				return syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
			return nil
		},
	})
	if c.Upgrade {
		_, err := d.Upgrade(context.Background(), datapath.UpgradeOptions{})
		return err
	}
	if !c.Replace {
		return d.Attach(context.Background(), c.Options)
	}
	list, err := d.List()
	if err != nil {
		return err
	}
	for _, a := range list {
		if a.Meta.ContainerID == c.Options.ContainerID {
			return d.ReplacePolicy(context.Background(), a, *c.Options.Policy)
		}
	}
	return errors.New("no such attachment")
}

// tcxPrograms returns the programs at a tcx hook: none where the kernel has no such hook.
func tcxPrograms(t *testing.T, ifindex int, hook ebpf.AttachType) []link.AttachedProgram {
	t.Helper()
	if !kernel().TCX {
		return nil
	}
	result, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: hook})
	if err != nil {
		t.Fatal(err)
	}
	return result.Programs
}
