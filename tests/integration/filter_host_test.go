package integration

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/tests"
)

// TestFilterHost sends to a pod that nobody may reach as a kubelet does, from the node itself: it arrives if allowHost
// is set, and only from there. What the node forwards is not its own, whatever its source is by then.
func TestFilterHost(t *testing.T) {
	eachChain(t, mixedChains, `{}`, func(r *filterRig) {
		outside := newOutside(r)
		services := newServices(r, outside)
		filter := func(allowHost bool) string {
			return fmt.Sprintf(`{"allowHost":%t,"default":{"egress":"allow","ingress":"deny"}}`, allowHost)
		}
		r.sub("allowed", filter(true), func(r *filterRig) { hostAllowed(r, outside, services) })
		r.sub("not allowed", filter(false), func(r *filterRig) { hostDenied(r, services) })
	})
}

// outsideNet is a host beyond the node, which routes between it and the pods.
type outsideNet struct {
	*tests.Pod
	addresses, gateways []netip.Addr // IPv4 and IPv6; the gateways are the node
}

// newOutside makes such a host. The node has an address there with which it comes to pods through NAT.
func newOutside(r *filterRig) outsideNet {
	r.t.Helper()
	o := outsideNet{Pod: tests.MustPod(r.t, r.Node, "outside")}
	if _, err := tests.MakeVeth(r.t.Context(), r.Node, o.Pod, tests.VethOptions{HostName: "outside0"}); err != nil {
		r.t.Fatal(err)
	}
	for _, subnet := range []string{"192.0.2.%d/24", "2001:db8::%d/64"} {
		host, gateway := netip.MustParsePrefix(fmt.Sprintf(subnet, 2)), netip.MustParsePrefix(fmt.Sprintf(subnet, 1))
		addAddress(r.t, o, o.IfName, host)
		addAddress(r.t, r.Node, "outside0", gateway)
		addRoute(r.t, o, o.IfName, netip.PrefixFrom(anyOf(host.Addr()), 0), gateway.Addr(), 0)
		o.addresses, o.gateways = append(o.addresses, host.Addr()), append(o.gateways, gateway.Addr())
	}
	return o
}

func anyOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func addAddress(t *testing.T, at tests.Place, ifname string, address netip.Prefix) {
	t.Helper()
	err := at.Do(func() error {
		link, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(address)})
	})
	if err == nil {
		err = tests.WaitAddress(t.Context(), at, address.Addr())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// addRoute adds a route; mtu is 0 for that of the interface.
func addRoute(t *testing.T, at tests.Place, ifname string, to netip.Prefix, gateway netip.Addr, mtu int) {
	t.Helper()
	err := at.Do(func() error {
		link, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		route := netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(to), MTU: mtu}
		if gateway.IsValid() {
			route.Gw = gateway.AsSlice()
		}
		return netlink.RouteReplace(&route)
	})
	if err != nil {
		t.Fatalf("route to %s: %v", to, err)
	}
}

// service is a pod's server, and addresses that the node translates to the pod's.
type service struct {
	*tests.Echo
	// address is translated, with all ports, as a service's. What comes to it from outside gets the node's own as its
	// source besides.
	address netip.Addr
}

// at is the service's address with the port of one of its servers.
func (s service) at(server netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(s.address, server.Port())
}

// newServices makes servers in the pod and has the node translate to them, by the rules that kube-proxy would make.
func newServices(r *filterRig, o outsideNet) (services []service) {
	r.t.Helper()
	for i, address := range families(r.pod) {
		s := service{Echo: tests.MustEcho(r.t, r.pod, address), address: netip.MustParseAddr([]string{"203.0.113.9", "2001:db8:1::9"}[i])}
		// a packet of the node is translated once it has found a way
		addRoute(r.t, r.Node, "outside0", netip.PrefixFrom(s.address, s.address.BitLen()), o.addresses[i], 0)
		for _, rule := range []string{
			"-A OUTPUT -d " + s.address.String() + " -j DNAT --to-destination " + address.String(),
			"-A PREROUTING -d " + s.address.String() + " -j DNAT --to-destination " + address.String(),
			"-A POSTROUTING -s " + o.addresses[i].String() + " -j MASQUERADE",
		} {
			tool := []string{"iptables", "ip6tables"}[i]
			out, err := r.Run(exec.CommandContext(r.t.Context(), tool, append([]string{"-t", "nat"}, strings.Fields(rule)...)...))
			if err != nil {
				r.t.Fatalf("%s %s: %v: %s", tool, rule, err, out.Stderr)
			}
		}
		services = append(services, s)
	}
	return services
}

func hostAllowed(r *filterRig, o outsideNet, services []service) {
	for i, s := range services {
		probes := r.Node
		r.passes(probes, s.Echo)
		r.streams(probes, s.at(s.TCP))
		r.comesBack(probes, s.at(s.UDP))
		r.expect("from the node to "+s.TCP.Addr().String(), nil)
		for _, from := range []*tests.Pod{r.peer, o.Pod} {
			r.expect("from "+from.Name, decisions{"ingress default": sum(
				r.refused(from, s.TCP), r.lost(from, s.UDP), r.unanswered(from, s.UDP.Addr()),
				r.refused(from, s.at(s.TCP)), r.lost(from, s.at(s.UDP)))})
		}
		echo := tests.MustEcho(r.t, r.Node, o.gateways[i])
		r.passes(r.pod, echo)
		r.expect("to the node", nil)
	}
}

func hostDenied(r *filterRig, services []service) {
	for _, s := range services {
		r.expect("from the node to "+s.TCP.Addr().String(), decisions{"ingress default": sum(
			r.refused(r.Node, s.TCP), r.lost(r.Node, s.UDP), r.unanswered(r.Node, s.UDP.Addr()),
			r.refused(r.Node, s.at(s.TCP)), r.lost(r.Node, s.at(s.UDP)))})
	}
}
