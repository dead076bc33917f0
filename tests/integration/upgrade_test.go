package integration

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/tests"
)

// upgradeRig is a node with two releases of ours, and two pods that talk to each other all the time.
type upgradeRig struct {
	*tests.Node
	t               *testing.T
	this, next      tests.Binaries
	conflist        string
	client, server  *tests.Pod
	echo, forbidden *tests.Echo
}

func newUpgradeRig(t *testing.T, mode string, redirect bool) *upgradeRig {
	t.Helper()
	next := tests.MustBuildNext(t)
	r := &upgradeRig{Node: start(t, tests.WithoutIPv6()), t: t, next: next}
	r.this = r.Binaries
	r.client, r.server = tests.MustPod(t, r.Node, "client"), tests.MustPod(t, r.Node, "server")
	r.echo = tests.MustEcho(t, r.server, netip.IPv4Unspecified())
	r.forbidden = tests.MustEcho(t, r.server, netip.IPv4Unspecified())
	var rules []tests.Conf
	for _, direction := range []string{"egress", "ingress"} {
		for protocol, port := range map[string]uint16{"tcp": r.echo.TCP.Port(), "udp": r.echo.UDP.Port()} {
			rules = append(rules, tests.Conf{
				"name": direction + "-" + protocol, "direction": direction, "action": "allow", "protocol": protocol, "ports": []string{fmt.Sprint(port)},
			})
		}
	}
	r.conflist = tests.Conflist("net", "1.1.0", r.Bridge(tests.IPv4), r.XDP(tests.Conf{
		"mode": mode, "redirect": redirect,
		"filter": tests.Conf{"default": tests.Conf{"egress": "deny", "ingress": "deny"}, "rules": rules},
	}))
	tests.MustAdd(t, r.network(r.this), r.client)
	tests.MustAdd(t, r.network(r.this), r.server)
	if err := tests.Introduce(r.client, r.server); err != nil {
		t.Fatal(err)
	}
	return r
}

// network is the one of the pods, as a release's plugin is called for it.
func (r *upgradeRig) network(release tests.Binaries) *tests.Network {
	r.t.Helper()
	defer func(was tests.Binaries) { r.Binaries = was }(r.Binaries)
	r.Binaries = release
	return tests.MustNetwork(r.t, r.Node, r.conflist)
}

func (r *upgradeRig) xdpctl(release tests.Binaries, args ...string) string {
	r.t.Helper()
	defer func(was tests.Binaries) { r.Binaries = was }(r.Binaries)
	r.Binaries = release
	out, err := r.RunXdpctl(r.t.Context(), args...)
	if err != nil {
		r.t.Fatalf("xdpctl %s: %v: %s", strings.Join(args, " "), err, out.Stderr)
	}
	return string(out.Stdout)
}

// upgradeResult is what scripts read of `xdpctl upgrade -o json`.
type upgradeResult struct {
	From, To string
	Needed   bool
	Programs []struct{ Result string }
	Pods     []struct{ Result string }
}

