package model

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/conf"
)

var (
	podMAC   = MAC{2, 0, 0, 0, 0, 1}
	otherMAC = MAC{2, 0, 0, 0, 0, 2}
	pod4     = netip.MustParseAddr("10.0.0.5")
	pod6     = netip.MustParseAddr("fd00::5")
	peer4    = netip.MustParseAddr("10.1.0.1")
	peer6    = netip.MustParseAddr("fd01::1")
	third4   = netip.MustParseAddr("10.2.0.1")
	none4    = netip.IPv4Unspecified()
	none6    = netip.IPv6Unspecified()
	testPod  = Pod{MAC: podMAC, Addresses: []netip.Addr{pod4, pod6, netip.MustParseAddr("fe80::5")}}
)

// out and in are packets between the pod and a peer, changed.
func out(protocol uint8, changes ...func(*Packet)) Packet {
	return changed(Packet{Source: podMAC, EtherType: EtherTypeIPv4, Src: pod4, Dst: peer4, Protocol: protocol}, changes)
}

func in(protocol uint8, changes ...func(*Packet)) Packet {
	return changed(Packet{Source: otherMAC, EtherType: EtherTypeIPv4, Src: peer4, Dst: pod4, Protocol: protocol}, changes)
}

func out6(protocol uint8, changes ...func(*Packet)) Packet {
	return changed(Packet{Source: podMAC, EtherType: EtherTypeIPv6, Src: pod6, Dst: peer6, Protocol: protocol}, changes)
}

func in6(protocol uint8, changes ...func(*Packet)) Packet {
	return changed(Packet{Source: otherMAC, EtherType: EtherTypeIPv6, Src: peer6, Dst: pod6, Protocol: protocol}, changes)
}

func changed(p Packet, changes []func(*Packet)) Packet {
	for _, change := range changes {
		change(&p)
	}
	return p
}

func from(a netip.Addr) func(*Packet) { return func(p *Packet) { p.Src = a } }
func to(a netip.Addr) func(*Packet)   { return func(p *Packet) { p.Dst = a } }
func ports(src, dst uint16) func(*Packet) {
	return func(p *Packet) { p.SrcPort, p.DstPort = src, dst }
}
func flags(f TCPFlags) func(*Packet) { return func(p *Packet) { p.TCPFlags = f } }
func mac(m MAC) func(*Packet)        { return func(p *Packet) { p.Source = m } }
func broken(p *Packet)               { p.Broken = true }
func fromHost(p *Packet)             { p.FromHost = true }
func firstPart(id uint32) func(*Packet) {
	return func(p *Packet) { p.Fragment = Fragment{First: true, ID: id} }
}
func laterPart(id uint32) func(*Packet) {
	return func(p *Packet) { p.Fragment = Fragment{Later: true, ID: id}; p.ICMP = nil }
}
func icmp(icmpType, code uint8) func(*Packet) {
	return func(p *Packet) { p.ICMP, p.HopLimit = &ICMP{Type: icmpType, Code: code}, 1 }
}
func echo(icmpType uint8, id uint16) func(*Packet) {
	return func(p *Packet) { p.ICMP = &ICMP{Type: icmpType, Identifier: id} }
}
func about(icmpType uint8, inner *Inner) func(*Packet) {
	return func(p *Packet) { p.ICMP = &ICMP{Type: icmpType, Inner: inner} }
}
func nd(icmpType uint8, n ND) func(*Packet) {
	return func(p *Packet) { p.ICMP, p.HopLimit = &ICMP{Type: icmpType, ND: &n}, 255 }
}
func hops(limit uint8) func(*Packet) { return func(p *Packet) { p.HopLimit = limit } }
func ether(etherType uint16, arp *ARP) Packet {
	return Packet{Source: podMAC, EtherType: etherType, ARP: arp}
}

