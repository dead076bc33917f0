package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xdp-cni/xdp-cni/tests"
)

// askPort is where all pods answer.
const askPort = 7777

// tokenLen is the length of what identifies an answer: the incarnation's number.
const tokenLen = 8

// serve answers, at each address, whatever comes with the incarnation's number before it; and notes what comes for others.
func (i *incarnation) serve() error {
	var err error
	if i.capture, err = tests.NewCapture(i.pod, i.pod.IfName, i.stray); err != nil {
		return err
	}
	i.running.Go(func() {
		for {
			frame, err := i.capture.Next(context.Background(), time.Hour)
			if err != nil {
				return // it is closed
			}
			i.fault("%s (%d) got what is not for it: %x", i.name, i.number, frame)
		}
	})
	i.closers = append(i.closers, i.capture)
	for _, address := range i.addresses {
		at := netip.AddrPortFrom(address, askPort)
		err := i.pod.Do(func() error {
			listener, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
			if err != nil {
				return err
			}
			packets, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
			if err != nil {
				return err
			}
			i.closers = append(i.closers, listener, packets)
			i.running.Go(func() { i.answerStreams(listener) })
			i.running.Go(func() { i.answerPackets(packets) })
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (i *incarnation) token() []byte { return binary.BigEndian.AppendUint64(nil, i.number) }

func (i *incarnation) answerPackets(conn *net.UDPConn) {
	buffer := make([]byte, 2000)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = conn.WriteToUDPAddrPort(append(i.token(), buffer[:n]...), from)
		}
	}
}

func (i *incarnation) answerStreams(listener *net.TCPListener) {
	for {
		conn, err := listener.AcceptTCP()
		if err != nil {
			return
		}
		i.running.Go(func() {
			defer conn.Close()
			request := make([]byte, requestLen)
			for {
				if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
					return
				}
				_, err := io.ReadFull(conn, request)
				if err == nil {
					_, err = conn.Write(append(i.token(), request...))
				}
				if err != nil {
					abandon(conn, err)
					return
				}
			}
		})
	}
}

// abandon has nothing sent again, some time later, by a connection that did not end as it should.
func abandon(conn net.Conn, err error) {
	if c, ok := conn.(*net.TCPConn); ok && err != nil && !errors.Is(err, io.EOF) {
		_ = c.SetLinger(0)
	}
}

// stray tells whether a frame that arrives is for an address that is not the pod's: the bridge floods nothing here.
func (i *incarnation) stray(frame []byte) bool {
	if len(frame) < 34 {
		return false
	}
	var destination netip.Addr
	switch {
	case frame[12] == 8 && frame[13] == 0:
		destination = netip.AddrFrom4([4]byte(frame[30:34]))
	case frame[12] == 0x86 && frame[13] == 0xdd && len(frame) >= 54:
		destination = netip.AddrFrom16([16]byte(frame[38:54]))
	default:
		return false
	}
	return destination.IsGlobalUnicast() && destination != i.addresses[0] && destination != i.addresses[1] &&
		destination != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// stop ends the servers.
func (i *incarnation) stop() {
	for _, c := range i.closers {
		_ = c.Close()
	}
	i.running.Wait()
}

// requestLen is the length of all requests.
const requestLen = 64

// request is what is asked with: its number is told from that of other requests.
func request(number uint64) []byte {
	return append(binary.BigEndian.AppendUint64(nil, number), bytes.Repeat([]byte{0x55}, requestLen-8)...)
}

// check checks the answer to a request to address, sent when since was the last incarnation there.
func (c *changing) check(answer, request []byte, address netip.Addr, since uint64) error {
	if len(answer) != tokenLen+len(request) || !bytes.Equal(answer[tokenLen:], request) {
		return fmt.Errorf("answer %x to %x", answer, request)
	}
	number := binary.BigEndian.Uint64(answer)
	c.mu.Lock()
	had := c.had[number]
	c.mu.Unlock()
	if had[0] != address && had[1] != address || number < since {
		return fmt.Errorf("incarnation %d answered for %s, which was %d by then", number, address, since)
	}
	return nil
}

func (c *changing) now(address netip.Addr) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current[address]
}

// asking is how long an answer is waited for: less than a lost SYN takes to be sent again.
const asking = 900 * time.Millisecond

// ask asks at an address by a new connection, or from a new socket, exchanges times.
func (i *incarnation) ask(network string, address netip.Addr, exchanges int, timeout time.Duration, pause time.Duration) (answered int, err error) {
	since := i.now(address)
	to := netip.AddrPortFrom(address, askPort)
	var conn net.Conn
	dialer := net.Dialer{Timeout: timeout}
	err = i.pod.Do(func() (err error) {
		if network == "udp" {
			conn, err = dialer.DialUDP(context.Background(), "udp", netip.AddrPort{}, to)
			return err
		}
		conn, err = dialer.DialTCP(context.Background(), "tcp", netip.AddrPort{}, to)
		return err
	})
	if err != nil {
		return 0, err
	}
	defer func() {
		abandon(conn, err)
		_ = conn.Close()
	}()
	buffer := make([]byte, 2*requestLen)
	for exchange := range exchanges {
		if network == "udp" {
			since = i.now(address) // a socket outlives who answers it
		}
		request := request(uint64(exchange))
		if _, err := conn.Write(request); err != nil {
			return answered, err
		}
		if err := conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
			return answered, err
		}
		n, err := io.ReadAtLeast(conn, buffer, tokenLen+requestLen)
		if err != nil {
			return answered, err
		}
		if network == "udp" && binary.BigEndian.Uint64(buffer[tokenLen:]) < uint64(exchange) {
			continue // late
		}
		if err := i.check(buffer[:n], request, address, since); err != nil {
			i.fault("%s: %w", network, err)
			return answered, err
		}
		answered++
		time.Sleep(pause)
	}
	return answered, nil
}