func (r *upgradeRig) upgrade(release tests.Binaries, args ...string) (result upgradeResult) {
	r.t.Helper()
	out := r.xdpctl(release, append([]string{"upgrade", "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		r.t.Fatalf("xdpctl upgrade -o json: %v: %s", err, out)
	}
	return result
}

// checks calls CHECK of both releases' plugins for both pods.
func (r *upgradeRig) checks(when string) {
	r.t.Helper()
	for _, release := range []tests.Binaries{r.this, r.next} {
		for _, pod := range []*tests.Pod{r.client, r.server} {
			if err := r.network(release).Check(r.t.Context(), pod); err != nil {
				r.t.Errorf("%s: CHECK of %s by %s: %v", when, pod.Name, release.Dir, err)
			}
		}
	}
}

// conversation is numbered datagrams to an echo server, and a TCP connection, both of which go on until its end.
type conversation struct {
	t       *testing.T
	before  map[*tests.Pod]stats
	udp     *net.UDPConn
	tcp     net.Conn
	stop    chan struct{}
	running sync.WaitGroup
	faults  chan error
	sent    uint64 // datagrams
	streams int    // blocks of TCP that went there and back
}

// conversationWindow is how many datagrams are on their way at once: no queue overflows by them.
const conversationWindow = 16

func (r *upgradeRig) talk() *conversation {
	r.t.Helper()
	quiet(r.t, r.client, r.server)
	c := &conversation{
		t: r.t, stop: make(chan struct{}), faults: make(chan error, 2),
		before: map[*tests.Pod]stats{r.client: readStats(r.t, r.Node, r.client), r.server: readStats(r.t, r.Node, r.server)},
	}
	err := r.client.Do(func() (err error) {
		udp := netip.AddrPortFrom(r.server.IPv4(), r.echo.UDP.Port())
		if c.udp, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(udp)); err != nil {
			return err
		}
		var dialer net.Dialer
		dialer.SetMultipathTCP(false)
		c.tcp, err = dialer.DialContext(r.t.Context(), "tcp4", netip.AddrPortFrom(r.server.IPv4(), r.echo.TCP.Port()).String())
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	c.running.Go(func() { c.faults <- c.datagrams() })
	c.running.Go(func() { c.faults <- c.stream() })
	return c
}

func (c *conversation) over() bool {
	select {
	case <-c.stop:
		return true
	default:
		return false
	}
}

// datagrams expects each to come back once.
func (c *conversation) datagrams() error {
	pending := map[uint64]bool{}
	buffer := make([]byte, 64)
	for ; ; tests.Breathe() {
		for !c.over() && len(pending) < conversationWindow {
			binary.BigEndian.PutUint64(buffer, c.sent)
			if _, err := c.udp.Write(buffer[:32]); err != nil {
				return fmt.Errorf("sending datagram %d: %w", c.sent, err)
			}
			pending[c.sent] = true
			c.sent++
		}
		if len(pending) == 0 {
			return nil
		}
		_ = c.udp.SetReadDeadline(time.Now().Add(patience))
		n, err := c.udp.Read(buffer)
		if err != nil {
			return fmt.Errorf("%d datagrams of %d are lost: %w", len(pending), c.sent, err)
		}
		number := binary.BigEndian.Uint64(buffer)
		if n != 32 || !pending[number] {
			return fmt.Errorf("datagram %d came back more than once, or with %d bytes", number, n)
		}
		delete(pending, number)
	}
}

func (c *conversation) stream() error {
	block, back := make([]byte, 16<<10), make([]byte, 16<<10)
	for ; !c.over(); c.streams++ {
		tests.Breathe()
		binary.BigEndian.PutUint64(block, uint64(c.streams))
		_ = c.tcp.SetDeadline(time.Now().Add(patience))
		if _, err := c.tcp.Write(block); err != nil {
			return fmt.Errorf("block %d of the stream: %w", c.streams, err)
		}
		if _, err := io.ReadFull(c.tcp, back); err != nil || !bytes.Equal(block, back) {
			return fmt.Errorf("block %d of the stream came back changed, or did not: %w", c.streams, err)
		}
	}
	return nil
}

// end ends it, and expects nothing to be lost, and all of it to be counted once by both pods.
func (c *conversation) end(r *upgradeRig) {
	c.t.Helper()
	close(c.stop)
	c.running.Wait()
	_ = c.udp.Close()
	_ = c.tcp.Close()
	if err := errors.Join(<-c.faults, <-c.faults); err != nil {
		c.t.Error(err)
	}
	if c.sent < 100 || c.streams < 10 {
		c.t.Errorf("only %d datagrams and %d blocks", c.sent, c.streams)
	}
	quiet(c.t, r.client, r.server)
	for pod, before := range c.before {
		diff := readStats(c.t, r.Node, pod).since(before)
		expect(c.t, pod.Name+", UDP egress", diff.Protocols.Egress["udp"].Packets, c.sent)
		expect(c.t, pod.Name+", UDP ingress", diff.Protocols.Ingress["udp"].Packets, c.sent)
		expect(c.t, pod.Name+", egress drops", diff.Egress["drop"].Packets, 0)
		expect(c.t, pod.Name+", ingress drops", diff.Ingress["drop"].Packets, 0)
		expect(c.t, pod.Name+", sums", total(diff.Kinds.Egress), total(diff.Egress))
	}
}

// filtered expects the filter to be in force.
func (r *upgradeRig) filtered() {
	r.t.Helper()
	port := netip.AddrPortFrom(r.server.IPv4(), r.forbidden.UDP.Port())
	if echoes, err := tests.EchoUDPCount(r.t.Context(), r.client, port, 3, 100, 100*time.Millisecond); err != nil || echoes != 0 {
		r.t.Errorf("the filter let %d datagrams through, %v", echoes, err)
	}
}

// TestUpgrade goes to another release and back under pods that talk to each other, in each mode, with and without
// redirect. No packet is lost, and each counted once. In between, either release's plugin adds and deletes pods.
func TestUpgrade(t *testing.T) {
	for _, mode := range redirectModes {
		for _, redirect := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s redirect %v", mode, redirect), func(t *testing.T) {
				r := newUpgradeRig(t, mode, redirect)
				if u := r.upgrade(r.this); u.Needed {
					t.Errorf("there is something to do for the same release: %+v", u)
				}
				c := r.talk()
				pods := 2
				for i := range 4 {
					from, to, name := r.this, r.next, tests.NextRelease
					if i%2 == 1 {
						from, to, name = r.next, r.this, ""
					}
					passing := tests.MustPod(t, r.Node, fmt.Sprintf("passing%d", i))
					tests.MustAdd(t, r.network(to), passing)
					if would := r.upgrade(to, "--dry-run"); !would.Needed || len(would.Pods) != pods+1 {
						t.Errorf("dry run: %+v", would)
					}
					u := r.upgrade(to)
					if !u.Needed || name != "" && u.To != name || len(u.Pods) != pods+1 || len(u.Programs) < 2 {
						t.Errorf("upgrade: %+v", u)
					}
					for _, pod := range u.Pods {
						expect(t, "result", pod.Result, "upgraded")
					}
					if again := r.upgrade(to); again.Needed || again.From != u.To {
						t.Errorf("another upgrade: %+v", again)
					}
					if version := r.xdpctl(to, "version"); strings.Contains(version, "xdpctl upgrade") {
						t.Errorf("version, after an upgrade:\n%s", version)
					}
					if version := r.xdpctl(from, "version"); !strings.Contains(version, fmt.Sprintf("%d attachments do not run", pods+1)) {
						t.Errorf("version of the other release, after an upgrade:\n%s", version)
					}
					r.checks("upgraded to " + u.To)
					if err := r.network(from).Del(t.Context(), passing); err != nil {
						t.Error(err)
					}
				}
				c.end(r)
				direct := redirect && goesDirect("udp", mode, mode)
				redirected := readStats(t, r.Node, r.client).since(c.before[r.client]).Egress["redirect"].Packets
				if direct != (redirected > c.sent/2) {
					t.Errorf("%d packets were redirected, %d datagrams sent; want most to be: %v", redirected, c.sent, direct)
				}
				r.filtered()
				r.delete()
			})
		}
	}
}

