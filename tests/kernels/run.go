package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

// kernel is one to run on, and what was found out about it.
type kernel struct {
	name, dir string
	version   string            // Debian's, of the package
	paths     map[string]string // what TestPaths says
	results
}

// results count tests; of parts of tests only those that were skipped.
type results struct {
	passed, failed, skipped int
}

// find returns the kernels of a directory, those of a list or all, in the order of their versions.
func find(dir string, only []string) (kernels []kernel, err error) {
	names := only
	if len(names) == 0 {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
	}
	for _, name := range names {
		k := kernel{name: name, dir: filepath.Join(dir, name), paths: map[string]string{}}
		// the last that fetch.sh writes: the package's name and version
		done, err := os.ReadFile(filepath.Join(k.dir, ".done"))
		if errors.Is(err, fs.ErrNotExist) && len(only) == 0 {
			continue // not one, or not whole
		}
		if err != nil {
			return nil, fmt.Errorf("kernel %s: %w: run tests/kernels/fetch.sh", name, err)
		}
		_, k.version, _ = strings.Cut(strings.TrimSpace(string(done)), " ")
		kernels = append(kernels, k)
	}
	if len(kernels) == 0 {
		return nil, fmt.Errorf("there is no kernel in %s: run tests/kernels/fetch.sh", dir)
	}
	slices.SortFunc(kernels, func(a, b kernel) int { return compareVersions(a.version, b.version) })
	return kernels, nil
}

// compareVersions compares the numbers that versions begin with: 6.12.107-1 is after 6.1.192-2.
func compareVersions(a, b string) int {
	numbers := func(version string) (list []int) {
		for part := range strings.FieldsFuncSeq(version, func(r rune) bool { return r < '0' || r > '9' }) {
			var n int
			_, _ = fmt.Sscan(part, &n) // it is digits
			list = append(list, n)
		}
		return list
	}
	return slices.Compare(numbers(a), numbers(b))
}

// goTool runs go in this directory, for static binaries.
func goTool(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, output)
	}
	return nil
}

// suite runs jobs.
type suite struct {
	options
	vmtest, binaries string
}

// slowness is that of emulated processors, with what else the host may have to do.
const slowness = "10"

// runJob runs a package's tests on a kernel and notes what came of them. It is not ok if they failed, whatever way.
func (s suite) runJob(ctx context.Context, k *kernel, j job) (ok bool, err error) {
	log, err := os.Create(filepath.Join(s.logs, k.name+"-"+j.base+".log"))
	if err != nil {
		return false, err
	}
	defer log.Close()
	args := []string{
		"-kernel", k.dir, "-timeout", (s.timeout + 2*time.Minute).String(), // it boots, and prints where tests hang
		j.binary, "-test.v", "-test.timeout", s.timeout.String(),
	}
	if j.run != "" {
		args = append(args, "-test.run", j.run)
	}
	cmd := exec.CommandContext(ctx, s.vmtest, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it has a VM to end
	cmd.Dir = j.pkg
	cmd.Env = append(os.Environ(), tests.BinariesEnv+"="+s.binaries, priv.RequireRoot+"=1", tests.SlownessEnv+"="+slowness)
	var output bytes.Buffer
	both := io.MultiWriter(log, &output)
	cmd.Stdout, cmd.Stderr = both, both
	began := time.Now()
	runErr := cmd.Run()
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	r := k.read(output.Bytes())
	if s.verbose {
		printResults(os.Stdout, k.name+"/"+j.pkg, output.Bytes())
	}
	ok = runErr == nil && r.passed > 0
	var used time.Duration
	if state := cmd.ProcessState; state != nil {
		used = state.UserTime() + state.SystemTime()
	}
	fmt.Printf("%-7s %-18s %3d passed, %d failed, %d skipped in %s (%s of a processor)\n", k.name, j.pkg, r.passed, r.failed,
		r.skipped, time.Since(began).Round(time.Second), used.Round(time.Second))
	if !ok {
		fmt.Printf("%v\n%s\n", runErr, failures(output.Bytes()))
	}
	k.passed, k.failed, k.skipped = k.passed+r.passed, k.failed+r.failed, k.skipped+r.skipped
	if !ok && r.failed == 0 {
		k.failed++ // a crash
	}
	return ok, nil
}

// read counts the results in what a test binary printed, and notes what TestPaths says in attributes.
func (k *kernel) read(output []byte) (r results) {
	lines := bufio.NewScanner(bytes.NewReader(output))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "--- PASS"):
			r.passed++
		case strings.HasPrefix(line, "--- FAIL"):
			r.failed++
		case strings.HasPrefix(strings.TrimLeft(line, " "), "--- SKIP"):
			r.skipped++
		}
		if attribute, ok := strings.CutPrefix(line, "=== ATTR  TestPaths "); ok {
			key, value, _ := strings.Cut(attribute, " ")
			k.paths[key] = value
		}
	}
	return r
}

// ended is how a test ended: indented if it is part of another.
var ended = regexp.MustCompile(`^( *--- (?:PASS|FAIL|SKIP): )(.*)`)

// printResults prints how each test in a log ended, with a prefix before its name.
func printResults(out io.Writer, prefix string, log []byte) {
	for line := range bytes.Lines(log) {
		if m := ended.FindSubmatch(line); m != nil {
			fmt.Fprintf(out, "%s%s/%s\n", m[1], prefix, m[2])
		}
	}
}

// uninteresting lines of a failure are those of what went well, and of beginnings.
var uninteresting = regexp.MustCompile(`^ *(=== |--- PASS)`)

// failureLines is how many lines of a log are shown.
const failureLines = 60

// failures returns the last lines of a log that may say why it failed.
func failures(output []byte) []byte {
	var lines [][]byte
	for line := range bytes.Lines(output) {
		if !uninteresting.Match(line) {
			lines = append(lines, line)
		}
	}
	return bytes.Join(lines[max(0, len(lines)-failureLines):], nil)
}
