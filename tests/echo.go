package tests

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// streamTimeout is how long one TCP exchange may take.
var streamTimeout = Patience(30 * time.Second)

// Echo is a TCP and a UDP server that send back what they get.
type Echo struct {
	TCP, UDP netip.AddrPort

	listener *net.TCPListener
	packets  *net.UDPConn
	running  sync.WaitGroup

	mu               sync.Mutex
	closed           bool
	streams          map[net.Conn]struct{}
	tcpPeer, udpPeer netip.AddrPort
}

// ServeEcho starts echo servers on an address of a place, at ports that the kernel chooses; the unspecified IPv6 address
// is all those of both families, also the ones that come later. Close them before the place: a socket keeps its
// namespace alive.
func ServeEcho(ctx context.Context, at Place, address netip.Addr) (*Echo, error) {
	e := &Echo{streams: map[net.Conn]struct{}{}}
	local := netip.AddrPortFrom(address.Unmap(), 0)
	var config net.ListenConfig
	config.SetMultipathTCP(false) // packets are counted
	err := at.Do(func() error {
		listener, err := config.Listen(ctx, "tcp", local.String())
		if err != nil {
			return err
		}
		e.listener = listener.(*net.TCPListener)
		e.packets, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(local))
		if err != nil {
			_ = listener.Close()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("serve echo at %s: %w", address, err)
	}
	e.TCP = e.listener.Addr().(*net.TCPAddr).AddrPort()
	e.UDP = e.packets.LocalAddr().(*net.UDPAddr).AddrPort()
	e.running.Go(e.serveTCP)
	e.running.Go(e.serveUDP)
	return e, nil
}

// Close stops the servers, cuts their connections, and waits for that.
func (e *Echo) Close() error {
	e.mu.Lock()
	e.closed = true
	for conn := range e.streams {
		_ = conn.Close()
	}
	e.mu.Unlock()
	err := errors.Join(e.listener.Close(), e.packets.Close())
	e.running.Wait()
	return err
}

// Peers returns where the last connection and the last datagram came from, as the servers see it; zero if there was
// none. Who has got an echo is in it.
func (e *Echo) Peers() (tcp, udp netip.AddrPort) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.tcpPeer, e.udpPeer
}

func (e *Echo) serveTCP() {
	for {
		conn, err := e.listener.AcceptTCP()
		if err != nil {
			return
		}
		e.mu.Lock()
		if e.closed {
			e.mu.Unlock()
			_ = conn.Close()
			return
		}
		e.streams[conn] = struct{}{}
		e.tcpPeer = unmapped(conn.RemoteAddr().(*net.TCPAddr).AddrPort())
		e.running.Go(func() { e.serveStream(conn) })
		e.mu.Unlock()
	}
}

func (e *Echo) serveStream(conn *net.TCPConn) {
	_, _ = io.Copy(conn, conn)
	_ = conn.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.streams, conn)
}

func (e *Echo) serveUDP() {
	buffer := make([]byte, 1<<16)
	for {
		n, peer, err := e.packets.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil { // an ICMP error of an earlier reply is not an end
			e.mu.Lock()
			e.udpPeer = unmapped(peer)
			e.mu.Unlock()
			_, _ = e.packets.WriteToUDPAddrPort(buffer[:n], peer)
		}
	}
}

// unmapped is an address as its own family has it: servers at the unspecified IPv6 address have IPv4 mapped to IPv6.
func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// EchoTCP connects from a place to an echo server, sends n bytes, reads them back and checks them, and closes the
// connection in order, both ways.
func EchoTCP(ctx context.Context, from Place, server netip.AddrPort, n int) error {
	if err := echoTCP(ctx, from, server, n); err != nil {
		return fmt.Errorf("%d bytes by TCP to %s: %w", n, server, err)
	}
	return nil
}

func echoTCP(ctx context.Context, from Place, server netip.AddrPort, n int) error {
	conn, err := DialTCP(ctx, from, netip.AddrPort{}, server, replyTimeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop, err := setDeadline(ctx, conn, streamTimeout)
	if err != nil {
		return err
	}
	defer stop()

	sent := pattern(n)
	sending := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		sending <- errors.Join(err, conn.CloseWrite())
	}()
	received, readErr := io.ReadAll(io.LimitReader(conn, int64(n)+1))
	if readErr != nil {
		_ = conn.Close() // a sender that is stuck lets go
	}
	if err := errors.Join(<-sending, readErr); err != nil {
		return fmt.Errorf("after %d bytes came back: %w", len(received), err)
	}
	if !bytes.Equal(received, sent) {
		return fmt.Errorf("%d bytes came back, not the ones sent", len(received))
	}
	return nil
}

