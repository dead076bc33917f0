package runtimes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
)

// stageVariable tells the processes of TestMain which they are.
const stageVariable = "XDP_CNI_RUNTIMES_STAGE"

// TestMain runs the tests in a mount and a PID namespace of their own: runtimes leave mounts and daemons behind when
// they are killed, some of their paths cannot be chosen (libcni's cache in /var/lib/cni), and when the first process of
// the namespace ends the kernel ends all others. That process is not the tests themselves, but one that reaps.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run()) // priv.Root has each test say what is missing
	}
	var err error
	code := 1
	switch os.Getenv(stageVariable) {
	case "":
		code, err = again("init", syscall.CLONE_NEWNS|syscall.CLONE_NEWPID)
	case "init":
		if err = privateMounts(); err == nil {
			code, err = again("tests", 0)
		}
	default:
		tests.Main(m)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// again runs this program once more, as another stage in new namespaces, reaps whatever ends meanwhile, and returns the
// status of the program.
func again(stage string, namespaces uintptr) (code int, err error) {
	if err := os.Setenv(stageVariable, stage); err != nil {
		return 1, err
	}
	p, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Cloneflags: namespaces, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return 1, fmt.Errorf("run the tests in namespaces of their own: %w", err)
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		} else if err != nil {
			return 1, fmt.Errorf("wait for the tests: %w", err)
		}
		if pid != p.Pid {
			continue
		}
		if status.Signaled() {
			return 1, fmt.Errorf("the tests were ended by signal %v", status.Signal())
		}
		return status.ExitStatus(), nil
	}
}

// privateMounts hides what runtimes would write outside of the directories that they are told.
func privateMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	unmountAll(bpfDir)
	for _, dir := range []string{"/var/lib/cni", "/run/netns", "/run/containerd", "/etc/cni/net.d", "/opt/cni/bin"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		unmountAll(dir)
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
		}
	}
	return nil
}

// unmountAll unmounts all that is mounted on a directory: of several mounts containerd takes the first that it finds.
func unmountAll(dir string) {
	for unix.Unmount(dir, unix.MNT_DETACH) == nil {
	}
}

// programs are our own for these tests, built once.
type programs struct{ app, recorder, cnitool string }

func build(ctx context.Context, dir string) (p programs, err error) {
	p = programs{filepath.Join(dir, "app"), filepath.Join(dir, "recorder"), filepath.Join(dir, "cnitool")}
	for output, what := range map[string]string{
		p.app: "./app", p.recorder: "./recorder", p.cnitool: "github.com/containernetworking/cni/cnitool",
	} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", output, what)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if messages, err := cmd.CombinedOutput(); err != nil {
			return p, fmt.Errorf("go build %s: %w\n%s", what, err, messages)
		}
	}
	return p, nil
}
