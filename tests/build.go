package tests

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// BinariesEnv names the environment variable that, when set, holds a directory of binaries to use as they are (laid
// out as <repo>/bin): nothing is built then. It serves machines without Go, such as VMs of other kernels.
const BinariesEnv = "XDP_CNI_BIN"

// referencePlugins are those of containernetworking/plugins that the tests chain with ours: tools of go.mod.
var referencePlugins = []string{
	"ipam/host-local", "main/bridge", "main/loopback", "main/macvlan", "main/ptp", "meta/bandwidth", "meta/portmap", "meta/tuning",
}

const referenceModule = "github.com/containernetworking/plugins/plugins/"

// Binaries is a directory of built binaries: our own at its top, the reference plugins under cni.
type Binaries struct {
	Dir string
}

// Plugin is the path of our chained plugin.
func (b Binaries) Plugin() string { return filepath.Join(b.Dir, "xdp") }

// IPAM is the path of our IPAM plugin.
func (b Binaries) IPAM() string { return filepath.Join(b.Dir, "xdp-ipam") }

// Xdpctl is the path of the command-line tool.
func (b Binaries) Xdpctl() string { return filepath.Join(b.Dir, "xdpctl") }

// Reference is the path of a plugin of containernetworking/plugins.
func (b Binaries) Reference(name string) string { return filepath.Join(b.Dir, "cni", name) }

// CNIPath is where libcni is to look for plugins.
func (b Binaries) CNIPath() []string { return []string{b.Dir, filepath.Join(b.Dir, "cni")} }

var (
	repoRoot      = sync.OnceValues(findRepo)
	buildOursOnce sync.Once
	buildOursErr  error
	buildRefOnce  sync.Once
	buildRefErr   error
)

const module = "github.com/xdp-cni/xdp-cni"

// findRepo asks for the module by name: tests under tests/runtimes are of another one, which requires it.
func findRepo() (string, error) {
	var messages bytes.Buffer
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module)
	cmd.Stderr = &messages
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find the repository: go list -m %s: %w\n%s", module, err, &messages)
	}
	return strings.TrimSpace(string(out)), nil
}

// binaries tells where the binaries are, or will be once built; prebuilt ones are not to be built.
func binaries() (b Binaries, prebuilt bool, err error) {
	if dir := os.Getenv(BinariesEnv); dir != "" {
		dir, err = filepath.Abs(dir)
		return Binaries{Dir: dir}, true, err
	}
	root, err := repoRoot()
	if err != nil {
		return Binaries{}, false, err
	}
	return Binaries{Dir: filepath.Join(root, "bin")}, false, nil
}

// Build builds everything, our binaries and the reference plugins, once per process.
func Build(ctx context.Context) (Binaries, error) {
	if b, err := BuildReference(ctx); err != nil {
		return b, err
	}
	return BuildOurs(ctx)
}

// BuildOurs builds our own binaries into <repo>/bin, once per process.
func BuildOurs(ctx context.Context) (Binaries, error) {
	b, prebuilt, err := binaries()
	if err != nil || prebuilt {
		return b, err
	}
	buildOursOnce.Do(func() {
		buildOursErr = errors.Join(
			goBuild(ctx, b.Plugin(), "./plugin"),
			goBuild(ctx, b.IPAM(), "./ipam"),
			goBuild(ctx, b.Xdpctl(), "./cmd/xdpctl"))
	})
	return b, buildOursErr
}

// BuildReference builds the reference plugins into <repo>/bin/cni, once per process.
func BuildReference(ctx context.Context) (Binaries, error) {
	b, prebuilt, err := binaries()
	if err != nil || prebuilt {
		return b, err
	}
	buildRefOnce.Do(func() {
		packages := make([]string, len(referencePlugins))
		for i, name := range referencePlugins {
			packages[i] = referenceModule + name
		}
		dir := filepath.Join(b.Dir, "cni") + string(filepath.Separator)
		buildRefErr = goBuild(ctx, dir, packages...)
	})
	return b, buildRefErr
}

// SampleObject is the path of the object file of a program of bpf/samples, for machines of this byte order.
func SampleObject(sample string) (string, error) {
	root, err := repoRoot()
	if err != nil {
		return "", err
	}
	suffix := "el"
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		suffix = "eb"
	}
	return filepath.Join(root, "bpf", "samples", sample+"_bpf"+suffix+".o"), nil
}

// TestObject returns the path of one of the object files that plugin/programs has for tests. They are for little-endian
// machines.
func TestObject(name string) (string, error) {
	root, err := repoRoot()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "plugin", "programs", "testdata", name+".bpf.o"), nil
}

// goBuild builds packages into output. Processes take turns, so that none runs a binary that another is writing.
func goBuild(ctx context.Context, output string, packages ...string) error {
	return goBuildFlags(ctx, nil, output, packages...)
}

func goBuildFlags(ctx context.Context, flags []string, output string, packages ...string) error {
	root, err := repoRoot()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(output), 0o755); err != nil {
		return err
	}
	unlock, err := lockFile("xdp-cni-build")
	if err != nil {
		return err
	}
	defer unlock()
	cmd := exec.CommandContext(ctx, "go", slices.Concat([]string{"build", "-o", output}, flags, packages)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &messages, &messages
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", strings.Join(packages, " "), err, &messages)
	}
	return nil
}
