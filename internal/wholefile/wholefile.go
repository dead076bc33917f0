// Package wholefile writes files so that nobody ever finds one missing, empty or half, and nothing is lost
// that another program writes at the same moment.
package wholefile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrChanged: somebody else wrote the file meanwhile, or removed it. What they did stays.
var ErrChanged = errors.New("changed meanwhile")

// Attributes are what a file has beside its bytes.
type Attributes struct {
	Mode fs.FileMode `json:"mode"`
	UID  int         `json:"uid"`
	GID  int         `json:"gid"`
}

// Of returns those of a file.
func Of(info fs.FileInfo) Attributes {
	a := Attributes{Mode: info.Mode().Perm()}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		a.UID, a.GID = int(stat.Uid), int(stat.Gid)
	}
	return a
}

// writeTemporary makes a file whole and on disk, under a name that nobody looks at. What a killed process
// left under that name goes.
func writeTemporary(path string, text []byte, a Attributes) (err error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	_, err = f.Write(text)
	if err == nil {
		err = own(f, a)
	}
	if err == nil {
		err = f.Chmod(a.Mode) // last: chown takes set-ID bits away
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// own gives a file its owner, unless it has it: the installer may lack the capability to give files away,
// and mostly needs none.
func own(f *os.File, a Attributes) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if have := Of(info); have.UID == a.UID && have.GID == a.GID {
		return nil
	}
	return f.Chown(a.UID, a.GID)
}

// SyncDir makes the names in a directory last.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Put writes a file whole, whatever is in its place: at no time there is none, or part of one. temporary
// is a path on the same filesystem.
func Put(path, temporary string, text []byte, a Attributes) error {
	err := writeTemporary(temporary, text, a)
	if err == nil {
		if err = os.Rename(temporary, path); err != nil {
			err = errors.Join(err, os.Remove(temporary))
		}
	}
	if err == nil {
		err = SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// Replace is Put where the file has to be as it was when it was read, else it is ErrChanged: nothing that
// another program writes at the same moment is lost, if it writes by renaming. Only one Replace of a file may
// be under way: a second would not find back what the first puts back.
func Replace(path, temporary string, was, text []byte, a Attributes) error {
	err := writeTemporary(temporary, text, a)
	if err == nil {
		err = errors.Join(exchange(path, temporary, was, text), os.Remove(temporary))
	}
	if err == nil {
		err = SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// exchange puts the file at temporary, which holds text, in the place of that at path, and looks at what it
// got for it. If that is not what was expected it goes back to its place, and whatever was written
// there since then, too.
func exchange(path, temporary string, was, text []byte) error {
	got, err := swap(path, temporary)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return renameOver(path, temporary, was) // the filesystem cannot exchange
	}
	if errors.Is(err, fs.ErrNotExist) {
		return ErrChanged
	}
	if err != nil || bytes.Equal(got, was) {
		return err
	}
	for placed := text; ; {
		next, err := swap(path, temporary)
		if err != nil {
			return err
		}
		if bytes.Equal(next, placed) {
			return ErrChanged
		}
		placed, got = got, next
	}
}

// swap exchanges two files, and returns what the second holds then.
func swap(path, temporary string) ([]byte, error) {
	if err := unix.Renameat2(unix.AT_FDCWD, temporary, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE); err != nil {
		return nil, err
	}
	return os.ReadFile(temporary)
}

// renameOver leaves a moment between looking and writing.
func renameOver(path, temporary string, was []byte) error {
	now, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.Equal(now, was) {
		return ErrChanged
	}
	if err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	// Replace removes what is there after an exchange
	return os.WriteFile(temporary, nil, 0o600)
}
