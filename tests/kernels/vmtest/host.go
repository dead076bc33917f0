package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// options say what to run, and in what.
type options struct {
	kernel, cpus, memory string
	program              []string
	verbose              bool
}

// job is what the guest is to do: the file jobFile of its initramfs.
type job struct {
	Args, Env []string
	Dir       string
	Modules   []string // of moduleDir, in the order to load them
}

const (
	jobFile   = "/vm/job.json"
	moduleDir = "/vm/modules/"
)

// The guest's virtio ports: what the program writes, and how it goes. Of the latter each line is a word and its value:
// "ready" with the seconds that the boot took, "exit" with the code, "error" with what went wrong.
const (
	outPort     = "out"
	controlPort = "control"
)

// wanted are the modules that are loaded before the program starts, if the kernel has them as modules: what the tests'
// networks and firewalls are made of. Nothing loads a module later: modprobe is not made for an overlay of another
// kernel's host.
var wanted = []string{
	"virtio_pci", "virtio_console", "fuse", "virtiofs", "overlay",
	"veth", "bridge", "br_netfilter", "dummy", "ifb", "tun", "macvlan", "8021q", "vrf",
	"sch_ingress", "cls_bpf", "cls_matchall", "cls_u32", "act_bpf", "act_mirred", "sch_fq", "sch_fq_codel",
	"sch_tbf", "sch_htb", "sch_prio",
	"nf_conntrack", "nf_conntrack_netlink", "nf_nat", "nf_tables", "nfnetlink", "nfnetlink_log", "nft_ct", "nft_nat", "nft_masq",
	"nft_chain_nat", "nft_compat", "nft_fib_inet", "nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6",
	"nft_meta_bridge", "nf_log_syslog", "nf_log_ipv4", "nf_log_ipv6", "nft_redir", "nft_limit", "nft_log", "nft_counter",
	"nft_objref", "nf_flow_table", "nf_flow_table_inet", "nf_flow_table_ipv4", "nf_flow_table_ipv6", "nft_flow_offload",
	"ip_tables", "ip6_tables", "iptable_nat", "iptable_filter", "iptable_mangle", "iptable_raw",
	"ip6table_nat", "ip6table_filter", "ip6table_mangle", "ip6table_raw",
	"xt_comment", "xt_conntrack", "xt_MASQUERADE", "xt_nat", "xt_LOG", "xt_mark", "xt_multiport", "xt_tcpudp",
	"xt_addrtype", "xt_statistic", "xt_REDIRECT", "ipt_REJECT", "ip6t_REJECT", "sctp", "udp_diag", "tcp_diag", "inet_diag",
}

