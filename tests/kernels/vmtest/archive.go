package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
)

// archive writes an initramfs: a cpio archive in the format newc (Documentation/driver-api/early-userspace/
// buffer-format.rst in the kernel's source). Errors stay, and close returns the first.
type archive struct {
	out         *os.File
	buffer      *bufio.Writer
	size        int64
	inode       int
	directories map[string]bool
	err         error
}

// newArchive makes the file name; it begins with the archive of the file base, if that is not empty.
func newArchive(name, base string) (*archive, error) {
	file, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	a := &archive{out: file, buffer: bufio.NewWriterSize(file, 1<<20), directories: map[string]bool{"/": true}}
	if base == "" {
		return a, nil
	}
	first, err := os.Open(base)
	if err == nil {
		a.size, err = io.Copy(file, first)
		first.Close()
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return a, nil
}

// The kinds of files (S_IFMT in inode(7)).
const (
	kindDirectory = 0o040000
	kindFile      = 0o100000
	kindCharacter = 0o020000
)

// directory adds a directory, and those that it is in.
func (a *archive) directory(name string) {
	if a.directories[name] {
		return
	}
	a.directories[name] = true
	a.directory(path.Dir(name))
	a.entry(name, kindDirectory|0o755, nil, 0, 0)
}

// file adds a file, and the directories that it is in.
func (a *archive) file(name string, data []byte, permissions uint32) {
	a.directory(path.Dir(name))
	a.entry(name, kindFile|permissions, data, 0, 0)
}

// character adds a character device.
func (a *archive) character(name string, major, minor int) {
	a.directory(path.Dir(name))
	a.entry(name, kindCharacter|0o600, nil, major, minor)
}

// close ends the archive. Another may follow it in the file: they are padded to 512 bytes.
func (a *archive) close() error {
	a.entry("/TRAILER!!!", 0, nil, 0, 0)
	a.pad(512)
	if a.err == nil {
		a.err = a.buffer.Flush()
	}
	if err := a.out.Close(); a.err == nil {
		a.err = err
	}
	return a.err
}

func (a *archive) entry(name string, mode uint32, data []byte, major, minor int) {
	a.inode++
	name = name[1:]
	// magic, ino, mode, uid, gid, nlink, mtime, filesize, maj, min, rmaj, rmin, namesize, chksum
	a.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name))
	a.pad(4)
	a.write(data)
	a.pad(4)
}

func (a *archive) write(data []byte) {
	if a.err != nil {
		return
	}
	n, err := a.buffer.Write(data)
	a.size += int64(n)
	a.err = err
}

func (a *archive) pad(to int64) {
	if rest := a.size % to; rest != 0 {
		a.write(make([]byte, to-rest))
	}
}
