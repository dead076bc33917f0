package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// redirects is what the commands about redirect need of the node.
type redirects interface {
	filters
	Endpoints() (*datapath.Endpoints, error)
	Way(datapath.Attachment, datapath.Packet) (*datapath.Way, error)
	DirectFlows(a datapath.Attachment, source, destination netip.Addr) ([]datapath.DirectFlow, error)
}

// endpointsReport is what endpoints says.
type endpointsReport struct {
	Endpoints []endpointReport `json:"endpoints"`
	endpointsRoom
}

// endpointsRoom is how much is known, and how much there is room for; 0 where no pod has had redirect yet.
type endpointsRoom struct {
	Entered      int `json:"entered"`
	MaxEndpoints int `json:"maxEndpoints"`
	Flows        int `json:"flows"`
	MaxFlows     int `json:"maxFlows"`
}

// endpointReport is what is said of an address, after what is said of its attachment.
type endpointReport struct {
	attachment
	PodInterface   podInterface `json:"podInterface"`
	Address        string       `json:"address"`
	AcrossNetworks bool         `json:"acrossNetworks"`
	MTU            int          `json:"mtu"`
	Shape          string       `json:"shape"`
	Bridge         string       `json:"bridge"`
	TakesFrames    bool         `json:"takesFrames"`
	InForce        bool         `json:"inForce"`
	Why            string       `json:"why"`
	Detail         string       `json:"detail"`
}

// Shapes of what a pod is connected by.
const (
	shapeBridge = "bridge"
	shapeRouted = "routed"
)

// whyState is why an address is not in force, for programs and for people.
var whyState = map[datapath.EndpointState]struct{ word, detail string }{
	datapath.EndpointNone:    {"none", "its network configuration has no redirect"},
	datapath.EndpointInForce: {"", ""},
	datapath.EndpointOff:     {"off", "redirect is turned off for the pod"},
	datapath.EndpointMissing: {"missing", "the address is not among the node's endpoints"},
	datapath.EndpointTaken:   {"taken", "another attachment of the network has the address, too, and came later"},
	datapath.EndpointStale:   {"stale", "the attachment that it was entered for has gone, or lost its slot"},
}

// stateDetail says why redirect is not in force, for people.
func stateDetail(e *datapath.Endpoint) string {
	detail := whyState[e.State].detail
	switch {
	case e.State == datapath.EndpointOff && len(e.Unfit) > 0:
		detail += ": " + strings.Join(e.Unfit, "; ")
	case e.State == datapath.EndpointOff:
		detail += ", and nothing is in its way any more: the next STATUS, GC or CHECK turns it on"
	}
	return detail
}

func newEndpointReport(e *datapath.Endpoint) endpointReport {
	r := endpointReport{
		attachment: attachment{
			HostInterface: hostInterface{Index: e.HostIndex}, Mode: e.Mode.String(), Addresses: []string{},
		},
		PodInterface: podInterface{MAC: e.PodMAC.String()},
		Address:      e.Address.String(), AcrossNetworks: e.AcrossNetworks, MTU: e.MTU,
		Shape: shapeRouted, TakesFrames: e.TakesFrames,
		InForce: e.State == datapath.EndpointInForce, Why: whyState[e.State].word, Detail: stateDetail(e),
	}
	if e.Attachment != nil {
		r.attachment = newAttachment(e.Attachment.Meta)
		r.PodInterface = podInterface{e.Attachment.Meta.PodIndex, e.Attachment.Meta.PodMAC.String()}
	}
	switch {
	case e.Bridge != 0:
		r.Shape, r.Bridge = shapeBridge, e.BridgeName
	case e.MTU == 0:
		r.Shape = "" // it is not entered
	}
	return r
}

// newEndpointsReport has the addresses of these attachments, or all.
func newEndpointsReport(all *datapath.Endpoints, of []datapath.Attachment, filtered bool) *endpointsReport {
	report := &endpointsReport{
		Endpoints:     []endpointReport{},
		endpointsRoom: endpointsRoom{all.Entered, all.MaxEndpoints, all.Flows, all.MaxFlows},
	}
	for _, e := range all.List {
		isOne := func(a datapath.Attachment) bool { return e.Attachment != nil && a.ID == e.Attachment.ID }
		if !filtered || slices.ContainsFunc(of, isOne) {
			report.Endpoints = append(report.Endpoints, newEndpointReport(&e))
		}
	}
	return report
}

