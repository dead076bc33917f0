package main

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/filter/filtertest"
	"github.com/xdp-cni/xdp-cni/plugin/filter/model"
)

// packetOf returns a packet of which the rules are asked about a subject.
func packetOf(d conf.Direction, s model.Subject) packet {
	p := packet{direction: d, protocol: s.Protocol, remote: endpoint{address: s.Remote.Unmap()}}
	if d == conf.Egress {
		p.remote.port = s.Port
	} else {
		p.local.port = s.Port
	}
	if p.remote.address.Is4() && s.Protocol == uint8(conf.ProtocolICMP) || !p.remote.address.Is4() && s.Protocol == uint8(conf.ProtocolICMPv6) {
		p.icmp = &conf.ICMP{Type: s.ICMPType, Code: &s.ICMPCode}
	}
	return p
}

// TestExplainAgreesWithModel: of random packets, each rule is said to match if the model says so, and
// the verdict is the model's. That the compiled filter agrees, explain checks itself.
func TestExplainAgreesWithModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	const filters, subjects = 500, 40
	why := map[string]int{}
	for range filters {
		f := filtertest.RandomFilter(rng)
		policy := compiled(t, f)
		for range subjects {
			d := []conf.Direction{conf.Egress, conf.Ingress}[rng.IntN(2)]
			p := packetOf(d, filtertest.RandomSubject(rng, f))
			report, err := explain(f, policy, p, subjectPod{})
			if err != nil {
				t.Fatalf("%+v: %v", p, err)
			}
			if len(report.Rules) == 0 && len(f.Rules) > 0 && report.DecidedBy != deciderNeighbour && report.DecidedBy != deciderSpoof {
				t.Fatalf("%s: no rule was asked, and it was decided by %s", report.Packet, report.DecidedBy)
			}
			for _, asked := range report.Rules {
				alone := &conf.Filter{Rules: f.Rules[asked.Rule : asked.Rule+1]}
				if matches := model.Match(alone, d, p.subject()) == 0; matches != asked.Matches {
					t.Fatalf("%s: rule %+v matches: %v, and is explained with %+v", report.Packet, alone.Rules[0], matches, asked)
				}
				why[asked.Why]++
			}
			if len(report.Rules) > 0 {
				want := model.Match(f, d, p.subject())
				action := f.Default.Of(d)
				if want >= 0 {
					action = f.Rules[want].Action
				}
				if report.Rule != want || report.Verdict != action.String() {
					t.Fatalf("%s: %s by rule %d, want %s by %d", report.Packet, report.Verdict, report.Rule, action, want)
				}
			}
		}
	}
	for _, reason := range []string{whyMatches, whyDirection, whyAddress, whyExcept, whyProtocol, whyPorts, whyICMP} {
		if why[reason] == 0 {
			t.Errorf("no rule failed to match by %q: %v", reason, why)
		}
	}
}

// TestExplainChecks: an explanation that the compiled filter does not bear out is none.
func TestExplainChecks(t *testing.T) {
	f := mustFilter(t, sampleFilter)
	other := *f
	other.Rules = f.Rules[:2]
	p := packet{protocol: 6, remote: endpoint{netip.MustParseAddr("10.0.0.1"), 80, true}}
	if _, err := explain(f, compiled(t, f), p, subjectPod{}); err != nil {
		t.Error(err)
	}
	if _, err := explain(f, compiled(t, &other), p, subjectPod{}); !errors.Is(err, errDisagree) {
		t.Errorf("%v, want %v", err, errDisagree)
	}
}

