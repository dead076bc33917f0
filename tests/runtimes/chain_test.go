package runtimes

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/xdp-cni/xdp-cni/tests"
)

// chain is a chain of plugins: a main plugin with dual stack and masquerading, portmap, bandwidth and xdp; ptp without a
// limit and with xdp last has no bandwidth.
type chain struct {
	main     string // bridge or ptp
	ipam     string // host-local or xdp-ipam
	mode     string
	redirect bool
	xdpFirst bool // xdp before bandwidth, not behind it

	version  string     // of CNI; 1.0.0 if empty
	limit    int        // bits per second either way of every pod; none if 0
	filter   tests.Conf // of every pod, if there is one
	plain    bool       // without xdp
	networks int        // as many networks of this kind for every pod; 0 and 1 are the same
}

func (c chain) String() string {
	parts := []string{c.main, c.ipam, c.mode}
	if c.redirect {
		parts = append(parts, "redirect")
	}
	if c.xdpFirst {
		parts = append(parts, "before bandwidth")
	}
	return strings.Join(parts, " ")
}

// conflist is the chain as a network of the node. Of more than one network each but the first, number 0, is a bridge.
func (c chain) conflist(n *node, name string, number int) string {
	main := n.Bridge(tests.DualStack, tests.Conf{"ipMasq": true, "hairpinMode": true})
	if c.main == "ptp" {
		main = n.PTP(tests.DualStack, tests.Conf{"ipMasq": true})
	}
	ipam := main["ipam"].(tests.Conf)
	if number > 0 {
		main["bridge"] = fmt.Sprint("cni", number)
		ipam["ranges"] = [][]tests.Conf{
			{{"subnet": fmt.Sprintf("10.246.%d.0/24", number)}}, {{"subnet": fmt.Sprintf("fd00:10:246:%d::/64", number)}},
		}
	}
	if c.ipam == "xdp-ipam" {
		ipam["type"], ipam["bpffs"] = "xdp-ipam", n.BPFFS
	}
	bandwidth := tests.Conf{"type": "bandwidth", "capabilities": tests.Conf{"bandwidth": true}}
	if c.limit > 0 {
		burst := c.limit / 10
		bandwidth["ingressRate"], bandwidth["ingressBurst"] = c.limit, burst
		bandwidth["egressRate"], bandwidth["egressBurst"] = c.limit, burst
	}
	xdp := n.XDP(tests.Conf{"mode": c.mode, "redirect": c.redirect})
	if c.filter != nil {
		xdp["filter"] = c.filter
	}
	plugins := []tests.Conf{main, {"type": "portmap", "capabilities": tests.Conf{"portMappings": true}}}
	switch {
	case c.main == "ptp" && c.limit == 0 && !c.xdpFirst:
		plugins = append(plugins, xdp)
	case c.plain:
		plugins = append(plugins, bandwidth)
	case c.xdpFirst:
		plugins = append(plugins, xdp, bandwidth)
	default:
		plugins = append(plugins, bandwidth, xdp)
	}
	version := c.version
	if version == "" {
		version = "1.0.0"
	}
	return tests.Conflist(name, version, plugins...)
}

// write puts the networks of the chain, net0 and so on, into a directory of conflists.
func (c chain) write(n *node, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for number := range max(c.networks, 1) {
		name := fmt.Sprint("net", number)
		path := filepath.Join(dir, fmt.Sprintf("%d-%s.conflist", 10+number, name))
		if err := os.WriteFile(path, []byte(c.conflist(n, name, number)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// chains are those that each runtime runs: every main plugin, IPAM plugin, mode, place and way is in them, each mode
// with and without redirect. All are all combinations of these.
func chains(all bool) (list []chain) {
	if !all {
		return []chain{
			{main: "bridge", ipam: "host-local", mode: "generic"},
			{main: "bridge", ipam: "xdp-ipam", mode: "tcx", redirect: true},
			{main: "ptp", ipam: "host-local", mode: "native", redirect: true},
			{main: "ptp", ipam: "xdp-ipam", mode: "tcx", xdpFirst: true},
			{main: "bridge", ipam: "xdp-ipam", mode: "native", xdpFirst: true},
			{main: "ptp", ipam: "host-local", mode: "generic", redirect: true, xdpFirst: true},
		}
	}
	for _, main := range []string{"bridge", "ptp"} {
		for _, ipam := range []string{"host-local", "xdp-ipam"} {
			for _, mode := range modes {
				for _, redirect := range []bool{false, true} {
					for _, xdpFirst := range []bool{false, true} {
						list = append(list, chain{main: main, ipam: ipam, mode: mode, redirect: redirect, xdpFirst: xdpFirst})
					}
				}
			}
		}
	}
	return list
}

var modes = []string{"native", "generic", "tcx"}
