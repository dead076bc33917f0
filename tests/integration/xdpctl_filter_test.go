package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/tests"
)

// shownFilter is what scripts read of `xdpctl filter show -o json`.
type shownFilter struct {
	Filter   json.RawMessage
	Defaults struct{ Egress, Ingress struct{ Drops counter } }
	Rules    []shownRule
}

type shownRule struct {
	Name, Direction, Action, Last string
	Rule                          int
	Hits                          counter
}

// shownDrops is what they read of `xdpctl drops -o json`.
type shownDrops struct {
	Filtered bool
	Drops    struct{ Egress, Ingress direction }
	Rules    []shownRule
}

// shownDrop is what they read of a line of `xdpctl drops --follow -o json`.
type shownDrop struct {
	Time                                                                time.Time
	Pod                                                                 struct{ Name string }
	HostInterface                                                       struct{ Name string }
	Direction, Verdict, Reason, RuleName, Protocol, Source, Destination string
	Rule, SourcePort, DestinationPort                                   int
	Length                                                              uint64
}

// xdpctlJSON runs xdpctl, which has to succeed, and decodes what it writes.
func xdpctlJSON(t *testing.T, n *tests.Node, into any, args ...string) {
	t.Helper()
	out, err := n.RunXdpctl(t.Context(), append([]string{"-o", "json"}, args...)...)
	if err != nil {
		t.Fatalf("xdpctl %s: %v: %s", strings.Join(args, " "), err, out.Stderr)
	}
	if err := json.Unmarshal(out.Stdout, into); err != nil {
		t.Fatalf("xdpctl %s: %v: %s", strings.Join(args, " "), err, out.Stdout)
	}
}

// filterFile writes a filter to a file.
func filterFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "filter.json")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// applyFilter applies a filter to a pod and returns the result.
func applyFilter(t *testing.T, n *tests.Node, pod *tests.Pod, file string, more ...string) string {
	t.Helper()
	var report struct{ Pods []struct{ Result string } }
	xdpctlJSON(t, n, &report, append([]string{"filter", "apply", pod.ContainerID, "-f", file}, more...)...)
	if len(report.Pods) != 1 {
		t.Fatalf("it was applied to %d pods, want 1", len(report.Pods))
	}
	return report.Pods[0].Result
}

// following is a running `xdpctl drops --follow`.
type following struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
	pipe  io.Closer
}

// follow starts it, and returns once it tells of a packet that provoke sends, for which isProvoked is true.
func follow(t *testing.T, n *tests.Node, provoke func() error, isProvoked func(shownDrop) bool, args ...string) *following {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	f := &following{cmd: exec.CommandContext(ctx, n.Binaries.Xdpctl(), append([]string{"--bpffs", n.BPFFS, "-o", "json", "drops", "--follow"}, args...)...)}
	f.cmd.Stderr = t.Output()
	pipe, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	f.pipe, f.lines = pipe, bufio.NewScanner(pipe)
	if err := n.Start(f.cmd); err != nil {
		t.Fatal(err)
	}
	first := make(chan struct{})
	provoked := make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			select {
			case <-first:
				provoked <- nil
				return
			case <-time.After(20 * time.Millisecond):
				err = provoke()
			}
		}
		cancel()
		provoked <- err
	}()
	d := f.next(t)
	close(first)
	if err := <-provoked; err != nil {
		t.Fatal(err)
	}
	if !isProvoked(d) {
		t.Fatalf("the first packet told of is %+v", d)
	}
	return f
}

// next returns the next packet that it tells of.
func (f *following) next(t *testing.T) shownDrop {
	t.Helper()
	if !f.lines.Scan() {
		t.Fatalf("xdpctl drops --follow ended: %v, %v", f.lines.Err(), f.cmd.Wait())
	}
	var d shownDrop
	if err := json.Unmarshal(f.lines.Bytes(), &d); err != nil {
		t.Fatalf("%v: %s", err, f.lines.Bytes())
	}
	return d
}

