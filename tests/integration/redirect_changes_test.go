package integration

import (
	"context"
	"fmt"
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

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/tests"
)

// changesPerNode is how many changes each node sees under traffic: 100 in all.
const changesPerNode = 20

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
		old.onHost(netlink.LinkSetDown)
		again := old.again(client, host, tests.VethOptions{PodMAC: old.veth.PodMAC})
		old.detach()
		old.remove()
		client.expectAnswer(client, again, 2, "after the DEL of the one before")
		return again
	}},
	{"its interface down and up", func(client, old *incarnation, _ byte) *incarnation {
		old.onHost(netlink.LinkSetDown)
		time.Sleep(5 * time.Millisecond)
		old.onHost(netlink.LinkSetUp)
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
