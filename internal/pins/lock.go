package pins

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy is what a lock returns when its time is over: somebody else still holds it.
var ErrBusy = errors.New("locked by another process")

// Poll intervals of a lock that is held: flock(2) cannot be given a time limit.
const (
	pollFirst = 500 * time.Microsecond
	pollMost  = 20 * time.Millisecond
)

// Lock is an exclusive lock on a directory. It ends with Unlock or with the process.
type Lock struct {
	dir *os.File
}

// Lock takes the node's lock, making the root if it is not there. It gives up with ErrBusy when
// ctx ends.
func (r Root) Lock(ctx context.Context) (*Lock, error) {
	for {
		if err := os.MkdirAll(r.path, 0o700); err != nil {
			return nil, fmt.Errorf("making %s: %w", r, err)
		}
		lock, err := LockDir(ctx, r.path)
		// removed by the last DEL between the two steps
		if !errors.Is(err, fs.ErrNotExist) {
			return lock, err
		}
	}
}

// LockDir locks the directory at path. It returns fs.ErrNotExist if it is not there, or no
// longer there once the lock is had, and ErrBusy when ctx ends first.
func LockDir(ctx context.Context, path string) (*Lock, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("locking: %w", err)
	}
	if err := flock(ctx, dir); err != nil {
		_ = dir.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	if !sameFile(dir, path) {
		_ = dir.Close()
		return nil, fmt.Errorf("locking %s: moved away: %w", path, fs.ErrNotExist)
	}
	return &Lock{dir}, nil
}

// Unlock releases the lock. A nil lock is none.
func (l *Lock) Unlock() {
	if l != nil {
		_ = l.dir.Close()
	}
}

func flock(ctx context.Context, dir *os.File) error {
	for wait := pollFirst; ; wait = min(2*wait, pollMost) {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return err
		}
		select {
		case <-ctx.Done():
			return ErrBusy
		case <-time.After(wait):
		}
	}
}

func sameFile(f *os.File, path string) bool {
	have, err := f.Stat()
	if err != nil {
		return false
	}
	want, err := os.Stat(path)
	return err == nil && os.SameFile(have, want)
}

// Holds tells whether what is locked is still what is at path.
func (l *Lock) Holds(path string) bool { return sameFile(l.dir, path) }