// wait waits until it has ended, which has to be without an error.
func (f *following) wait(t *testing.T, what string) {
	t.Helper()
	if err := f.cmd.Wait(); err != nil {
		t.Errorf("%s: xdpctl drops --follow: %v", what, err)
	}
}

// eventually waits until check returns nil.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Error(err)
}

// Lengths of datagrams, by which packets are told apart.
const (
	probeSize   = 100 // what the test counts
	provokeSize = 60  // what makes --follow show that it is there
)

// TestXdpctlFilter puts a filter in force for a pod that runs, and sees in every command what it does with the
// packets of real sockets.
func TestXdpctlFilter(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) { xdpctlFilter(t, mode) })
	}
}

func xdpctlFilter(t *testing.T, mode string) {
	n := start(t, tests.WithoutIPv6())
	w := tests.MustNetwork(t, n, tests.Conflist("net", "1.1.0", n.Bridge(tests.IPv4), n.XDP(tests.Conf{"mode": mode})))
	client, server := tests.MustPod(t, n, "client"), tests.MustPod(t, n, "server")
	tests.MustAdd(t, w, client, tests.KubernetesArgs("default", "client", "uid-client"))
	tests.MustAdd(t, w, server, tests.KubernetesArgs("default", "server", "uid-server"))
	if err := tests.Introduce(client, server); err != nil {
		t.Fatal(err)
	}
	echo := tests.MustEcho(t, server, server.IPv4())
	file := filterFile(t, fmt.Sprintf(`{"rules":[
		{"name":"dns","direction":"egress","action":"allow","to":["192.0.2.53"],"protocol":"udp","ports":["53"]},
		{"name":"no-echo","direction":"egress","action":"deny","to":["%s"],"protocol":"udp","ports":["%d"]},
		{"name":"trial","direction":"egress","action":"audit","to":["%s"],"protocol":"tcp"}]}`,
		server.IPv4(), echo.UDP.Port(), server.IPv4()))

	pods := func() []struct {
		Filtered    bool
		FilterRules int
	} {
		var list []struct {
			Filtered    bool
			FilterRules int
		}
		xdpctlJSON(t, n, &list, "pods", client.ContainerID)
		return list
	}
	expect(t, "pods before", pods(), "[{false 0}]")
	expect(t, "dry run", applyFilter(t, n, client, file, "--dry-run"), "pending")
	expect(t, "pods after a dry run", pods(), "[{false 0}]")
	expect(t, "apply", applyFilter(t, n, client, file), "applied")
	expect(t, "pods", pods(), "[{true 3}]")
	expect(t, "apply again", applyFilter(t, n, client, file), "unchanged")

	send := func(count, size int) error {
		came, err := tests.EchoUDPCount(t.Context(), client, echo.UDP, count, size, 0)
		if err == nil && came > 0 {
			err = fmt.Errorf("%d of %d datagrams came back that rule no-echo denies", came, count)
		}
		return err
	}
	udp := func(d shownDrop, size uint64) bool {
		return d.Protocol == "udp" && d.Length == ethernetLen+ipv4Len+udpLen+size
	}
	f := follow(t, n, func() error { return send(1, provokeSize) }, func(d shownDrop) bool { return udp(d, provokeSize) }, "default/client")
	if out, err := n.RunXdpctl(t.Context(), "drops", "--follow"); err == nil || !strings.Contains(string(out.Stderr), "another process follows") {
		t.Errorf("a second follower: %v: %s", err, out.Stderr)
	}

	quiet(t, client) // what was provoked is not counted here
	before := readDrops(t, n, client)
	const datagrams = 20
	if err := send(datagrams, probeSize); err != nil {
		t.Fatal(err)
	}
	if err := tests.EchoTCP(t.Context(), client, echo.TCP, 1000); err != nil {
		t.Errorf("TCP, which is audited alone: %v", err)
	}
	quiet(t, client)
	now := readDrops(t, n, client)
	want := counter{datagrams, datagrams * (ethernetLen + ipv4Len + udpLen + probeSize)}
	expect(t, "reason rule", minus(now.Drops.Egress["rule"], before.Drops.Egress["rule"]), want)
	expect(t, "other drops", total(now.Drops.Egress).Packets+total(now.Drops.Ingress).Packets, now.Drops.Egress["rule"].Packets)
	expect(t, "rules that can drop", []any{now.Rules[0].Name, now.Rules[0].Rule, now.Rules[1].Name, now.Rules[1].Rule}, []any{"no-echo", 1, "trial", 2})
	expect(t, "rule no-echo", minus(now.Rules[0].Hits, before.Rules[0].Hits), want)
	expect(t, "rule trial: the flow's first packet", now.Rules[1].Hits.Packets, 1)
	if _, err := time.Parse(time.RFC3339, now.Rules[1].Last); err != nil {
		t.Errorf("rule trial decided last at %q: %v", now.Rules[1].Last, err)
	}
	expect(t, "stats", readDropStats(t, n, client), now.Drops.Egress["rule"])

	hostEnd := readStats(t, n, client).HostInterface.Name
	udpPorts, audited := map[int]bool{}, 0
	for told := 0; told < datagrams+1; {
		d := f.next(t)
		if udp(d, provokeSize) {
			continue
		}
		told++
		expect(t, "line", []any{d.Pod.Name, d.HostInterface.Name, d.Direction, d.Reason, d.Source, d.Destination},
			[]any{"client", hostEnd, "egress", "rule", client.IPv4(), server.IPv4()})
		if time.Since(d.Time) > time.Hour || time.Until(d.Time) > time.Minute {
			t.Errorf("it was dropped at %s", d.Time)
		}
		if d.Verdict == "audit" {
			audited++
			expect(t, "audited", []any{d.RuleName, d.Rule, d.Protocol, d.DestinationPort}, []any{"trial", 2, "tcp", echo.TCP.Port()})
			continue
		}
		udpPorts[d.SourcePort] = true
		expect(t, "dropped", []any{d.Verdict, d.RuleName, d.Rule, d.DestinationPort, udp(d, probeSize)},
			[]any{"deny", "no-echo", 1, echo.UDP.Port(), true})
	}
	expect(t, "audited", audited, 1)
	expect(t, "source ports", len(udpPorts), 1)
	if err := f.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	f.wait(t, "after SIGINT")
	f = follow(t, n, func() error { return send(1, provokeSize) }, func(d shownDrop) bool { return udp(d, provokeSize) })
	_ = f.pipe.Close()
	f.wait(t, "after its reader went") // without another packet

	xdpctlTests(t, n, client, server, echo)
	xdpctlDefault(t, n, client, server, echo)
	for _, pod := range []*tests.Pod{client, server} {
		if err := w.Check(t.Context(), pod); err != nil {
			t.Errorf("CHECK: %v", err)
		}
	}
	if out, err := n.RunXdpctl(t.Context(), "doctor"); err != nil || !strings.Contains(string(out.Stdout), "2 of 2 attachments have one") {
		t.Errorf("doctor: %v: %s%s", err, out.Stdout, out.Stderr)
	}
}

