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
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/tests"
)

// changesPerNode is how many changes each node sees under traffic: 100 in all.
const changesPerNode = 20

// changing is a node without main and IPAM plugins: what it makes of pods, and where, is the test's choice.
type changing struct {
	*tests.Node
	t            *testing.T
	mode, shape  string
	bridge       netlink.Link // nil: routed
	incarnations atomic.Uint64

	mu      sync.Mutex
	current map[netip.Addr]uint64    // number of the last incarnation whose ADD has returned
	had     map[uint64][2]netip.Addr // the addresses of each
	faults  []error
}

// incarnation is one life of a pod: a container. It answers, at its addresses, with its number.
type incarnation struct {
	*changing
	name      string // the identity of all its lives
	number    uint64
	addresses [2]netip.Addr
	filled    bool // the pod's end has another interface index than that of the first has
	pod       *tests.Pod
	veth      *tests.Veth
	stdin     string
	capture   *tests.Capture
	closers   []io.Closer
	running   sync.WaitGroup
}

// askPort is where all pods answer.
const askPort = 7777

// tokenLen is the length of what identifies an answer: the incarnation's number.
const tokenLen = 8

func newChanging(t *testing.T, mode, shape string) *changing {
	c := &changing{Node: start(t), t: t, mode: mode, shape: shape, current: map[netip.Addr]uint64{}, had: map[uint64][2]netip.Addr{}}
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/all/keep_addr_on_down"} {
		if err := c.Sysctl(key, "1"); err != nil {
			t.Fatal(err)
		}
	}
	if shape == "bridge" {
		c.must(c.Do(func() (err error) {
			if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}); err != nil {
				return err
			}
			if c.bridge, err = netlink.LinkByName("br0"); err != nil {
				return err
			}
			return netlink.LinkSetUp(c.bridge)
		}))
	}
	return c
}

func (c *changing) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *changing) fault(format string, values ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = append(c.faults, fmt.Errorf(format, values...))
}

func addressesOf(host byte) [2]netip.Addr {
	return [2]netip.Addr{
		netip.AddrFrom4([4]byte{10, 9, 0, host}),
		netip.AddrFrom16([16]byte{0xfd, 9, 15: host}),
	}
}

// gateways are the node's addresses.
var gateways = addressesOf(1)

// create makes a container with an interface, which serves, but is not attached to.
func (c *changing) create(name string, host byte, filled bool, options tests.VethOptions) *incarnation {
	c.t.Helper()
	i := &incarnation{changing: c, name: name, number: c.incarnations.Add(1), addresses: addressesOf(host), filled: filled}
	i.pod = tests.MustPod(c.t, c.Node, fmt.Sprintf("%s-%d", name, i.number))
	if filled {
		c.must(i.pod.Do(func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "filler"}}) }))
	}
	var err error
	i.veth, err = tests.MakeVeth(c.t.Context(), c.Node, i.pod, options)
	c.must(err)
	c.mu.Lock()
	c.had[i.number] = i.addresses
	c.mu.Unlock()
	if c.shape == "bridge" {
		c.must(i.joinBridge())
	} else {
		c.must(i.route())
	}
	i.stdin = pluginConf(c.Node, "1.1.0", map[string]any{
		"cniVersion": "1.1.0",
		"interfaces": []any{
			map[string]any{"name": i.veth.HostName, "mac": i.veth.HostMAC.String()},
			map[string]any{"name": i.pod.IfName, "mac": i.veth.PodMAC.String(), "sandbox": i.pod.NetNS()},
		},
		"ips": []any{
			map[string]any{"address": i.addresses[0].String() + "/24", "interface": 1},
			map[string]any{"address": i.addresses[1].String() + "/64", "interface": 1},
		},
	}, tests.Conf{"mode": c.mode, "redirect": true})
	c.must(i.serve())
	return i
}

// joinBridge makes the host end a port to which the bridge sends nothing but what is for it.
func (i *incarnation) joinBridge() error {
	err := i.Do(func() error {
		host, err := netlink.LinkByIndex(i.veth.HostIndex)
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMaster(host, i.bridge), netlink.LinkSetFlood(host, false))
	})
	return errors.Join(err, i.pod.Do(func() error {
		pod, err := netlink.LinkByName(i.pod.IfName)
		if err != nil {
			return err
		}
		return errors.Join(giveAddress(pod, i.addresses[0], 24), giveAddress(pod, i.addresses[1], 64))
	}))
}

