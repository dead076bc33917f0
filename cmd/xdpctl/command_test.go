package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
)

// xdpctl runs a command in this process.
func xdpctl(ctx context.Context, args ...string) (status int, stdout, stderr string) {
	var out, err bytes.Buffer
	status = run(ctx, streams{in: strings.NewReader(""), out: &out, err: &err}, args)
	return status, out.String(), err.String()
}

// TestUsage: what is wrong with a command line is said once, on stderr alone.
func TestUsage(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"stast", `unknown command "stast", did you mean stats?`},
		{"x y", `unknown command "x"`},
		{"pods --nope", "unknown flag: --nope"},
		{"pods -o xml", "must be one of table, wide, json, yaml"},
		{"pods a b", "accepts at most 1 arg(s), received 2"},
		{"stats a b", "takes one POD at most, not 2: a b"},
		{"stats --watch 2s a b", "takes one POD at most, not 2: a b"},
		{"stats --watch=fast", `"fast" is no interval such as 500ms or 2s`},
		{"stats --watch=1ms", "1ms is too short, the least is 10ms"},
		{"stats --watch -1s", "unknown shorthand flag: '1'"},
		{"stats --watch 1us", "1µs is too short"},
		{"stats --count 2", "--count goes with --watch only"},
		{"stats --watch --count -1", "--count is -1, and must not be negative"},
		{"peers", "takes one POD, not 0"},
		{"peers a b", "takes one POD, not 2"},
		{"peers a --top -1", "--top is -1, and must not be negative"},
		{"peers a --top many", "invalid argument"},
		{"filter shw", `unknown command "shw" for "xdpctl filter"`},
		{"filter show", "takes one POD, not 0"},
		{"filter apply", "takes a POD or more, or --all"},
		{"filter apply a", "-f FILE is missing"},
		{"filter apply a --all -f x", "takes no POD with --all, got a"},
		{"filter test --egress --icmp 8 --to 10.0.0.1", "takes a POD, or -f FILE, or both"},
		{"filter test a b --egress --icmp 8 --to 10.0.0.1", "takes one POD, not 2"},
		{"filter test a --icmp 8 --to 10.0.0.1", "one of --egress and --ingress is needed"},
		{"drops --count 1", "--count goes with --follow only"},
		{"drops --follow --count -1", "--count is -1, and must not be negative"},
		{"doctor x", `unknown command "x" for "xdpctl doctor"`},
		{"gc --dry-run x", `unknown command "x" for "xdpctl gc"`},
		{"ipam lst", `unknown command "lst" for "xdpctl ipam"`},
		{"ipam list a b", "accepts at most 1 arg(s), received 2"},
		{"ipam release pods", "requires at least 2 arg(s), only received 1"},
		{"ipam release pods x", `"x" is no address`},
		{"ipam import", "accepts 1 arg(s), received 0"},
		{"version x", `unknown command "x" for "xdpctl version"`},
	} {
		status, stdout, stderr := xdpctl(t.Context(), append(strings.Fields(test.args), "--bpffs", t.TempDir())...)
		if status != exitUsage {
			t.Errorf("xdpctl %s: status %d, want %d", test.args, status, exitUsage)
		}
		if !strings.HasPrefix(stderr, "xdpctl: ") || strings.Count(stderr, test.want) != 1 || !strings.Contains(stderr, "--help'") {
			t.Errorf("xdpctl %s: %q, want %q once", test.args, stderr, test.want)
		}
		if stdout != "" {
			t.Errorf("xdpctl %s: stdout %q", test.args, stdout)
		}
	}
}

