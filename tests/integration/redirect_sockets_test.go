package integration

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/tests"
)

// transport is a protocol to talk by.
type transport struct {
	name string
	// open makes a client's socket to a server; the port of local may be 0 for any.
	open func(t *testing.T, from tests.Place, local, to netip.AddrPort) (speaker, error)
	// port is that of a server of echoes.
	port func(e *tests.Echo) uint16
	// heard is where a server has last heard from.
	heard func(e *tests.Echo) netip.AddrPort
}

var transports = []transport{
	{
		name:  "tcp",
		open:  openStream,
		port:  func(e *tests.Echo) uint16 { return e.TCP.Port() },
		heard: func(e *tests.Echo) netip.AddrPort { tcp, _ := e.Peers(); return tcp },
	},
	{
		name:  "udp",
		open:  openDatagrams,
		port:  func(e *tests.Echo) uint16 { return e.UDP.Port() },
		heard: func(e *tests.Echo) netip.AddrPort { _, udp := e.Peers(); return udp },
	},
}

// speaker is a client's socket to a server of echoes.
type speaker interface {
	// exchange sends data and reads it back, from the server's address and from no other.
	exchange(data []byte) error
	io.Closer
}

// answerTimeout bounds what has to be answered at once: where something is wrong, much is not.
var answerTimeout = tests.Patience(4 * time.Second)

// stream is a TCP connection.
type stream struct {
	*net.TCPConn
	to netip.AddrPort
}

func openStream(t *testing.T, from tests.Place, local, to netip.AddrPort) (speaker, error) {
	conn, err := tests.DialTCP(t.Context(), from, local, to, answerTimeout)
	if err != nil {
		return nil, err
	}
	return stream{conn, to}, nil
}

func (s stream) exchange(data []byte) error {
	if peer := s.RemoteAddr().(*net.TCPAddr).AddrPort(); peer != s.to {
		return fmt.Errorf("connected to %s, want %s", peer, s.to)
	}
	if err := s.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	sending := make(chan error, 1)
	go func() {
		_, err := s.Write(data)
		sending <- err
	}()
	came := make([]byte, len(data))
	n, err := io.ReadFull(s, came)
	if err := errors.Join(err, <-sending); err != nil {
		return fmt.Errorf("after %d of %d bytes came from %s: %w", n, len(data), s.to, err)
	}
	if !bytes.Equal(came, data) {
		return fmt.Errorf("%d bytes came from %s, not the ones sent", n, s.to)
	}
	return nil
}

// datagramSize and window are how large datagrams are and how many of them may be on their way.
const (
	datagramSize = 1024
	window       = 8
)

// datagramSocket is a UDP socket of a client for one server. Another may share its socket if it is not connected.
type datagramSocket struct {
	*net.UDPConn
	to        netip.AddrPort
	connected bool
}

func openDatagrams(t *testing.T, from tests.Place, local, to netip.AddrPort) (speaker, error) {
	var dialer net.Dialer
	s := datagramSocket{to: to, connected: true}
	err := from.Do(func() (err error) {
		s.UDPConn, err = dialer.DialUDP(t.Context(), "udp", local, to)
		return err
	})
	return s, err
}

// bindDatagrams makes a UDP socket that is not connected.
func bindDatagrams(from tests.Place, local netip.AddrPort) (conn *net.UDPConn, err error) {
	err = from.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(local))
		return err
	})
	return conn, err
}

func (s datagramSocket) exchange(data []byte) error {
	if err := s.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	for len(data) > 0 {
		part := data[:min(len(data), window*datagramSize)]
		data = data[len(part):]
		if err := s.exchangeWindow(part); err != nil {
			return fmt.Errorf("to %s: %w", s.to, err)
		}
	}
	return nil
}

// exchangeWindow sends as many datagrams as may be on their way. They may come back in any order, each once.
func (s datagramSocket) exchangeWindow(data []byte) error {
	sent := map[string]bool{}
	for number := uint32(0); len(data) > 0; number++ {
		part := data[:min(len(data), datagramSize)]
		data = data[len(part):]
		datagram := append(binary.BigEndian.AppendUint32(nil, number), part...)
		sent[string(datagram)] = true
		if err := s.send(datagram); err != nil {
			return err
		}
	}
	buffer := make([]byte, 2*datagramSize)
	for len(sent) > 0 {
		n, peer, err := s.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return fmt.Errorf("%d datagrams have not come back: %w", len(sent), err)
		}
		if peer = netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port()); peer != s.to {
			return fmt.Errorf("a datagram came from %s", peer)
		}
		if !sent[string(buffer[:n])] {
			return fmt.Errorf("%d bytes came that were not sent, or a second time", n)
		}
		delete(sent, string(buffer[:n]))
	}
	return nil
}

func (s datagramSocket) send(datagram []byte) (err error) {
	if s.connected {
		_, err = s.Write(datagram)
	} else {
		_, err = s.WriteToUDPAddrPort(datagram, s.to)
	}
	return err
}

// How much is said in a conversation.
const (
	rounds     = 10
	roundBytes = 100
	bulkBytes  = 256 << 10
)

// noise is data of which no part is like another.
func noise(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(data) // never fails
	return data
}

// chat sends little and often, to and fro.
func chat(s speaker) error {
	for round := range rounds {
		if err := s.exchange(noise(roundBytes + round)); err != nil {
			return fmt.Errorf("round %d of %d: %w", round+1, rounds, err)
		}
	}
	return nil
}

// bulk sends much, both ways at once, between little.
func bulk(s speaker) error {
	if err := chat(s); err != nil {
		return err
	}
	if err := s.exchange(noise(bulkBytes)); err != nil {
		return fmt.Errorf("%d bytes: %w", bulkBytes, err)
	}
	if err := chat(s); err != nil {
		return fmt.Errorf("after %d bytes: %w", bulkBytes, err)
	}
	return nil
}

// talk opens a socket from any port and says all by it.
func (c call) talk(t *testing.T, from redirectPod, to netip.AddrPort) {
	t.Helper()
	local := netip.AddrPortFrom(families(from.Pod)[c.family], 0)
	s, err := c.open(t, from, local, to)
	if err != nil {
		t.Errorf("%s to %s: %v", c, to, err)
		return
	}
	if err := errors.Join(bulk(s), s.Close()); err != nil {
		t.Errorf("%s: %v", c, err)
	}
}

// serverHeard expects the server to have last heard from an address.
func (c call) serverHeard(t *testing.T, from netip.Addr) {
	t.Helper()
	expect(t, c.String()+": where the server heard from", c.heard(c.server.echo).Addr(), from)
}
