package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// describeMachine prints what the figures depend on.
func (b *bench) describeMachine() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	_, err := fmt.Fprintf(b.out, "Linux %s, %s, %d cores, BPF JIT %s, Spectre v2: %s. %s.\n",
		unix.ByteSliceToString(name.Release[:]), runtime.GOARCH, runtime.NumCPU(),
		firstLine("/proc/sys/net/core/bpf_jit_enable"),
		firstLine("/sys/devices/system/cpu/vulnerabilities/spectre_v2"), runtime.Version())
	return err
}

// firstLine returns the first line of a file of the kernel's, "unknown" if it has none.
func firstLine(path string) string {
	data, err := os.ReadFile(path)
	line, _, _ := strings.Cut(string(data), "\n")
	if err != nil || line == "" {
		return "unknown"
	}
	return line
}

// measured prints, after a part of the run, how long it took and how much else the machine had to do.
func (b *bench) measured(part func() error) error {
	load := firstLine("/proc/loadavg")
	before, err := readCPU()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := part(); err != nil {
		return err
	}
	after, err := readCPU()
	if err != nil {
		return err
	}
	stolen := 100 * (after.steal - before.steal).Seconds() / (time.Since(begin).Seconds() * float64(runtime.NumCPU()))
	_, err = fmt.Fprintf(b.out, "\nTook %s. Load averages before: %s; the hypervisor took away %.1f %% of the processors.\n",
		time.Since(begin).Round(time.Second), strings.Join(strings.Fields(load)[:3], " "), stolen)
	return err
}

// cpu is the time that all processors together have spent since boot.
type cpu struct {
	busy, steal time.Duration
}

// userHZ is the unit of /proc/stat, the same on all architectures of ours (USER_HZ).
const userHZ = 100

// readCPU reads /proc/stat: it counts what softirqs and kernel threads do for the traffic too, which the process's own
// times do not.
func readCPU() (cpu, error) {
	const path = "/proc/stat"
	fields := strings.Fields(firstLine(path))
	if len(fields) < 9 || fields[0] != "cpu" {
		return cpu{}, fmt.Errorf("%s begins with %q", path, fields)
	}
	// user nice system idle iowait irq softirq steal; guest times are in user
	var ticks [8]time.Duration
	for i := range ticks {
		n, err := strconv.ParseInt(fields[i+1], 10, 64)
		if err != nil {
			return cpu{}, fmt.Errorf("%s: %w", path, err)
		}
		ticks[i] = time.Duration(n) * time.Second / userHZ
	}
	return cpu{busy: ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6], steal: ticks[7]}, nil
}

// timeOfThread is the processor time that a thread of this process has taken, as threadTime.
func timeOfThread(id int) (time.Duration, error) {
	var t unix.Timespec
	// CPUCLOCK_SCHED of a thread (include/linux/posix-timers_types.h), which is what pthread_getcpuclockid(3) returns
	if err := unix.ClockGettime(int32(^id)<<3|4|2, &t); err != nil {
		return 0, fmt.Errorf("time of thread %d: %w", id, err)
	}
	return time.Duration(t.Nano()), nil
}
