package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// statsLimit is what statistics are expected to cost over a program that only passes, in ns.
const statsLimit = 60

// packet runs the benchmark of the programs, which is beside their tests: it needs the parts that they are made of.
func (b *bench) packet(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-run=^$", "-bench=^BenchmarkPacket$",
		fmt.Sprintf("-benchtime=%dx", b.rounds(3)), "github.com/xdp-cni/xdp-cni/bpf")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := outputOfGroup(cmd)
	if err != nil {
		return fmt.Errorf("%s: %w\n%s%s", cmd, err, out, &stderr)
	}
	costs, err := parseBenchmark(out)
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	fmt.Fprintf(b.out, "\nNanoseconds a packet by BPF_PROG_TEST_RUN, medians of %d rounds. A bare program is mostly the test run itself.\n",
		11*b.rounds(3))
	t := table{header: []string{"program, packet", "bare pass", "of no pod", "with statistics", "and peers",
		"statistics over bare", "peers over bare", "expected", "met"}}
	for _, c := range costs {
		over := c.metrics["stats-over-bare-ns"]
		row := []string{c.name}
		for _, metric := range []string{"bare-ns/packet", "no-slot-ns/packet", "stats-ns/packet", "peers-ns/packet",
			"stats-over-bare-ns", "peers-over-bare-ns"} {
			row = append(row, fmt.Sprintf("%.0f", c.metrics[metric]))
		}
		t.add(append(row, expectation(fmt.Sprintf("statistics ≤ %d", statsLimit), over <= statsLimit)...)...)
	}
	return t.write(b.out)
}

// outputOfGroup is cmd.Output, where the end of the command's context ends all that the command has started too: go runs
// tests in a process of their own, which lives on when go is killed. It is asked to end, so that it removes what it
// built, and killed if it has not after a while.
func outputOfGroup(cmd *exec.Cmd) ([]byte, error) {
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	interrupted := false
	cmd.Cancel = func() error {
		interrupted = true
		return unix.Kill(-cmd.Process.Pid, unix.SIGINT)
	}
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.Output()
	if interrupted {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // nobody is left, as a rule
	}
	return out, err
}

// benchmarkLine is a result of `go test -bench`.
type benchmarkLine struct {
	name    string
	metrics map[string]float64 // by unit
}

// parseBenchmark reads lines of the form "BenchmarkPacket/hook/packet_name-2  1  26.0 unit  75.0 unit".
func parseBenchmark(out []byte) ([]benchmarkLine, error) {
	var found []benchmarkLine
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		name, isResult := strings.CutPrefix(lines.Text(), "BenchmarkPacket/")
		if !isResult {
			continue
		}
		fields := strings.Fields(name)
		if len(fields) < 4 || len(fields)%2 != 0 {
			return nil, fmt.Errorf("not a benchmark result: %q", lines.Text())
		}
		line := benchmarkLine{metrics: map[string]float64{}}
		line.name = fields[0][:max(strings.LastIndexByte(fields[0], '-'), 0)]
		line.name = strings.NewReplacer("/", ", ", "_", " ").Replace(line.name)
		for i := 2; i < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", lines.Text(), err)
			}
			line.metrics[fields[i+1]] = value
		}
		found = append(found, line)
	}
	if len(found) == 0 {
		return nil, errors.New("no benchmark result")
	}
	return found, lines.Err()
}
