package integration

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/internal/ethtool"
	"github.com/xdp-cni/xdp-cni/tests"
)

// known is a UDP flow between two pods that goes directly.
type known struct {
	*redirected
	t    *testing.T
	conn *net.UDPConn
	echo *tests.Echo
	sent byte
}

// loss is how long an answer that may be lost is waited for. Nothing depends on it but what is expected to be lost.
const loss = 200 * time.Millisecond

// startNative is startRedirected for mode native, with pods that take frames.
func startNative(t *testing.T, shape func(n *tests.Node) tests.Conf) (*redirected, *tests.Network) {
	t.Helper()
	xdp := tests.Conf{"mode": "native", "redirect": true}
	r := startRedirected(t, shape, xdp)
	network := tests.MustNetwork(t, r.node, tests.Conflist("redirect", "1.1.0", shape(r.node), r.node.XDP(xdp)))
	allTakeFrames(t, network, r.client, r.server)
	return r, network
}

// allTakeFrames makes pods of mode native take frames: where GRO does not do, they run an XDP program, and STATUS finds it.
func allTakeFrames(t *testing.T, network *tests.Network, pods ...*tests.Pod) {
	t.Helper()
	if nativeTargets() {
		return
	}
	for _, pod := range pods {
		takesFrames(t, pod, true)
	}
	if err := network.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// takesFrames makes a pod's end take frames that are redirected to it in the driver, or no longer.
func takesFrames(t *testing.T, pod *tests.Pod, on bool) {
	t.Helper()
	err := pod.Do(func() error {
		if nativeTargets() {
			return ethtool.SetGRO(pod.IfName, on)
		}
		return passAll(pod, on)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// passAll makes a pod, in whose network namespace it runs, run an XDP program that passes all, or no longer.
func passAll(pod *tests.Pod, on bool) error {
	end, err := netlink.LinkByName(pod.IfName)
	if err != nil {
		return err
	}
	if !on {
		return netlink.LinkSetXdpFdWithFlags(end, -1, int(link.XDPDriverMode))
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		return err
	}
	defer prog.Close()
	return netlink.LinkSetXdpFdWithFlags(end, prog.FD(), int(link.XDPDriverMode))
}

func (r *redirected) know(t *testing.T, address netip.Addr) *known {
	t.Helper()
	k := &known{redirected: r, t: t, echo: tests.MustEcho(t, r.server, address)}
	err := r.client.Do(func() (err error) {
		k.conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(k.echo.UDP))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.conn.Close() })
	before := readStats(t, r.node, r.client)
	for range 3 {
		if !k.exchange(patience) {
			t.Fatal("a flow that begins has no answer")
		}
	}
	if got := readStats(t, r.node, r.client).since(before).Egress["redirect"].Packets; got < 1 {
		t.Fatalf("%d of 3 packets of a flow went directly: this tests nothing", got)
	}
	return k
}

// payload of a request that is not sent again.
func (k *known) payload() []byte {
	k.sent++
	return bytes.Repeat([]byte{k.sent}, 64)
}

// exchange tells whether a datagram comes back within timeout. Late ones of before do not count.
func (k *known) exchange(timeout time.Duration) bool {
	k.t.Helper()
	sent := k.payload()
	if _, err := k.conn.Write(sent); err != nil {
		k.t.Fatal(err)
	}
	buffer := make([]byte, 2000)
	if err := k.conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		k.t.Fatal(err)
	}
	for {
		n, err := k.conn.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false
		}
		if err != nil {
			k.t.Fatal(err)
		}
		if bytes.Equal(buffer[:n], sent) {
			return true
		}
	}
}

// expectExchanges has n datagrams come back, or none of them, and returns how many went directly.
func (k *known) expectExchanges(when string, n int, come bool) (direct uint64) {
	k.t.Helper()
	before := readStats(k.t, k.node, k.client)
	timeout := patience
	if !come {
		timeout = loss
	}
	for i := range n {
		if got := k.exchange(timeout); got != come {
			k.t.Errorf("%s: datagram %d comes back: %v", when, i, got)
			break
		}
	}
	return readStats(k.t, k.node, k.client).since(before).Egress["redirect"].Packets
}

// TestRedirectPodTurnsGROOff has a pod turn off what it needs to receive in the driver, GRO or its XDP program. What
// others hand to it is lost until STATUS looks, and no longer; when it is back, packets go directly again.
func TestRedirectPodTurnsGROOff(t *testing.T) {
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			r, network := startNative(t, shape.conf)
			k := r.know(t, r.server.IPv4())
			status := func() {
				t.Helper()
				if err := network.Status(t.Context()); err != nil {
					t.Errorf("STATUS: %v", err)
				}
			}
			for range 2 {
				takesFrames(t, r.server, false)
				if got := k.expectExchanges("it is off", 3, false); got == 0 {
					t.Error("nothing was lost on the direct way: this tests nothing")
				}
				status()
				if got := k.expectExchanges("it is off, after STATUS", 5, true); got != 0 {
					t.Errorf("%d packets went directly to a pod without it", got)
				}
				if err := tests.EchoTCP(t.Context(), r.client, k.echo.TCP, 1<<20); err != nil {
					t.Errorf("it is off, after STATUS: %v", err)
				}
				// a pod whose XDP program came after ADD was made without what it now lacks again
				if err := network.Check(t.Context(), r.server); (err == nil) == nativeTargets() {
					t.Errorf("CHECK: %v", err)
				}
				takesFrames(t, r.server, true)
				if got := k.expectExchanges("it is on", 3, true); got != 0 {
					t.Errorf("%d packets went directly before anybody looked", got)
				}
				status()
				if err := network.Check(t.Context(), r.server); err != nil {
					t.Error(err)
				}
				// lost packets may have made the old flow unknown for a while
				k = r.know(t, r.server.IPv4())
			}
		})
	}
}