// xdpctlTests asks filter test what the sockets have found out.
func xdpctlTests(t *testing.T, n *tests.Node, client, server *tests.Pod, echo *tests.Echo) {
	t.Helper()
	for _, test := range []struct{ args, want string }{
		{"--egress --protocol udp --to " + echo.UDP.String(), "deny rule no-echo"},
		{"--egress --protocol tcp --to " + echo.TCP.String(), "audit rule trial"},
		{"--egress --protocol udp --to " + netip.AddrPortFrom(client.GatewayIPv4(), 53).String(), "allow default "},
		{"--egress --protocol tcp --to " + echo.TCP.String() + " --from " + server.IPv4().String(), "deny antiSpoof "},
		{"--ingress --protocol tcp --to :80 --from " + client.GatewayIPv4().String(), "allow allowHost "},
	} {
		var report struct{ Verdict, DecidedBy, Name string }
		xdpctlJSON(t, n, &report, append([]string{"filter", "test", client.ContainerID}, strings.Fields(test.args)...)...)
		expect(t, "filter test "+test.args, report.Verdict+" "+report.DecidedBy+" "+report.Name, test.want)
	}
}

// xdpctlDefault denies by default what comes for the server: what the node sends passes.
func xdpctlDefault(t *testing.T, n *tests.Node, client, server *tests.Pod, echo *tests.Echo) {
	t.Helper()
	expect(t, "apply", applyFilter(t, n, client, filterFile(t, `{"rules":[]}`)), "applied")
	expect(t, "apply", applyFilter(t, n, server, filterFile(t, `{"default":{"ingress":"deny"}}`)), "applied")
	const datagrams = 5
	if came, err := tests.EchoUDPCount(t.Context(), client, echo.UDP, datagrams, probeSize, 0); err != nil || came > 0 {
		t.Errorf("%d datagrams came back that the default denies, %v", came, err)
	}
	if err := tests.EchoUDP(t.Context(), n, echo.UDP, datagrams, probeSize); err != nil {
		t.Errorf("from the node: %v", err)
	}
	want := counter{datagrams, datagrams * (ethernetLen + ipv4Len + udpLen + probeSize)}
	eventually(t, func() error {
		if have := readDrops(t, n, server).Drops.Ingress["default"]; have != want {
			return fmt.Errorf("the server's default dropped %v, want %v", have, want)
		}
		return nil
	})
	var shown shownFilter
	xdpctlJSON(t, n, &shown, "filter", "show", server.ContainerID)
	expect(t, "filter show", shown.Defaults.Ingress.Drops, want)
}

