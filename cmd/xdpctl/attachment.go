package main

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// The types with JSON tags in this package are the output that docs/json.md promises: fields are
// added, never renamed or removed.

// attachment names an attachment.
type attachment struct {
	ContainerID   string        `json:"containerID"`
	IfName        string        `json:"ifname"`
	Netns         string        `json:"netns"`
	Pod           pod           `json:"pod"`
	Network       string        `json:"network"`
	HostInterface hostInterface `json:"hostInterface"`
	Mode          string        `json:"mode"`
	Addresses     []string      `json:"addresses"`
}

type pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
}

type hostInterface struct {
	Name  string `json:"name"`
	Index int    `json:"index"`
}

func newAttachment(m *datapath.Meta) attachment {
	a := attachment{
		ContainerID:   m.ContainerID,
		IfName:        m.IfName,
		Netns:         m.Netns,
		Pod:           pod{m.PodNamespace, m.PodName, m.PodUID},
		Network:       m.Network,
		HostInterface: hostInterface{m.HostName, m.HostIndex},
		Mode:          m.Mode.String(),
		Addresses:     []string{}, // never null
	}
	for _, address := range m.Addresses {
		a.Addresses = append(a.Addresses, address.String())
	}
	return a
}

// label is what people call the attachment's pod: outside Kubernetes, its container.
func (a *attachment) label() string {
	if name := a.Pod.label(); name != "" {
		return name
	}
	return shortID(a.ContainerID)
}

// label is what people call the pod; "" if it has no name. podman has names and no namespaces.
func (p pod) label() string {
	if p.Name == "" || p.Namespace == "" {
		return p.Name
	}
	return p.Namespace + "/" + p.Name
}

func shortID(containerID string) string {
	return containerID[:min(len(containerID), 12)]
}

// labelOf is label, of what has not been converted.
func labelOf(a datapath.Attachment) string {
	converted := newAttachment(a.Meta)
	return converted.label()
}

func addressesOf(a datapath.Attachment) []netip.Addr {
	var addresses []netip.Addr
	for _, prefix := range a.Meta.Addresses {
		addresses = append(addresses, prefix.Addr())
	}
	return addresses
}

// networksOf returns the prefixes that a pod's addresses are in.
func networksOf(a datapath.Attachment) []netip.Prefix {
	var prefixes []netip.Prefix
	for _, address := range a.Meta.Addresses {
		prefixes = append(prefixes, address.Masked())
	}
	return prefixes
}

func sortAttachments(attachments []datapath.Attachment) {
	slices.SortStableFunc(attachments, func(a, b datapath.Attachment) int {
		return cmp.Or(
			cmp.Compare(labelOf(a), labelOf(b)),
			cmp.Compare(a.Meta.ContainerID, b.Meta.ContainerID),
			cmp.Compare(a.Meta.IfName, b.Meta.IfName),
		)
	})
}

// directions holds one of each.
type directions[T any] struct {
	Egress  T `json:"egress"`
	Ingress T `json:"ingress"`
}

// timestamp writes a time for machines.
func timestamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