// step is a packet at a time, and what becomes of it: pass or drop, the reason if that is drop, the
// step that decides, and the rule, if one does.
type step struct {
	at     time.Duration
	d      conf.Direction
	packet Packet
	want   string
	filter string // put in the place of the one in force before this packet
}

func e(p Packet, want string) step { return step{d: conf.Egress, packet: p, want: want} }
func i(p Packet, want string) step { return step{d: conf.Ingress, packet: p, want: want} }

func (s step) after(d time.Duration) step { s.at = d; return s }
func (s step) under(filter string) step   { s.filter = filter; return s }

func text(v Verdict) string {
	s := "pass"
	if !v.Pass {
		s = "drop " + v.Reason.String()
	}
	s += fmt.Sprintf(" @%d", v.Step)
	if v.Rule >= 0 {
		s += fmt.Sprintf(" rule %d", v.Rule)
	}
	if v.WouldDeny {
		s += " audited"
	}
	return s
}

// run decides the packets in turn by one model.
func run(t *testing.T, filter string, steps []step) {
	t.Helper()
	m := New(testPod, parse(t, filter))
	for n, s := range steps {
		if s.filter != "" {
			m.Replace(parse(t, s.filter))
		}
		v := m.Decide(s.packet, s.d, s.at)
		if got := text(v); got != s.want {
			t.Errorf("packet %d, %s at %s: %s, want %s", n, s.d, s.at, got, s.want)
		}
		if v.Pass != (v.Reason == ReasonNone) {
			t.Errorf("packet %d: %+v", n, v)
		}
	}
}

