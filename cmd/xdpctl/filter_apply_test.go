package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/filter/filtertest"
)

// apply runs filter apply with a file, and returns what it reports.
func (n *fakeNode) apply(want int, text string, args ...string) (*applyReport, string) {
	n.Helper()
	file := filepath.Join(n.TempDir(), "filter")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		n.Fatal(err)
	}
	status, stdout, stderr := n.xdpctl(n.Context(), append([]string{"filter", "apply", "-f", file, "-o", "json"}, args...)...)
	if status != want {
		n.Errorf("%v: status %d, want %d: %s", args, status, want, stderr)
	}
	report := &applyReport{}
	if stdout != "" {
		if err := json.Unmarshal([]byte(stdout), report); err != nil {
			n.Fatal(err)
		}
	}
	return report, stderr
}

func (r *applyReport) results() string {
	var results []string
	for _, p := range r.Pods {
		results = append(results, p.HostInterface.Name+" "+p.Result)
	}
	return strings.Join(results, ", ")
}

func TestApply(t *testing.T) {
	const other = `{"rules":[{"name":"dns","direction":"egress","action":"deny"}]}`
	n := newFakeNode(t)
	report, stderr := n.apply(0, other, "demo/server")
	if report.results() != "veth22222222 applied" || n.replaced() != "veth22222222" || stderr != "" {
		t.Errorf("%s, replaced %s; %s", report.results(), n.replaced(), stderr)
	}
	state := n.policies[n.at("veth22222222").ID]
	if f := mustFilter(t, string(state.Source)); len(f.Rules) != 1 || f.Rules[0].Action != conf.Deny || state.Generation != 8 {
		t.Errorf("in force is %s, generation %d", state.Source, state.Generation)
	}
	// once more: nothing to do, so that the counters stay
	report, _ = n.apply(0, other, "10.88.0.3", "veth22222222")
	if report.results() != "veth22222222 unchanged" || n.replaced() != "veth22222222" {
		t.Errorf("%s, replaced %s", report.results(), n.replaced())
	}

	n = newFakeNode(t)
	report, _ = n.apply(0, other, "--all")
	if want := "veth33333333 applied, veth11111111 applied, veth11111112 applied, veth22222222 applied"; report.results() != want {
		t.Errorf("%s, want %s", report.results(), want)
	}
	if len(n.policies) != 4 {
		t.Errorf("%d have a filter, want 4", len(n.policies))
	}
}

// TestApplyDryRun: it says what would change, and changes nothing.
func TestApplyDryRun(t *testing.T) {
	n := newFakeNode(t)
	report, _ := n.apply(0, sampleFilter, "--all", "--dry-run")
	if want := "veth33333333 pending, veth11111111 unchanged, veth11111112 pending, veth22222222 unchanged"; report.results() != want || !report.DryRun {
		t.Errorf("%s, want %s", report.results(), want)
	}
	if n.replaced() != "" {
		t.Errorf("replaced %s", n.replaced())
	}
}

// TestApplyRefuses: with anything wrong, no pod is touched.
func TestApplyRefuses(t *testing.T) {
	for _, test := range []struct{ name, filter, args, want string }{
		{"rule", `{"rules":[{"name":"a","direction":"up","action":"deny"}]}`, "--all", `rule "a": "rules[0].direction"`},
		{"JSON", `{"rules":`, "--all", "unexpected end of JSON input"},
		{"YAML", "rules: [", "--all", "yaml"},
		{"YAML key twice", "rules: []\nrules: []", "--all", `"rules" already set`},
		{"empty", "", "--all", "filter"},
		{"unknown pod", sampleFilter, "demo/server demo/serve", `no pod is known as "demo/serve"`},
		{"ambiguous pod", sampleFilter, "demo/server 77", `"77" is ambiguous`},
		{"two interfaces", sampleFilter, "demo/client", `"demo/client" has 2 interfaces; name the one you mean`},
		{"an address that does not compile", `{}`, "demo/server veth33333333", "the filter for 77bb00000000 (veth33333333): compiling the filter: "},
	} {
		n := newFakeNode(t)
		if strings.Contains(test.want, "compiling") {
			n.at("veth33333333").Meta.Addresses = []netip.Prefix{{}}
		}
		report, stderr := n.apply(exitFailure, test.filter, strings.Fields(test.args)...)
		if !strings.Contains(stderr, test.want) || len(report.Pods) != 0 || n.replaced() != "" {
			t.Errorf("%s: %s, replaced %q; stderr %q, want %q", test.name, report.results(), n.replaced(), stderr, test.want)
		}
	}
}

