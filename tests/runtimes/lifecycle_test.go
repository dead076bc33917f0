package runtimes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/runtimes/cri"
)

// versions are the containerds of a test, all but the first only without -short.
func versions() []string {
	if testing.Short() {
		return []string{"1.6"}
	}
	return []string{"1.6", "1.7", "2.1"}
}

// TestContainerdLimits: bandwidth's limits hold beside XDP and redirect.
func TestContainerdLimits(t *testing.T) {
	for i, mode := range modes {
		c := chain{main: "bridge", ipam: "host-local", mode: mode, limit: 16_000_000}
		if i == 1 {
			c.main, c.xdpFirst = "ptp", true
		} else {
			c.redirect = true
		}
		t.Run(c.String(), func(t *testing.T) {
			n := newNode(t)
			limits(t, n, startContainerd(t, n, "1.6", c), c)
		})
	}
}

// TestContainerdAnnotations: Kubernetes' annotations come to bandwidth, and packets of such a pod do not go directly past
// the limit.
func TestContainerdAnnotations(t *testing.T) {
	n := newNode(t)
	r := startContainerd(t, n, "1.6", chain{main: "bridge", ipam: "host-local", mode: "tcx", redirect: true})
	web := mustRun(t, r, spec{name: "web", args: serveAs("web")})
	limited := kubernetesPod(spec{name: "limited"})
	limited.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "20M", "kubernetes.io/egress-bandwidth": "20M"}
	for _, k := range []cri.Pod{limited, kubernetesPod(spec{name: "other"})} {
		p, err := r.runPod(t.Context(), spec{name: k.Name, args: []string{"pause"}}, k)
		if err != nil {
			t.Fatal(err)
		}
		if err := reaches(t.Context(), r, p, web); err != nil {
			t.Fatal(err)
		}
		mustExec(t, r, p, "echo", web.at(serverPort)[0].String(), "20", "100")
		s := mustStats(t, n, p)
		if direct := s.Egress["redirect"].Packets > 0; direct != (k.Annotations == nil) {
			t.Errorf("pod %s: %v went directly", p.name, s.Egress["redirect"])
		}
		mustRemove(t, r, p)
	}
	mustRemove(t, r, web)
}

// TestContainerdFirstPacket: the filter is in force when a pod's first program starts.
func TestContainerdFirstPacket(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			c := chain{main: "bridge", ipam: "xdp-ipam", mode: mode, filter: denyPort}
			firstPacket(t, n, startContainerd(t, n, "1.6", c))
		})
	}
}

