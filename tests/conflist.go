package tests

import (
	"encoding/json"
	"fmt"
	"maps"
)

// Conf is the configuration of one plugin of a chain.
type Conf = map[string]any

// Families says which addresses the pods of a network get.
type Families int

// The address families of a network.
const (
	IPv4 Families = iota
	IPv6
	DualStack
)

// Conflist returns a CNI network configuration list of the given plugins, in that order.
func Conflist(name, version string, plugins ...Conf) string {
	list, err := json.MarshalIndent(map[string]any{"cniVersion": version, "name": name, "plugins": plugins}, "", "  ")
	if err != nil {
		panic(fmt.Sprintf("conflist %s: %v", name, err)) // a channel or a function among the values
	}
	return string(list)
}

// Bridge configures the bridge plugin: the node is the gateway of its pods, with the bridge cni0. Overrides replace
// top-level keys; nil removes one.
func (n *Node) Bridge(families Families, overrides ...Conf) Conf {
	return override(Conf{
		"type":             "bridge",
		"bridge":           "cni0",
		"isGateway":        true,
		"isDefaultGateway": true,
		"ipam":             n.hostLocal(families, "10.244.0.0/24", "fd00:10:244::/64"),
	}, overrides)
}

// PTP configures the ptp plugin: a routed veth for each pod. Overrides are as with Bridge.
func (n *Node) PTP(families Families, overrides ...Conf) Conf {
	ipam := n.hostLocal(families, "10.245.0.0/24", "fd00:10:245::/64")
	var routes []Conf
	if families != IPv6 {
		routes = append(routes, Conf{"dst": "0.0.0.0/0"})
	}
	if families != IPv4 {
		routes = append(routes, Conf{"dst": "::/0"})
	}
	ipam["routes"] = routes
	return override(Conf{"type": "ptp", "ipam": ipam}, overrides)
}

// XDP configures our plugin, with its pins in the node's bpffs. Overrides are as with Bridge.
func (n *Node) XDP(overrides ...Conf) Conf {
	return override(Conf{"type": "xdp", "bpffs": n.BPFFS}, overrides)
}

func (n *Node) hostLocal(families Families, v4, v6 string) Conf {
	var ranges [][]Conf
	if families != IPv6 {
		ranges = append(ranges, []Conf{{"subnet": v4}})
	}
	if families != IPv4 {
		ranges = append(ranges, []Conf{{"subnet": v6}})
	}
	return Conf{"type": "host-local", "dataDir": n.DataDir, "ranges": ranges}
}

// Leases configures our IPAM plugin, as the "ipam" of a main plugin, with its pins in the node's bpffs and subnets of
// that node. Overrides are as with Bridge.
func (n *Node) Leases(families Families, overrides ...Conf) Conf {
	conf := n.hostLocal(families, "10.244.0.0/24", "fd00:10:244::/64")
	conf["type"], conf["bpffs"] = "xdp-ipam", n.BPFFS
	return override(conf, overrides)
}

func override(conf Conf, overrides []Conf) Conf {
	for _, o := range overrides {
		maps.Copy(conf, o)
	}
	maps.DeleteFunc(conf, func(_ string, value any) bool { return value == nil })
	return conf
}