// atPodEnd runs an XDP program of the server's own in the driver, and counts what of the flow it sees. Instructions
// come with the packet's first 42 bytes within bounds, R6 the packet and R9 the context; they end with an action in R0.
func (k *known) atPodEnd(instructions asm.Instructions) (seen func() uint64) {
	k.t.Helper()
	counter, err := ebpf.NewMap(&ebpf.MapSpec{Name: "seen", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { counter.Close() })
	port := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, k.echo.UDP.Port()))
	program := append(asm.Instructions{
		asm.Mov.Reg(asm.R9, asm.R1),
		asm.LoadMem(asm.R6, asm.R1, 0, asm.Word), // xdp_md.data
		asm.LoadMem(asm.R2, asm.R1, 4, asm.Word), // data_end
		asm.Mov.Reg(asm.R3, asm.R6),
		asm.Add.Imm(asm.R3, ethernetLen+ipv4Len+udpLen),
		asm.JGT.Reg(asm.R3, asm.R2, "pass"),
		asm.LoadMem(asm.R4, asm.R6, 23, asm.Byte),
		asm.JNE.Imm(asm.R4, unix.IPPROTO_UDP, "pass"),
		asm.LoadMem(asm.R4, asm.R6, 36, asm.Half),
		asm.JNE.Imm(asm.R4, int32(port), "pass"),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, counter.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
	}, instructions...)
	program = append(program, asm.Return(), asm.Mov.Imm(asm.R0, 2).WithSymbol("pass"), asm.Return())
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", AttachType: ebpf.AttachXDP, Instructions: program})
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { prog.Close() })
	err = k.server.Do(func() error {
		pod, err := netlink.LinkByName(k.server.IfName)
		if err != nil {
			return err
		}
		if pod.Attrs().Xdp != nil && pod.Attrs().Xdp.Attached { // that of startNative
			if err := passAll(k.server, false); err != nil {
				return err
			}
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: pod.Attrs().Index, Flags: link.XDPDriverMode})
		if err == nil {
			k.t.Cleanup(func() { l.Close() })
		}
		return err
	})
	if err != nil {
		k.t.Fatal(err)
	}
	return func() (n uint64) {
		k.t.Helper()
		if err := counter.Lookup(uint32(0), &n); err != nil {
			k.t.Fatal(err)
		}
		return n
	}
}

