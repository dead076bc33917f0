package tests

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SendFrame sends one Ethernet frame, as it is, out of an interface of a place.
func SendFrame(place Place, ifname string, frame []byte) error {
	s, err := NewSender(place, ifname)
	if err != nil {
		return err
	}
	defer s.Close()
	return s.Send(frame)
}

// Sender sends Ethernet frames out of an interface.
type Sender struct {
	ifname    string
	fd, index int
}

// NewSender returns a sender for an interface of a place. Call Close when done.
func NewSender(place Place, ifname string) (*Sender, error) {
	fd, index, err := packetSocket(place, ifname)
	if err != nil {
		return nil, fmt.Errorf("send frames from %s: %w", ifname, err)
	}
	return &Sender{ifname: ifname, fd: fd, index: index}, nil
}

// Send sends one frame, as it is.
func (s *Sender) Send(frame []byte) error {
	if err := unix.Sendto(s.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: s.index}); err != nil {
		return fmt.Errorf("send a frame of %d bytes from %s: %w", len(frame), s.ifname, err)
	}
	return nil
}

// Close ends the sender.
func (s *Sender) Close() error { return unix.Close(s.fd) }

// GSO says how a frame of [SendPaged] is to be cut into segments, as struct virtio_net_hdr has it.
type GSO struct {
	Type uint8  // unix.VIRTIO_NET_HDR_GSO_*
	Size uint16 // bytes of payload in each segment
	// ChecksumStart and ChecksumOffset are where the stack is to begin to sum, and to put the sum behind that.
	ChecksumStart, ChecksumOffset uint16
}

// SendPaged is SendFrame for a frame of more than a page, of which only the first linear bytes lie in the linear part
// of the socket buffer, whatever headers they cut through; gso may be nil. A pod with a packet socket can do the same.
func SendPaged(place Place, ifname string, frame []byte, linear int, gso *GSO) error {
	fd, index, err := packetSocket(place, ifname)
	if err != nil {
		return fmt.Errorf("send a frame from %s: %w", ifname, err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return os.NewSyscallError("setsockopt PACKET_VNET_HDR", err)
	}
	// struct virtio_net_hdr (include/uapi/linux/virtio_net.h), native byte order
	header := make([]byte, 10, 10+len(frame))
	binary.NativeEndian.PutUint16(header[2:], uint16(linear))
	if gso != nil {
		header[0], header[1] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, gso.Type
		binary.NativeEndian.PutUint16(header[4:], gso.Size)
		binary.NativeEndian.PutUint16(header[6:], gso.ChecksumStart)
		binary.NativeEndian.PutUint16(header[8:], gso.ChecksumOffset)
	}
	if err := unix.Sendto(fd, append(header, frame...), 0, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
		return fmt.Errorf("send a paged frame of %d bytes from %s: %w", len(frame), ifname, err)
	}
	return nil
}

// packetSocket opens a packet socket in a place, and returns the index of an interface, 0 without a name. It receives nothing until it is bound to a protocol.
func packetSocket(place Place, ifname string) (fd, index int, err error) {
	err = place.Do(func() error {
		if ifname != "" {
			i, err := net.InterfaceByName(ifname)
			if err != nil {
				return err
			}
			index = i.Index
		}
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return os.NewSyscallError("socket", err)
	})
	return fd, index, err
}

// Capture receives the frames that arrive at an interface.
type Capture struct {
	ifname string
	match  func(frame []byte) bool
	file   *os.File
	buffer []byte
}

// NewCapture starts to capture the frames that arrive at an interface of a place, or at all if ifname is empty, those to
// come too, and for which match is true; nil is all. Frames that leave the interface are not captured. Start it before the traffic, and call Close when done.
func NewCapture(place Place, ifname string, match func(frame []byte) bool) (*Capture, error) {
	fd, index, err := packetSocket(place, ifname)
	if err != nil {
		return nil, fmt.Errorf("capture at %s: %w", ifname, err)
	}
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	err = errors.Join(
		os.NewSyscallError("setsockopt PACKET_AUXDATA", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1)),
		// else what is sent fills the buffer too
		os.NewSyscallError("setsockopt PACKET_IGNORE_OUTGOING", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)),
		os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: index, Protocol: all})))
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("capture at %s: %w", ifname, err)
	}
	file := os.NewFile(uintptr(fd), "packet:"+ifname)
	return &Capture{ifname: ifname, match: match, file: file, buffer: make([]byte, 1<<16)}, nil
}

// Close ends the capture.
func (c *Capture) Close() error { return c.file.Close() }

// Next returns the next frame, from its Ethernet header on, VLAN tags included. It waits for it no longer than
// timeout; the error is os.ErrDeadlineExceeded then.
func (c *Capture) Next(ctx context.Context, timeout time.Duration) ([]byte, error) {
	stop, err := setDeadline(ctx, c.file, timeout)
	if err != nil {
		return nil, err
	}
	defer stop()
	for {
		frame, err := c.receive()
		if err != nil {
			return nil, fmt.Errorf("capture at %s: %w", c.ifname, err)
		}
		if c.match == nil || c.match(frame) {
			return frame, nil
		}
	}
}

// receive returns the next frame.
func (c *Capture) receive() ([]byte, error) {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	var (
		n, controlLen int
		control       [128]byte
		recvErr       error
	)
	err = raw.Read(func(fd uintptr) bool {
		n, controlLen, _, _, recvErr = unix.Recvmsg(int(fd), c.buffer, control[:], 0)
		return !errors.Is(recvErr, unix.EAGAIN) && !errors.Is(recvErr, unix.EINTR)
	})
	if err := errors.Join(err, os.NewSyscallError("recvmsg", recvErr)); err != nil {
		return nil, err
	}
	return restoreTag(c.buffer[:n], control[:controlLen])
}

// restoreTag returns a copy of a frame with the outer VLAN tag in its place again: the kernel hands it over apart.
func restoreTag(frame, control []byte) ([]byte, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, os.NewSyscallError("recvmsg control", err)
	}
	const addresses = 12 // both hardware addresses
	for _, m := range messages {
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA ||
			len(m.Data) < int(unsafe.Sizeof(unix.TpacketAuxdata{})) || len(frame) < addresses {
			continue
		}
		aux := (*unix.TpacketAuxdata)(unsafe.Pointer(&m.Data[0]))
		if aux.Status&unix.TP_STATUS_VLAN_VALID == 0 {
			continue
		}
		protocol := uint16(unix.ETH_P_8021Q)
		if aux.Status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
			protocol = aux.Vlan_tpid
		}
		tagged := append(make([]byte, 0, len(frame)+4), frame[:addresses]...)
		tagged = binary.BigEndian.AppendUint16(tagged, protocol)
		tagged = binary.BigEndian.AppendUint16(tagged, aux.Vlan_tci)
		return append(tagged, frame[addresses:]...), nil
	}
	return append([]byte(nil), frame...), nil
}

// SendRawIP sends an IP packet, as it is from its IP header on, through the routing of a place: whoever may open a raw
// socket can do the same.
func SendRawIP(place Place, packet []byte) error {
	if len(packet) < 20 {
		return fmt.Errorf("send a raw packet of %d bytes: too short", len(packet))
	}
	family, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(packet[16:20])})
	if packet[0]>>4 == 6 && len(packet) >= 40 {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte(packet[24:40])}
	}
	return place.Do(func() error {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) // the header is in the packet
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		defer unix.Close(fd)
		return os.NewSyscallError("sendto", unix.Sendto(fd, packet, 0, to))
	})
}