// route gives the pod the node as its only neighbour.
func (i *incarnation) route() error {
	bits := [2]int{32, 128}
	err := i.pod.Do(func() error {
		pod, err := netlink.LinkByName(i.pod.IfName)
		if err != nil {
			return err
		}
		for f := range i.addresses {
			err = errors.Join(err, giveAddress(pod, i.addresses[f], bits[f]),
				netlink.RouteAdd(&netlink.Route{LinkIndex: pod.Attrs().Index, Dst: hostRoute(gateways[f]), Scope: netlink.SCOPE_LINK}),
				netlink.RouteAdd(&netlink.Route{LinkIndex: pod.Attrs().Index, Gw: gateways[f].AsSlice()}))
		}
		return err
	})
	return errors.Join(err, i.Do(func() error {
		host, err := netlink.LinkByIndex(i.veth.HostIndex)
		if err != nil {
			return err
		}
		for f := range i.addresses {
			err = errors.Join(err, giveAddress(host, gateways[f], bits[f]),
				// in the place of one to a container that is there no more
				netlink.RouteReplace(&netlink.Route{LinkIndex: i.veth.HostIndex, Dst: hostRoute(i.addresses[f]), Scope: netlink.SCOPE_LINK}))
		}
		return err
	}))
}

func hostRoute(address netip.Addr) *net.IPNet {
	return &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(address.BitLen(), address.BitLen())}
}

func giveAddress(l netlink.Link, address netip.Addr, bits int) error {
	ipNet := &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(bits, address.BitLen())}
	return netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet, Flags: unix.IFA_F_NODAD})
}

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

// attach runs ADD, from whose end on the first packet has to find the pod.
func (i *incarnation) attach() {
	i.t.Helper()
	mustRun(i.t, i.Node, "ADD", i.pod, i.stdin)
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, address := range i.addresses {
		i.current[address] = i.number
	}
}

func (i *incarnation) detach() {
	i.t.Helper()
	mustRun(i.t, i.Node, "DEL", i.pod, i.stdin)
}

// remove deletes the container, and waits for its interface to go.
func (i *incarnation) remove() {
	i.t.Helper()
	i.stop()
	i.must(i.Do(func() error {
		host, err := netlink.LinkByIndex(i.veth.HostIndex)
		if err != nil {
			return err
		}
		return netlink.LinkDel(host)
	}))
	i.must(i.pod.Close())
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

// setHost sets the host end up or down.
func (i *incarnation) setHost(set func(netlink.Link) error) {
	i.t.Helper()
	i.must(i.Do(func() error {
		host, err := netlink.LinkByIndex(i.veth.HostIndex)
		if err != nil {
			return err
		}
		return set(host)
	}))
}

// forget makes the client, and the node, ask who has an address: as a main plugin has them do when a pod comes.
func (c *changing) forget(client *incarnation) {
	c.t.Helper()
	if c.shape == "bridge" {
		c.must(tests.ForgetNeighbours(client.pod, client.pod.IfName))
	}
}

// deletePorts takes an interface out of the node's DEVMAPs, as somebody might by hand.
func (i *incarnation) deletePorts() {
	i.t.Helper()
	for _, pin := range []string{"tx_ports", "tx_ports_frags"} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(pins.NewRoot(i.BPFFS).Node(), pin), nil)
		i.must(err)
		i.must(m.Delete(uint32(i.veth.HostIndex)))
		i.must(m.Close())
	}
}

// changes are what happens to a pod under traffic. Each returns the pod as it is afterwards.
var changes = []struct {
	name string
	make func(client, old *incarnation, host byte) *incarnation
}{
	{"removed and made again", func(client, old *incarnation, host byte) *incarnation {
		old.detach()
		old.remove()
		return old.again(client, host, tests.VethOptions{})
	}},
	{"made again with the same MAC and interface index", func(client, old *incarnation, host byte) *incarnation {
		old.detach()
		old.remove()
		return old.again(client, host, tests.VethOptions{PodMAC: old.veth.PodMAC, HostIndex: old.veth.HostIndex})
	}},
	{"its container gone without DEL", func(client, old *incarnation, host byte) *incarnation {
		old.remove()
		again := old.again(client, host, tests.VethOptions{})
		old.detach() // late
		client.expectAnswer(client, again, 2, "after the DEL of the one before")
		return again
	}},
	{"its container gone without DEL, the same interface index and MAC", func(client, old *incarnation, host byte) *incarnation {
		old.remove()
		again := old.again(client, host, tests.VethOptions{PodMAC: old.veth.PodMAC, HostIndex: old.veth.HostIndex})
		old.detach()
		client.expectAnswer(client, again, 2, "after the DEL of the one before")
		return again
	}},
	{"its container there still, and its interface down", func(client, old *incarnation, host byte) *incarnation {
		old.setHost(netlink.LinkSetDown)
		again := old.again(client, host, tests.VethOptions{PodMAC: old.veth.PodMAC})
		old.detach()
		old.remove()
		client.expectAnswer(client, again, 2, "after the DEL of the one before")
		return again
	}},
	{"its interface down and up", func(client, old *incarnation, _ byte) *incarnation {
		old.setHost(netlink.LinkSetDown)
		time.Sleep(5 * time.Millisecond)
		old.setHost(netlink.LinkSetUp)
		if old.shape != "bridge" { // the routes went with it
			old.must(old.Do(func() error {
				for f := range old.addresses {
					route := &netlink.Route{LinkIndex: old.veth.HostIndex, Dst: hostRoute(old.addresses[f]), Scope: netlink.SCOPE_LINK}
					if err := netlink.RouteReplace(route); err != nil {
						return err
					}
				}
				return nil
			}))
		}
		old.awaitStack(client)
		return old
	}},
	{"its entry in the DEVMAPs deleted", func(client, old *incarnation, _ byte) *incarnation {
		old.deletePorts()
		client.expectAnswer(client, old, 10, "without an entry in the DEVMAPs")
		old.attach() // as a runtime that CHECK told
		return old
	}},
	{"DEL, with the interface there, and ADD", func(client, old *incarnation, _ byte) *incarnation {
		old.detach()
		client.expectAnswer(client, old, 10, "after DEL, with the interface there")
		old.attach()
		return old
	}},
}

