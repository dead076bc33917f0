package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
)

// sender sends frames out of a pod's interface, as a pod does that has a packet socket. They go on from there in the
// thread that sends: a veth's other end takes them in by softirqs on the same processor.
type sender struct {
	fd      int
	vectors []unix.Iovec
	batch   []mmsghdr
}

// mmsghdr is struct mmsghdr (include/linux/socket.h).
type mmsghdr struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

// sendBatch is how many frames one system call sends.
const sendBatch = 64

// newSender opens one. The frames are sent in turns.
func newSender(pod *tests.Pod, index int, frames [][]byte) (*sender, error) {
	s := &sender{fd: -1}
	err := pod.Do(func() (err error) {
		s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		os.NewSyscallError("setsockopt PACKET_QDISC_BYPASS", unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)),
		// protocol 0: it receives nothing
		os.NewSyscallError("bind", unix.Bind(s.fd, &unix.SockaddrLinklayer{Ifindex: index})))
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	s.vectors = make([]unix.Iovec, len(frames))
	for i := range frames {
		s.vectors[i].Base = &frames[i][0]
		s.vectors[i].SetLen(len(frames[i]))
	}
	s.batch = make([]mmsghdr, sendBatch)
	return s, nil
}

func (s *sender) close() error { return unix.Close(s.fd) }

// send sends n frames, in turns from the first one on. Called in a thread that is locked.
func (s *sender) send(n int) error {
	for next := 0; next < n; {
		count := min(sendBatch, n-next)
		for i := range count {
			s.batch[i].header.Iov = &s.vectors[(next+i)%len(s.vectors)]
			s.batch[i].header.SetIovlen(1)
		}
		sent, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.batch[0])), uintptr(count), 0, 0, 0)
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return fmt.Errorf("sendmmsg: %w", errno)
		case sent == 0:
			return errors.New("sendmmsg sent nothing")
		default:
			next += int(sent)
		}
	}
	return nil
}

// sendCPU is the processor that packets are sent on. Machines with one have no other.
const sendCPU = 1

// sendTime runs f in the calling thread, which must be locked, on the processor that packets are sent on, and returns
// the processor time that it took. Nobody else's threads run there meanwhile: else the kernel's own for softirqs takes over
// some of the packets, and what others do to the caches counts too. So f must not take long.
func sendTime(f func() error) (took time.Duration, err error) {
	restore, err := pin(sendCPU)
	if err != nil {
		return 0, err
	}
	defer restore()
	before, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return 0, fmt.Errorf("sched_getattr: %w", err)
	}
	first := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
	if err := unix.SchedSetAttr(0, first, 0); err != nil {
		return 0, fmt.Errorf("sched_setattr: %w", err)
	}
	defer func() { err = errors.Join(err, unix.SchedSetAttr(0, before, 0)) }()
	begin := threadTime()
	if err := f(); err != nil {
		return 0, err
	}
	return threadTime() - begin, nil
}

// locked runs f in a thread of its own, which ends with it.
func locked(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		result <- f()
	}()
	return <-result
}
