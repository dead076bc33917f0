// Package talk is what containers of these tests say to each other, and tests to containers: a server of TCP and UDP on
// one port, and its clients.
//
// A TCP connection begins with a line. "who": the server answers with its own name and where the client connected from.
// "sink": the client sends bytes until it closes its side, and the server answers how many came. A datagram is sent back.
package talk

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"
)

// patience bounds each exchange but Fill.
const patience = 30 * time.Second

// Server is a server of a port. Close both listeners when done.
type Server struct {
	Name    string // what "who" answers
	TCP     *net.TCPListener
	Packets *net.UDPConn
}

// Listen opens both sockets of a server on the calling thread, in its network namespace.
func Listen(name string, at netip.AddrPort) (*Server, error) {
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	return &Server{Name: name, TCP: tcp, Packets: udp}, nil
}

// Serve serves until the sockets are closed.
func (s *Server) Serve() {
	go s.echo()
	for {
		conn, err := s.TCP.Accept()
		if err != nil {
			return
		}
		go s.answer(conn)
	}
}

// Close ends Serve.
func (s *Server) Close() error { return errors.Join(s.TCP.Close(), s.Packets.Close()) }

func (s *Server) echo() {
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := s.Packets.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil { // an ICMP error of an earlier reply is not an end
			_, _ = s.Packets.WriteToUDPAddrPort(buffer[:n], from)
		}
	}
}

func (s *Server) answer(conn net.Conn) {
	defer conn.Close()
	reader := bufio.NewReader(conn)
	line, err := reader.ReadString('\n')
	if err != nil {
		return
	}
	switch strings.TrimSpace(line) {
	case "who":
		peer := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
		fmt.Fprintf(conn, "%s %s\n", s.Name, peer.Addr().Unmap())
	case "sink":
		n, _ := io.Copy(io.Discard, reader)
		fmt.Fprintf(conn, "%d\n", n)
	}
}

// Who asks a server for its name and for the address that it sees the caller under.
func Who(server netip.AddrPort) (name string, seen netip.Addr, err error) {
	conn, err := dial(server)
	if err != nil {
		return "", netip.Addr{}, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, "who\n"); err != nil {
		return "", netip.Addr{}, err
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return "", netip.Addr{}, err
	}
	name, address, _ := strings.Cut(strings.TrimSpace(string(answer)), " ")
	seen, err = netip.ParseAddr(address)
	return name, seen, err
}

// Fill sends to a server for as long as told, as fast as that takes it, and returns how much of it came and how long it
// took until all had.
func Fill(server netip.AddrPort, sending time.Duration) (received uint64, took time.Duration, err error) {
	conn, err := dial(server)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close()
	begin := time.Now()
	_ = conn.SetDeadline(begin.Add(10*sending + patience))
	if _, err := io.WriteString(conn, "sink\n"); err != nil {
		return 0, 0, err
	}
	_ = conn.SetWriteBuffer(64 << 10) // what is still queued when the time is over has to get there too
	for block := make([]byte, 16<<10); time.Since(begin) < sending; {
		if _, err := conn.Write(block); err != nil {
			return 0, 0, err
		}
	}
	if err := conn.CloseWrite(); err != nil {
		return 0, 0, err
	}
	_, err = fmt.Fscan(conn, &received)
	return received, time.Since(begin), err
}

// Send sends n datagrams of size bytes to a server, one right after the other, and waits for no answer.
func Send(server netip.AddrPort, n, size int) error {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
	if err != nil {
		return err
	}
	defer conn.Close()
	for datagram := make([]byte, size); n > 0; n-- {
		if _, err := conn.Write(datagram); err != nil {
			return err
		}
	}
	return nil
}

// Echo sends n datagrams of size bytes to a server, each when the one before has come back.
func Echo(server netip.AddrPort, n, size int) error {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
	if err != nil {
		return err
	}
	defer conn.Close()
	datagram, buffer := make([]byte, size), make([]byte, size+1)
	for i := range n {
		if size > 0 {
			datagram[0] = byte(i)
		}
		if _, err := conn.Write(datagram); err != nil {
			return fmt.Errorf("datagram %d of %d: %w", i+1, n, err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		got, err := conn.Read(buffer)
		if err != nil {
			return fmt.Errorf("echo %d of %d: %w", i+1, n, err)
		}
		if !bytes.Equal(buffer[:got], datagram) {
			return fmt.Errorf("echo %d of %d is not what was sent", i+1, n)
		}
	}
	return nil
}

// Stream sends datagrams to servers by turns, each when the one before has come back, until it is told to stop, and
// returns how many did. One that does not come back, or another in its place, is an error.
func Stream(servers []netip.AddrPort, stop func() bool) (n int, err error) {
	var conns []*net.UDPConn
	defer func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}()
	for _, server := range servers {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
		if err != nil {
			return 0, err
		}
		conns = append(conns, conn)
	}
	for buffer := make([]byte, 16); !stop(); time.Sleep(200 * time.Microsecond) {
		for i, conn := range conns {
			sent := binary.BigEndian.AppendUint64(nil, uint64(n))
			if _, err := conn.Write(sent); err != nil {
				return n, fmt.Errorf("datagram %d to %s: %w", n, servers[i], err)
			}
			at := time.Now()
			_ = conn.SetReadDeadline(at.Add(patience))
			got, err := conn.Read(buffer)
			if err != nil {
				return n, fmt.Errorf("datagram %d to %s, sent at %s: %w", n, servers[i], at.Format(time.StampMicro), err)
			}
			if !bytes.Equal(buffer[:got], sent) {
				return n, fmt.Errorf("datagram %d to %s: %x came back", n, servers[i], buffer[:got])
			}
			n++
		}
	}
	return n, nil
}

func dial(server netip.AddrPort) (*net.TCPConn, error) {
	dialer := net.Dialer{Timeout: patience}
	// DialTCP makes the socket on this thread, in its network namespace; Dial may not
	return dialer.DialTCP(context.Background(), "tcp", netip.AddrPort{}, server)
}