// TestRedirectPodRunsXDP: in mode tcx packets pass a program in the driver of the pod's end by, until STATUS finds it;
// from then on they go by the stack.
func TestRedirectPodRunsXDP(t *testing.T) {
	r := startRedirected(t, func(n *tests.Node) tests.Conf { return n.Bridge(tests.IPv4) }, tests.Conf{"mode": "tcx", "redirect": true})
	network := tests.MustNetwork(t, r.node, tests.Conflist("redirect", "1.1.0",
		r.node.Bridge(tests.IPv4), r.node.XDP(tests.Conf{"mode": "tcx", "redirect": true})))
	k := r.know(t, r.server.IPv4())
	seen := k.atPodEnd(asm.Instructions{asm.Mov.Imm(asm.R0, 2)})
	k.expectExchanges("before STATUS", xdpFrames, true)
	if n := seen(); n != 0 {
		t.Errorf("the program saw %d packets that went directly", n)
	}
	if err := network.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := seen()
	if direct := k.expectExchanges("after STATUS", xdpFrames, true); direct != 0 {
		t.Errorf("%d packets went directly", direct)
	}
	if n := seen() - before; n != xdpFrames {
		t.Errorf("the program saw %d packets, want %d", n, xdpFrames)
	}
}

// handedOver is how many frames a veth end got by redirect in the driver, without a socket buffer: what its peer says.
func (k *known) handedOver() (frames uint64) {
	k.t.Helper()
	host, err := k.server.HostInterface()
	if err != nil {
		k.t.Fatal(err)
	}
	err = k.node.Do(func() error {
		all, err := ethtoolStatistics(host.Attrs().Name)
		frames = all["tx_queue_0_xdp_xmit"]
		return err
	})
	if err != nil {
		k.t.Fatal(err)
	}
	return frames
}

// ethtoolStatistics reads what a driver counts (include/uapi/linux/ethtool.h).
func ethtoolStatistics(name string) (map[string]uint64, error) {
	const stringLen, most, statisticsSet = 32, 200, 1
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	call := func(value unsafe.Pointer) error {
		request := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: value}
		copy(request.name[:], name)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
		if errno != 0 {
			return os.NewSyscallError("ioctl SIOCETHTOOL", errno)
		}
		return nil
	}
	names := struct {
		command, set, len uint32
		strings           [most][stringLen]byte
	}{command: unix.ETHTOOL_GSTRINGS, set: statisticsSet}
	values := struct {
		command, len uint32
		values       [most]uint64
	}{command: unix.ETHTOOL_GSTATS}
	if err := call(unsafe.Pointer(&names)); err != nil {
		return nil, err
	}
	if names.len > most {
		return nil, fmt.Errorf("%s has %d statistics", name, names.len)
	}
	if err := call(unsafe.Pointer(&values)); err != nil {
		return nil, err
	}
	all := map[string]uint64{}
	for i := range values.len {
		all[unix.ByteSliceToString(names.strings[i][:])] = values.values[i]
	}
	return all, nil
}

// xdpFrames is how many datagrams each test of XDP in a pod sends.
const xdpFrames = 25

