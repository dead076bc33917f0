package model

import (
	"testing"
	"time"
)

func TestState(t *testing.T) {
	const (
		s       = time.Second
		passNew = "pass @9"
		passOld = "pass @8"
		deny    = "drop default @9"
	)
	tcp := func(f TCPFlags, swap bool) Packet {
		if swap {
			return in(6, ports(80, 4000), flags(f))
		}
		return out(6, ports(4000, 80), flags(f))
	}
	syn, synAck, ack := e(tcp(SYN, false), passNew), i(tcp(SYN|ACK, true), passOld), e(tcp(ACK, false), passOld)
	data := i(tcp(ACK, true), passOld)
	finOut, finIn := e(tcp(FIN|ACK, false), passOld), i(tcp(FIN|ACK, true), passOld)
	dataLate := i(tcp(ACK, true), deny)

	query, answer := e(out(17, ports(4000, 53)), passNew), i(in(17, ports(53, 4000)), passOld)
	answerLate := i(in(17, ports(53, 4000)), deny)
	queryAgain := e(out(17, ports(4000, 53)), passOld)

	// What the pod sent, as an error quotes it.
	quoted := &Inner{Src: pod4, Dst: peer4, Protocol: 17, SrcPort: 4000, DstPort: 53}
	quotedIn := &Inner{Src: peer4, Dst: pod4, Protocol: 17, SrcPort: 53, DstPort: 4000}
	udpOnly := `{"default":{"egress":"deny","ingress":"deny"},"rules":[
		{"name":"u","direction":"egress","action":"allow","protocol":"udp"}]}`
	denyLater := `{"default":{"egress":"deny","ingress":"allow"},"rules":[
		{"name":"x","direction":"egress","action":"allow","protocol":"icmp"},
		{"name":"n","direction":"egress","action":"deny","protocol":"udp"}]}`
	auditLater := `{"default":{"egress":"deny","ingress":"deny"},"rules":[
		{"name":"a","direction":"egress","action":"audit","to":["10.1.0.1"],"protocol":"udp","ports":["53"]}]}`
	inWeb := `{"default":{"egress":"deny","ingress":"deny"},"rules":[
		{"name":"w","direction":"ingress","action":"allow","protocol":"tcp","ports":["80"]}]}`
	noHost := `{"allowHost":false,"default":{"egress":"deny","ingress":"deny"}}`

	for _, test := range []struct {
		name, filter string
		steps        []step
	}{
		{"reply", outOnly, []step{query, answer}},
		{"reply, stateless", stateless, []step{query, answerLate}},
		{"reply from another port", outOnly, []step{query, i(in(17, ports(54, 4000)), deny)}},
		{"reply to another port", outOnly, []step{query, i(in(17, ports(53, 4001)), deny)}},
		{"reply from another address", outOnly, []step{query, i(in(17, ports(53, 4000), from(third4)), deny)}},
		{"reply by another protocol", outOnly, []step{query, i(in(132, ports(53, 4000)), deny)}},
		{"reply to a dropped packet", closed, []step{e(out(17, ports(4000, 53)), deny), answerLate}},
		{"reply to a spoofed packet", outOnly, []step{e(out(17, ports(4000, 53), mac(otherMAC)), "drop spoof @2"), answerLate}},
		{"reply of a pod", inWeb, []step{i(in(6, ports(9, 80), flags(SYN)), "pass @9 rule 0"), e(out(6, ports(80, 9), flags(SYN|ACK)), passOld)}},
		{"reply over IPv6", outOnly, []step{e(out6(17, ports(1, 2)), passNew), i(in6(17, ports(2, 1)), passOld)}},
		{"reply over SCTP", outOnly, []step{e(out(132, ports(1, 2)), passNew), i(in(132, ports(2, 1)), passOld), i(in(132, ports(3, 1)), deny)}},
		{"reply over a protocol without ports", outOnly, []step{e(out(47), passNew), i(in(47), passOld)}},
		{"audited packets make flows", `{"default":{"ingress":"deny"},"rules":[{"name":"a","direction":"egress","action":"audit"}]}`,
			[]step{e(out(17, ports(4000, 53)), "pass @9 rule 0 audited"), answer}},
		{"a flow passes whatever a rule says", `{"rules":[{"name":"n","direction":"ingress","action":"deny"}]}`, []step{query, answer}},

		{"UDP, one way", outOnly, []step{query, answerLate.after(60 * s)}},
		{"UDP, one way, just so", outOnly, []step{query, answer.after(60*s - 1)}},
		{"UDP, one way, refreshed", outOnly, []step{query, queryAgain.after(59 * s), answer.after(118 * s)}},
		{"UDP, both ways", outOnly, []step{query, answer, answer.after(180*s - 1), answerLate.after(360*s - 1)}},
		{"ICMP", outOnly, []step{e(out(1, echo(8, 7)), passNew), i(in(1, echo(0, 7)), passOld).after(30*s - 1),
			i(in(1, echo(0, 7)), deny).after(60*s - 1)}},
		{"ICMPv6", outOnly, []step{e(out6(58, echo(128, 7)), passNew), i(in6(58, echo(129, 7)), passOld).after(30*s - 1),
			i(in6(58, echo(129, 7)), deny).after(60*s - 1)}},
		{"other protocols", outOnly, []step{e(out(47), passNew), i(in(47), passOld).after(600*s - 1), i(in(47), deny).after(1200*s - 1)}},
		{"SCTP", outOnly, []step{e(out(132, ports(1, 2)), passNew), i(in(132, ports(2, 1)), deny).after(600 * s)}},

		{"TCP", outOnly, []step{syn, synAck, ack, data.after(24*time.Hour - 1), dataLate.after(48*time.Hour - 1)}},
		{"TCP, one way", outOnly, []step{syn, i(tcp(SYN|ACK, true), deny).after(30 * s)}},
		{"TCP, one way, just so", outOnly, []step{syn, synAck.after(30*s - 1)}},
		{"TCP, FIN from one side", outOnly, []step{syn, synAck, finOut, data.after(23 * time.Hour)}},
		{"TCP, FIN twice from one side", outOnly, []step{syn, synAck, finOut, finOut, data.after(23 * time.Hour)}},
		{"TCP, FIN from both sides", outOnly, []step{syn, synAck, finOut, finIn, data.after(10*s - 1), dataLate.after(10 * s)}},
		{"TCP, nothing refreshes what is closed", outOnly, []step{syn, synAck, finOut, finIn, finOut.after(9 * s), dataLate.after(10 * s)}},
		{"TCP, RST from the pod", outOnly, []step{syn, synAck, e(tcp(RST, false), passOld), dataLate}},
		{"TCP, RST to the pod", outOnly, []step{syn, i(tcp(RST|ACK, true), passOld), dataLate}},
		{"TCP, RST makes no flow", outOnly, []step{e(tcp(RST, false), passNew), dataLate}},
		{"TCP, port used again after FIN", outOnly, []step{syn, synAck, finOut, finIn, syn.after(s), synAck.after(s), data.after(12 * time.Hour)}},
		{"TCP, port used again after RST", outOnly, []step{syn, synAck, e(tcp(RST, false), passOld), syn, synAck}},
		{"TCP, SYN into a flow from the other side", outOnly, []step{syn, synAck, i(tcp(SYN, true), deny), data}},
		{"TCP, SYN into a flow again", inWeb, []step{
			i(in(6, ports(9, 80), flags(SYN)), "pass @9 rule 0"), i(in(6, ports(9, 80), flags(SYN)), "pass @9 rule 0")}},
		{"TCP, without SYN", outOnly, []step{e(tcp(ACK, false), passNew), data}},
		{"TCP, SYN and ACK without a flow", outOnly, []step{i(tcp(SYN|ACK, true), deny)}},

		{"whoever is pinged may not ping", outOnly, []step{e(out(1, echo(8, 7)), passNew), i(in(1, echo(8, 7)), deny)}},
		{"nor by ICMPv6", outOnly, []step{e(out6(58, echo(128, 7)), passNew), i(in6(58, echo(128, 7)), deny)}},
		{"identifier 0 is no other type", outOnly, []step{e(out(1, echo(8, 0)), passNew), i(in(1, icmp(13, 0)), deny)}},
		{"timestamp", outOnly, []step{e(out(1, icmp(13, 0)), passNew), i(in(1, icmp(14, 0)), passOld)}},
		{"timestamp is no address mask", outOnly, []step{e(out(1, icmp(13, 0)), passNew), i(in(1, icmp(18, 0)), deny)}},
		{"echo of another identifier", outOnly, []step{e(out(1, echo(8, 7)), passNew), i(in(1, echo(0, 8)), deny)}},
		{"other ICMP", outOnly, []step{e(out(1, icmp(13, 0)), passNew), i(in(1, icmp(14, 0)), passOld)}},
		{"other ICMP is no echo", outOnly, []step{e(out(1, echo(8, 7)), passNew), i(in(1, icmp(14, 0)), deny)}},
		{"ICMP errors make no flows", outOnly, []step{e(out(1, about(3, nil)), passNew), i(in(1, icmp(14, 0)), deny)}},
		{"redirects belong to none", outOnly, []step{e(out(1, icmp(13, 0)), passNew), i(in(1, about(5, quoted)), deny)}},
		{"ICMP over IPv6 has no identifier", outOnly, []step{e(out6(1), passNew), i(in6(1), passOld)}},

		{"error about a flow", udpOnly, []step{e(out(17, ports(4000, 53)), "pass @9 rule 0"),
			i(in(1, about(3, quoted)), "pass @7"), i(in(1, about(4, quoted)), "pass @7"),
			i(in(1, about(11, quoted)), "pass @7"), i(in(1, about(12, quoted), from(third4)), "pass @7")}},
		{"error about a flow, from the pod", udpOnly, []step{e(out(17, ports(4000, 53)), "pass @9 rule 0"), e(out(1, about(3, quotedIn)), "pass @7")}},
		{"error about what the other side sent", udpOnly, []step{e(out(17, ports(4000, 53)), "pass @9 rule 0"), i(in(1, about(3, quotedIn)), deny)}},
		{"error about a flow over IPv6", outOnly, []step{e(out6(6, ports(4000, 80), flags(SYN)), passNew),
			i(in6(58, about(2, &Inner{Src: pod6, Dst: peer6, Protocol: 6, SrcPort: 4000, DstPort: 80})), "pass @7"),
			i(in6(58, about(5, &Inner{Src: pod6, Dst: peer6, Protocol: 6, SrcPort: 4000, DstPort: 80})), deny)}},
		{"error about a ping", outOnly, []step{e(out(1, echo(8, 7)), passNew),
			i(in(1, about(11, &Inner{Src: pod4, Dst: peer4, Protocol: 1, ICMPType: 8, Identifier: 7})), "pass @7"),
			i(in(1, about(11, &Inner{Src: pod4, Dst: peer4, Protocol: 1, ICMPType: 8, Identifier: 8})), deny)}},
		{"redirect about a flow", outOnly, []step{query, i(in(1, about(5, quoted)), deny)}},
		{"error about no flow", outOnly, []step{i(in(1, about(3, quoted)), deny)}},
		{"error about a flow that is over", outOnly, []step{query, i(in(1, about(3, quoted)), deny).after(60 * s)}},
		{"error that quotes too little", outOnly, []step{query, i(in(1, about(3, nil)), deny)}},
		{"error, stateless", stateless, []step{query, i(in(1, about(3, quoted)), deny)}},
		{"errors refresh nothing", outOnly, []step{query, i(in(1, about(3, quoted)), "pass @7").after(59 * s), answerLate.after(60 * s)}},

		{"host's flow", closed, []step{i(in(6, ports(9, 80), flags(SYN), fromHost), "pass @5"), e(out(6, ports(80, 9), flags(SYN|ACK)), passOld)}},
		{"host's flow, stateless", `{"stateful":false,"default":{"egress":"deny"}}`,
			[]step{i(in(6, ports(9, 80), fromHost), "pass @5"), e(out(6, ports(80, 9), flags(ACK)), deny)}},
		{"host's fragment makes no flow", closed, []step{i(in(17, laterPart(1), fromHost), "pass @5"), e(out(17), deny)}},
		{"host's errors make no flow", closed, []step{i(in(1, about(3, nil), fromHost), "pass @5"), e(out(1, icmp(13, 0)), deny)}},
		{"host's flow after a change", closed, []step{i(in(6, ports(9, 80), flags(SYN), fromHost), "pass @5"),
			e(out(6, ports(80, 9), flags(ACK)), passOld).under(closed)}},
		{"host's flow after allowHost is gone", closed, []step{i(in(6, ports(9, 80), flags(SYN), fromHost), "pass @5"),
			e(out(6, ports(80, 9), flags(ACK)), "drop default @8").under(noHost)}},
		{"host in a pod's flow does not judge it", udpOnly, []step{e(out(17, ports(1, 2)), "pass @9 rule 0"),
			i(in(17, ports(2, 1), fromHost), "pass @5").under(denyLater), e(out(17, ports(1, 2)), "drop rule @8 rule 1")}},

		{"change: judged anew by the initiator's direction", outOnly, []step{query, i(in(17, ports(53, 4000)), "pass @8 rule 0").under(udpOnly)}},
		{"change: rule is told", udpOnly, []step{e(out(17, ports(4000, 53)), "pass @9 rule 0"), i(in(17, ports(53, 4000)), "pass @8 rule 0").under(udpOnly), answer}},
		{"change: audit", outOnly, []step{query, i(in(17, ports(53, 4000)), "pass @8 rule 0 audited").under(auditLater), answer}},
		{"change: denied by a rule, and forgotten", udpOnly, []step{e(out(17, ports(4000, 53)), "pass @9 rule 0"),
			i(in(17, ports(53, 4000)), "drop rule @8 rule 1").under(denyLater), i(in(17, ports(53, 4000)), passNew)}},
		{"change: denied by default", outOnly, []step{query, i(in(17, ports(53, 4000)), "drop default @8").under(closed)}},
		{"change: ping is judged as a request", `{}`, []step{e(out(1, echo(8, 7)), passNew),
			i(in(1, echo(0, 7)), "pass @8 rule 0").under(`{"default":{"egress":"deny","ingress":"deny"},"rules":[
				{"name":"p","direction":"egress","action":"allow","protocol":"icmp","icmp":{"type":8}}]}`)}},
		{"change: twice", outOnly, []step{query, answer.under(outOnly), answer.under(outOnly)}},
		{"change: errors pass before it is judged", outOnly, []step{query, i(in(1, about(3, quoted)), "pass @7").under(closed)}},
		{"change: a new connection is no old one's", outOnly, []step{syn, synAck, e(tcp(SYN, false), deny).under(closed)}},
	} {
		t.Run(test.name, func(t *testing.T) { run(t, test.filter, test.steps) })
	}
}