const endpointsHelp = `List the addresses of this node's pods that have redirect, and how packets go directly to each.

NETWORK is the one whose pods find the address: "(shared)" is that of all networks with "acrossNetworks".
SHAPE is what the pod is connected by: a bridge, or routing. IN FORCE says whether packets go directly to
and from the pod, and if not why not. -o wide says more.

Below is what there is room for, as the node's first pod with redirect said: addresses, and flows
between pods of which something is known. Of flows, those not heard of for longest are forgotten.`

func newEndpointsCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "endpoints [POD]",
		Short: "List the pods that packets go directly to",
		Long:  endpointsHelp,
		Example: `  xdpctl endpoints
  xdpctl endpoints default/web -o wide
  xdpctl endpoints -o json | jq '.endpoints[] | select(.inForce | not) | {address, detail}'`,
		Args:              usageArgs(cobra.MaximumNArgs(1)),
		ValidArgsFunction: o.completePod,
		RunE: func(_ *cobra.Command, args []string) error {
			node := o.redirects()
			var (
				picked []datapath.Attachment
				err    error
			)
			if len(args) > 0 {
				if picked, err = o.attachments(node, args); len(picked) == 0 {
					return err
				}
			}
			all, err := node.Endpoints()
			if all.MaxEndpoints == 0 && len(all.List) == 0 && err != nil {
				return err
			}
			report := newEndpointsReport(all, picked, len(args) > 0)
			if len(report.Endpoints) == 0 && o.format.isTable() {
				fmt.Fprintln(o.err, noEndpoints(picked))
			}
			return errors.Join(o.write(report, func(s style) string { return endpointsText(report, s) }), err)
		},
	}
}

func noEndpoints(of []datapath.Attachment) string {
	const lacks = `its network configuration lacks {"redirect": true}`
	if len(of) > 0 {
		return fmt.Sprintf("%s has no redirect: %s.", labelOf(of[0]), lacks)
	}
	return `No pod has redirect: network configurations ask for it by {"redirect": true}.`
}

func endpointsText(r *endpointsReport, s style) string {
	if r.MaxEndpoints == 0 && len(r.Endpoints) == 0 {
		return ""
	}
	t := table{columns: text("ADDRESS", "NETWORK", "POD", "HOST END", "MAC")}
	t.columns = append(t.columns, number("", "MTU")...)
	t.columns = append(t.columns, text("SHAPE", "MODE", "IN FORCE")...)
	if s.wide {
		t.columns = append(t.columns, text("IFNAME", "XDP FRAMES", "CONTAINER")...)
	}
	for i := range r.Endpoints {
		e := &r.Endpoints[i]
		mtu, frames := "-", "no"
		if e.MTU > 0 {
			mtu = strconv.Itoa(e.MTU)
		}
		if e.TakesFrames {
			frames = "taken"
		}
		t.add(e.Address, e.networkText(), cmp.Or(e.label(), "?"), cmp.Or(e.HostInterface.Name, fmt.Sprintf("index %d", e.HostInterface.Index)),
			cmp.Or(e.PodInterface.MAC, "-"), mtu, e.shapeText(), e.Mode, e.inForceText(),
			e.IfName, frames, e.ContainerID)
	}
	room := fmt.Sprintf("%d of %d addresses, %d of %d flows between pods\n", r.Entered, r.MaxEndpoints, r.Flows, r.MaxFlows)
	if len(t.rows) == 0 {
		return room
	}
	return t.String() + "\n" + room
}

func (e *endpointReport) networkText() string {
	if e.AcrossNetworks {
		return strings.TrimSpace(e.Network + " (shared)")
	}
	return cmp.Or(e.Network, "?")
}

func (e *endpointReport) shapeText() string {
	if e.Shape == shapeBridge {
		return strings.TrimSpace(shapeBridge + " " + e.Bridge)
	}
	return cmp.Or(e.Shape, "-")
}

func (e *endpointReport) inForceText() string {
	if e.InForce {
		return "yes"
	}
	return "no: " + e.Detail
}
