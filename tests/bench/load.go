package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
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
	open        func(client, server *tests.Pod) (*flow, error)
	near, far   func(*flow) error
	lossy       bool
	// The processors that the two ends run on. Packets take their way through the kernel on the sender's.
	nearCPU, farCPU int
	// alone: nothing of others runs on these processors meanwhile.
	alone bool
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
		open: connectedBy(unix.SOCK_STREAM), near: writeStream, far: readStream, nearCPU: 0, farCPU: 1,
	},
	{
		name: "TCP round trips", about: "one byte each way", unit: "thousand/s", scale: 1e3, costUnit: "CPU µs a round trip", costScale: 1,
		open: connectedBy(unix.SOCK_STREAM), near: ping, far: pong, nearCPU: 0, farCPU: 0,
	},
	{
		name: "UDP packets", about: "18 bytes each, as many as can be sent", unit: "thousand/s", scale: 1e3, costUnit: "CPU µs a packet", costScale: 1,
		open: connectedBy(unix.SOCK_DGRAM), near: writeDatagrams, far: readDatagrams, lossy: true, nearCPU: 0, farCPU: 1,
	},
}

// connections is a load of which each count is a connection of its own.
var connections = load{
	name: "TCP connections", about: "connect, one byte each way, close", unit: "thousand/s", scale: 1e3, costUnit: "CPU µs a connection", costScale: 1,
	open: listening, near: connectAgain, far: acceptAgain, nearCPU: 0, farCPU: 0,
}

// flow is a load under way. Its sockets are blocking ones, used by system calls on threads of their own: the Go runtime's
// poller would cost more than what is to be measured.
type flow struct {
	near, far int // sockets; of connections, the client's last one and the server's listening one
	client    *tests.Pod
	sent      atomic.Uint64
	done      atomic.Uint64 // bytes, round trips or packets that arrived
	stop      atomic.Bool
	threads   [2]atomic.Int32 // of the ends
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
	busy       time.Duration // of processors
}

// read reads it. Alone, processors are busy with the two ends, and the softirqs on top of them; else with all there is.
func (f *flow) read(alone bool) (reading, error) {
	r := reading{at: time.Now(), sent: f.sent.Load(), done: f.done.Load()}
	if !alone {
		c, err := readCPU()
		r.busy = c.busy
		return r, err
	}
	for i := range f.threads {
		took, err := timeOfThread(int(f.threads[i].Load()))
		if err != nil {
			return r, err
		}
		r.busy += took
	}
	return r, nil
}

// outcome is what was measured of a load.
type outcome struct {
	rate float64 // per second
	cost float64 // µs of processor time for each
	lost float64 // share
}

// measure runs the load between two pods.
func (l *load) measure(ctx context.Context, client, server *tests.Pod, d time.Duration) (outcome, error) {
	f, err := l.open(client, server)
	if err != nil {
		return outcome{}, fmt.Errorf("%s: %w", l.name, err)
	}
	defer f.close()

	var ends sync.WaitGroup
	var nearErr, farErr error
	var ready atomic.Int32
	end := func(thread *atomic.Int32, cpu int, run func(*flow) error) error {
		begun := sync.OnceFunc(func() { ready.Add(1) })
		defer begun()
		return onCPU(cpu, l.alone, func() error {
			thread.Store(int32(unix.Gettid()))
			begun()
			// who is alone keeps the other's thread from getting there, and the Go runtime from waking anybody
			for moment := (unix.Timespec{Nsec: 1e6}); ready.Load() < 2; {
				_ = unix.Nanosleep(&moment, nil)
			}
			return run(f)
		})
	}
	if l.alone {
		// nor does it come to wake them again where its collector has stopped them
		runtime.GC()
		defer debug.SetGCPercent(debug.SetGCPercent(-1))
	}
	ends.Go(func() { farErr = end(&f.threads[1], l.farCPU, l.far) })
	ends.Go(func() { nearErr = end(&f.threads[0], l.nearCPU, l.near) })
	before, after, err := f.observe(ctx, d, l.alone)
	f.stop.Store(true)
	f.shutdown() // whoever waits goes on
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
		cost: float64((after.busy - before.busy).Microseconds()) / done,
	}
	if sent := float64(after.sent - before.sent); sent > done {
		o.lost = 1 - done/sent
	}
	return o, nil
}

// observe reads the flow at the beginning and at the end of d, once it is well under way.
func (f *flow) observe(ctx context.Context, d time.Duration, alone bool) (before, after reading, err error) {
	for begin := time.Now(); f.done.Load() == 0 && time.Since(begin) < patience; {
		if err = pause(ctx, time.Millisecond); err != nil {
			return
		}
	}
	if err = pause(ctx, warmUp); err != nil {
		return
	}
	if before, err = f.read(alone); err != nil {
		return
	}
	if err = pause(ctx, d); err != nil {
		return
	}
	after, err = f.read(alone)
	return
}

// onCPU runs f on a thread bound to a processor; the thread ends with it. Alone, it goes before all that has no real-time
// priority; softirqs are served by whoever raised them all the same.
func onCPU(number int, alone bool, f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		var set unix.CPUSet
		set.Set(number % runtime.NumCPU())
		err := unix.SchedSetaffinity(0, &set)
		if err == nil && alone {
			err = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
		}
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return <-result
}

func (f *flow) close() {
	for _, fd := range []int{f.near, f.far} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

func (f *flow) shutdown() {
	for _, fd := range []int{f.near, f.far} {
		if fd >= 0 {
			_ = unix.Shutdown(fd, unix.SHUT_RDWR)
		}
	}
}

// connectedBy opens flows whose ends are connected.
func connectedBy(kind int) func(client, server *tests.Pod) (*flow, error) {
	return func(client, server *tests.Pod) (*flow, error) {
		near, far, err := connect(client, server, kind)
		return &flow{near: near, far: far, client: client}, err
	}
}

// listening opens a flow whose client is yet to connect, as often as it has ports to: they are in use for a minute after
// each connection.
func listening(client, server *tests.Pod) (*flow, error) {
	if err := client.Sysctl("net/ipv4/ip_local_port_range", "1024 65535"); err != nil {
		return nil, fmt.Errorf("ports of the client: %w", err)
	}
	listener, err := socket(server, unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	if err := unix.Listen(listener, 1); err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), unix.Close(listener))
	}
	return &flow{near: -1, far: listener, client: client}, nil
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
		if err := errors.Join(connectTo(listener, near), exchange(near, listener)); err != nil {
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

// exchange sends a datagram each way: what is between the pods knows the flow from then on.
func exchange(near, far int) error {
	for _, way := range [][2]int{{near, far}, {far, near}} {
		datagram := make([]byte, datagramSize)
		if _, err := write(way[0], datagram); err != nil {
			return fmt.Errorf("first datagram: %w", err)
		}
		if _, err := read(way[1], datagram); err != nil {
			return fmt.Errorf("waiting for the first datagram: %w", err)
		}
	}
	return nil
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