func (r *upgradeRig) delete() {
	r.t.Helper()
	for _, pod := range []*tests.Pod{r.client, r.server} {
		if err := r.network(r.next).Del(r.t.Context(), pod); err != nil {
			r.t.Error(err)
		}
	}
}

// TestInstallUpgrade installs a release over another: it says that pods run with the other's programs, and with
// --upgrade replaces them.
func TestInstallUpgrade(t *testing.T) {
	r := newUpgradeRig(t, "tcx", false)
	confDir, binDir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(confDir, "10-net.conflist"), []byte(r.conflist), 0o600); err != nil {
		t.Fatal(err)
	}
	install := func(release tests.Binaries, flags ...string) tests.Output {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), release.Xdpctl(),
			append([]string{"--bpffs", r.BPFFS, "install", "--conf-dir", confDir, "--bin-dir", binDir}, flags...)...)
		out, err := r.Run(cmd)
		if err != nil {
			t.Fatalf("install: %v: %s", err, out.Stderr)
		}
		return out
	}
	const hint = "xdpctl upgrade replaces them"
	if out := install(r.this); strings.Contains(string(out.Stderr), hint) {
		t.Errorf("install of the release that runs: %s", out.Stderr)
	}
	if version := r.xdpctl(r.next, "version", "--bin-dir", binDir); !strings.Contains(version, filepath.Join(binDir, "xdp")+" is of ") {
		t.Errorf("version before the install:\n%s", version)
	}
	if out := install(r.next); !strings.Contains(string(out.Stderr), hint) {
		t.Errorf("install of another release: %s", out.Stderr)
	}
	version := r.xdpctl(r.next, "version", "--bin-dir", binDir)
	if !strings.Contains(version, filepath.Join(binDir, "xdp")+" of next\n") || strings.Contains(version, " is of ") || !strings.Contains(version, "2 attachments do not run") {
		t.Errorf("version after the install:\n%s", version)
	}
	if out := install(r.next, "--upgrade"); !strings.Contains(string(out.Stdout), "to next") {
		t.Errorf("install --upgrade: %s", out.Stdout)
	}
	if u := r.upgrade(r.next); u.Needed {
		t.Errorf("upgrade after install --upgrade: %+v", u)
	}
	r.delete()
}

// TestUpgradeKilled kills upgrades to and back at any moment, under pods that talk to each other.
func TestUpgradeKilled(t *testing.T) {
	r := newUpgradeRig(t, "tcx", true)
	c := r.talk()
	killed := 0
	for i := range 60 {
		release := []tests.Binaries{r.next, r.this}[i%2]
		cmd := exec.CommandContext(t.Context(), release.Xdpctl(), "--bpffs", r.BPFFS, "upgrade")
		if err := r.Start(cmd); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(rand.IntN(400))*time.Millisecond, func() { _ = cmd.Process.Signal(os.Kill) })
		if err := cmd.Wait(); err != nil {
			killed++
		}
		timer.Stop()
		if i%5 == 0 {
			r.checks("killed")
		}
	}
	if killed < 5 {
		t.Errorf("only %d upgrades were killed", killed)
	}
	r.upgrade(r.next)
	if u := r.upgrade(r.next); u.Needed {
		t.Errorf("another upgrade: %+v", u)
	}
	r.checks("upgraded")
	for _, pin := range r.Pins() {
		if strings.HasSuffix(pin, "_next") {
			t.Errorf("left: %s", pin)
		}
	}
	c.end(r)
	r.delete()
}
