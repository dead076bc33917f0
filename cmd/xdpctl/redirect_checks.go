package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/xdp-cni/xdp-cni/internal/firewall"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// redirectFacts are what doctor judges about redirect: nothing if no pod has it.
type redirectFacts struct {
	endpoints *datapath.Endpoints
	err       error

	// What the node's firewall does with packets between pods, by the rules that do it.
	rulesErr    error
	forward     []string // and redirected ones do not see
	invalid     []string
	masquerades []string
	legacy      []firewall.Legacy
	liberal     bool // conntrack takes what it would call INVALID
}

// mostPairs is how many pairs of pods the rules are asked about: each pod once, up to that.
const mostPairs = 256

func probeRedirect(d *datapath.Datapath) redirectFacts {
	f := redirectFacts{}
	f.endpoints, f.err = d.Endpoints()
	pairs := firewallPairs(f.endpoints)
	if len(pairs) == 0 {
		return f
	}
	rules, err := firewall.Read()
	if err != nil {
		f.rulesErr = err
		return f
	}
	f.forward, f.legacy = rules.Forward(pairs), rules.Legacy()
	f.liberal, _ = firewall.Liberal()
	add := func(to *[]string, found []string) {
		for _, rule := range found {
			if !slices.Contains(*to, rule) {
				*to = append(*to, rule)
			}
		}
	}
	for _, p := range pairs {
		add(&f.invalid, rules.DropsInvalid(p))
		add(&f.masquerades, rules.Masquerades(p))
	}
	return f
}

// firewallPairs returns pairs of pods that packets may go directly between: each pod with the next one of its
// network, and with the next one that it has no bridge in common with.
func firewallPairs(all *datapath.Endpoints) []firewall.Pair {
	type group struct {
		network string // "" for all that share what they know
		ipv4    bool
	}
	groups := map[group][]datapath.Endpoint{}
	var order []group
	for _, e := range all.List {
		if e.State != datapath.EndpointInForce || e.Attachment == nil {
			continue
		}
		g := group{e.Attachment.Meta.Network, e.Address.Is4()}
		if e.AcrossNetworks {
			g.network = ""
		}
		if groups[g] == nil {
			order = append(order, g)
		}
		groups[g] = append(groups[g], e)
	}
	var pairs []firewall.Pair
	for _, g := range order {
		members := groups[g]
		for i, from := range members {
			apart := false // whether the pair was one of two pods without a bridge in common
			for step := 1; step < len(members) && len(pairs) < mostPairs; step++ {
				p := firewallPair(from, members[(i+step)%len(members)])
				if step > 1 && (apart || p.Bridged) {
					continue
				}
				apart = apart || !p.Bridged
				pairs = append(pairs, p)
				if apart {
					break
				}
			}
		}
	}
	return pairs
}

func firewallPair(from, to datapath.Endpoint) firewall.Pair {
	end := func(e datapath.Endpoint) firewall.Interface {
		if e.Bridge != 0 {
			return firewall.Interface{Name: e.BridgeName, Index: e.Bridge}
		}
		return firewall.Interface{Name: e.Attachment.Meta.HostName, Index: e.HostIndex}
	}
	return firewall.Pair{
		Source: from.Address, Destination: to.Address, In: end(from), Out: end(to),
		Bridged: from.Bridge != 0 && from.Bridge == to.Bridge,
	}
}

// checkRedirect returns no check if no pod has redirect.
func (f *facts) checkRedirect() []check {
	r := &f.redirect
	if r.err != nil {
		return []check{fail("redirect", r.err.Error(), "")}
	}
	if r.endpoints == nil || len(r.endpoints.List) == 0 {
		return nil
	}
	checks := []check{r.checkEndpoints()}
	if r.rulesErr != nil {
		return append(checks, warn("host firewall", "cannot tell: "+r.rulesErr.Error(), ""))
	}
	return append(checks, r.checkForward(), r.checkInvalid(), r.checkMasquerades())
}

func (r *redirectFacts) checkEndpoints() check {
	const name = "redirect"
	inForce := 0
	var not []string
	for _, e := range r.endpoints.List {
		if e.State == datapath.EndpointInForce {
			inForce++
			continue
		}
		whose := "of nobody known"
		if e.Attachment != nil {
			whose = "of " + labelOf(*e.Attachment)
		}
		not = append(not, fmt.Sprintf("%s %s: %s", e.Address, whose, stateDetail(&e)))
	}
	detail := fmt.Sprintf("in force for %d of %d addresses, room for %d; something is known of %d flows, of %d at most",
		inForce, len(r.endpoints.List), r.endpoints.MaxEndpoints, r.endpoints.Flows, r.endpoints.MaxFlows)
	switch {
	case len(not) > 0:
		return warn(name, detail+"\n"+few(not), "see xdpctl endpoints; their packets go by the stack")
	case r.endpoints.Entered*10 >= r.endpoints.MaxEndpoints*9:
		return warn(name, detail, "raise \"maxEndpoints\", which the node's first pod with redirect decides: past it ADD fails")
	}
	return ok(name, detail)
}

func (r *redirectFacts) checkForward() check {
	const name = "forward rules"
	found := slices.Clone(r.forward)
	for _, l := range r.legacy {
		if l.Forward {
			found = append(found, fmt.Sprintf("iptables-legacy, table %s %s: rules in FORWARD, which cannot be read here", l.Family, l.Table))
		}
	}
	if len(found) == 0 {
		return ok(name, "redirected packets jump over none")
	}
	return warn(name, "what goes directly from pod to pod does not see\n"+few(found),
		"put what is meant for pods in their filters, which see it all; the beginning of each flow sees these rules too")
}

func (r *redirectFacts) checkInvalid() check {
	const name = "INVALID"
	found := slices.Clone(r.invalid)
	for _, l := range r.legacy {
		if l.Forward {
			found = append(found, fmt.Sprintf("iptables-legacy, table %s %s: perhaps", l.Family, l.Table))
		}
	}
	switch {
	case len(found) == 0:
		return ok(name, "no rule drops packets between pods for being INVALID")
	case r.liberal:
		return ok(name, "dropped by rules, but nf_conntrack_tcp_be_liberal is 1: TCP that falls back to the stack goes on")
	}
	return warn(name, "TCP that falls back to the stack midway is INVALID to conntrack, which missed part of it, and is dropped by\n"+few(found),
		"sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=1")
}

func (r *redirectFacts) checkMasquerades() check {
	const name = "masquerade"
	found := slices.Clone(r.masquerades)
	for _, l := range r.legacy {
		if l.Table == "nat" && l.Postrouting {
			found = append(found, fmt.Sprintf("iptables-legacy, table %s %s: perhaps, its rules cannot be read here", l.Family, l.Table))
		}
	}
	if len(found) == 0 {
		return ok(name, "no rule changes the source of packets between pods")
	}
	return warn(name, "flows between pods whose source is changed always go by the stack; it is, or may be, by\n"+few(found),
		"let these rules leave packets between pods alone")
}

// few joins lines, no more than mostOdd of them.
func few(lines []string) string {
	text := strings.Join(lines[:min(len(lines), mostOdd)], "\n")
	if more := len(lines) - mostOdd; more > 0 {
		text += fmt.Sprintf("\nand %d more", more)
	}
	return text
}