// TestRedirectToXDP runs XDP programs at the end of a pod, in the driver: frames of flows that go directly come to them
// without a socket buffer, and what they answer goes directly too.
func TestRedirectToXDP(t *testing.T) {
	swap := func(one, other int16, size asm.Size) asm.Instructions {
		return asm.Instructions{
			asm.LoadMem(asm.R3, asm.R6, one, size), asm.LoadMem(asm.R4, asm.R6, other, size),
			asm.StoreMem(asm.R6, other, asm.R3, size), asm.StoreMem(asm.R6, one, asm.R4, size),
		}
	}
	answer := asm.Instructions{}
	for _, part := range []asm.Instructions{
		swap(0, 6, asm.Word), swap(4, 10, asm.Half), swap(26, 30, asm.Word), swap(34, 36, asm.Half),
	} {
		answer = append(answer, part...)
	}
	for _, shape := range shapes {
		for _, test := range []struct {
			name    string
			program asm.Instructions
			comes   bool
		}{
			{"pass", asm.Instructions{asm.Mov.Imm(asm.R0, 2)}, true},
			{"drop", asm.Instructions{asm.Mov.Imm(asm.R0, 1)}, false},
			{"answer", append(answer, asm.Mov.Imm(asm.R0, 3)), true},
		} {
			t.Run(shape.name+" "+test.name, func(t *testing.T) {
				r, _ := startNative(t, shape.conf)
				k := r.know(t, r.server.IPv4())
				seen := k.atPodEnd(test.program)
				n := xdpFrames
				if !test.comes {
					n = 3 // each is waited for
				}
				quiet(t, r.client, r.server)
				frames := k.handedOver()
				before := [2]stats{readStats(t, r.node, r.client), readStats(t, r.node, r.server)}
				sent := 0
				for range n {
					timeout := patience
					if !test.comes {
						timeout = loss
					}
					if k.exchange(timeout) != test.comes {
						t.Fatalf("datagram %d comes back: %v", sent, !test.comes)
					}
					sent++
				}
				want := times(uint64(sent), frameLen(r.server.IPv4(), 64))
				client, server := readStats(t, r.node, r.client).since(before[0]), readStats(t, r.node, r.server).since(before[1])
				if got := seen(); got != uint64(sent) {
					t.Errorf("the pod's program saw %d of %d frames", got, sent)
				}
				expect(t, "directly to the server", client.Egress["redirect"], want)
				expect(t, "came to the server", server.Protocols.Ingress["udp"], want)
				if got := k.handedOver() - frames; got < uint64(sent) {
					t.Errorf("%d frames came without a socket buffer, want at least %d", got, sent)
				}
				back := counter{}
				if test.comes {
					back = want
				}
				expect(t, "directly to the client", server.Egress["redirect"], back)
				expect(t, "came to the client", client.Protocols.Ingress["udp"], back)
			})
		}
	}
}

// TestRedirectToAFXDP has an AF_XDP socket of a pod receive what other pods send directly.
func TestRedirectToAFXDP(t *testing.T) {
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			r, _ := startNative(t, shape.conf)
			k := r.know(t, r.server.IPv4())
			sockets, err := ebpf.NewMap(&ebpf.MapSpec{Name: "sockets", Type: ebpf.XSKMap, KeySize: 4, ValueSize: 4, MaxEntries: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer sockets.Close()
			x := newXSK(t, r.server)
			if err := sockets.Put(uint32(0), uint32(x.fd)); err != nil {
				t.Fatal(err)
			}
			seen := k.atPodEnd(asm.Instructions{
				asm.LoadMapPtr(asm.R1, sockets.FD()), asm.Mov.Imm(asm.R2, 0), asm.Mov.Imm(asm.R3, 1), asm.FnRedirectMap.Call(),
			})
			quiet(t, r.client, r.server)
			frames := k.handedOver()
			before := readStats(t, r.node, r.client)
			for i := range xdpFrames {
				payload := k.payload()
				if _, err := k.conn.Write(payload); err != nil {
					t.Fatal(err)
				}
				frame := x.next(t)
				if !bytes.HasSuffix(frame, payload) || len(frame) != ethernetLen+ipv4Len+udpLen+len(payload) {
					t.Fatalf("frame %d is %x, want one that ends with %x", i, frame, payload)
				}
			}
			client := readStats(t, r.node, r.client).since(before)
			expect(t, "directly to the server", client.Egress["redirect"], times(xdpFrames, frameLen(r.server.IPv4(), 64)))
			if got := seen(); got != xdpFrames {
				t.Errorf("the pod's program saw %d of %d frames", got, xdpFrames)
			}
			if got := k.handedOver() - frames; got < xdpFrames {
				t.Errorf("%d frames came without a socket buffer, want %d", got, xdpFrames)
			}
			if k.exchange(loss) {
				t.Error("the stack answered what the AF_XDP socket was given")
			}
		})
	}
}

// xsk is an AF_XDP socket in copy mode that only receives (Documentation/networking/af_xdp.rst).
type xsk struct {
	fd                 int
	memory, rx, fill   []byte
	offsets            unix.XDPMmapOffsets
	consumed, supplied uint32
}

// Size of a frame's place, and how many there are, in the memory and in each ring.
const (
	xskFrame = 4096
	xskRing  = 64
)