// again makes the next incarnation of a pod, at an address, and adds it.
func (i *incarnation) again(client *incarnation, host byte, options tests.VethOptions) *incarnation {
	i.t.Helper()
	// both ends with the indexes of those before would be taken for them
	next := i.create(i.name, host, !i.filled, options)
	i.forget(client)
	next.awaitStack(client)
	next.attach()
	return next
}

// awaitStack waits until the stack brings packets to a pod: it may take the kernel a second to see that an interface is
// up (net/core/link_watch.c).
func (i *incarnation) awaitStack(client *incarnation) {
	i.t.Helper()
	for _, address := range i.addresses {
		eventually(i.t, func() error {
			_, err := client.ask("tcp", address, 1, 100*time.Millisecond, 0)
			return err
		})
	}
}

// TestRedirectUnderChanges changes pods, 100 times in all, while others send to them without end: no packet comes to a
// pod that it is not for, and a pod that was made again is found from the end of its ADD on.
func TestRedirectUnderChanges(t *testing.T) {
	for _, c := range []chain{{"generic", "ptp"}, {"native", "bridge"}, {"native", "ptp"}, {"tcx", "bridge"}, {"tcx", "ptp"}} {
		t.Run(c.mode+" "+c.shape, func(t *testing.T) { underChanges(t, c.mode, c.shape) })
	}
}

func underChanges(t *testing.T, mode, shape string) {
	c := newChanging(t, mode, shape)
	hosts := [2]byte{20, 21}
	client := c.create("client", 10, false, tests.VethOptions{})
	targets := [2]*incarnation{}
	client.attach()
	for k := range targets {
		targets[k] = c.create(fmt.Sprintf("target%d", k), hosts[k], false, tests.VethOptions{})
		targets[k].attach()
	}
	defer func() {
		for _, i := range []*incarnation{client, targets[0], targets[1]} {
			i.detach()
			i.stop()
		}
	}()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var running sync.WaitGroup
	var answered [8]atomic.Uint64
	for k, host := range hosts {
		for f, address := range addressesOf(host) {
			running.Go(func() { client.persist(ctx, address) })
			for p, network := range []string{"tcp", "udp"} {
				running.Go(func() { client.traffic(ctx, network, address, &answered[k*4+f*2+p]) })
			}
		}
	}
	for n := range changesPerNode {
		k := n % 2
		if n%9 == 8 {
			hosts[0], hosts[1] = hosts[1], hosts[0]
			targets = c.exchange(client, targets, hosts, n == 8)
		} else {
			change := changes[(n-n/9)/2%len(changes)]
			targets[k] = change.make(client, targets[k], hosts[k])
			c.expectAnswer(client, targets[k], 4, change.name)
		}
		for _, target := range targets {
			c.expectAnswer(client, target, 4, fmt.Sprintf("after change %d", n))
		}
		if t.Failed() {
			break
		}
	}
	stop()
	running.Wait()
	c.mu.Lock()
	faults := c.faults
	c.mu.Unlock()
	for _, fault := range faults {
		t.Error(fault)
	}
	var counts []string
	for k := range answered {
		if n := answered[k].Load(); n < 20*changesPerNode {
			t.Errorf("traffic %d: only %d answers came: this tests little", k, n)
		}
		counts = append(counts, fmt.Sprint(answered[k].Load()))
	}
	var most uint64
	for k := 1; k < len(answered); k += 2 {
		most += answered[k].Load()
	}
	direct := readStats(t, c.Node, client.pod).Egress["redirect"].Packets
	if direct < most/2 {
		t.Errorf("%d packets went directly, of %d answered by UDP: this tests little", direct, most)
	}
	t.Logf("answers by stream: %s; %d packets of the client went directly", strings.Join(counts, " "), direct)
	c.expectCounters(client, targets)
}