// traffic asks at an address without end, from one socket for a while and then from another, until ctx is over.
func (i *incarnation) traffic(ctx context.Context, network string, address netip.Addr, answered *atomic.Uint64) {
	for ctx.Err() == nil {
		n, err := i.ask(network, address, 40, 100*time.Millisecond, time.Millisecond)
		answered.Add(uint64(n))
		if err != nil {
			time.Sleep(5 * time.Millisecond) // there is nobody now, and that is no fault
		}
	}
}

// persist sends from one socket, whether there are answers or not, until ctx is over: what is known of its flow is what
// was before the changes.
func (i *incarnation) persist(ctx context.Context, address netip.Addr) {
	var conn net.Conn
	if err := i.pod.Do(func() (err error) {
		conn, err = net.Dial("udp", netip.AddrPortFrom(address, askPort).String())
		return err
	}); err != nil {
		i.fault("%w", err)
		return
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		buffer := make([]byte, 2*requestLen)
		for {
			n, err := conn.Read(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil || n != tokenLen+requestLen {
				continue // an ICMP error
			}
			since := binary.BigEndian.Uint64(buffer[tokenLen:])
			if err := i.check(buffer[:n], request(since), address, since); err != nil {
				i.fault("from one socket: %w", err)
			}
		}
	})
	for ctx.Err() == nil {
		_, _ = conn.Write(request(i.now(address))) // there may be nobody
		time.Sleep(2 * time.Millisecond)
	}
	_ = conn.Close()
	reading.Wait()
}

// expectAnswer asks at all addresses of a pod that has just been added: the first packet of each has to find it.
func (c *changing) expectAnswer(from, at *incarnation, exchanges int, when string) {
	c.t.Helper()
	for _, address := range at.addresses {
		if now := c.now(address); now != at.number {
			c.t.Fatalf("%s: the test asks at %d, but now there is %d", when, at.number, now)
		}
		for _, network := range []string{"tcp", "udp"} {
			if _, err := from.ask(network, address, exchanges, asking, 0); err != nil {
				c.t.Errorf("%s: %s to %s at %s (incarnation %d): %v", when, network, at.name, address, at.number, err)
			}
		}
	}
}
