package runtimes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	core "k8s.io/api/core/v1"

	"github.com/xdp-cni/xdp-cni/internal/install"
)

// Where the manifests say that a node has its plugins and networks. They are empty in the tests' mount namespace.
const (
	binDir      = "/opt/cni/bin"
	confDir     = "/etc/cni/net.d"
	networkFile = confDir + "/10-net0.conflist"
	bpfDir      = "/sys/fs/bpf"
)

// TestInstall puts the plugin on a node whose pods run, as the DaemonSet of the manifests does under containerd, with its
// image, mounts and privileges; attaches those pods; has another installer rewrite the network; and takes the plugin off
// as the uninstall DaemonSet does. No packet of the pods is lost, and nothing is left.
func TestInstall(t *testing.T) {
	for _, version := range versions() {
		// those of the manifest, or as the chart has them
		for _, flags := range [][]string{nil, {"--mode=native"}, {"--mode=native", "--redirect"}} {
			t.Run(strings.Join(append([]string{version}, flags...), " "), func(t *testing.T) {
				n := newNode(t)
				n.hostPaths(t)
				r := startContainerdAt(t, n, version, directories{plugins: binDir, networks: confDir, namespacesInRun: true}, 1)
				if err := r.importInstaller(t.Context()); err != nil {
					t.Fatal(err)
				}
				installAndUninstall(t, n, r, flags)
			})
		}
	}
}

func installAndUninstall(t *testing.T, n *node, r *containerd, flags []string) {
	serve(t, n.outside, "outside")
	web := mustRun(t, r, spec{name: "web", args: serveAs("web"), port: hostPort})
	client := mustRun(t, r, spec{name: "client", args: []string{"pause"}})
	if err := reaches(t.Context(), r, client, web); err != nil {
		t.Fatal(err)
	}
	outside := netip.AddrPortFrom(outsideAddresses[0].Addr(), serverPort)
	start := func() (stop func() int) { return stream(t, r, client, append(web.at(serverPort), outside)...) }
	// with redirect in the driver attaching gives the pod's end a queueing discipline, and that may lose what the pod sends
	// in that moment
	queues := slices.Contains(flags, "--redirect")
	var stop func() int
	if !queues {
		stop = start()
	}
	daemon := manifest(t, "base")
	if flags != nil {
		daemon.Spec.Template.Spec.Containers[0].Args = append([]string{"install", "--watch"}, flags...)
	}
	installer := r.runManifest(t, daemon)
	awaitEntry(t)
	checkBinaries(t, n)
	if info, err := os.Stat(networkFile); err != nil || info.Mode() != networkMode {
		t.Errorf("the network's mode is %v, %v, want %v", info.Mode(), err, networkMode)
	}

	// pods that come are attached, and those that are there are when told to
	late := mustRun(t, r, spec{name: "late", args: []string{"pause"}})
	checkAttached(t, n, "late")
	out, err := n.Run(exec.Command(filepath.Join(binDir, "xdpctl"), "attach", "--all"))
	if err != nil {
		t.Fatalf("xdpctl attach --all: %v: %s%s", err, out.Stdout, out.Stderr)
	}
	checkAttached(t, n, "client", "late", "web")
	if queues {
		stop = start()
	}
	mustCount(t, n, r, late, web)

	// another network's installer, by both ways of writing a file
	for i, write := range []func(string, []byte) error{rename, inPlace} {
		if err := write(networkFile, network(t, n, strings.Repeat(" ", i+1))); err != nil {
			t.Fatal(err)
		}
		awaitEntry(t)
	}
	again := mustRun(t, r, spec{name: "again", args: []string{"pause"}})
	checkAttached(t, n, "again", "client", "late", "web")
	replaceRunning(t, n)

	// uninstalling waits for the installer's end, or that would put the entry back
	if said := r.fails(t, manifest(t, "uninstall")); !strings.Contains(said, "install --watch is running") {
		t.Errorf("uninstalling while the installer runs says %s", said)
	}
	mustRemove(t, r, installer)
	if entryMissing() != nil {
		t.Error("the entry has gone with the installer's pod")
	}
	gone := r.runManifest(t, manifest(t, "uninstall"))
	checkGone(t, n)
	if n := stop(); n < 100 {
		t.Errorf("only %d datagrams went meanwhile", n)
	}
	if err := reaches(t.Context(), r, again, web); err != nil {
		t.Errorf("after uninstalling: %v", err)
	}
	whoFrom(t, n.outside, netip.AddrPortFrom(nodeAddresses[0].Addr(), hostPort), "web", netip.Addr{}, "outside to hostPort, after uninstalling")
	fresh := mustRun(t, r, spec{name: "fresh", args: []string{"pause"}})
	if err := reaches(t.Context(), r, fresh, web); err != nil {
		t.Errorf("a pod made after uninstalling: %v", err)
	}
	mustRemove(t, r, gone, fresh, again, late, client, web)
	checkGone(t, n) // DELs have brought nothing back
}

