package tests

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Main is the TestMain of packages whose tests need root: it runs the tests of m and exits, with all other such
// packages kept out meanwhile. `go test` runs packages in parallel, and some of these tests compare the kernel's BPF
// objects before and after.
func Main(m *testing.M) {
	unlock, err := lockFile("xdp-cni-tests")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	unlock()
	os.Exit(code)
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
