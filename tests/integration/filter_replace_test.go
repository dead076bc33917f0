package integration

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// replacementsUnderTraffic is how often the filter of a pod is replaced in each mode while packets come and go.
var replacementsUnderTraffic = map[string]int{"generic": 40, "native": 40, "tcx": 120}

// Remote ends and ports of the packets. Both filters let through one to portA and two to portB, by rules at each
// other's places, and nothing else. So where the address were looked up in one filter and the port in the other, what
// is let through would be denied, and the rest let through.
var (
	one = netip.MustParseAddr("192.0.2.1")
	two = netip.MustParseAddr("192.0.2.2")
)

const portA, portB = 1001, 1002

func crossedFilters(tcp uint16) (filters [2]string) {
	rules := func(direction, key string) (rules [2]string) {
		for i, r := range []struct {
			address netip.Addr
			port    int
		}{{one, portA}, {two, portB}} {
			rules[i] = fmt.Sprintf(`{"name":"%s-%d","direction":"%[1]s","action":"allow",%[3]q:[%[4]q],"protocol":"udp","ports":["%[5]d"]}`,
				direction, i, key, r.address, r.port)
		}
		return rules
	}
	in, out := rules("ingress", "from"), rules("egress", "to")
	stream := fmt.Sprintf(`{"name":"tcp","direction":"egress","action":"allow","protocol":"tcp","ports":["%d"]}`, tcp)
	const head = `{"default":{"egress":"deny","ingress":"deny"},"rules":[`
	return [2]string{
		head + in[0] + "," + in[1] + "," + out[0] + "," + out[1] + "," + stream + "]}",
		head + stream + "," + in[1] + "," + in[0] + "," + out[1] + "," + out[0] + "]}",
	}
}

// TestFilterReplaced replaces the filter again and again under traffic of both directions, of new flows and old: each
// packet is judged by one filter, whole. A connection that both let through goes on.
func TestFilterReplaced(t *testing.T) {
	eachChain(t, bridgeChains, `{}`, func(r *filterRig) {
		listener := listen(r.t, r.peer, r.peer.IPv4())
		client, server := dial(r.t, r.pod, netip.AddrPort{}, listener)
		filters := crossedFilters(listener.Addr().(*net.TCPAddr).AddrPort().Port())
		r.apply(filters[0])

		ctx, stop := context.WithCancel(r.t.Context())
		defer stop()
		var traffic sync.WaitGroup
		streams := []*crossedTraffic{r.crossed("ingress"), r.crossed("egress")}
		for _, s := range streams {
			traffic.Go(func() { s.run(ctx) })
		}
		exchanged := 0
		for i := range replacementsUnderTraffic[r.mode] {
			r.replaceAnyway(filters[(i+1)%2])
			converse(r.t, client, server)
			exchanged++
		}
		stop()
		traffic.Wait()
		r.want = decisions{}
		for _, s := range streams {
			if s.err != nil {
				r.t.Errorf("%s: %v", s.direction, s.err)
			}
			if s.sent < uint64(exchanged) {
				r.t.Errorf("%s: %d packets were sent: this tests little", s.direction, s.sent)
			}
			r.want[s.direction+" default"] = times(s.denied, s.size)
		}
		eventually(r.t, func() error {
			have, err := r.decided()
			for _, name := range have.rules() {
				delete(have, name)
			}
			if err == nil && fmt.Sprint(have) != fmt.Sprint(r.want) {
				err = fmt.Errorf("dropped %v, want %v", have, r.want)
			}
			return err
		})
		r.t.Logf("%d packets in, %d out, %d times both ways by TCP", streams[0].sent, streams[1].sent, exchanged)
	})
}

// crossedTraffic is packets of one direction, some to be let through and as many to be denied.
type crossedTraffic struct {
	direction    string
	sender       *tests.Sender
	arrivals     *tests.Capture
	frames       [4][]byte // the first two are let through
	size         uint64
	sent, denied uint64
	err          error
}

// batch is how many of each frame are on their way at once.
const batch = 8

func (r *filterRig) crossed(direction string) *crossedTraffic {
	r.t.Helper()
	c := &crossedTraffic{direction: direction}
	from, at := r.peer, r.pod
	if direction == "egress" {
		from, at = r.pod, r.peer
	}
	for i, end := range []struct {
		address netip.Addr
		port    uint16
	}{{one, portA}, {two, portB}, {one, portB}, {two, portA}} {
		udp := packets.UDP{SrcPort: 1, DstPort: end.port}
		src, dst := end.address, r.pod.IPv4()
		if direction == "egress" {
			src, dst = dst, src
		}
		frame := r.frame(from, src, dst, udp, packets.Data(16))
		mac, err := at.MAC()
		if err != nil {
			r.t.Fatal(err)
		}
		copy(frame, mac)
		c.frames[i], c.size = frame, uint64(len(frame))
	}
	var err error
	if c.sender, err = tests.NewSender(from, from.IfName); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.sender.Close() })
	c.arrivals, err = tests.NewCapture(at, at.IfName, func(frame []byte) bool { return len(frame) == int(c.size) && frame[23] == packets.ProtocolUDP })
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.arrivals.Close() })
	return c
}