// TestUninstallPrivileges: without one of the capabilities that the manifest gives it, uninstalling fails, says so, and
// can be done again.
func TestUninstallPrivileges(t *testing.T) {
	uninstall := manifest(t, "uninstall")
	for _, capability := range uninstall.Spec.Template.Spec.InitContainers[0].SecurityContext.Capabilities.Add {
		if capability == "SYS_RESOURCE" {
			continue // for Linux before 5.11 only
		}
		t.Run(string(capability), func(t *testing.T) {
			n := newNode(t)
			n.hostPaths(t)
			r := startContainerdAt(t, n, "1.6", directories{plugins: binDir, networks: confDir, namespacesInRun: true}, 1)
			if err := errors.Join(r.importInstaller(t.Context()), rename(networkFile, network(t, n, "  "))); err != nil {
				t.Fatal(err)
			}
			out, err := n.Run(exec.Command(n.Binaries.Xdpctl(), "install", "--mode=native", "--redirect"))
			if err != nil {
				t.Fatalf("xdpctl install: %v: %s%s", err, out.Stdout, out.Stderr)
			}
			web := mustRun(t, r, spec{name: "web", args: serveAs("web")})
			client := mustRun(t, r, spec{name: "client", args: []string{"pause"}})
			if err := reaches(t.Context(), r, client, web); err != nil {
				t.Fatal(err)
			}
			without := manifest(t, "uninstall")
			given := without.Spec.Template.Spec.InitContainers[0].SecurityContext.Capabilities
			given.Add = slices.DeleteFunc(given.Add, func(c core.Capability) bool { return c == capability })
			if said := r.fails(t, without); !strings.Contains(said, "operation not permitted") {
				t.Errorf("without %s it says %s", capability, said)
			}
			gone := r.runManifest(t, manifest(t, "uninstall"))
			checkGone(t, n)
			if err := reaches(t.Context(), r, client, web); err != nil {
				t.Error(err)
			}
			mustRemove(t, r, gone, client, web)
		})
	}
}

// hostPaths lays what a node has at its usual paths: the reference plugins, a network, and its bpffs.
func (n *node) hostPaths(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.Binaries.Dir, "cni"))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if err := os.Symlink(n.Binaries.Reference(entry.Name()), filepath.Join(binDir, entry.Name())); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(inPlace(networkFile, network(t, n, "\t")), os.Chmod(networkFile, networkMode)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(n.Mount, bpfDir, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("bind the node's bpffs: %v", err)
	}
	// as all mounts are under systemd: containers are told of what comes
	if err := errors.Join(unix.Mount("", bpfDir, "", unix.MS_SHARED, ""), unix.Mount("", "/run/netns", "", unix.MS_SHARED, "")); err != nil {
		t.Fatalf("share mounts: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(bpfDir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", bpfDir, err)
		}
		for _, dir := range []string{binDir, confDir} {
			entries, err := os.ReadDir(dir)
			for _, entry := range entries {
				err = errors.Join(err, os.RemoveAll(filepath.Join(dir, entry.Name())))
			}
			if err != nil {
				t.Error(err)
			}
		}
		if left, err := filepath.Glob("/run/netns/cni-*"); err != nil || len(left) > 0 {
			t.Errorf("network namespaces left: %v, %v", left, err)
		}
	})
}

// networkMode is one that no installer would choose.
const networkMode fs.FileMode = 0o640

// network is a chain without xdp, written with that indent.
func network(t *testing.T, n *node, indent string) []byte {
	t.Helper()
	text := chain{main: "bridge", ipam: "host-local", plain: true}.conflist(n, "net0", 0)
	var b bytes.Buffer
	if err := json.Indent(&b, []byte(text), "", indent); err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), "\n\n"...)
}

func inPlace(path string, text []byte) error {
	return os.WriteFile(path, text, networkMode)
}

func rename(path string, text []byte) error {
	temporary := path + ".new"
	return errors.Join(os.WriteFile(temporary, text, networkMode), os.Chmod(temporary, networkMode), os.Rename(temporary, path))
}

// entryMissing tells whether the network has our entry, as the last of its plugins.
func entryMissing() error {
	text, err := os.ReadFile(networkFile)
	if err != nil {
		return err
	}
	var list struct{ Plugins []struct{ Type string } }
	if err := json.Unmarshal(text, &list); err != nil {
		return fmt.Errorf("%w: %s", err, text)
	}
	if l := len(list.Plugins); l == 0 || list.Plugins[l-1].Type != "xdp" {
		return fmt.Errorf("no entry in %s", text)
	}
	return nil
}

func awaitEntry(t *testing.T) {
	t.Helper()
	if err := eventually(patience, entryMissing); err != nil {
		t.Fatal(err)
	}
}

// checkBinaries checks that ours are there, to the byte, for all to run.
func checkBinaries(t *testing.T, n *node) {
	t.Helper()
	for _, name := range install.Binaries {
		path := filepath.Join(binDir, name)
		info, err := os.Lstat(path)
		if err != nil || info.Mode() != 0o755 {
			t.Errorf("%s: %v, %v", path, info, err)
			continue
		}
		if !sameFile(t, path, filepath.Join(n.Binaries.Dir, name)) {
			t.Errorf("%s is not the image's", path)
		}
	}
}