func TestFragments(t *testing.T) {
	const (
		s       = time.Second
		byPorts = `{"allowHost":false,"rules":[
			{"name":"d","direction":"egress","action":"deny","protocol":"udp","ports":["53"]},
			{"name":"a","direction":"egress","action":"allow","protocol":"udp"},
			{"name":"n","direction":"egress","action":"deny","to":["10.2.0.0/16"],"protocol":"tcp"},
			{"name":"s","direction":"egress","action":"audit","to":["10.1.0.0/16"],"protocol":"tcp"},
			{"name":"i","direction":"egress","action":"allow","protocol":"icmp","icmp":{"type":8}}]}`
	)
	first := e(out(17, ports(1, 2), firstPart(7)), "pass @9 rule 1")
	bad := e(out(17, ports(1, 53), firstPart(7)), "drop rule @9 rule 0")
	for _, test := range []struct {
		name, filter string
		steps        []step
	}{
		{"follows", byPorts, []step{first, e(out(17, laterPart(7)), "pass @6 rule 1"), e(out(17, laterPart(7)), "pass @6 rule 1")}},
		{"follows a drop", byPorts, []step{bad, e(out(17, laterPart(7)), "drop fragment @6 rule 0")}},
		{"follows the default", closed, []step{e(out(17, firstPart(7)), "drop default @9"), e(out(17, laterPart(7)), "drop default @6")}},
		{"follows an audit", byPorts, []step{e(out(6, firstPart(7)), "pass @9 rule 3 audited"), e(out(6, laterPart(7)), "pass @6 rule 3 audited")}},
		{"follows a flow", outOnly, []step{e(out(17, ports(1, 2)), "pass @9"), i(in(17, ports(2, 1), firstPart(7)), "pass @8"), i(in(17, laterPart(7)), "pass @6")}},
		{"follows the latest", byPorts, []step{bad, first, e(out(17, laterPart(7)), "pass @6 rule 1")}},
		{"follows a listener report", closed, []step{e(out6(58, icmp(143, 0), firstPart(7)), "pass @4"), e(out6(58, laterPart(7)), "pass @6")}},
		{"time", byPorts, []step{first, e(out(17, laterPart(7)), "pass @6 rule 1").after(30*s - 1),
			e(out(17, laterPart(7)), "drop fragment @6 rule 0").after(30 * s)}},
		{"another ID", byPorts, []step{first, e(out(17, laterPart(8)), "drop fragment @6 rule 0")}},
		{"another destination", byPorts, []step{first, e(out(17, laterPart(7), to(third4)), "drop fragment @6 rule 0")}},
		{"another source", `{"antiSpoof":false,"default":{"egress":"deny"},"rules":[{"name":"a","direction":"egress","action":"allow","protocol":"udp","ports":["2"]}]}`,
			[]step{e(out(17, ports(1, 2), firstPart(7)), "pass @9 rule 0"), e(out(17, laterPart(7), from(third4)), "drop fragment @6 rule 0")}},
		{"another protocol", byPorts, []step{first, e(out(1, laterPart(7)), "drop fragment @6 rule 4")}},
		{"another protocol over IPv6", byPorts, []step{e(out6(17, ports(1, 2), firstPart(7)), "pass @9 rule 1"), e(out6(60, laterPart(7)), "pass @6 rule 1")}},
		{"another direction", outOnly, []step{e(out(17, to(pod4), firstPart(7)), "pass @9"), i(in(17, from(pod4), laterPart(7)), "drop default @6")}},
		{"unknown, rule without ports", byPorts, []step{e(out(6, laterPart(7)), "pass @6 rule 3 audited"),
			e(out(6, laterPart(7), to(third4)), "drop rule @6 rule 2")}},
		{"unknown, rule with an ICMP type", byPorts, []step{e(out(1, laterPart(7)), "drop fragment @6 rule 4")}},
		{"unknown, default", byPorts, []step{e(out(47, laterPart(7)), "pass @6")}},
		{"unknown, default denies", closed, []step{e(out(47, laterPart(7)), "drop default @6")}},
		{"unknown, in a flow", outOnly, []step{e(out(47), "pass @9"), i(in(47, laterPart(7)), "drop default @6")}},
		{"makes no flow", outOnly, []step{e(out(47, laterPart(7)), "pass @6"), i(in(47), "drop default @9")}},
		{"refreshes no flow", outOnly, []step{e(out(17, ports(1, 2), firstPart(7)), "pass @9"), e(out(17, laterPart(7)), "pass @6").after(29 * s),
			i(in(17, ports(2, 1)), "drop default @9").after(60 * s)}},
		{"a first one makes a flow", outOnly, []step{e(out(17, ports(1, 2), firstPart(7)), "pass @9"), i(in(17, ports(2, 1)), "pass @8")}},
		{"a spoofed first one is not known", open, []step{e(out(17, firstPart(7), mac(otherMAC)), "drop spoof @2"), e(out(17, laterPart(7)), "pass @6")}},
		{"change: passes on", byPorts, []step{first, e(out(17, laterPart(7)), "pass @6").under(closed)}},
		{"change: a drop is not remembered", byPorts, []step{bad, e(out(17, laterPart(7)), "pass @6").under(open)}},
		{"a drop makes forget", byPorts, []step{first, bad, e(out(17, laterPart(7)), "drop fragment @6 rule 0")}},
		{"stateless", stateless, []step{e(out(17, ports(1, 2), firstPart(7)), "pass @9"), e(out(17, laterPart(7)), "pass @6")}},
	} {
		t.Run(test.name, func(t *testing.T) { run(t, test.filter, test.steps) })
	}
}