// run sends until ctx is done. Of each batch it waits for what has to arrive, and takes what else does for an error.
func (c *crossedTraffic) run(ctx context.Context) {
	for ctx.Err() == nil && c.err == nil {
		c.err = c.sendBatch()
	}
	if c.err == nil {
		if frame, err := c.arrivals.Next(context.Background(), silence); !errors.Is(err, os.ErrDeadlineExceeded) {
			c.err = fmt.Errorf("%x arrived at the end, %w", frame, err)
		}
	}
}

func (c *crossedTraffic) sendBatch() error {
	want := map[string]bool{}
	for range batch {
		for i, frame := range c.frames {
			c.sent++
			// of the UDP header: half of the packets are of one flow, the others begin one each
			sourcePort := uint16(1)
			if c.sent/4%2 == 0 {
				sourcePort = uint16(1 + c.sent/4%50_000)
			}
			binary.BigEndian.PutUint16(frame[34:], sourcePort)
			binary.BigEndian.PutUint16(frame[40:], 0) // no checksum
			binary.BigEndian.PutUint64(frame[42:], c.sent)
			if err := c.sender.Send(frame); err != nil {
				return err
			}
			if i < 2 {
				want[string(frame)] = true
			} else {
				c.denied++
			}
		}
	}
	for len(want) > 0 { // in any order, as a sender may move from CPU to CPU
		frame, err := c.arrivals.Next(context.Background(), patience)
		if err != nil {
			return fmt.Errorf("%d packets are missing: %w", len(want), err)
		}
		if !want[string(frame)] {
			return fmt.Errorf("%x arrived, which is denied or came twice", frame)
		}
		delete(want, string(frame))
	}
	return nil
}

// TestFilterStopsConnection replaces the filter by one that denies some connections: nothing of them passes from then on,
// and the others go on. So do those, where they were, when they are allowed again.
func TestFilterStopsConnection(t *testing.T) {
	eachChain(t, mixedChains, outOnly, func(r *filterRig) {
		var kept, stopped [][2]*net.TCPConn
		var ports []string
		for _, remote := range families(r.peer) {
			for _, list := range []*[][2]*net.TCPConn{&kept, &stopped} {
				listener := listen(r.t, r.peer, remote)
				client, server := dial(r.t, r.pod, netip.AddrPort{}, listener)
				converse(r.t, client, server)
				*list = append(*list, [2]*net.TCPConn{client, server})
				if list == &stopped {
					ports = append(ports, fmt.Sprintf("%q", fmt.Sprint(listener.Addr().(*net.TCPAddr).Port)))
				}
			}
		}
		r.apply(fmt.Sprintf(`{"default":{"egress":"allow","ingress":"deny"},"rules":[
			{"name":"cut","direction":"egress","action":"deny","protocol":"tcp","ports":[%s]}]}`, strings.Join(ports, ",")))
		for _, ends := range stopped {
			for _, end := range ends {
				if _, err := end.Write([]byte("late")); err != nil {
					r.t.Fatal(err)
				}
			}
		}
		// at least one from each end; the first packet of a connection decides about it by the rule, whichever way it goes
		eventually(r.t, func() error {
			d, err := r.decided()
			all := d["egress rule"].Packets + d["ingress rule"].Packets + d["ingress default"].Packets
			if err == nil && (d["rule cut"].Packets < 2 || all < 4) {
				err = fmt.Errorf("it dropped %v of the connections", d)
			}
			return err
		})
		for _, ends := range stopped {
			for _, end := range ends {
				if err := end.SetReadDeadline(time.Now().Add(silence)); err != nil {
					r.t.Fatal(err)
				}
				if n, err := end.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
					r.t.Errorf("%d bytes came by a connection that is denied, %v", n, err)
				}
			}
		}
		for _, ends := range kept {
			converse(r.t, ends[0], ends[1])
		}
		r.replaceAnyway(outOnly)
		for _, ends := range stopped {
			received(r.t, ends[0], "late")
			received(r.t, ends[1], "late")
			converse(r.t, ends[0], ends[1])
		}
	})
}

// replaceAnyway puts a filter in force whatever the one there has counted: the kernel sends again as often as it likes.
func (r *filterRig) replaceAnyway(text string) {
	r.t.Helper()
	a, p := r.makePolicy(text)
	if err := r.Do(func() error { return r.datapath.ReplacePolicy(r.t.Context(), a, *p) }); err != nil {
		r.t.Fatal(err)
	}
}
