package tests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Main is the TestMain of packages whose tests need root: it runs the tests of m and exits, with all other such
// packages kept out meanwhile. `go test` runs packages in parallel, and some of these tests compare the kernel's BPF
// objects before and after.
func Main(m *testing.M) {
	unlock, err := Lock(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// below kernel 5.11 BPF maps and programs, which tests make too, count to the limit; without root there are none
	if err := rlimit.RemoveMemlock(); err != nil && os.Geteuid() == 0 {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	unlock()
	os.Exit(code)
}

// Lock keeps out all tests that need root, as long as unlock is not called, and waits until those that run are done or
// ctx is over. It is for programs that make BPF objects while tests may run. Call unlock once.
func Lock(ctx context.Context) (unlock func(), err error) {
	type result struct {
		unlock func()
		err    error
	}
	locked := make(chan result)
	go func() {
		unlock, err := lockFile("xdp-cni-tests")
		select {
		case locked <- result{unlock, err}:
		case <-ctx.Done():
			if err == nil {
				unlock()
			}
		}
	}()
	select {
	case r := <-locked:
		return r.unlock, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the lock of tests: %w", context.Cause(ctx))
	}
}

// lockFile takes the lock of that name among all processes of this user, and waits for it as long as it takes: the
// kernel releases a lock when its holder dies.
func lockFile(name string) (unlock func(), err error) {
	// One file per user: fs.protected_regular keeps even root from another user's file in /tmp.
	path := filepath.Join(os.TempDir(), fmt.Sprintf("%s-%d.lock", name, os.Geteuid()))
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock file: %w", err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		fmt.Fprintf(os.Stderr, "waiting for %s, which another process holds\n", path)
	}
	for errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { _ = file.Close() }, nil
}