func minus(a, b counter) counter { return counter{a.Packets - b.Packets, a.Bytes - b.Bytes} }

func readDrops(t *testing.T, n *tests.Node, pod *tests.Pod) shownDrops {
	t.Helper()
	var list []shownDrops
	xdpctlJSON(t, n, &list, "drops", pod.ContainerID)
	if len(list) != 1 || !list[0].Filtered {
		t.Fatalf("xdpctl drops: %+v", list)
	}
	return list[0]
}

// readDropStats is what stats says of the drops by rule of what a pod sent.
func readDropStats(t *testing.T, n *tests.Node, pod *tests.Pod) counter {
	t.Helper()
	var list []shownDrops
	xdpctlJSON(t, n, &list, "stats", pod.ContainerID)
	return list[0].Drops.Egress["rule"]
}

// applyKills is how many filter applies are killed, the first of each renewEach on a pod without a filter.
const (
	applyKills = 50
	renewEach  = 3
)

// TestApplyKilled kills filter apply at random moments, -9: the filter in force is always the one before or the one
// applied, whole, as it is told and as it is done.
func TestApplyKilled(t *testing.T) {
	n := start(t, tests.WithoutIPv6())
	w := tests.MustNetwork(t, n, tests.Conflist("net", "1.1.0", n.Bridge(tests.IPv4), n.XDP(tests.Conf{"mode": "auto"})))
	client, server := tests.MustPod(t, n, "client"), tests.MustPod(t, n, "server")
	tests.MustAdd(t, w, server)
	// renew makes the client's attachment anew, without a filter
	renew := func() {
		if err := w.Del(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		tests.MustAdd(t, w, client)
		if err := tests.Introduce(client, server); err != nil {
			t.Fatal(err)
		}
	}
	echoes := []*tests.Echo{tests.MustEcho(t, server, server.IPv4()), tests.MustEcho(t, server, server.IPv4())}
	// each denies one of the echo servers; the one has many rules more than the other
	var filters []string
	for i, echo := range echoes {
		rules := []string{fmt.Sprintf(`{"name":"deny-%d","direction":"egress","action":"deny","protocol":"udp","ports":["%d"]}`, i, echo.UDP.Port())}
		for j := range i * 1000 {
			rules = append(rules, fmt.Sprintf(`{"name":"more-%d","direction":"egress","action":"deny","to":["192.0.%d.%d"]}`, j, j>>8, j&255))
		}
		filters = append(filters, filterFile(t, `{"rules":[`+strings.Join(rules, ",")+`]}`))
	}
	// inForce returns which filter is, as it is told: -1 for none.
	inForce := func() int {
		var shown shownFilter
		xdpctlJSON(t, n, &shown, "filter", "show", client.ContainerID)
		if string(shown.Filter) == "null" {
			return -1
		}
		for i := range filters {
			if shown.Rules[0].Name == fmt.Sprintf("deny-%d", i) && len(shown.Rules) == 1+1000*i {
				return i
			}
		}
		t.Fatalf("in force is %s", shown.Filter)
		return 0
	}
	// judged checks that packets are judged by a filter.
	judged := func(by int) error {
		var before uint64
		if by >= 0 {
			before = readDrops(t, n, client).Drops.Egress["rule"].Packets
			if came, err := tests.EchoUDPCount(t.Context(), client, echoes[by].UDP, 1, probeSize, 0); err != nil || came > 0 {
				return fmt.Errorf("filter %d let through what it denies: %d, %w", by, came, err)
			}
		}
		for i := range echoes {
			if i != by {
				if err := tests.EchoUDP(t.Context(), client, echoes[i].UDP, 1, probeSize); err != nil {
					return fmt.Errorf("filter %d denies what it lets through: %w", by, err)
				}
			}
		}
		if by < 0 {
			return nil
		}
		var after uint64
		for deadline := time.Now().Add(patience); after != before+1 && time.Now().Before(deadline); {
			after = readDrops(t, n, client).Drops.Egress["rule"].Packets
		}
		if after != before+1 {
			return fmt.Errorf("filter %d dropped %d packets, want 1", by, after-before)
		}
		return nil
	}
	command := func(i int) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), n.Binaries.Xdpctl(), "--bpffs", n.BPFFS, "filter", "apply", client.ContainerID, "-f", filters[i])
		cmd.WaitDelay = tests.Patience(time.Second)
		return cmd
	}
	random := rand.New(rand.NewPCG(9, 10))
	began := time.Now()
	if out, err := n.RunXdpctl(t.Context(), "filter", "apply", server.ContainerID, "-f", filters[1]); err != nil {
		t.Fatalf("%v: %s", err, out.Stderr)
	}
	within := 2 * time.Since(began)
	killed, done := 0, 0
	var seen []int
	for i := range applyKills {
		if i%renewEach == 0 {
			renew()
		}
		before := inForce()
		next := 1
		if before == 1 {
			next = 0
		}
		wasKilled, err := runMaybeKilled(n, command(next), true, random, within)
		if err != nil {
			t.Fatal(err)
		}
		now := inForce()
		switch {
		case now != before && now != next:
			t.Fatalf("in force is filter %d, want %d or %d", now, before, next)
		case !wasKilled && now != next:
			t.Fatalf("filter %d was applied, and in force is %d", next, now)
		case wasKilled:
			killed++
			if now == next {
				done++
			}
		}
		if err := judged(now); err != nil {
			t.Fatalf("after a kill (%v): %v", wasKilled, err)
		}
		if !slices.Contains(seen, now) {
			seen = append(seen, now)
		}
	}
	t.Logf("%d of %d were killed, %d of them when the filter was in force; seen in force: %v", killed, applyKills, done, seen)
	if killed < applyKills/4 || len(seen) < 3 {
		t.Errorf("%d of %d were killed, seen in force: %v: this tests little", killed, applyKills, seen)
	}
	next := (max(0, inForce()) + 1) % 2
	expect(t, "apply after all that", applyFilter(t, n, client, filters[next]), "applied")
	if err := judged(next); err != nil {
		t.Error(err)
	}
	if err := w.Check(t.Context(), client); err != nil {
		t.Errorf("CHECK: %v", err)
	}
}