func sameFile(t *testing.T, one, other string) bool {
	t.Helper()
	a, err1 := os.ReadFile(one)
	b, err2 := os.ReadFile(other)
	if err := errors.Join(err1, err2); err != nil {
		t.Error(err)
	}
	return bytes.Equal(a, b)
}

func checkAttached(t *testing.T, n *node, names ...string) {
	t.Helper()
	got := attached(t, n)
	for i, name := range names {
		names[i] = "default/" + name + "/eth0"
	}
	slices.Sort(got)
	if !slices.Equal(got, names) {
		t.Errorf("xdpctl shows %q, want %q", got, names)
	}
}

// mustCount checks that what a pod sends to another is counted for both.
func mustCount(t *testing.T, n *node, r runtime, from, to *pod) {
	t.Helper()
	const packets = 20
	before, beforeTo := mustStats(t, n, from), mustStats(t, n, to)
	mustExec(t, r, from, "echo", to.at(serverPort)[0].String(), fmt.Sprint(packets), "100")
	after, afterTo := mustStats(t, n, from), mustStats(t, n, to)
	if got := after.Protocols.Egress["udp"].Packets - before.Protocols.Egress["udp"].Packets; got != packets {
		t.Errorf("pod %s: counted %d datagrams as sent, want %d", from.name, got, packets)
	}
	if got := afterTo.Protocols.Ingress["udp"].Packets - beforeTo.Protocols.Ingress["udp"].Packets; got < packets { // others send to it
		t.Errorf("pod %s: counted %d datagrams as received, want %d at least", to.name, got, packets)
	}
}

// replaceRunning installs another release over a plugin that runs: that goes on, and is not written to.
func replaceRunning(t *testing.T, n *node) {
	t.Helper()
	path := filepath.Join(binDir, "xdp")
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(), "CNI_COMMAND=DEL", "CNI_CONTAINERID=none", "CNI_IFNAME=eth0", "CNI_PATH="+binDir)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	stdin, err := cmd.StdinPipe() // what it waits for
	if err == nil {
		err = n.Start(cmd)
	}
	if err != nil {
		t.Fatal(err)
	}
	if f, err := os.OpenFile(path, os.O_WRONLY, 0); !errors.Is(err, unix.ETXTBSY) {
		t.Errorf("a plugin that runs can be written to: %v", err)
		_ = f.Close()
	}
	from := t.TempDir()
	for _, name := range install.Binaries {
		text, err := os.ReadFile(filepath.Join(n.Binaries.Dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(from, name), append(text, "of another release"...), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	out, err := n.Run(exec.Command(filepath.Join(binDir, "xdpctl"), "install", "--from", from))
	if err != nil {
		t.Errorf("install over a plugin that runs: %v: %s%s", err, out.Stdout, out.Stderr)
	}
	if !sameFile(t, path, filepath.Join(from, "xdp")) {
		t.Errorf("%s is not the new one", path)
	}
	_, err = stdin.Write([]byte(`{"cniVersion": "1.0.0", "name": "net0", "type": "xdp"}`))
	if err = errors.Join(err, stdin.Close(), cmd.Wait()); err != nil {
		t.Errorf("the plugin that ran: %v: %s", err, said.String())
	}
}

// checkGone checks that the node is as it was before, but for its pods.
func checkGone(t *testing.T, n *node) {
	t.Helper()
	text, err := os.ReadFile(networkFile)
	if err != nil || !bytes.Equal(text, network(t, n, "  ")) {
		t.Errorf("the network is not as the last installer but us wrote it: %v\n%s", err, text)
	}
	if info, err := os.Stat(networkFile); err != nil || info.Mode() != networkMode {
		t.Errorf("the network's mode: %v, %v", info, err)
	}
	if left, err := filepath.Glob(confDir + "/*"); err != nil || len(left) != 1 {
		t.Errorf("%s has %q", confDir, left)
	}
	for _, path := range []string{filepath.Join(confDir, ".xdp-cni"), filepath.Join(binDir, "xdp"), filepath.Join(binDir, "xdp-ipam"), filepath.Join(binDir, "xdpctl")} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if tree := n.Tree(); len(tree) > 0 {
		t.Errorf("left in the bpffs: %q", tree)
	}
}

// stream has a pod send datagrams to servers until what it returns is called, which checks that each came back, and
// returns how many did.
func stream(t *testing.T, r runtime, from *pod, servers ...netip.AddrPort) (stop func() int) {
	t.Helper()
	const file = "/stop"
	args := []string{"stream", file}
	for _, server := range servers {
		args = append(args, server.String())
	}
	type result struct {
		out string
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := r.exec(t.Context(), from, args...)
		done <- result{out, err}
	}()
	return func() (n int) {
		t.Helper()
		mustExec(t, r, from, "touch", file)
		got := <-done
		if got.err != nil {
			t.Errorf("from pod %s: %v", from.name, got.err)
		}
		_, _ = fmt.Sscan(got.out, &n)
		return n
	}
}
