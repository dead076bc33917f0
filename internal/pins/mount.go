package pins

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// systemMount is where a bpffs belongs (Documentation/filesystems and systemd's sys-fs-bpf.mount).
const systemMount = "/sys/fs/bpf"

// ErrNoBPFFS says that the root is on no bpffs and none can be mounted for it.
var ErrNoBPFFS = errors.New("no bpffs")

// Mounted tells whether the root is, or would be, on a bpffs.
func (r Root) Mounted() (bool, error) {
	for dir := r.path; ; dir = filepath.Dir(dir) {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return uint32(st.Type) == unix.BPF_FS_MAGIC, nil
		}
		if !errors.Is(err, unix.ENOENT) || dir == "/" {
			return false, fmt.Errorf("looking for a bpffs at %s: %w", dir, err)
		}
	}
}

// mountPoint is where a bpffs for the root belongs.
func (r Root) mountPoint() string {
	if r.path == systemMount || strings.HasPrefix(r.path, systemMount+"/") {
		return systemMount
	}
	return r.path
}

// Mountable returns nil if Mount could mount a bpffs for the root, which is on none, else
// ErrNoBPFFS with the reason. It changes nothing.
func (r Root) Mountable() error {
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return fmt.Errorf("reading the kernel's filesystems: %w", err)
	}
	if !strings.Contains(string(known), "\tbpf\n") {
		return fmt.Errorf("%w: the kernel has none (CONFIG_BPF_SYSCALL)", ErrNoBPFFS)
	}
	err = checkEmpty(r.mountPoint())
	if errors.Is(err, fs.ErrNotExist) && r.mountPoint() != systemMount {
		return nil // will be made
	}
	return err
}

// checkEmpty returns ErrNoBPFFS if a mount would hide files.
func checkEmpty(point string) error {
	entries, err := os.ReadDir(point)
	if err != nil {
		return fmt.Errorf("%w: reading the mount point: %w", ErrNoBPFFS, err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%w: %s is not empty, so none is mounted over it", ErrNoBPFFS, point)
	}
	return nil
}

// Mount mounts a bpffs if the root is on none: at /sys/fs/bpf if the root is under it, else at
// the root itself. It never hides files: the mount point must be empty.
func (r Root) Mount(ctx context.Context) error {
	if mounted, err := r.Mounted(); mounted || err != nil {
		return err
	}
	point := r.mountPoint()
	if point != systemMount {
		if err := os.MkdirAll(point, 0o700); err != nil {
			return fmt.Errorf("%w: making the mount point: %w", ErrNoBPFFS, err)
		}
	}
	dir, err := os.Open(point)
	if err != nil {
		return fmt.Errorf("%w: opening the mount point: %w", ErrNoBPFFS, err)
	}
	defer dir.Close()
	// two mounts, one over the other, would hide the first one's pins
	if err := flock(ctx, dir); err != nil {
		return fmt.Errorf("locking %s: %w", point, err)
	}
	if mounted, err := r.Mounted(); mounted || err != nil {
		return err
	}
	if err := checkEmpty(point); err != nil {
		return err
	}
	if err := unix.Mount("bpf", point, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("%w: mounting one at %s: %w", ErrNoBPFFS, point, err)
	}
	return nil
}