// exchange has two pods lose their containers, and come again with each other's addresses at interfaces with the indexes
// and MACs of those before: with DEL, or without, and that late.
func (c *changing) exchange(client *incarnation, old [2]*incarnation, hosts [2]byte, withDEL bool) (again [2]*incarnation) {
	c.t.Helper()
	for _, i := range old {
		if withDEL {
			i.detach()
		}
		i.remove()
	}
	// the MAC that it knows of one is that of the other then, to which a bridge would bring what is for the first
	c.forget(client)
	if c.mode == "tcx" && !withDEL {
		// else what is for the one before comes to an interface with its index until that is added: bpf_redirect_peer()
		// knows no other name of an interface, and the kernel gives an index out again only to who asks for it
		mustRun(c.t, c.Node, "STATUS", nil, pluginConf(c.Node, "1.1.0", nil, tests.Conf{"mode": c.mode, "redirect": true}))
	}
	for k, i := range old {
		again[k] = i.again(client, hosts[k], tests.VethOptions{PodMAC: i.veth.PodMAC, HostIndex: i.veth.HostIndex})
	}
	for _, i := range old {
		i.detach()
	}
	return again
}

// expectCounters compares what the pods count of some more traffic, of which most goes directly.
func (c *changing) expectCounters(client *incarnation, targets [2]*incarnation) {
	c.t.Helper()
	for _, target := range targets {
		quiet(c.t, client.pod, target.pod)
		before := [2]stats{readStats(c.t, c.Node, client.pod), readStats(c.t, c.Node, target.pod)}
		c.expectAnswer(client, target, 50, "at the end")
		quiet(c.t, client.pod, target.pod)
		sent, came := readStats(c.t, c.Node, client.pod).since(before[0]), readStats(c.t, c.Node, target.pod).since(before[1])
		checkSums(c.t, c.mode, sent, came)
		least := uint64(2 * 45)
		if c.mode != "generic" {
			least *= 2
		}
		for name, s := range map[string]stats{"client": sent, "target": came} {
			if got := s.Egress["redirect"].Packets; got < least {
				c.t.Errorf("%d packets of the %s went directly, want at least %d", got, name, least)
			}
		}
	}
}

// TestRedirectAddressTaken loses a container without DEL, whose address goes to one that has no attachment. A flow that
// went directly then goes by the stack: at once where the kernel sees to that, which in tcx mode is up to STATUS.
func TestRedirectAddressTaken(t *testing.T) {
	for _, mode := range []string{"generic", "native", "tcx"} {
		t.Run(mode, func(t *testing.T) {
			c := newChanging(t, mode, "ptp")
			client, old := c.create("client", 10, false, tests.VethOptions{}), c.create("old", 20, false, tests.VethOptions{})
			client.attach()
			old.attach()
			defer func() {
				old.detach()
				client.detach()
				client.stop()
			}()
			var conns [2]net.Conn
			exchange := func(f int) error {
				sent := request(uint64(f))
				if _, err := conns[f].Write(sent); err != nil {
					return err
				}
				if err := conns[f].SetReadDeadline(time.Now().Add(loss)); err != nil {
					return err
				}
				_, err := conns[f].Read(make([]byte, 2*requestLen))
				return err
			}
			for f, address := range old.addresses {
				c.must(client.pod.Do(func() (err error) {
					conns[f], err = net.Dial("udp", netip.AddrPortFrom(address, askPort).String())
					return err
				}))
				defer conns[f].Close()
				for range 5 {
					c.must(exchange(f))
				}
			}
			if got := readStats(t, c.Node, client.pod).Egress["redirect"].Packets; got < 2*4 {
				t.Fatalf("%d packets went directly: this tests nothing", got)
			}
			old.remove()
			taken := c.create("taken", 20, true, tests.VethOptions{})
			defer taken.stop()
			taken.awaitStack(client)
			direct := readStats(t, c.Node, client.pod).Egress["redirect"].Packets
			if mode == "tcx" {
				for f := range conns {
					if exchange(f) == nil {
						t.Error("nothing was lost before STATUS: then this is not needed")
					}
				}
				mustRun(t, c.Node, "STATUS", nil, pluginConf(c.Node, "1.1.0", nil, tests.Conf{"mode": mode, "redirect": true}))
				direct = readStats(t, c.Node, client.pod).Egress["redirect"].Packets
			}
			for f := range conns {
				if err := exchange(f); err != nil {
					t.Errorf("%s: %v", old.addresses[f], err)
				}
			}
			if got := readStats(t, c.Node, client.pod).Egress["redirect"].Packets; got != direct {
				t.Errorf("%d packets went directly to a container that is gone", got-direct)
			}
		})
	}
}