func parse(t *testing.T, filter string) *conf.Filter {
	t.Helper()
	f, _, err := conf.ParseFilter([]byte(filter))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

const (
	open      = `{}`
	closed    = `{"default":{"egress":"deny","ingress":"deny"}}`
	outOnly   = `{"default":{"egress":"allow","ingress":"deny"}}`
	stateless = `{"stateful":false,"default":{"egress":"allow","ingress":"deny"}}`
	loose     = `{"antiSpoof":false,"default":{"egress":"deny","ingress":"deny"}}`
)

func TestBrokenAndSpoofed(t *testing.T) {
	own := []MAC{podMAC}
	for _, test := range []struct {
		name, filter string
		step         step
	}{
		{"broken, egress", open, e(out(17, broken), "drop malformed @1")},
		{"broken, ingress", open, i(in(17, broken), "drop malformed @1")},
		{"broken before spoofed", open, e(out(17, broken, mac(otherMAC)), "drop malformed @1")},
		{"neighbour discovery in a first fragment", loose, e(out6(58, nd(135, ND{}), firstPart(1)), "drop malformed @1")},
		{"neighbour discovery in a first fragment, ingress", loose, i(in6(58, nd(136, ND{}), firstPart(1)), "drop malformed @1")},
		{"neighbour discovery through a router", loose, e(out6(58, nd(135, ND{}), hops(254)), "drop malformed @1")},
		{"neighbour discovery through a router, ingress", loose, i(in6(58, nd(136, ND{}), hops(254)), "drop malformed @1")},

		{"another's MAC", open, e(out(17, mac(otherMAC)), "drop spoof @2")},
		{"another's MAC, not IP", open, e(changed(ether(0x88cc, nil), []func(*Packet){mac(otherMAC)}), "drop spoof @2")},
		{"another's MAC without antiSpoof", `{"antiSpoof":false}`, e(out(17, mac(otherMAC)), "pass @9")},
		{"another's MAC, ingress", open, i(in(17), "pass @9")},
		{"own address", open, e(out(17), "pass @9")},
		{"own second address", open, e(out6(17, from(netip.MustParseAddr("fe80::5"))), "pass @9")},
		{"own address, mapped", open, e(out6(17, from(netip.MustParseAddr("::ffff:10.0.0.5"))), "pass @9")},
		{"another's address", open, e(out(17, from(third4)), "drop spoof @2")},
		{"another's address of IPv6", open, e(out6(17, from(peer6)), "drop spoof @2")},
		{"another's address without antiSpoof", `{"antiSpoof":false}`, e(out(17, from(third4)), "pass @9")},
		{"another's address in a later fragment", open, e(out(17, from(third4), laterPart(1)), "drop spoof @2")},
		{"pod's address on ingress", open, i(in(17, from(pod4)), "pass @9")},

		{"ARP", closed, e(ether(EtherTypeARP, &ARP{podMAC, pod4}), "pass @3")},
		{"ARP probe", closed, e(ether(EtherTypeARP, &ARP{podMAC, none4}), "pass @3")},
		{"ARP for another's MAC", open, e(ether(EtherTypeARP, &ARP{otherMAC, pod4}), "drop spoof @2")},
		{"ARP probe for another's MAC", open, e(ether(EtherTypeARP, &ARP{otherMAC, none4}), "drop spoof @2")},
		{"ARP for another's address", open, e(ether(EtherTypeARP, &ARP{podMAC, peer4}), "drop spoof @2")},
		{"ARP for another's address without antiSpoof", loose, e(ether(EtherTypeARP, &ARP{podMAC, peer4}), "pass @3")},
		{"ARP not of IPv4", open, e(ether(EtherTypeARP, nil), "drop spoof @2")},
		{"ARP, ingress", closed, i(ether(EtherTypeARP, &ARP{otherMAC, peer4}), "pass @3")},
		{"ARP not of IPv4, ingress", closed, i(ether(EtherTypeARP, nil), "pass @3")},

		{"DHCP", open, e(out(17, from(none4), ports(68, 67)), "pass @9")},
		{"DHCP is for the rules", closed, e(out(17, from(none4), ports(68, 67)), "drop default @9")},
		{"0.0.0.0 to another port", open, e(out(17, from(none4), ports(68, 68)), "drop spoof @2")},
		{"0.0.0.0 from another port", open, e(out(17, from(none4), ports(67, 67)), "drop spoof @2")},
		{"0.0.0.0 by TCP", open, e(out(6, from(none4), ports(68, 67)), "drop spoof @2")},
		{"0.0.0.0 in a later fragment", open, e(out(17, from(none4), ports(68, 67), laterPart(1)), "drop spoof @2")},
		{":: by UDP", open, e(out6(17, from(none6), ports(68, 67)), "drop spoof @2")},

		{"DAD", closed, e(out6(58, from(none6), nd(135, ND{Target: pod6})), "pass @4")},
		{"DAD for another's address", open, e(out6(58, from(none6), nd(135, ND{Target: peer6})), "drop spoof @2")},
		{"DAD for another's address without antiSpoof", loose, e(out6(58, from(none6), nd(135, ND{Target: peer6})), "pass @4")},
		{"DAD in a later fragment", open, e(out6(58, from(none6), laterPart(1)), "drop spoof @2")},
		{"router solicitation from ::", closed, e(out6(58, from(none6), nd(133, ND{})), "pass @4")},
		{"MLD report from ::", closed, e(out6(58, from(none6), icmp(131, 0)), "pass @4")},
		{"MLD done from ::", closed, e(out6(58, from(none6), icmp(132, 0)), "pass @4")},
		{"MLDv2 report from ::", closed, e(out6(58, from(none6), icmp(143, 0)), "pass @4")},
		{"MLD query from ::", open, e(out6(58, from(none6), icmp(130, 0)), "drop spoof @2")},
		{"advertisement from ::", open, e(out6(58, from(none6), nd(136, ND{Target: pod6})), "drop spoof @2")},
		{"echo request from ::", open, e(out6(58, from(none6), echo(128, 1)), "drop spoof @2")},

		{"solicitation", closed, e(out6(58, nd(135, ND{Target: peer6, SourceLinkLayer: own})), "pass @4")},
		{"solicitation for another's MAC", open, e(out6(58, nd(135, ND{SourceLinkLayer: []MAC{otherMAC}})), "drop spoof @2")},
		{"solicitation, second option", open, e(out6(58, nd(135, ND{SourceLinkLayer: []MAC{podMAC, otherMAC}})), "drop spoof @2")},
		{"solicitation from ::, option", closed, e(out6(58, from(none6), nd(135, ND{Target: pod6, SourceLinkLayer: []MAC{otherMAC}})), "pass @4")},
		{"solicitation from another's address", open, e(out6(58, from(peer6), nd(135, ND{})), "drop spoof @2")},
		{"router solicitation for another's MAC", open, e(out6(58, nd(133, ND{SourceLinkLayer: []MAC{otherMAC}})), "drop spoof @2")},
		{"router solicitation from ::, option", open, e(out6(58, from(none6), nd(133, ND{SourceLinkLayer: []MAC{otherMAC}})), "drop spoof @2")},
		{"advertisement", closed, e(out6(58, nd(136, ND{Target: pod6, TargetLinkLayer: own})), "pass @4")},
		{"advertisement without option", closed, e(out6(58, nd(136, ND{Target: pod6})), "pass @4")},
		{"advertisement of another's address", open, e(out6(58, nd(136, ND{Target: peer6, TargetLinkLayer: own})), "drop spoof @2")},
		{"advertisement for another's MAC", open, e(out6(58, nd(136, ND{Target: pod6, TargetLinkLayer: []MAC{otherMAC}})), "drop spoof @2")},
		{"advertisement of another's without antiSpoof", loose, e(out6(58, nd(136, ND{Target: peer6})), "pass @4")},
		{"router advertisement", open, e(out6(58, nd(134, ND{SourceLinkLayer: own})), "drop spoof @2")},
		{"ND redirect", open, e(out6(58, nd(137, ND{})), "drop spoof @2")},
		{"router advertisement without antiSpoof", loose, e(out6(58, nd(134, ND{})), "pass @4")},
		{"ICMPv6 over IPv4 is no ND", open, e(out(58, func(p *Packet) {}), "pass @9")},
	} {
		t.Run(test.name, func(t *testing.T) { run(t, test.filter, []step{test.step}) })
	}
}

func TestWhatNoRuleIsAskedAbout(t *testing.T) {
	denyAll := `{"rules":[{"name":"o","direction":"egress","action":"deny"},{"name":"i","direction":"ingress","action":"deny"}]}`
	for _, test := range []struct {
		name, filter string
		step         step
	}{
		{"not IP, allowed", open, e(ether(0x88cc, nil), "pass @3")},
		{"not IP, denied", closed, e(ether(0x88cc, nil), "drop default @3")},
		{"not IP, of the direction", outOnly, e(ether(0x88cc, nil), "pass @3")},
		{"not IP, ingress", outOnly, i(ether(0x88cc, nil), "drop default @3")},
		{"not IP has no rules", denyAll, e(ether(0x88cc, nil), "pass @3")},
		{"ARP has no rules", denyAll, e(ether(EtherTypeARP, &ARP{podMAC, pod4}), "pass @3")},
		{"router advertisement, ingress", denyAll, i(in6(58, nd(134, ND{})), "pass @4")},
		{"redirect, ingress", denyAll, i(in6(58, nd(137, ND{})), "pass @4")},
		{"solicitation, ingress", closed, i(in6(58, nd(135, ND{})), "pass @4")},
		{"MLD query, ingress", closed, i(in6(58, icmp(130, 0)), "pass @4")},
		{"MLDv2 report, egress", denyAll, e(out6(58, icmp(143, 0)), "pass @4")},
		{"MLD query that could be routed", denyAll, i(in6(58, icmp(130, 0), hops(2)), "drop rule @9 rule 1")},
		{"MLDv2 report that could be routed", denyAll, e(out6(58, icmp(143, 0), hops(64)), "drop rule @9 rule 0")},
		{"beside MLD", denyAll, i(in6(58, icmp(129, 0)), "drop rule @9 rule 1")},
		{"beside ND", denyAll, i(in6(58, icmp(138, 0)), "drop rule @9 rule 1")},
		{"beside MLDv2", denyAll, i(in6(58, icmp(142, 0)), "drop rule @9 rule 1")},
		{"those types over IPv4", denyAll, i(in(1, icmp(135, 0)), "drop rule @9 rule 1")},

		{"host", denyAll, i(in(6, fromHost), "pass @5")},
		{"host, without allowHost", `{"allowHost":false,"default":{"ingress":"deny"}}`, i(in(6, fromHost), "drop default @9")},
		{"host, later fragment", denyAll, i(in(17, fromHost, laterPart(1)), "pass @5")},
		{"host, redirect", denyAll, i(in(1, fromHost, icmp(5, 0)), "pass @5")},
		{"to the host", denyAll, e(out(6, fromHost), "drop rule @9 rule 0")},
	} {
		t.Run(test.name, func(t *testing.T) { run(t, test.filter, []step{test.step}) })
	}
}

func TestRules(t *testing.T) {
	const filter = `{"default":{"egress":"deny"},"rules":[
		{"name":"in","direction":"ingress","action":"deny","from":["10.1.0.0/16"],"protocol":"tcp"},
		{"name":"dns","direction":"egress","action":"allow","to":["10.1.0.0/16"],"except":["10.1.2.0/24"],"protocol":"udp","ports":["53","60-70"]},
		{"name":"no","direction":"egress","action":"deny","protocol":"udp","ports":["54"]},
		{"name":"see","direction":"egress","action":"audit","protocol":"udp","ports":["55"]},
		{"name":"ping","direction":"egress","action":"allow","protocol":"icmp","icmp":{"type":8}},
		{"name":"unreachable","direction":"egress","action":"allow","protocol":"icmp","icmp":{"type":3,"code":4}},
		{"name":"six","direction":"egress","action":"allow","to":["::/0"],"protocol":47},
		{"name":"again","direction":"egress","action":"deny","protocol":"udp","ports":["53"]}]}`
	for _, test := range []struct {
		name string
		step step
	}{
		{"first match", e(out(17, ports(9, 53)), "pass @9 rule 1")},
		{"source port is not asked about", e(out(17, ports(53, 9)), "drop default @9")},
		{"range", e(out(17, ports(9, 60)), "pass @9 rule 1")},
		{"range's end", e(out(17, ports(9, 70)), "pass @9 rule 1")},
		{"past the range", e(out(17, ports(9, 71)), "drop default @9")},
		{"except", e(out(17, ports(9, 53), to(netip.MustParseAddr("10.1.2.3"))), "drop rule @9 rule 7")},
		{"another address", e(out(17, ports(9, 53), to(third4)), "drop rule @9 rule 7")},
		{"mapped address", e(out6(17, ports(9, 53), to(netip.MustParseAddr("::ffff:10.1.0.1"))), "pass @9 rule 1")},
		{"another protocol", e(out(6, ports(9, 53)), "drop default @9")},
		{"both families", e(out6(17, ports(9, 54)), "drop rule @9 rule 2")},
		{"audit", e(out(17, ports(9, 55)), "pass @9 rule 3 audited")},
		{"ICMP type", e(out(1, icmp(8, 9)), "pass @9 rule 4")},
		{"another ICMP type", e(out(1, icmp(0, 0)), "drop default @9")},
		{"ICMP code", e(out(1, icmp(3, 4)), "pass @9 rule 5")},
		{"another ICMP code", e(out(1, icmp(3, 3)), "drop default @9")},
		{"protocol by number", e(out6(47), "pass @9 rule 6")},
		{"::/0 is not IPv4", e(out(47), "drop default @9")},
		{"direction", i(in(6), "drop rule @9 rule 0")},
		{"default of the direction", i(in(17), "pass @9")},
	} {
		t.Run(test.name, func(t *testing.T) { run(t, filter, []step{test.step}) })
	}
}
