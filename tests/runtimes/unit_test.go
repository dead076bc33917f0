package runtimes

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/internal/install"
)

// unitFile is the unit for nodes without Kubernetes, and libDir where it looks for the binaries.
const (
	unitFile = installDir + "/systemd/xdp-cni.service"
	libDir   = "usr/local/lib/xdp-cni"
)

// TestUnit: systemd has nothing to say against the unit, nor against what it leaves the service of privileges; and its
// command, without any capability, puts the entry in and then says that it is ready.
func TestUnit(t *testing.T) {
	n := newNode(t)
	n.hostPaths(t)
	ours := filepath.Join(n.Dir, "ours")
	if err := os.MkdirAll(filepath.Join(ours, libDir), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range install.Binaries {
		text, err := os.ReadFile(filepath.Join(n.Binaries.Dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(ours, libDir, name), text, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	overUsr(t, ours, unpacked(t, "systemd-252"))
	text, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("verify", func(t *testing.T) {
		if out := verify(t, n, string(text)); out != "" {
			t.Error(out)
		}
		for _, wrong := range []string{"ProtectSystem=strict", "Type=notify", "/xdpctl install"} {
			changed := strings.Replace(string(text), wrong, "x"+wrong, 1)
			if changed == string(text) || verify(t, n, changed) == "" {
				t.Errorf("nothing is said against x%s", wrong)
			}
		}
	})
	t.Run("security", func(t *testing.T) {
		// of 10, where an ordinary service has 9.6
		cmd := exec.Command("/usr/bin/systemd-analyze", "security", "--no-pager", "--offline=yes", "--threshold=15", unitFile)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("run", func(t *testing.T) { runUnit(t, n, string(text)) })
}

// verify returns what systemd says of a unit of that text.
func verify(t *testing.T, n *node, text string) string {
	t.Helper()
	path := filepath.Join(n.Dir, filepath.Base(unitFile))
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("/usr/bin/systemd-analyze", "verify", "--man=no", path).CombinedOutput()
	if err != nil && len(out) == 0 {
		t.Fatalf("systemd-analyze verify: %v", err)
	}
	return string(out)
}

// runUnit runs the command of the unit, without capabilities, as far as it is told without systemd.
func runUnit(t *testing.T, n *node, text string) {
	_, line, _ := strings.Cut(text, "\nExecStart=")
	line, _, _ = strings.Cut(line, "\n")
	if !strings.Contains(text, "\nCapabilityBoundingSet=\n") || !strings.Contains(text, "\nNoNewPrivileges=yes\n") {
		t.Error("the unit leaves privileges")
	}
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(n.Dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	cmd := exec.Command("/usr/bin/setpriv", append([]string{"--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"}, strings.Fields(line)...)...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket.LocalAddr().String())
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	_ = socket.SetReadDeadline(time.Now().Add(patience))
	message := make([]byte, 100)
	got, err := socket.Read(message)
	if string(message[:got]) != "READY=1" {
		t.Errorf("systemd is told %q, %v", message[:got], err)
	}
	if err := entryMissing(); err != nil { // at once: runtimes start now
		t.Error(err)
	}
	checkBinaries(t, n)
	if err := errors.Join(cmd.Process.Signal(unix.SIGTERM), cmd.Wait()); err != nil || t.Failed() {
		t.Errorf("the service: %v: %s", err, said.String())
	}
}
