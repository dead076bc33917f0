package tests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// PingPayload is the number of bytes after the ICMP header in a packet of [Ping]: packets are of 84 bytes in IPv4 and
// 104 in IPv6, from the IP header on.
const PingPayload = 56

// replyTimeout is how long one packet may take to come back.
var replyTimeout = Patience(2 * time.Second)

// Ping sends exactly n echo requests from a place to dst, one after the other, and checks that each is answered, once.
func Ping(ctx context.Context, from Place, dst netip.Addr, n int) error {
	p, err := newPinger(from, dst)
	if err != nil {
		return fmt.Errorf("ping %s: %w", dst, err)
	}
	defer p.close()
	for seq := range n {
		if err := p.send(seq); err != nil {
			return fmt.Errorf("ping %s: request %d of %d: %w", dst, seq+1, n, err)
		}
		if got, err := p.receive(ctx, replyTimeout); err != nil {
			return fmt.Errorf("ping %s: reply %d of %d: %w", dst, seq+1, n, err)
		} else if got != seq {
			return fmt.Errorf("ping %s: a second reply to request %d", dst, got+1)
		}
	}
	return nil
}

// PingCount sends exactly n echo requests, and returns how many were answered by the time that all were or wait has
// passed since the last one: for paths that drop.
func PingCount(ctx context.Context, from Place, dst netip.Addr, n int, wait time.Duration) (int, error) {
	p, err := newPinger(from, dst)
	if err != nil {
		return 0, fmt.Errorf("ping %s: %w", dst, err)
	}
	defer p.close()
	for seq := range n {
		if err := p.send(seq); err != nil {
			return 0, fmt.Errorf("ping %s: request %d of %d: %w", dst, seq+1, n, err)
		}
	}
	answered := make(map[int]bool, n)
	deadline := time.Now().Add(wait)
	for len(answered) < n {
		seq, err := p.receive(ctx, time.Until(deadline))
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			break
		} else if err != nil {
			return len(answered), fmt.Errorf("ping %s: %w", dst, err)
		}
		answered[seq] = true
	}
	return len(answered), nil
}

// pinger is a raw socket for the echo requests of one ID to one destination.
type pinger struct {
	conn           *icmp.PacketConn
	dst            netip.Addr
	protocol       int
	request, reply icmp.Type
	id             int
	payload        []byte
	buffer         []byte
}

func newPinger(from Place, dst netip.Addr) (*pinger, error) {
	dst = dst.Unmap()
	p := &pinger{
		dst: dst, protocol: 1, request: ipv4.ICMPTypeEcho, reply: ipv4.ICMPTypeEchoReply,
		id: int(rand.Uint32N(1 << 16)), payload: pattern(PingPayload), buffer: make([]byte, 1500),
	}
	network, wildcard := "ip4:icmp", "0.0.0.0"
	if dst.Is6() {
		p.protocol, p.request, p.reply = 58, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
		network, wildcard = "ip6:ipv6-icmp", "::"
	}
	err := from.Do(func() (err error) {
		p.conn, err = icmp.ListenPacket(network, wildcard)
		return err
	})
	return p, err
}

func (p *pinger) close() { _ = p.conn.Close() }

func (p *pinger) send(seq int) error {
	message := icmp.Message{Type: p.request, Body: &icmp.Echo{ID: p.id, Seq: seq, Data: p.payload}}
	packet, err := message.Marshal(nil) // the kernel fills in the checksum of ICMPv6
	if err != nil {
		return err
	}
	_, err = p.conn.WriteTo(packet, &net.IPAddr{IP: p.dst.AsSlice(), Zone: p.dst.Zone()})
	return err
}

// receive returns the sequence number of the next reply. A raw socket sees all ICMP of the namespace: most is not ours.
func (p *pinger) receive(ctx context.Context, timeout time.Duration) (int, error) {
	stop, err := setDeadline(ctx, p.conn, timeout)
	if err != nil {
		return 0, err
	}
	defer stop()
	for {
		n, peer, err := p.conn.ReadFrom(p.buffer)
		if err != nil {
			return 0, err
		}
		message, err := icmp.ParseMessage(p.protocol, p.buffer[:n])
		if err != nil || message.Type != p.reply {
			continue
		}
		echo, ok := message.Body.(*icmp.Echo)
		if !ok || echo.ID != p.id {
			continue
		}
		source, ok := peer.(*net.IPAddr)
		if !ok || !source.IP.Equal(p.dst.AsSlice()) {
			return 0, fmt.Errorf("reply from %s", peer)
		}
		if !bytes.Equal(echo.Data, p.payload) {
			return 0, errors.New("the payload came back changed")
		}
		return echo.Seq, nil
	}
}

// deadliner is a connection whose calls can be bounded in time.
type deadliner interface {
	SetDeadline(time.Time) error
}

// setDeadline bounds the calls on a connection by timeout and by ctx. Call stop when done.
func setDeadline(ctx context.Context, conn deadliner, timeout time.Duration) (stop func() bool, err error) {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	return context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }), nil
}

// pattern is n bytes of which none repeats at a power of two, so misplaced data shows.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i % 251)
	}
	return b
}