// TestExplain has what is said beside the rules.
func TestExplain(t *testing.T) {
	addr := netip.MustParseAddr
	pod := subjectPod{
		known:     true,
		addresses: []netip.Addr{addr("10.88.0.2"), addr("fd00::2"), addr("fe80::1")},
		hosts:     []netip.Addr{addr("10.88.0.1")},
		others:    map[netip.Addr]string{addr("10.88.0.3"): "demo/server"},
	}
	only4 := subjectPod{known: true, addresses: pod.addresses[:1]}
	const (
		stateless = `{"stateful":false,"antiSpoof":false,"allowHost":false,"default":{"ingress":"deny"}}`
		closed    = `{"default":{"egress":"deny","ingress":"deny"}}`
	)
	for _, test := range []struct {
		name, filter, args string
		pod                subjectPod
		want               string // verdict, who decides, and words of the notes
	}{
		{"own address", sampleFilter, "--egress --protocol tcp --to 10.0.0.1:443", pod, "allow default from 10.88.0.2 to; stateful: answers to it"},
		{"own address of the family", sampleFilter, "--egress --protocol tcp --to [fd00::1]:443", pod, "allow default from fd00::2 to"},
		{"deny", sampleFilter, "--egress --protocol tcp --to 10.0.0.1:80", pod, "deny rule no-http; give the ports of both ends"},
		{"audit", sampleFilter, "--egress --protocol 47 --to 10.0.0.1", pod, "audit rule trial; reported as one that would be denied"},
		{"spoof", sampleFilter, "--egress --protocol tcp --from 10.88.0.9 --to 10.0.0.1:443", pod,
			"deny antiSpoof; 10.88.0.9 is not an address of the pod, which may send from 10.88.0.2, fd00::2, fe80::1"},
		{"spoof is off", stateless, "--egress --protocol tcp --from 10.88.0.9 --to 10.0.0.1:443", pod, "allow default"},
		{"no address of the family", sampleFilter, "--egress --protocol tcp --to [fd00::1]:443", only4,
			"deny antiSpoof; the pod has no address of the family of fd00::1"},
		{"DHCP", closed, "--egress --protocol udp --from 0.0.0.0:68 --to 255.255.255.255:67", pod, "deny default"},
		{"duplicate address detection", closed, "--egress --icmp 135 --from :: --to ff02::1", pod, "allow neighbourDiscovery; pass under any rules"},
		{"router", `{}`, "--egress --icmp 134 --to ff02::1", pod, "deny antiSpoof; a pod is no router"},
		{"nobody's pod", sampleFilter, "--egress --protocol tcp --from 10.88.0.9 --to 10.0.0.1:443", subjectPod{},
			"allow default from 10.88.0.9; without POD, 10.88.0.9 is taken for an address of the pod"},
		{"host", closed, "--ingress --protocol tcp --from 10.88.0.1 --to :80", pod, "allow allowHost; the node's own address"},
		{"host is like others", stateless, "--ingress --protocol tcp --from 10.88.0.1 --to :80", pod, "deny default"},
		{"host of nobody's pod", closed, "--ingress --protocol tcp --from 10.88.0.1 --to :80", subjectPod{}, "deny default; from the node itself it would pass"},
		{"another pod", sampleFilter, "--egress --protocol tcp --to 10.88.0.3:443", pod, "allow default; 10.88.0.3 is demo/server: if that has a filter"},
		{"answer", sampleFilter, "--ingress --protocol tcp --from 10.0.0.1:443 --to :40000", pod,
			"deny default; it would pass as an answer in a flow that began with egress tcp from 10.88.0.2:40000 to 10.0.0.1:443, which is allowed by the default of egress"},
		{"no answer", sampleFilter, "--ingress --protocol tcp --from 10.0.0.1:80 --to :40000", pod,
			`deny default; it would not pass as an answer either: a flow that begins with egress tcp from 10.88.0.2:40000 to 10.0.0.1:80 is denied by rule "no-http"`},
		{"answer to the host", closed, "--egress --protocol tcp --from 10.88.0.2:80 --to 10.88.0.1:40000", pod,
			"deny default; it would pass as an answer in a flow that began with ingress tcp from 10.88.0.1:40000 to 10.88.0.2:80"},
		{"echo reply", sampleFilter, "--ingress --icmp 0 --from 10.0.0.1", pod, "deny default; began with egress icmp type 8/0 from 10.88.0.2 to 10.0.0.1"},
		{"echo request", closed, "--ingress --protocol icmp --from 10.0.0.1", pod, "deny default; judged here as the first packet of a flow"},
		{"error", sampleFilter, "--ingress --icmp 3/1 --from 10.0.0.1", pod, "deny default; about one that is about none"},
		{"stateless answer", stateless, "--egress --protocol tcp --from 10.88.0.2:4000 --to 10.0.0.1:80", pod,
			"allow default; not stateful: an answer to it is judged by itself, and is denied by the default of ingress"},
		{"stateless, answer not known", stateless, "--egress --protocol tcp --to 10.0.0.1:80", pod, "allow default; not stateful: an answer to it is judged by itself"},
	} {
		flags, cmd := &packetFlags{}, &cobra.Command{}
		flags.flags(cmd)
		if err := cmd.ParseFlags(strings.Fields(test.args)); err != nil {
			t.Fatal(err)
		}
		p, err := flags.parse()
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		f := mustFilter(t, test.filter)
		report, err := explain(f, compiled(t, f), *p, test.pod)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		head, note, _ := strings.Cut(test.want, "; ")
		words := strings.SplitN(head, " ", 3)
		have := report.Packet.String() + " " + report.Name
		if report.Verdict != words[0] || report.DecidedBy != words[1] || len(words) > 2 && !strings.Contains(have, words[2]) ||
			!strings.Contains(strings.Join(report.Notes, "\n"), note) {
			t.Errorf("%s: %s %s %s %q, want %s", test.name, report.Verdict, report.DecidedBy, have, report.Notes, test.want)
		}
	}
}
