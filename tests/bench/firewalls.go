package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// firewall is a way to have packets judged where a pod's packets are forwarded.
type firewall struct {
	name string
	// tool is the program that load needs, "" for none.
	tool string
	// load puts n rules in force.
	load func(ctx context.Context, g *gateway, a *attached, n int) error
	// ours: the rules are one pod's. Else they are the node's, which needs a node for each list.
	ours bool
	// linear: rules are asked one after the other.
	linear bool
}

// The names of firewalls.
const (
	firewallTCX     = "xdp tcx"
	firewallGeneric = "xdp generic"
	firewallNft     = "nftables, verdict map"
	firewallLegacy  = "iptables, legacy"
	firewallNfts    = "iptables, nf_tables"
)

var firewalls = []firewall{
	{name: firewallTCX, ours: true, load: func(ctx context.Context, _ *gateway, a *attached, n int) error {
		return a.attach(ctx, datapath.ModeTCX, filterOf(n, conf.Egress, true))
	}},
	{name: firewallGeneric, ours: true, load: func(ctx context.Context, _ *gateway, a *attached, n int) error {
		return a.attach(ctx, datapath.ModeGeneric, filterOf(n, conf.Egress, true))
	}},
	{name: firewallNft, tool: "nft", load: func(ctx context.Context, g *gateway, _ *attached, n int) error {
		return g.command(ctx, nftablesOf(n), "nft", "-f", "-")
	}},
	{name: firewallLegacy, tool: "iptables-legacy-restore", linear: true, load: loadIptables("iptables-legacy-restore")},
	{name: firewallNfts, tool: "iptables-nft-restore", linear: true, load: loadIptables("iptables-nft-restore")},
}

func loadIptables(tool string) func(context.Context, *gateway, *attached, int) error {
	return func(ctx context.Context, g *gateway, _ *attached, n int) error {
		return g.command(ctx, iptablesOf(n), tool)
	}
}

// available returns those of the firewalls whose tools are installed, and the versions of the tools.
func available(list []firewall) (there []firewall, versions []string) {
	for _, f := range list {
		if f.tool == "" {
			there = append(there, f)
			continue
		}
		out, err := exec.Command(f.tool, "--version").Output()
		if errors.Is(err, exec.ErrNotFound) {
			versions = append(versions, fmt.Sprintf("%s is not installed, so %s is left out", f.tool, f.name))
			continue
		}
		versions = append(versions, strings.TrimSpace(string(out)))
		there = append(there, f)
	}
	return there, versions
}
