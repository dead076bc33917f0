package datapath_test

import (
	"context"
	"encoding/json"
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
	Features *datapath.Features
}

func encodeChild(t *testing.T, bpffs string, opts datapath.AttachOptions, features *datapath.Features) string {
	t.Helper()
	data, err := json.Marshal(child{bpffs, opts, features})
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// attachAndDie attaches as its environment says and is killed before the named step.
func attachAndDie(step string) {
	var c child
	if err := json.Unmarshal([]byte(os.Getenv(envAttach)), &c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	d := datapath.New(datapath.Options{
		Root: pins.NewRoot(c.BPFFS), Features: c.Features,
		BeforeStep: func(now string) error {
			if now == step {
				return syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
			return nil
		},
	})
	fmt.Fprintln(os.Stderr, "not killed:", d.Attach(context.Background(), c.Options))
	os.Exit(1)
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
