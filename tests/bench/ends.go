package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
)

// The ends of the loads. Each goes on until the flow is stopped; what fails then is no error.

// each repeats a call until the flow is stopped.
func (f *flow) each(name string, call func() error) error {
	for range maxCalls {
		err := call()
		switch {
		case f.stop.Load():
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return fmt.Errorf("%s: more than %d calls", name, maxCalls)
}

// read and write go on after an interruption: the kernel does not by itself on sockets with a time limit, and the Go
// runtime sends signals to threads that run for long.
func read(fd int, buffer []byte) (int, error) { return uninterrupted(unix.Read, fd, buffer) }

func write(fd int, buffer []byte) (int, error) { return uninterrupted(unix.Write, fd, buffer) }

func uninterrupted(call func(int, []byte) (int, error), fd int, buffer []byte) (int, error) {
	for {
		n, err := call(fd, buffer)
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
}

// errEnd is what reading from a stream that has ended returns.
var errEnd = errors.New("the stream has ended")

func writeStream(f *flow) error {
	buffer := make([]byte, streamWrite)
	return f.each("write", func() error {
		n, err := write(f.near, buffer)
		f.sent.Add(uint64(n))
		return err
	})
}

func readStream(f *flow) error {
	buffer := make([]byte, streamWrite)
	return f.each("read", func() error {
		n, err := read(f.far, buffer)
		if n == 0 && err == nil {
			err = errEnd
		}
		f.done.Add(uint64(n))
		return err
	})
}

func ping(f *flow) error {
	buffer := make([]byte, 1)
	return f.each("ping", func() error {
		if _, err := write(f.near, buffer); err != nil {
			return err
		}
		n, err := read(f.near, buffer)
		if n == 0 && err == nil {
			err = errEnd
		}
		f.done.Add(uint64(n))
		return err
	})
}

func pong(f *flow) error {
	buffer := make([]byte, 1)
	return f.each("pong", func() error {
		n, err := read(f.far, buffer)
		if n == 0 && err == nil {
			err = errEnd
		}
		if err != nil {
			return err
		}
		_, err = write(f.far, buffer)
		return err
	})
}

func writeDatagrams(f *flow) error {
	buffer := make([]byte, datagramSize)
	return f.each("send", func() error {
		_, err := write(f.near, buffer)
		f.sent.Add(1)
		if errors.Is(err, unix.ENOBUFS) { // a full queue: lost as on the way
			return nil
		}
		return err
	})
}

func readDatagrams(f *flow) error {
	buffer := make([]byte, datagramSize+1)
	return f.each("receive", func() error {
		_, err := read(f.far, buffer)
		if err == nil {
			f.done.Add(1)
		}
		return err
	})
}

// connectAgain opens connections to the server, one after the other, each for a byte there and a byte back.
func connectAgain(f *flow) error {
	if err := enter(f.client); err != nil {
		return err
	}
	buffer := make([]byte, 1)
	return f.each("connection", func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		err = errors.Join(limit(fd), connectTo(fd, f.far))
		if errors.Is(err, unix.EINTR) {
			return nil // by a signal of the Go runtime's: one connection less
		}
		if err != nil {
			return err
		}
		if _, err := write(fd, buffer); err != nil {
			return err
		}
		n, err := read(fd, buffer)
		if n == 0 && err == nil {
			err = errEnd
		}
		f.done.Add(uint64(n))
		return err
	})
}

// acceptAgain is the server of connectAgain.
func acceptAgain(f *flow) error {
	buffer := make([]byte, 1)
	return f.each("accept", func() error {
		fd, _, err := unix.Accept4(f.far, unix.SOCK_CLOEXEC)
		if err == nil {
			defer unix.Close(fd)
			err = answer(fd, buffer)
		}
		if errors.Is(err, unix.EINTR) {
			return nil
		}
		return err
	})
}

// answer sends back what a connection brings, until it ends.
func answer(fd int, buffer []byte) error {
	for {
		n, err := read(fd, buffer)
		if n == 0 || err != nil {
			return err
		}
		if _, err := write(fd, buffer); err != nil {
			return err
		}
	}
}

// enter moves the calling thread, which must end with its goroutine, into a pod's network namespace.
func enter(pod *tests.Pod) error {
	fd, err := unix.Open(pod.NetNS(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %s: %w", pod.NetNS(), err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering %s: %w", pod.NetNS(), err)
	}
	return nil
}
