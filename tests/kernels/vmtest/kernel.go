package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// kernel is an unpacked kernel package.
type kernel struct {
	image   string            // the file vmlinuz
	modules map[string]string // their files, by name: with underscores, as the kernel has it
}

// openKernel finds what it needs in the directory of an unpacked package: Debian's, with a merged /usr or not.
func openKernel(dir string) (*kernel, error) {
	k := &kernel{modules: map[string]string{}}
	var err error
	if k.image, err = one(dir, "boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz", "lib/modules/*/vmlinuz"); err != nil {
		return nil, err
	}
	tree, err := one(dir, "lib/modules/*/kernel", "usr/lib/modules/*/kernel")
	if err != nil {
		return nil, err
	}
	return k, filepath.WalkDir(tree, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if name, _, ok := strings.Cut(entry.Name(), ".ko"); ok {
			k.modules[moduleName(name)] = path
		}
		return nil
	})
}

// one returns the first path in dir that matches one of the patterns.
func one(dir string, patterns ...string) (string, error) {
	for _, pattern := range patterns {
		paths, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return "", err
		}
		if len(paths) > 0 {
			return paths[0], nil
		}
	}
	return "", fmt.Errorf("%s has no %s: is it an unpacked kernel package?", dir, strings.Join(patterns, ", no "))
}

func moduleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

// compressions of kernels: what they begin with, and what unpacks them. Some complain of what follows.
var compressions = []struct {
	magic   string
	command []string
}{
	{"\xfd7zXZ\x00", []string{"xz", "-dc", "--single-stream"}},
	{"\x28\xb5\x2f\xfd", []string{"zstd", "-qdc"}},
	{"\x02\x21\x4c\x18", []string{"lz4", "-dc"}},
	{"\x1f\x8b\x08", []string{"gzip", "-dc"}},
}

// unpacked returns a file with the kernel that is packed in the image, as scripts/extract-vmlinux of the kernel's source
// does. It is unpacked once and kept.
func (k *kernel) unpacked(ctx context.Context) (string, error) {
	path, err := cached(k.image, "vmlinux")
	if err != nil || exists(path) {
		return path, err
	}
	image, err := os.ReadFile(k.image)
	if err != nil {
		return "", err
	}
	for _, c := range compressions {
		for from := 0; ; from++ { // the magic may be there by chance
			next := bytes.Index(image[from:], []byte(c.magic))
			if next < 0 {
				break
			}
			from += next
			cmd := exec.CommandContext(ctx, c.command[0], c.command[1:]...)
			cmd.Stdin = bytes.NewReader(image[from:])
			data, err := cmd.Output()
			if errors.Is(err, exec.ErrNotFound) {
				return "", fmt.Errorf("unpacking %s: %w", k.image, err)
			}
			if bytes.HasPrefix(data, []byte(elf.ELFMAG)) {
				return path, keep(path, data)
			}
		}
	}
	return "", fmt.Errorf("%s holds no kernel packed with xz, zstd, lz4 or gzip", k.image)
}

// baseArchive returns a file with an initramfs of the wanted modules that the kernel has and those that they depend on,
// and their names in the order to load them. It is made once and kept.
func (k *kernel) baseArchive(ctx context.Context, wanted []string) (path string, order []string, err error) {
	path, err = cached(k.image, "cpio", wanted...)
	if err != nil {
		return "", nil, err
	}
	names := path + ".order" // comes last
	if list, err := os.ReadFile(names); err == nil {
		return path, strings.Fields(string(list)), nil
	}
	l := loadOrder{kernel: k, data: map[string][]byte{}}
	for _, name := range wanted {
		if err := l.add(ctx, name); err != nil {
			return "", nil, err
		}
	}
	temporary := fmt.Sprintf("%s.%d", path, os.Getpid())
	defer os.Remove(temporary)
	a, err := newArchive(temporary, "")
	if err != nil {
		return "", nil, err
	}
	for _, dir := range []string{"/proc", "/sys", "/dev", "/root"} {
		a.directory(dir)
	}
	a.character("/dev/console", 5, 1)
	for _, name := range l.order {
		a.file(moduleDir+name+".ko", l.data[name], 0o644)
	}
	if err := a.close(); err != nil {
		return "", nil, err
	}
	if err := os.Rename(temporary, path); err != nil {
		return "", nil, err
	}
	return path, l.order, keep(names, []byte(strings.Join(l.order, "\n")))
}

// loadOrder collects modules.
type loadOrder struct {
	kernel *kernel
	order  []string
	data   map[string][]byte
}

// add adds what a module depends on, and then the module. One that is built in, or that the kernel does not have, is none.
func (l *loadOrder) add(ctx context.Context, name string) error {
	name = moduleName(name)
	path, ok := l.kernel.modules[name]
	if _, done := l.data[name]; done || !ok {
		return nil
	}
	data, err := readModule(ctx, path)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	l.data[name] = data
	depends, err := dependencies(data)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	for _, other := range depends {
		if err := l.add(ctx, other); err != nil {
			return err
		}
	}
	l.order = append(l.order, name)
	return nil
}

// readModule reads a module's file, without its signature: to check that takes long in software.
func readModule(ctx context.Context, path string) (data []byte, err error) {
	switch filepath.Ext(path) {
	case ".xz":
		data, err = exec.CommandContext(ctx, "xz", "-dc", path).Output()
	case ".zst":
		data, err = exec.CommandContext(ctx, "zstd", "-qdc", path).Output()
	default:
		data, err = os.ReadFile(path)
	}
	// struct module_signature of include/linux/module_signature.h, 12 bytes, ends with the signature's length
	const magic, signature = "~Module signature appended~\n", 12
	signed, ok := bytes.CutSuffix(data, []byte(magic))
	if err != nil || !ok || len(signed) < signature {
		return data, err
	}
	length := int(binary.BigEndian.Uint32(signed[len(signed)-4:]))
	return signed[:max(0, len(signed)-signature-length)], nil
}

// dependencies reads what a module says it needs before.
func dependencies(module []byte) (names []string, err error) {
	file, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	section := file.Section(".modinfo")
	if section == nil {
		return nil, nil
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for line := range strings.SplitSeq(string(info), "\x00") {
		key, value, _ := strings.Cut(line, "=")
		switch key {
		case "depends":
			names = append(names, strings.Split(value, ",")...)
		case "softdep":
			before, _, _ := strings.Cut(value, "post:")
			for _, name := range strings.Fields(strings.TrimPrefix(before, "pre:")) {
				if name == "crc32c" { // an alias, of which this is the one that always works
					name = "crc32c_generic"
				}
				names = append(names, name)
			}
		}
	}
	return names, nil
}

// cached names a file of the user's cache that is made of a kernel image and of what else is given.
func cached(image, kind string, more ...string) (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "xdp-cni-vmtest")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	info, err := os.Stat(image)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(fmt.Append(nil, image, info.Size(), info.ModTime(), strings.Join(more, " ")))
	return filepath.Join(dir, fmt.Sprintf("%x.%s", sum[:8], kind)), nil
}

// keep writes a file at once: others may be reading it, or writing the same.
func keep(path string, data []byte) error {
	temporary := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.WriteFile(temporary, data, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
