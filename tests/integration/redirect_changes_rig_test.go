package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
)

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
	if c.mode == "native" && !nativeTargets() {
		takesFrames(c.t, i.pod, true) // as it comes to ADD
	}
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
	i.onHost(netlink.LinkDel)
	i.must(i.pod.Close())
}

// onHost does something to the host end.
func (i *incarnation) onHost(f func(host netlink.Link) error) {
	i.t.Helper()
	i.must(i.Do(func() error {
		host, err := netlink.LinkByIndex(i.veth.HostIndex)
		if err != nil {
			return err
		}
		return f(host)
	}))
}