// EchoUDP sends exactly n datagrams of size bytes (at least 8) from a place to an echo server, one after the other,
// and checks that each comes back, once.
func EchoUDP(ctx context.Context, from Place, server netip.AddrPort, n, size int) error {
	c, err := newUDPClient(ctx, from, server, size)
	if err != nil {
		return fmt.Errorf("UDP to %s: %w", server, err)
	}
	defer c.conn.Close()
	for seq := range n {
		if err := c.send(seq); err != nil {
			return fmt.Errorf("UDP to %s: datagram %d of %d: %w", server, seq+1, n, err)
		}
		if got, err := c.receive(ctx, replyTimeout); err != nil {
			return fmt.Errorf("UDP to %s: echo %d of %d: %w", server, seq+1, n, err)
		} else if got != seq {
			return fmt.Errorf("UDP to %s: a second echo of datagram %d", server, got+1)
		}
	}
	return nil
}

// EchoUDPFrom is EchoUDP of one datagram, and returns the port that it was sent from.
func EchoUDPFrom(ctx context.Context, from Place, server netip.AddrPort, size int) (port uint16, err error) {
	c, err := newUDPClient(ctx, from, server, size)
	if err != nil {
		return 0, fmt.Errorf("UDP to %s: %w", server, err)
	}
	defer c.conn.Close()
	if err := c.send(0); err != nil {
		return 0, fmt.Errorf("UDP to %s: %w", server, err)
	}
	if _, err := c.receive(ctx, replyTimeout); err != nil {
		return 0, fmt.Errorf("UDP to %s: %w", server, err)
	}
	return c.conn.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil
}

// EchoUDPCount sends exactly n datagrams of size bytes (at least 8), and returns how many came back by the time that
// all had or wait has passed since the last one: for paths that drop.
func EchoUDPCount(ctx context.Context, from Place, server netip.AddrPort, n, size int, wait time.Duration) (int, error) {
	c, err := newUDPClient(ctx, from, server, size)
	if err != nil {
		return 0, fmt.Errorf("UDP to %s: %w", server, err)
	}
	defer c.conn.Close()
	for seq := range n {
		if err := c.send(seq); err != nil {
			return 0, fmt.Errorf("UDP to %s: datagram %d of %d: %w", server, seq+1, n, err)
		}
	}
	came := make(map[int]bool, n)
	deadline := time.Now().Add(wait)
	for len(came) < n {
		seq, err := c.receive(ctx, time.Until(deadline))
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			break
		} else if err != nil {
			return len(came), fmt.Errorf("UDP to %s: %w", server, err)
		}
		came[seq] = true
	}
	return len(came), nil
}

// udpClient numbers its datagrams in their first eight bytes.
type udpClient struct {
	conn             *net.UDPConn
	datagram, buffer []byte
}

func newUDPClient(ctx context.Context, from Place, server netip.AddrPort, size int) (*udpClient, error) {
	if size < 8 || size > 65507 {
		return nil, fmt.Errorf("datagrams of %d bytes: between 8 and 65507 are possible", size)
	}
	c := &udpClient{datagram: pattern(size), buffer: make([]byte, size+1)}
	var dialer net.Dialer
	err := from.Do(func() (err error) {
		c.conn, err = dialer.DialUDP(ctx, "udp", netip.AddrPort{}, server)
		return err
	})
	return c, err
}

func (c *udpClient) send(seq int) error {
	binary.BigEndian.PutUint64(c.datagram, uint64(seq))
	_, err := c.conn.Write(c.datagram)
	return err
}

func (c *udpClient) receive(ctx context.Context, timeout time.Duration) (int, error) {
	stop, err := setDeadline(ctx, c.conn, timeout)
	if err != nil {
		return 0, err
	}
	defer stop()
	n, err := c.conn.Read(c.buffer)
	if err != nil {
		return 0, err
	}
	if n != len(c.datagram) || !bytes.Equal(c.buffer[8:n], c.datagram[8:]) {
		return 0, fmt.Errorf("%d bytes came back, not the ones sent", n)
	}
	return int(binary.BigEndian.Uint64(c.buffer)), nil
}
