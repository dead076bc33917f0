package main

import (
	"fmt"
	"strings"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// modeReport is what a hook mode would cost on this node, and why.
type modeReport struct {
	Mode     string `json:"mode"`
	TCPCPU   string `json:"tcpCPU"`
	RightFor string `json:"rightFor"`
	Why      string `json:"why"`
	Here     string `json:"here"`
	Auto     bool   `json:"auto"`
}

// The kernel's differences that several texts name.
const (
	clsactInstead = "no tcx (kernel 6.6): clsact filters, which collide with the ingress qdisc of the bandwidth plugin"
	jumboFrames   = "XDP frags: any MTU"
	noJumbo       = "no XDP frags (kernel 5.18): pods' MTU at most about 3500"
)

// modeReports holds all that doctor says of the modes. The figures are ratios of TCP's CPU per
// byte to the same veth without the plugin, measured on 6.18.
func modeReports(kernel datapath.Features) []modeReport {
	frags := noJumbo
	if kernel.XDPFrags {
		frags = jumboFrames
	}
	ingress, tcx := "ingress by clsact filter", clsactInstead
	if kernel.TCX {
		ingress, tcx = "ingress by tcx link", "tcx links, which share the hook with others"
	}
	auto := datapath.AutoMode(kernel)
	return []modeReport{
		{
			Mode: datapath.ModeNative.String(), TCPCPU: "about 3x", RightFor: "pods that run XDP or AF_XDP",
			Why: "XDP in the veth driver takes TSO from the pod's end, so ordinary sockets send each TCP segment as a packet; " +
				"GRO at the host end, which the plugin turns on, merges them again (without it 4.9x). " +
				"XDP frames need no socket buffer: 4.4 Mpps dropped, against 1.7 in the other modes.",
			Here: frags + "; " + ingress,
		},
		{
			Mode: datapath.ModeGeneric.String(), TCPCPU: "1.10-1.25x", RightFor: "any pod, on any kernel; the default",
			Why:  "XDP on socket buffers keeps TSO, but the kernel first copies each buffer that is shared, in fragments or short of headroom.",
			Here: ingress, Auto: auto == datapath.ModeGeneric,
		},
		{
			Mode: datapath.ModeTCX.String(), TCPCPU: "0.96-1.03x", RightFor: "pods with ordinary sockets",
			Why:  "The tc hook gets socket buffers as they are, with all offloads, and counts the segments of large packets.",
			Here: tcx, Auto: auto == datapath.ModeTCX,
		},
	}
}

func modesText(modes []modeReport) string {
	t := table{columns: text("MODE", "TCP CPU", "RIGHT FOR", "HERE")}
	var why strings.Builder
	for _, m := range modes {
		t.add(m.Mode, m.TCPCPU, m.RightFor, m.Here)
		why.WriteString(wrap(m.Mode+": "+m.Why, wrapAt, "  "))
	}
	for _, m := range modes {
		if m.Auto {
			t.add("auto", m.TCPCPU, m.RightFor, "chooses "+m.Mode)
		}
	}
	return fmt.Sprintf("%s\n%s", t.String(), why.String())
}

// wrapAt is how wide texts for people are.
const wrapAt = 100

// wrap breaks a text into lines of at most that many bytes, the second and further ones indented.
func wrap(s string, width int, indent string) string {
	var b strings.Builder
	line := ""
	for word := range strings.FieldsSeq(s) {
		if line != "" && len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = indent + word
			continue
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	b.WriteString(line + "\n")
	return b.String()
}