// run boots a VM, runs the program in it and returns its exit code. The VM ends with ctx.
func run(ctx context.Context, o options) (code int, err error) {
	began := time.Now()
	dir, err := os.MkdirTemp("", "vmtest-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	machine, err := prepare(ctx, o, dir)
	if err != nil {
		return 0, err
	}
	// virtiofsd ends when QEMU's connection does, or with us
	files := exec.CommandContext(ctx, machine.virtiofsd[0], machine.virtiofsd[1:]...)
	var complaints strings.Builder // it always has one at its end
	files.Stderr = &complaints
	files.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := files.Start(); err != nil {
		return 0, fmt.Errorf("virtiofsd: %w", err)
	}
	defer func() {
		_ = files.Process.Kill() // it may have ended
		_ = files.Wait()
		if o.verbose || err != nil {
			fmt.Fprint(os.Stderr, complaints.String())
		}
	}()
	if err := waitSocket(ctx, machine.rootSocket); err != nil {
		return 0, fmt.Errorf("virtiofsd: %w", err)
	}
	out, err := net.Listen("unix", machine.outSocket)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	control, err := net.Listen("unix", machine.controlSocket)
	if err != nil {
		return 0, err
	}
	defer control.Close()

	booted := time.Now()
	qemu := exec.CommandContext(ctx, machine.qemu[0], machine.qemu[1:]...)
	qemu.Stderr = os.Stderr
	qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := qemu.Start(); err != nil {
		return 0, err
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		if conn, err := out.Accept(); err == nil {
			_, _ = io.Copy(os.Stdout, conn)
		}
	}()
	reported := make(chan report, 1)
	go func() { reported <- readReport(control) }()
	qemuErr := qemu.Wait()
	// QEMU connected before it did anything else, or never will
	out.Close()
	control.Close()
	<-copied
	r := <-reported

	if o.verbose {
		fmt.Fprintf(os.Stderr, "vmtest: prepared in %s, the guest was ready %s after its boot, all took %s\n",
			booted.Sub(began).Round(time.Millisecond), r.ready, time.Since(began).Round(time.Millisecond))
	}
	if o.verbose || !r.ended {
		showConsole(machine.console)
	}
	switch {
	case r.ended:
		return r.code, nil
	case r.err != nil:
		return 0, fmt.Errorf("guest: %w", r.err)
	}
	return 0, fmt.Errorf("the guest stopped without an exit code: %w", errors.Join(errors.New("see its console above"), qemuErr))
}

// machine is what a VM is made of: command lines and the paths in them.
type machine struct {
	qemu, virtiofsd                               []string
	rootSocket, outSocket, controlSocket, console string
}

// prepare makes the files of a VM in dir.
func prepare(ctx context.Context, o options, dir string) (*machine, error) {
	kernel, err := openKernel(o.kernel)
	if err != nil {
		return nil, err
	}
	program, err := exec.LookPath(o.program[0])
	if err != nil {
		return nil, err
	}
	if program, err = filepath.Abs(program); err != nil {
		return nil, err
	}
	work, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	base, modules, err := kernel.baseArchive(ctx, wanted)
	if err != nil {
		return nil, err
	}
	initrd := filepath.Join(dir, "initrd")
	if err := writeInitrd(initrd, base, job{
		Args: append([]string{program}, o.program[1:]...), Env: os.Environ(), Dir: work, Modules: modules,
	}); err != nil {
		return nil, err
	}
	m := &machine{
		rootSocket: filepath.Join(dir, "root"), outSocket: filepath.Join(dir, outPort),
		controlSocket: filepath.Join(dir, controlPort), console: filepath.Join(dir, "console"),
	}
	m.virtiofsd = virtiofsd(m.rootSocket)
	image, accel, cpu := kernel.image, "kvm", "host"
	// without hardware the guest would take long to unpack itself
	if !hardware() {
		if image, err = kernel.unpacked(ctx); err != nil {
			return nil, err
		}
		// QEMU 7.2 spoils the flags after cmpxchg16b: 6.12 crashed at boot, once in four times. Kernels do not
		// use it where the processor has not got it.
		accel, cpu = "tcg", "qemu64,-cx16"
	}
	m.qemu = []string{
		"qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "pc", "-accel", accel, "-cpu", cpu, "-smp", o.cpus, "-m", o.memory,
		"-kernel", image, "-initrd", initrd, "-append", commandLine(accel),
		"-chardev", "file,id=console,path=" + m.console, "-serial", "chardev:console",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=out,path=" + m.outSocket, "-device", "virtserialport,chardev=out,name=" + outPort,
		"-chardev", "socket,id=control,path=" + m.controlSocket, "-device", "virtserialport,chardev=control,name=" + controlPort,
		// virtiofs reads and writes the guest's memory
		"-object", "memory-backend-memfd,id=memory,size=" + o.memory + "M,share=on", "-numa", "node,memdev=memory",
		"-chardev", "socket,id=root,path=" + m.rootSocket, "-device", "vhost-user-fs-pci,chardev=root,tag=root,queue-size=1024",
	}
	return m, nil
}

// commandLine is the kernel's: it boots fast, ends QEMU when it panics, and takes an oops for one.
func commandLine(accel string) string {
	line := "console=ttyS0 quiet loglevel=5 panic=-1 oops=panic reboot=t random.trust_cpu=on 8250.nr_uarts=1 cryptomgr.notests " +
		"mitigations=off nokaslr no_timer_check nowatchdog audit=0 apparmor=0 selinux=0"
	if accel == "tcg" {
		line += " lpj=4000000" // it cannot be measured
	}
	return line
}

// writeInitrd writes the archive of modules, and behind it what is of this run: the kernel unpacks both.
func writeInitrd(path, base string, j job) error {
	data, err := json.Marshal(j)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	init, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	a, err := newArchive(path, base)
	if err != nil {
		return err
	}
	a.file("/init", init, 0o755)
	a.file(jobFile, data, 0o644)
	return a.close()
}

// hardware tells whether KVM does what it says: a /dev/kvm that belongs to neither processor's module (kvm-pvm in
// sandboxes) runs stock kernels slower than software does.
func hardware() bool {
	device, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	device.Close()
	for _, module := range []string{"kvm_intel", "kvm_amd"} {
		if _, err := os.Stat("/sys/module/" + module); err == nil {
			return true
		}
	}
	return false
}

// virtiofsd is the command that serves the host's root on a socket: the one of QEMU's up to 7.2 (Debian 12), or the
// package of that name since.
func virtiofsd(socket string) []string {
	const old = "/usr/lib/qemu/virtiofsd"
	if _, err := os.Stat(old); err == nil {
		return []string{
			old, "--socket-path=" + socket, "-o", "source=/", "-o", "cache=auto,sandbox=chroot,no_posix_lock", "-f", "-o", "log_level=err",
		}
	}
	return []string{
		"/usr/libexec/virtiofsd", "--socket-path=" + socket, "--shared-dir=/", "--cache=auto", "--sandbox=chroot", "--log-level=error",
	}
}

// waitSocket waits until a socket is there, 10 seconds at most.
func waitSocket(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		_, err := os.Stat(path)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// report is what the guest said of itself.
type report struct {
	ready string
	ended bool
	code  int
	err   error
}

func readReport(l net.Listener) (r report) {
	conn, err := l.Accept()
	if err != nil {
		return r
	}
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		word, value, _ := strings.Cut(lines.Text(), " ")
		switch word {
		case "ready":
			r.ready = value
		case "error":
			r.err = errors.New(value)
		case "exit":
			if r.code, err = strconv.Atoi(value); err == nil {
				r.ended = true
			}
		}
	}
	return r
}

// consoleEnd is how much of a console tells what happened, in bytes.
const consoleEnd = 16 << 10

func showConsole(path string) {
	text, err := os.ReadFile(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmtest:", err)
	}
	_, _ = os.Stderr.Write(text[max(0, len(text)-consoleEnd):])
}