func newXSK(t *testing.T, pod *tests.Pod) *xsk {
	t.Helper()
	x := &xsk{fd: -1}
	err := pod.Do(func() (err error) { return x.open(pod.IfName) })
	t.Cleanup(x.close)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func (x *xsk) open(ifname string) (err error) {
	pod, err := netlink.LinkByName(ifname)
	if err != nil {
		return err
	}
	if x.fd, err = unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return os.NewSyscallError("socket AF_XDP", err)
	}
	if x.memory, err = unix.Mmap(-1, 0, xskRing*xskFrame, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return os.NewSyscallError("mmap", err)
	}
	region := unix.XDPUmemReg{Addr: uint64(uintptr(unsafe.Pointer(&x.memory[0]))), Len: uint64(len(x.memory)), Size: xskFrame}
	option := string(unsafe.Slice((*byte)(unsafe.Pointer(&region)), unsafe.Sizeof(region)))
	if err := unix.SetsockoptString(x.fd, unix.SOL_XDP, unix.XDP_UMEM_REG, option); err != nil {
		return os.NewSyscallError("setsockopt XDP_UMEM_REG", err)
	}
	for _, ring := range []int{unix.XDP_UMEM_FILL_RING, unix.XDP_UMEM_COMPLETION_RING, unix.XDP_RX_RING} {
		if err := unix.SetsockoptInt(x.fd, unix.SOL_XDP, ring, xskRing); err != nil {
			return os.NewSyscallError("setsockopt of a ring", err)
		}
	}
	size := uint32(unsafe.Sizeof(x.offsets))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(x.fd), unix.SOL_XDP, unix.XDP_MMAP_OFFSETS,
		uintptr(unsafe.Pointer(&x.offsets)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return os.NewSyscallError("getsockopt XDP_MMAP_OFFSETS", errno)
	}
	const descriptor, address = int(unsafe.Sizeof(unix.XDPDesc{})), 8
	x.rx, err = unix.Mmap(x.fd, unix.XDP_PGOFF_RX_RING, int(x.offsets.Rx.Desc)+xskRing*descriptor, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return os.NewSyscallError("mmap of the RX ring", err)
	}
	x.fill, err = unix.Mmap(x.fd, unix.XDP_UMEM_PGOFF_FILL_RING, int(x.offsets.Fr.Desc)+xskRing*address, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return os.NewSyscallError("mmap of the fill ring", err)
	}
	for i := range uint64(xskRing) {
		x.supply(i * xskFrame)
	}
	err = unix.Bind(x.fd, &unix.SockaddrXDP{Flags: unix.XDP_COPY, Ifindex: uint32(pod.Attrs().Index), QueueID: 0})
	return os.NewSyscallError("bind", err)
}

func (x *xsk) close() {
	for _, mapped := range [][]byte{x.rx, x.fill} {
		if mapped != nil {
			_ = unix.Munmap(mapped)
		}
	}
	if x.fd >= 0 {
		_ = unix.Close(x.fd)
	}
	if x.memory != nil {
		_ = unix.Munmap(x.memory)
	}
}

// word is a ring's producer or consumer.
func word(ring []byte, offset uint64) *uint32 { return (*uint32)(unsafe.Pointer(&ring[offset])) }

// supply gives the kernel a place for a frame.
func (x *xsk) supply(address uint64) {
	*(*uint64)(unsafe.Pointer(&x.fill[x.offsets.Fr.Desc+uint64(x.supplied%xskRing)*8])) = address
	x.supplied++
	atomic.StoreUint32(word(x.fill, x.offsets.Fr.Producer), x.supplied)
}

// next waits for the next frame.
func (x *xsk) next(t *testing.T) []byte {
	t.Helper()
	for deadline := time.Now().Add(patience); atomic.LoadUint32(word(x.rx, x.offsets.Rx.Producer)) == x.consumed; {
		if time.Now().After(deadline) {
			t.Fatal("no frame comes")
		}
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(x.fd), Events: unix.POLLIN}}, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
	}
	d := *(*unix.XDPDesc)(unsafe.Pointer(&x.rx[x.offsets.Rx.Desc+uint64(x.consumed%xskRing)*uint64(unsafe.Sizeof(unix.XDPDesc{}))]))
	x.consumed++
	frame := bytes.Clone(x.memory[d.Addr : d.Addr+uint64(d.Len)])
	atomic.StoreUint32(word(x.rx, x.offsets.Rx.Consumer), x.consumed)
	x.supply(d.Addr / xskFrame * xskFrame)
	return frame
}
