package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
)

// load is a kind of traffic between two pods.
type load struct {
	name, about string
	unit        string  // of the rate
	scale       float64 // counts per second in one unit
	costUnit    string  // of what the processors spend for
	costScale   float64 // this many counts
	socket      int     // type
	near, far   func(*flow) error
	lossy       bool
	// The processors that the two ends run on. Packets take their way through the kernel on the sender's.
	nearCPU, farCPU int
}

const (
	streamWrite   = 128 << 10 // bytes
	datagramSize  = 18        // bytes: frames of 60 bytes, the smallest of Ethernet
	receiveBuffer = 16 << 20  // bytes, of datagrams
)

// throughputLoad is the load of which something is expected.
const throughputLoad = "TCP throughput"

var loads = []load{
	{
		name: throughputLoad, about: "one stream of 128 KiB writes", unit: "Gbit/s", scale: 1e9 / 8, costUnit: "CPU µs a MB", costScale: 1e6,
		socket: unix.SOCK_STREAM, near: writeStream, far: readStream, nearCPU: 0, farCPU: 1,
	},
	{
		name: "TCP round trips", about: "one byte each way", unit: "thousand/s", scale: 1e3, costUnit: "CPU µs a round trip", costScale: 1,
		socket: unix.SOCK_STREAM, near: ping, far: pong, nearCPU: 0, farCPU: 0,
	},
	{
		name: "UDP packets", about: "18 bytes each, as many as can be sent", unit: "thousand/s", scale: 1e3, costUnit: "CPU µs a packet", costScale: 1,
		socket: unix.SOCK_DGRAM, near: writeDatagrams, far: readDatagrams, lossy: true, nearCPU: 0, farCPU: 1,
	},
}

// flow is a load under way. Its sockets are blocking ones, used by system calls on threads of their own: the Go runtime's
// poller would cost more than what is to be measured.
type flow struct {
	near, far int // sockets
	sent      atomic.Uint64
	done      atomic.Uint64 // bytes, round trips or packets that arrived
	stop      atomic.Bool
}

// patience bounds each system call on the sockets, and maxCalls the number of them.
const (
	patience = 2 * time.Second
	maxCalls = 50_000_000
)

// warmUp is how long a load runs before it is measured, from the first arrival on.
const warmUp = 200 * time.Millisecond

// reading is the state of a flow at one time.
type reading struct {
	at         time.Time
	sent, done uint64
	cpu        cpu
}

func (f *flow) read() (reading, error) {
	c, err := readCPU()
	return reading{time.Now(), f.sent.Load(), f.done.Load(), c}, err
}

// outcome is what was measured of a load.
type outcome struct {
	rate float64 // per second
	cost float64 // µs of processor time for each
	lost float64 // share
}

// measure runs the load between two pods.
func (l *load) measure(ctx context.Context, client, server *tests.Pod, d time.Duration) (outcome, error) {
	f := &flow{}
	var err error
	if f.near, f.far, err = connect(client, server, l.socket); err != nil {
		return outcome{}, fmt.Errorf("%s: %w", l.name, err)
	}
	defer unix.Close(f.near)
	defer unix.Close(f.far)

	var ends sync.WaitGroup
	var nearErr, farErr error
	ends.Go(func() { farErr = onCPU(l.farCPU, func() error { return l.far(f) }) })
	ends.Go(func() { nearErr = onCPU(l.nearCPU, func() error { return l.near(f) }) })
	before, after, err := f.observe(ctx, d)
	f.stop.Store(true)
	_ = unix.Shutdown(f.near, unix.SHUT_RDWR) // whoever waits goes on
	_ = unix.Shutdown(f.far, unix.SHUT_RDWR)
	ends.Wait()
	if err := errors.Join(err, nearErr, farErr); err != nil {
		return outcome{}, fmt.Errorf("%s: %w", l.name, err)
	}
	done := float64(after.done - before.done)
	if done == 0 {
		return outcome{}, fmt.Errorf("%s: of %d sent in %s none arrived", l.name, after.sent-before.sent, d)
	}
	o := outcome{
		rate: done / after.at.Sub(before.at).Seconds(),
		cost: float64((after.cpu.busy - before.cpu.busy).Microseconds()) / done,
	}
	if sent := float64(after.sent - before.sent); sent > done {
		o.lost = 1 - done/sent
	}
	return o, nil
}

// observe reads the flow at the beginning and at the end of d, once it is well under way.
func (f *flow) observe(ctx context.Context, d time.Duration) (before, after reading, err error) {
	for begin := time.Now(); f.done.Load() == 0 && time.Since(begin) < patience; {
		if err = pause(ctx, time.Millisecond); err != nil {
			return
		}
	}
	if err = pause(ctx, warmUp); err != nil {
		return
	}
	if before, err = f.read(); err != nil {
		return
	}
	if err = pause(ctx, d); err != nil {
		return
	}
	after, err = f.read()
	return
}

// onCPU runs f on a thread bound to a processor; the thread ends with it.
func onCPU(number int, f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		var set unix.CPUSet
		set.Set(number % runtime.NumCPU())
		err := unix.SchedSetaffinity(0, &set)
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return <-result
}

// connect makes two sockets, one in each pod, connected with each other.
func connect(client, server *tests.Pod, kind int) (near, far int, err error) {
	listener, err := socket(server, kind)
	if err != nil {
		return 0, 0, err
	}
	if near, err = socket(client, kind); err != nil {
		return 0, 0, errors.Join(err, unix.Close(listener))
	}
	fail := func(err error) (int, int, error) {
		return 0, 0, errors.Join(err, unix.Close(listener), unix.Close(near))
	}
	if kind == unix.SOCK_STREAM {
		if err := unix.Listen(listener, 1); err != nil {
			return fail(fmt.Errorf("listen: %w", err))
		}
	}
	if err := connectTo(near, listener); err != nil {
		return fail(err)
	}
	if kind != unix.SOCK_STREAM {
		if err := connectTo(listener, near); err != nil {
			return fail(err)
		}
		return near, listener, nil
	}
	far, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		return fail(fmt.Errorf("accept: %w", err))
	}
	for _, fd := range []int{near, far} {
		if err := errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), limit(fd)); err != nil {
			return fail(errors.Join(err, unix.Close(far)))
		}
	}
	return near, far, unix.Close(listener)
}

// socket makes a socket in a pod, bound to the pod's address.
func socket(pod *tests.Pod, kind int) (fd int, err error) {
	err = pod.Do(func() error {
		fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	if err := limit(fd); err != nil {
		return 0, errors.Join(err, unix.Close(fd))
	}
	if kind == unix.SOCK_DGRAM {
		// a receiver that the hypervisor keeps from running for a moment is no loss of the path's
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
			return 0, errors.Join(fmt.Errorf("size of the receive buffer: %w", err), unix.Close(fd))
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: pod.IPv4().As4()}); err != nil {
		return 0, errors.Join(fmt.Errorf("bind: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// limit bounds the time of each call on a socket.
func limit(fd int) error {
	timeout := unix.NsecToTimeval(patience.Nanoseconds())
	return errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout))
}

func connectTo(fd, other int) error {
	address, err := unix.Getsockname(other)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	if err := unix.Connect(fd, address); err != nil {
		inet := address.(*unix.SockaddrInet4)
		return fmt.Errorf("connect to %s: %w", netip.AddrPortFrom(netip.AddrFrom4(inet.Addr), uint16(inet.Port)), err)
	}
	return nil
}