// TestContainerdCalls checks what the rest relies on: containerd calls ADD once and DEL twice for a pod, and 2.1 asks
// for STATUS, all of which succeed.
func TestContainerdCalls(t *testing.T) {
	for _, version := range versions() {
		t.Run(version, func(t *testing.T) {
			n := newNode(t)
			r := startContainerd(t, n, version, chain{main: "bridge", ipam: "host-local", mode: "tcx"})
			p := mustRun(t, r, spec{name: "web", args: []string{"pause"}})
			mustRemove(t, r, p)
			counts := n.count(t, p.sandbox)
			if counts["ADD"] != 1 || counts["DEL"] != 2 {
				t.Errorf("calls for the pod: %v, want ADD once and DEL twice", counts)
			}
			noCallFailed(t, n)
		})
	}
	t.Run("STATUS", func(t *testing.T) {
		n := newNode(t)
		r := startContainerd(t, n, "2.1", chain{main: "bridge", ipam: "xdp-ipam", mode: "tcx"})
		for range 3 {
			if err := r.Ready(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if n.count(t, "")["STATUS"] < 3 {
			t.Errorf("calls for no pod: %v, want STATUS at least three times", n.count(t, ""))
		}
		noCallFailed(t, n)
	})
}

// TestHostNetwork: a pod with the node's network has no attachment, and reaches those that have.
func TestHostNetwork(t *testing.T) {
	n := newNode(t)
	r := startContainerd(t, n, "1.6", chain{main: "bridge", ipam: "host-local", mode: "generic"})
	web := mustRun(t, r, spec{name: "web", args: serveAs("web")})
	host := kubernetesPod(spec{name: "host"})
	host.HostNetwork = true
	p, err := r.runPod(t.Context(), spec{name: "host", args: []string{"serve", "8081", "host"}}, host)
	if err != nil {
		t.Fatal(err)
	}
	for i, server := range web.at(serverPort) {
		if err := eventually(patience, func() error { _, err := r.exec(t.Context(), p, "who", server.String()); return err }); err != nil {
			t.Errorf("to the other: %v", err)
		}
		self := []netip.Addr{web.v4, web.v6}[i]
		server := netip.AddrPortFrom(nodeAddresses[i].Addr(), 8081)
		answer, err := r.exec(t.Context(), web, "who", server.String())
		if err != nil || !strings.HasSuffix(strings.TrimSpace(answer), " "+self.String()) {
			t.Errorf("from the other: %v: %s", err, answer)
		}
	}
	if got, want := attached(t, n), []string{"default/web/eth0"}; !slices.Equal(got, want) {
		t.Errorf("xdpctl shows %q, want %q", got, want)
	}
	if counts := n.count(t, p.sandbox); len(counts) > 0 {
		t.Errorf("calls for the pod with the node's network: %v", counts)
	}
	mustRemove(t, r, p, web)
}

// TestSameName: a pod that is made anew under its name, as a StatefulSet's is, is counted from nothing, and the old one
// does not hinder it while it is stopped and not removed.
func TestSameName(t *testing.T) {
	n := newNode(t)
	r := startContainerd(t, n, "1.6", chain{main: "bridge", ipam: "xdp-ipam", mode: "tcx"})
	serve(t, n.outside, "outside")
	const size = 100
	server := netip.AddrPortFrom(outsideAddresses[0].Addr(), serverPort)
	var last *pod
	for attempt := range 3 {
		k := kubernetesPod(spec{name: "web"})
		k.Attempt = uint32(attempt)
		p, err := r.runPod(t.Context(), spec{name: "web", args: []string{"pause"}}, k)
		if err != nil {
			t.Fatal(err)
		}
		if last != nil {
			if err := r.RemovePod(t.Context(), last.sandbox); err != nil { // DEL of the old one, once more
				t.Error(err)
			}
		}
		packets := 10 + attempt
		mustExec(t, r, p, "echo", server.String(), strconv.Itoa(packets), strconv.Itoa(size))
		s := mustStats(t, n, p)
		want := counter{uint64(packets), uint64(packets * (14 + 20 + 8 + size))}
		if s.ContainerID != p.sandbox || s.Protocols.Egress["udp"] != want || s.Protocols.Ingress["udp"] != want {
			t.Errorf("attempt %d: container %.12s sent %v and got %v, want %.12s and %v both ways",
				attempt, s.ContainerID, s.Protocols.Egress["udp"], s.Protocols.Ingress["udp"], p.sandbox, want)
		}
		if err := r.StopPod(t.Context(), p.sandbox); err != nil {
			t.Error(err)
		}
		last = p
	}
	mustRemove(t, r, last)
}

// TestTwoNetworks: containerd takes more than one conflist if told to, and gives pods an interface of each.
func TestTwoNetworks(t *testing.T) {
	n := newNode(t)
	twoNetworks(t, n, startContainerd(t, n, "1.6", chain{main: "bridge", ipam: "host-local", mode: "tcx", networks: 2}))
}

// twoNetworks checks that pods have an attachment for each network, and reach each other by the second one.
func twoNetworks(t *testing.T, n *node, r runtime) {
	t.Helper()
	web := mustRun(t, r, spec{name: "web", args: serveAs("web")})
	client := mustRun(t, r, spec{name: "client", args: []string{"pause"}})
	if got := attached(t, n); len(got) != 4 {
		t.Errorf("xdpctl shows %q, want two of each pod", got)
	}
	second := secondAddress(t, mustExec(t, r, web, "interfaces"))
	server := netip.AddrPortFrom(second, serverPort)
	if err := eventually(patience, func() error { _, err := r.exec(t.Context(), client, "who", server.String()); return err }); err != nil {
		t.Fatalf("by the second network: %v", err)
	}
	mustExec(t, r, client, "echo", server.String(), "7", "100")
	counted := func(p *pod, ifname string) counter {
		out, err := n.RunXdpctl(t.Context(), "stats", "-o", "json", p.sandbox)
		if err != nil {
			t.Fatalf("xdpctl stats: %v: %s", err, out.Stderr)
		}
		var list []stats
		unmarshal(t, out.Stdout, &list)
		for _, s := range list {
			if s.IfName == ifname {
				return s.Protocols.Egress["udp"]
			}
		}
		t.Fatalf("xdpctl shows no %s of pod %s", ifname, p.name)
		return counter{}
	}
	for _, p := range []*pod{client, web} {
		if got, want := counted(p, "eth1"), (counter{7, 7 * 142}); got != want {
			t.Errorf("eth1 of pod %s: counted %v, want %v", p.name, got, want)
		}
		if got := counted(p, "eth0"); got != (counter{}) {
			t.Errorf("eth0 of pod %s: counted %v, want nothing", p.name, got)
		}
	}
	mustRemove(t, r, client, web)
}

// secondAddress is the IPv4 address of eth1, of what app prints of its interfaces.
func secondAddress(t *testing.T, text string) netip.Addr {
	t.Helper()
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if fields[0] != "eth1" {
			continue
		}
		for _, field := range fields[2:] {
			if prefix, err := netip.ParsePrefix(field); err == nil && prefix.Addr().Is4() {
				return prefix.Addr()
			}
		}
	}
	t.Fatalf("no IPv4 address on eth1: %s", text)
	return netip.Addr{}
}

// TestManyPods makes 50 pods at the same time, and removes them so.
func TestManyPods(t *testing.T) {
	const pods = 50
	ipams := []string{"xdp-ipam"}
	if !testing.Short() {
		ipams = append(ipams, "host-local")
	}
	for _, ipam := range ipams {
		t.Run(ipam, func(t *testing.T) {
			n := newNode(t)
			r := startContainerd(t, n, "1.6", chain{main: "bridge", ipam: ipam, mode: "tcx", redirect: true})
			manyPods(t, n, r, pods)
		})
	}
}

func manyPods(t *testing.T, n *node, r *containerd, pods int) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	sandboxes := make([]string, pods)
	addresses := make([][]netip.Addr, pods)
	var group errgroup.Group
	for i := range pods {
		group.Go(func() (err error) {
			if sandboxes[i], err = r.RunPod(ctx, kubernetesPod(spec{name: fmt.Sprint("pod-", i), port: int32(9000 + i)})); err == nil {
				addresses[i], err = r.Addresses(ctx, sandboxes[i])
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	all := map[netip.Addr]bool{}
	for _, list := range addresses {
		for _, a := range list {
			all[a] = true
		}
	}
	if len(all) != 2*pods {
		t.Errorf("%d pods have %d addresses, want two each and none twice", pods, len(all))
	}
	if got := attached(t, n); len(got) != pods {
		t.Errorf("xdpctl shows %d attachments, want %d", len(got), pods)
	}
	group = errgroup.Group{}
	for _, id := range sandboxes {
		group.Go(func() error { return r.remove(ctx, &pod{sandbox: id}) })
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	noCallFailed(t, n)
	if pins := n.podPins(); len(pins) > 0 { // at once, not some time later
		t.Errorf("pins left: %q", pins)
	}
}

// TestReboot: a node starts again, with what containerd, libcni and host-local keep on disk, and without processes,
// namespaces, bpffs and interfaces. Kubelet stops the pods that containerd remembers, makes them anew, and removes the
// old ones. No address is lost by that, however often.
func TestReboot(t *testing.T) {
	for _, version := range versions() {
		for _, c := range []chain{
			{main: "bridge", ipam: "host-local", mode: "tcx", redirect: true},
			{main: "ptp", ipam: "xdp-ipam", mode: "generic"},
		} {
			t.Run(version+" "+c.String(), func(t *testing.T) {
				n := newNode(t)
				r := startContainerd(t, n, version, c)
				names := []string{"web", "client"}
				for _, name := range names {
					mustRun(t, r, kubeletSpec(name))
				}
				for range 2 {
					reboot(t, n, r)
					pods := kubeletSync(t, r, names)
					if err := reaches(t.Context(), r, pods["client"], pods["web"]); err != nil {
						t.Error(err)
					}
					leases, err := n.hostLocalLeases()
					if c.ipam == "xdp-ipam" {
						leases, err = n.leases(t.Context())
					}
					if err != nil || len(leases) != 2*len(names) {
						t.Errorf("leases of %d pods: %q, %v", len(names), leases, err)
					}
					if got := attached(t, n); len(got) != len(names) {
						t.Errorf("xdpctl shows %q", got)
					}
				}
				if err := r.removeAll(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func kubeletSpec(name string) spec {
	if name == "web" {
		return spec{name: name, args: serveAs(name), port: hostPort}
	}
	return spec{name: name, args: []string{"pause"}}
}

// kubeletSync is what kubelet does when it finds pods that have no sandbox that is ready: it stops what there is of each,
// makes a sandbox of the next attempt, and removes the old ones later.
func kubeletSync(t *testing.T, r *containerd, names []string) map[string]*pod {
	t.Helper()
	pods := map[string]*pod{}
	list, err := r.Sandboxes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		k := kubernetesPod(kubeletSpec(name))
		for _, s := range list {
			if s.Name != name {
				continue
			}
			if s.Ready {
				t.Errorf("sandbox %.12s of pod %s is ready", s.ID, name)
			}
			k.Attempt = max(k.Attempt, s.Attempt+1)
			if err := r.StopPod(t.Context(), s.ID); err != nil {
				t.Errorf("stop the old sandbox of pod %s: %v", name, err)
			}
		}
		p, err := r.runPod(t.Context(), kubeletSpec(name), k)
		if err != nil {
			t.Fatal(err)
		}
		pods[name] = p
	}
	for _, s := range list {
		if err := r.RemovePod(t.Context(), s.ID); err != nil {
			t.Errorf("remove the old sandbox of pod %s: %v", s.Name, err)
		}
	}
	return pods
}

// reaches tells whether a pod reaches another, with both families.
func reaches(ctx context.Context, r runtime, from, to *pod) error {
	for _, server := range to.at(serverPort) {
		err := eventually(patience, func() error { _, err := r.exec(ctx, from, "who", server.String()); return err })
		if err != nil {
			return fmt.Errorf("pod %s to pod %s: %w", from.name, to.name, err)
		}
	}
	return nil
}

// reboot takes from a node what a reboot takes, and starts containerd.
func reboot(t *testing.T, n *node, r *containerd) {
	t.Helper()
	r.stop(unix.SIGKILL)
	n.kill("")
	if err := killCgroup(r.cgroup); err != nil {
		t.Fatal(err)
	}
	mounts, err := n.mounts()
	for _, mount := range slices.Backward(mounts) {
		err = errors.Join(err, unix.Unmount(mount, unix.MNT_DETACH))
	}
	err = errors.Join(err, os.RemoveAll(r.path("run")), n.Purge(), n.Do(clearNetwork), n.flush())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// flush removes all rules and chains of NAT from the node.
func (n *node) flush() (err error) {
	for _, command := range []string{"iptables", "ip6tables"} {
		for _, action := range []string{"-F", "-X"} {
			if out, failed := n.Run(exec.Command(command, "-t", "nat", action)); failed != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w: %s", command, failed, out.Stderr))
			}
		}
	}
	return err
}

// clearNetwork deletes all interfaces of the calling thread's namespace but the uplink, which the next start would make
// just so. Those of pods are going by themselves meanwhile.
func clearNetwork() error {
	return eventually(patience, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("list interfaces: %w", err)
		}
		for _, l := range links {
			name := l.Attrs().Name
			if name == "lo" || name == "uplink" {
				continue
			}
			if err := netlink.LinkDel(l); err != nil {
				return fmt.Errorf("delete %s: %w", name, err)
			}
		}
		return nil
	})
}

// killCgroup ends all processes in the cgroups of a node's pods, and removes those.
func killCgroup(name string) error {
	return eventually(patience, func() error {
		roots, err := filepath.Glob("/sys/fs/cgroup/*" + name)
		for _, root := range roots {
			var dirs []string
			_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for _, dir := range slices.Backward(dirs) {
				procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
				for _, field := range strings.Fields(string(procs)) {
					if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
						_ = unix.Kill(pid, unix.SIGKILL)
					}
				}
				if removed := os.Remove(dir); removed != nil {
					err = removed
				}
			}
			if err != nil {
				return err
			}
		}
		return err
	})
}

// TestRestart: containerd is restarted while pods run; nothing happens to them, and they are removed as ever.
func TestRestart(t *testing.T) {
	n := newNode(t)
	r := startContainerd(t, n, "1.6", chain{main: "bridge", ipam: "host-local", mode: "tcx", redirect: true})
	web := mustRun(t, r, kubeletSpec("web"))
	client := mustRun(t, r, kubeletSpec("client"))
	for _, signal := range []os.Signal{unix.SIGTERM, unix.SIGKILL} {
		r.stop(signal)
		if err := r.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := reaches(t.Context(), r, client, web); err != nil {
			t.Errorf("after %v: %v", signal, err)
		}
	}
	mustRemove(t, r, client, web)
	if counts := n.count(t, web.sandbox); counts["ADD"] != 1 {
		t.Errorf("calls for the pod: %v, want ADD once", counts)
	}
}

// TestKilledInADD: containerd is killed while our ADD runs, before and after that has done its work. The plugin is killed
// with it, or does its work and finds nobody to tell, or does so when the pod is deleted already. When containerd is back
// kubelet stops what there is of the pod and makes it anew, and nothing of the first is left; where containerd has
// forgotten it, nothing is left behind GC.
func TestKilledInADD(t *testing.T) {
	for _, version := range versions() {
		for _, when := range []string{"before", "after"} {
			for _, plugin := range []string{"killed", "goes on", "late"} {
				t.Run(strings.Join([]string{version, when, plugin}, " "), func(t *testing.T) {
					n := newNode(t)
					c := chain{main: "bridge", ipam: "xdp-ipam", mode: "tcx", redirect: true}
					r := startContainerd(t, n, version, c)
					killedInADD(t, n, r, when, plugin)
					if r.forgets {
						collect(t, n, c)
					} else if list := attached(t, n); len(list) > 0 {
						t.Errorf("attachments left: %q", list)
					}
				})
			}
		}
	}
}

func killedInADD(t *testing.T, n *node, r *containerd, when, plugin string) {
	hold := filepath.Join(n.Dir, "hold-"+when+"-xdp-ADD")
	if err := os.WriteFile(hold, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	made := make(chan error, 1)
	go func() {
		_, err := r.RunPod(t.Context(), kubernetesPod(spec{name: "web"}))
		made <- err
	}()
	err := eventually(patience, func() error { _, err := os.Stat(filepath.Join(n.Dir, "held")); return err })
	if err != nil {
		t.Fatalf("ADD of xdp: %v", err)
	}
	r.stop(unix.SIGKILL)
	if err := <-made; err == nil {
		t.Fatal("the pod was made, and containerd is dead")
	}
	switch plugin {
	case "killed":
		n.kill(n.plugins, filepath.Join(n.Dir, "real"))
	case "late":
		if err := r.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		stopAll(t, r)
	}
	if err := os.Remove(hold); err != nil {
		t.Fatal(err)
	}
	if err := n.pluginsEnd(); err != nil {
		t.Fatal(err)
	}
	if plugin != "late" {
		if err := r.start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	pods := kubeletSync(t, r, []string{"web", "client"})
	if err := reaches(t.Context(), r, pods["client"], pods["web"]); err != nil {
		t.Error(err)
	}
	if err := r.removeAll(t.Context()); err != nil {
		t.Error(err)
	}
}

// collect does what is left to do where a runtime has forgotten a pod: its namespace is freed by who cleans the node, and
// GC called, by libcni, of what has no valid attachment.
func collect(t *testing.T, n *node, c chain) {
	t.Helper()
	if list := attached(t, n); len(list) > 1 {
		t.Errorf("attachments left: %q", list)
	}
	mounts, err := n.mounts()
	for _, mount := range mounts {
		if strings.Contains(mount, "/netns/") {
			err = errors.Join(err, unix.Unmount(mount, unix.MNT_DETACH), os.Remove(mount))
		}
	}
	// portmap and bridge know no GC
	if err := errors.Join(err, n.flush(), os.RemoveAll("/var/lib/cni/results")); err != nil {
		t.Error(err)
	}
	c.version = "1.1.0" // from which on libcni calls GC
	if err := tests.MustNetwork(t, n.Node, c.conflist(n, "net0", 0)).GC(t.Context()); err != nil {
		t.Errorf("GC: %v", err)
	}
}

func stopAll(t *testing.T, r *containerd) {
	t.Helper()
	list, err := r.Sandboxes(t.Context())
	if err != nil || len(list) == 0 && !r.forgets {
		t.Fatalf("containerd knows the pods %v, %v", list, err)
	}
	for _, s := range list {
		if err := r.StopPod(t.Context(), s.ID); err != nil {
			t.Error(err)
		}
	}
}

// pluginsEnd waits until no plugin runs.
func (n *node) pluginsEnd() error {
	return eventually(patience, func() error {
		list, err := n.processes()
		for _, line := range list {
			if strings.HasPrefix(line, n.plugins) {
				err = fmt.Errorf("a plugin still runs: %s", line)
			}
		}
		return err
	})
}
