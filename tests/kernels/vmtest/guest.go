package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// guest is the VM's init: it does the job and ends the VM.
func guest() {
	var control io.Writer = io.Discard
	if err := serve(&control); err != nil {
		fmt.Println("vmtest:", err) // on the console
		fmt.Fprintf(control, "error %s\n", strings.ReplaceAll(err.Error(), "\n", " "))
	}
	// QEMU runs with -no-reboot: it ends
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	select {}
}

func serve(control *io.Writer) error {
	for _, m := range []mount{{"proc", "/proc", "proc", 0, ""}, {"sys", "/sys", "sysfs", 0, ""}, {"dev", "/dev", "devtmpfs", 0, ""}} {
		if err := m.make(); err != nil {
			return err
		}
	}
	data, err := os.ReadFile(jobFile)
	if err != nil {
		return err
	}
	var j job
	if err := json.Unmarshal(data, &j); err != nil {
		return fmt.Errorf("reading %s: %w", jobFile, err)
	}
	for _, name := range j.Modules {
		if err := loadModule(moduleDir + name + ".ko"); err != nil && !errors.Is(err, syscall.EEXIST) {
			fmt.Printf("vmtest: module %s: %v\n", name, err) // who needs it will say so
		}
	}
	port, err := openPort(controlPort)
	if err != nil {
		return err
	}
	*control = port
	out, err := openPort(outPort)
	if err != nil {
		return err
	}
	if err := switchRoot(); err != nil {
		return err
	}
	if err := setUp(); err != nil {
		return err
	}
	fmt.Fprintf(port, "ready %s\n", uptime())
	code, err := j.run(out)
	if err != nil {
		return err
	}
	fmt.Fprintf(port, "exit %d\n", code)
	return nil
}

// run runs the job's program to its end and returns its exit code, 128 and the signal if one killed it.
func (j *job) run(out *os.File) (int, error) {
	cmd := exec.Command(j.Args[0], j.Args[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = j.Env, j.Dir, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0, err
	}
	if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return exit.ExitCode(), nil
}

type mount struct {
	source, target, kind string
	flags                uintptr
	options              string
}

func (m mount) make() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	// EBUSY: the kernel has mounted it itself
	if err := syscall.Mount(m.source, m.target, m.kind, m.flags, m.options); err != nil && !errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("mounting %s on %s: %w", m.kind, m.target, err)
	}
	return nil
}

// switchRoot makes the host's root, with an overlay in memory, the guest's.
func switchRoot() error {
	for _, m := range []mount{{"root", "/lower", "virtiofs", syscall.MS_RDONLY, ""}, {"upper", "/upper", "tmpfs", 0, "mode=755"}} {
		if err := m.make(); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/upper/files", "/upper/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	overlay := mount{"overlay", "/root", "overlay", 0, "lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work"}
	if err := overlay.make(); err != nil {
		return err
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := syscall.Mount(dir, "/root"+dir, "", syscall.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving %s: %w", dir, err)
		}
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	if err := syscall.Mount(".", "/", "", syscall.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the root: %w", err)
	}
	if err := syscall.Chroot("."); err != nil {
		return err
	}
	return os.Chdir("/")
}

// setUp makes of the root what an init makes of it: file systems of the kernel and in memory, mounts that are shared, the
// loopback interface, and many files that may be open.
func setUp() error {
	for _, m := range []mount{
		{"devpts", "/dev/pts", "devpts", 0, ""}, {"shm", "/dev/shm", "tmpfs", 0, ""}, {"run", "/run", "tmpfs", 0, "mode=755"},
		{"bpf", "/sys/fs/bpf", "bpf", 0, ""}, {"cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""},
	} {
		if err := m.make(); err != nil {
			return err
		}
	}
	if err := os.Symlink("/proc/self/fd", "/dev/fd"); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := syscall.Mount("", "/", "", syscall.MS_SHARED|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("sharing the mounts: %w", err)
	}
	if err := syscall.Sethostname([]byte("vmtest")); err != nil {
		return err
	}
	limit := syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	return loopbackUp()
}

// moduleParameters of modules that would make interfaces by themselves.
var moduleParameters = map[string]string{"dummy.ko": "numdummies=0", "ifb.ko": "numifbs=0"}

// finitModule is the number of finit_module(2) on x86-64, the only architecture here.
const finitModule = 313

func loadModule(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	parameters, err := syscall.BytePtrFromString(moduleParameters[filepath.Base(path)])
	if err != nil {
		return err
	}
	if _, _, errno := syscall.Syscall(finitModule, file.Fd(), uintptr(unsafe.Pointer(parameters)), 0); errno != 0 {
		return errno
	}
	return nil
}

// openPort opens a virtio port by its name, which the kernel finds a moment after its driver is loaded.
func openPort(name string) (*os.File, error) {
	for range 1000 {
		ports, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, port := range ports {
			if text, err := os.ReadFile(port); err != nil || strings.TrimSpace(string(text)) != name {
				continue
			}
			// not os.OpenFile: whoever writes is to wait for a port that is full
			fd, err := syscall.Open("/dev/"+filepath.Base(filepath.Dir(port)), syscall.O_RDWR|syscall.O_CLOEXEC, 0)
			if err == nil {
				return os.NewFile(uintptr(fd), name), nil
			}
		}
		time.Sleep(2 * time.Millisecond)
	}
	return nil, fmt.Errorf("there is no virtio port %s", name)
}

func loopbackUp() error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	// struct ifreq of linux/if.h: name, flags
	var request struct {
		name  [syscall.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(request.name[:], "lo")
	request.flags = syscall.IFF_UP | syscall.IFF_RUNNING
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return fmt.Errorf("setting lo up: %w", errno)
	}
	return nil
}

func uptime() string {
	text, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return err.Error()
	}
	seconds, _, _ := strings.Cut(string(text), " ")
	return seconds + "s"
}