// TestApplyGoesOn: pods that fail keep what they have, the others do not wait for them.
func TestApplyGoesOn(t *testing.T) {
	n := newFakeNode(t)
	n.fail["veth11111111"], n.fail["veth22222222"] = errors.New("broken"), errors.New("torn")
	report, stderr := n.apply(exitFailure, `{}`, "--all")
	if want := "veth33333333 applied, veth11111111 failed, veth11111112 applied, veth22222222 failed"; report.results() != want {
		t.Errorf("%s, want %s", report.results(), want)
	}
	want := "xdpctl: applying the filter to demo/client (veth11111111): broken\napplying the filter to demo/server (veth22222222): torn\n"
	if stderr != want || report.Pods[3].Error != "applying the filter to demo/server (veth22222222): torn" {
		t.Errorf("%q, want %q; %q", stderr, want, report.Pods[3].Error)
	}
	if string(n.policies[n.at("veth22222222").ID].Source) != string(samplePolicy().Source) {
		t.Error("the filter that was to stay is another")
	}
}

// TestApplyInterrupted: what was not reached is told of, and keeps what it has.
func TestApplyInterrupted(t *testing.T) {
	n := newFakeNode(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n.in = `{}`
	status, stdout, stderr := n.xdpctl(ctx, "filter", "apply", "--all", "-f", "-")
	if status != exitFailure || strings.Count(stdout, resultFailed) != 4 || strings.Count(stderr, "context canceled") != 4 || n.replaced() != "" {
		t.Errorf("status %d, replaced %q: %s%s", status, n.replaced(), stdout, stderr)
	}
}

// TestApplyGone: a pod that went meanwhile is an error in plain words.
func TestApplyGone(t *testing.T) {
	n := newFakeNode(t)
	server := n.at("veth22222222")
	n.in = `{}`
	o := newOptions(streams{in: strings.NewReader(n.in), out: io.Discard, err: io.Discard})
	o.bpffs = n.bpffs
	a := &application{o: o, node: n, filter: mustFilter(t, `{}`)}
	if err := errors.Join(a.choose([]string{"demo/server"}), a.compile()); err != nil {
		t.Fatal(err)
	}
	n.remove(server)
	applied := a.apply(t.Context(), &a.targets[0])
	if applied.Result != resultFailed || applied.Error != "demo/server has just gone" {
		t.Errorf("%s %q", applied.Result, applied.Error)
	}
}

// TestApplyYAML: standard input, YAML, and warnings, which stop nothing.
func TestApplyYAML(t *testing.T) {
	n := newFakeNode(t)
	n.in = `
default: {ingress: deny}
rules:
- name: all
  direction: egress
  action: deny
- {name: none, direction: egress, action: allow, protocol: tcp, ports: ["80", 8000-8999]}
`
	status, stdout, stderr := n.xdpctl(t.Context(), "filter", "apply", "demo/server", "-f", "-")
	if status != 0 || !strings.Contains(stdout, "applied") {
		t.Errorf("status %d: %s", status, stdout)
	}
	if want := `warning: rule "none" (rules[1]): never decides: rule "all" (rules[0]) comes before it`; !strings.HasPrefix(stderr, want) {
		t.Errorf("stderr %q, want %q", stderr, want)
	}
	if !strings.Contains(string(n.policies[n.at("veth22222222").ID].Source), `"8000-8999"`) {
		t.Error("not what was written")
	}
}

// TestApplyMaxFlows: it is told that the number of flows stays.
func TestApplyMaxFlows(t *testing.T) {
	n := newFakeNode(t)
	for _, pod := range []string{"demo/server", "veth33333333"} { // one has a filter, the other none
		_, stderr := n.apply(0, `{"maxFlows": 512}`, pod)
		if told := strings.Contains(stderr, "maxFlows stays"); told != (pod == "demo/server") {
			t.Errorf("%s: %q", pod, stderr)
		}
	}
}

// TestShowRoundTrip: what show says is in force, apply takes.
func TestShowRoundTrip(t *testing.T) {
	n := newFakeNode(t)
	status, stdout, stderr := n.xdpctl(t.Context(), "filter", "show", "demo/server", "-o", "json")
	var report struct{ Filter json.RawMessage }
	if status != 0 || json.Unmarshal([]byte(stdout), &report) != nil {
		t.Fatalf("status %d: %s%s", status, stdout, stderr)
	}
	applied, _ := n.apply(0, string(report.Filter), "veth33333333")
	if applied.results() != "veth33333333 applied" {
		t.Fatal(applied.results())
	}
	a, b := n.policies[n.at("veth33333333").ID].Source, n.policies[n.at("veth22222222").ID].Source
	if !bytes.Equal(a, b) {
		t.Errorf("%s, want %s", a, b)
	}
}

func TestShowErrors(t *testing.T) {
	n := newFakeNode(t)
	for _, test := range []struct {
		args, stdout, stderr string
		status               int
	}{
		{"filter show veth33333333", "", "77bb00000000 (veth33333333) has no filter: all its packets pass.\n", 0},
		{"filter show demo/client", "", `"demo/client" has 2 interfaces`, exitFailure},
		{"filter test veth33333333 --egress --icmp 8 --to 10.0.0.1", "", "has no filter, and all its packets pass", exitFailure},
		{"drops nobody", "", `no pod is known as "nobody"`, exitFailure},
	} {
		status, stdout, stderr := n.xdpctl(t.Context(), strings.Fields(test.args)...)
		if status != test.status || stdout != test.stdout || !strings.Contains(stderr, test.stderr) {
			t.Errorf("%s: status %d, %q, %q", test.args, status, stdout, stderr)
		}
	}
	damaged := samplePolicy()
	damaged.Rules = damaged.Rules[1:]
	n.policies[n.at("veth22222222").ID] = damaged
	if _, _, stderr := n.xdpctl(t.Context(), "filter", "show", "demo/server"); !strings.Contains(stderr, "it has 6 rules, and counters for 5") {
		t.Error(stderr)
	}
}

// TestFilterTestCommand: of a pod's filter, and of a file's, for a pod or none.
func TestFilterTestCommand(t *testing.T) {
	n := newFakeNode(t)
	n.in = `{"default":{"egress":"deny"}}`
	for _, test := range []struct{ args, want string }{
		{"demo/server --egress --protocol tcp --to 10.0.0.1:80", `egress tcp from 10.88.0.3 to 10.0.0.1:80 is denied by rule "no-http" (rules[2])`},
		{"demo/server --egress --protocol tcp --to 10.0.0.1:80 -f -", "egress tcp from 10.88.0.3 to 10.0.0.1:80 is denied by the default of egress"},
		{"--egress --protocol tcp --to 10.0.0.1:80 -f -", "egress tcp from the pod to 10.0.0.1:80 is denied by the default of egress"},
		{"demo/server --ingress --protocol tcp --from 10.88.0.1 --to :22", "is allowed by allowHost"},
		{"demo/server --egress --protocol tcp --to 10.88.0.2:443", "10.88.0.2 is demo/client"},
		{"demo/server --egress --protocol tcp --from 10.88.0.2 --to 10.0.0.1:443", "denied by antiSpoof"},
	} {
		status, stdout, stderr := n.xdpctl(t.Context(), append([]string{"filter", "test"}, strings.Fields(test.args)...)...)
		if status != 0 || !strings.Contains(stdout, test.want) {
			t.Errorf("%s: status %d, %s%s; want %q", test.args, status, stdout, stderr, test.want)
		}
	}
	if n.replaced() != "" {
		t.Errorf("replaced %s", n.replaced())
	}
}

// TestDiff: it is empty for the same filter alone, and moves are as few as can be.
func TestDiff(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for range 200 {
		f := filtertest.RandomFilter(rng)
		if changes := diffFilters(f, f); len(changes) != 0 || !sameFilter(f, f) {
			t.Fatalf("a filter differs from itself: %+v", changes)
		}
		if len(f.Rules) < 2 {
			continue
		}
		// one rule taken from its place, and put elsewhere
		g := *f
		from, to := rng.IntN(len(f.Rules)), rng.IntN(len(f.Rules)-1)
		g.Rules = slices.Delete(slices.Clone(f.Rules), from, from+1)
		g.Rules = slices.Insert(g.Rules, to, f.Rules[from])
		changes := diffFilters(f, &g)
		if want := from != to; len(changes) > 1 || (len(changes) == 1) != want || want && changes[0].Kind != movedRule {
			t.Fatalf("rule %d to %d of %d: %+v", from, to, len(f.Rules), changes)
		}
		h := *f
		h.Rules = slices.Clone(f.Rules)
		h.Rules[from].Action = (h.Rules[from].Action + 1) % 3
		if changes := diffFilters(f, &h); len(changes) != 1 || changes[0].Kind != changedRule || changes[0].Field != "action" || sameFilter(f, &h) {
			t.Fatalf("one action changed: %+v", changes)
		}
	}
	if sameFilter(nil, &conf.Filter{}) {
		t.Error("no filter is as an empty one")
	}
}

func TestListChange(t *testing.T) {
	for _, test := range []struct{ before, after, want string }{
		{"any", "1,2", "any -> 1,2"},
		{"1,2,3,4", "4,2,3,1", "the same in another order"},
		{"1,2,3,4", "2,3,4,5", "-1 +5"},
		{"1,2,3", "1,2,3,4", "+4"},
	} {
		if have := listChange(test.before, test.after); have != test.want {
			t.Errorf("%s to %s: %q, want %q", test.before, test.after, have, test.want)
		}
	}
}