// TestNothingThere: without an attachment there is an empty result, and no error.
func TestNothingThere(t *testing.T) {
	for _, test := range []struct{ args, stdout, stderr string }{
		{"pods", "", "There are no attachments"},
		{"pods -o json", "[]\n", ""},
		{"stats", "", "There are no attachments"},
		{"stats -o wide", "", "There are no attachments"},
		{"stats -o json", "[]\n", ""},
		{"stats -o yaml", "[]\n", ""},
		{"drops", "", "There are no attachments"},
		{"drops -o json", "[]\n", ""},
		{"filter apply --all -f testdata/filter.yaml", "", "There are no attachments"},
		{"filter apply --all --dry-run -f testdata/filter.yaml -o yaml", "dryRun: true\npods: []\nwarnings: []\n", ""},
		{"ipam list", "", "There are no leases"},
		{"ipam list -o json", "[]\n", ""},
		{"ipam show", "", "There are no leases"},
		{"ipam show -o json", "[]\n", ""},
		{"stats --watch=10ms --count=2 -o json", "[]\n[]\n", ""},
		{"stats --watch 10ms --count 2 -o yaml", "---\n[]\n---\n[]\n", ""},
	} {
		status, stdout, stderr := xdpctl(t.Context(), append(strings.Fields(test.args), "--bpffs", t.TempDir()+"/none")...)
		if status != 0 || stdout != test.stdout || (stderr == "") != (test.stderr == "") || !strings.Contains(stderr, test.stderr) {
			t.Errorf("xdpctl %s: status %d, stdout %q, stderr %q", test.args, status, stdout, stderr)
		}
	}
	for _, args := range []string{"pods x", "stats x", "peers x", "stats x --watch", "drops x", "drops x --follow",
		"filter show x", "filter apply x -f testdata/filter.yaml", "filter test x --egress --icmp 8 --to 10.0.0.1"} {
		status, stdout, stderr := xdpctl(t.Context(), append(strings.Fields(args), "--bpffs", t.TempDir())...)
		if want := "xdpctl: no pod is known as \"x\": there are no attachments\n"; status != exitFailure || stderr != want || stdout != "" {
			t.Errorf("xdpctl %s: status %d, stdout %q, stderr %q", args, status, stdout, stderr)
		}
	}
}

// TestWatchEnds: an interrupt ends it without an error.
func TestWatchEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	status, stdout, stderr := xdpctl(ctx, "stats", "--watch", "1h", "-o", "json", "--bpffs", t.TempDir())
	if status != 0 || stdout != "" || stderr != "" {
		t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
}

func TestRedraw(t *testing.T) {
	for _, test := range []struct {
		terminal, first bool
		format          format
		want            string
	}{
		{true, true, formatTable, "\x1b[H\x1b[2Jtable\n"},
		{true, false, formatWide, "\x1b[H\x1b[2Jtable\n"},
		{false, true, formatTable, "table\n"},
		{false, false, formatTable, "\ntable\n"},
		{true, false, formatJSON, "[1]\n"},
		{true, false, formatYAML, "---\n- 1\n"},
	} {
		var out bytes.Buffer
		o := &options{streams: streams{out: &out}, format: test.format}
		if err := o.writeNext([]int{1}, test.first, test.terminal, func(style) string { return "table\n" }); err != nil {
			t.Fatal(err)
		}
		if out.String() != test.want {
			t.Errorf("%+v: %q", test, out.String())
		}
	}
}

// TestHelp: every command has examples, of itself.
func TestHelp(t *testing.T) {
	for _, cmd := range newRootCommand(newOptions(streams{})).Commands() {
		if cmd.Short == "" || cmd.Long == "" || !strings.Contains(cmd.Example, "xdpctl "+cmd.Name()) {
			t.Errorf("%s lacks help or examples", cmd.Name())
		}
	}
	status, stdout, stderr := xdpctl(t.Context())
	if status != 0 || !strings.Contains(stdout, "Available Commands") || stderr != "" {
		t.Errorf("without a command: status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
}

func TestCompletion(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"stats -o ", "table\nwide\njson\nyaml\n:4\n"},
		{"version ", ":4\n"},
		{"gc ", ":4\n"},
		{"peers ", ":4\n"},
	} {
		args := append([]string{"__complete", "--bpffs", t.TempDir()}, strings.Split(test.args, " ")...)
		if status, stdout, _ := xdpctl(t.Context(), args...); status != 0 || stdout != test.want {
			t.Errorf("completion of %q: status %d, %q, want %q", test.args, status, stdout, test.want)
		}
	}
}
