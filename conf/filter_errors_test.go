package conf

import "testing"

const (
	wantPrefix   = `want a CIDR such as "10.0.0.0/8" or "fd00::/8", or an address, got `
	wantPort     = `want a port as "53", or a range of them as "8000-8999", got `
	wantProtocol = `want "any", "tcp", "udp", "sctp", "icmp", "icmpv6" or a whole number from 0 to 255, got `
	wantName     = `want a name of 1 to 63 of the characters A-Z a-z 0-9 . _ -, got `
	noPorts      = `want no ports, or a protocol that has them (tcp, udp, sctp), got `
)

// brokenFilters has, for each way in which a filter can be wrong, the details of its error.
var brokenFilters = []struct{ name, in, details string }{
	{"stateful: string", `{"stateful":"yes"}`, `"stateful": want true or false, got "yes"`},
	{"stateful: null", `{"stateful":null}`, `"stateful": want true or false, got null`},
	{"allowHost: number", `{"allowHost":1}`, `"allowHost": want true or false, got 1`},
	{"antiSpoof: twice", `{"antiSpoof":true,"antiSpoof":false}`, `"antiSpoof": given 2 times, as true and false, want it once`},
	{"default: word", `{"default":"deny"}`, `"default": want an object, got "deny"`},
	{"default: audit", `{"default":{"egress":"audit"}}`, `"default.egress": want one of "allow", "deny", got "audit"`},
	{"default: null", `{"default":{"ingress":null}}`, `"default.ingress": want one of "allow", "deny", got null`},
	{"default: unknown key", `{"default":{"input":"deny"}}`, `"default.input": unknown key with value "deny", want one of "egress", "ingress"`},
	{"maxFlows: few", `{"maxFlows":255}`, `"maxFlows": want a whole number from 256 to 1048576, got 255`},
	{"maxFlows: many", `{"maxFlows":1048577}`, `"maxFlows": want a whole number from 256 to 1048576, got 1048577`},
	{"unknown key", `{"antispoof":true}`, `"antispoof": unknown key with value true, want one of "stateful", "allowHost", ` +
		`"antiSpoof", "default", "maxFlows", "rules", did you mean "antiSpoof"?`},
	{"rules: object", `{"rules":{}}`, `"rules": want a list of rules, got {}`},
	{"rules: null", `{"rules":null}`, `"rules": want a list of rules, got null`},
	{"rule: string", `{"rules":["allow"]}`, `"rules[0]": want an object, got "allow"`},
	{"rule: nothing", `{"rules":[{}]}`, `"rules[0].name": missing, ` + wantName[:len(wantName)-6] + `; ` +
		`"rules[0].direction": missing, want one of "egress", "ingress"; ` +
		`"rules[0].action": missing, want one of "allow", "deny", "audit"`},
	{"rule: unknown key", withRule(`"port":["1"]`), `rule "r": "rules[0].port": unknown key with value ["1"], want one of "name", ` +
		`"direction", "action", "to", "from", "except", "protocol", "ports", "icmp", did you mean "rules[0].ports"?`},
	{"name: empty", `{"rules":[{"name":"","direction":"egress","action":"allow"}]}`, `"rules[0].name": ` + wantName + `""`},
	{"name: space", `{"rules":[{"name":"a b","direction":"egress","action":"allow"}]}`, `"rules[0].name": ` + wantName + `"a b"`},
	{"name: newline", `{"rules":[{"name":"a\n","direction":"egress","action":"allow"}]}`, `"rules[0].name": ` + wantName + `"a\n"`},
	{"name: long", `{"rules":[{"name":"0123456789012345678901234567890123456789012345678901234567890123","direction":"egress","action":"allow"}]}`,
		`"rules[0].name": ` + wantName + `"0123456789012345678901234567890123456789012345678901234567890123"`},
	{"name: taken", `{"rules":[{"name":"a","direction":"egress","action":"allow"},{"name":"b","direction":"egress","action":"deny"},` +
		`{"name":"a","direction":"ingress","action":"allow"}]}`,
		`rule "a": "rules[2].name": want a name that no other rule has, got "a", as has rules[0]`},
	{"direction: word", `{"rules":[{"name":"a","direction":"both","action":"allow"}]}`,
		`rule "a": "rules[0].direction": want one of "egress", "ingress", got "both"`},
	{"action: word", `{"rules":[{"name":"a","direction":"egress","action":"drop"}]}`,
		`rule "a": "rules[0].action": want one of "allow", "deny", "audit", got "drop"`},
	{"to: string", withRule(`"to":"10.0.0.0/8"`), `rule "r": "rules[0].to": want a list of CIDRs and addresses, got "10.0.0.0/8"`},
	{"to: null", withRule(`"to":null`), `rule "r": "rules[0].to": want a list of CIDRs and addresses, got null`},
	{"to: bits", withRule(`"to":["10.0.0.0/33"]`), `rule "r": "rules[0].to[0]": ` + wantPrefix + `"10.0.0.0/33"`},
	{"to: IPv6 bits", withRule(`"to":["fd00::/129"]`), `rule "r": "rules[0].to[0]": ` + wantPrefix + `"fd00::/129"`},
	{"to: name", withRule(`"to":["example.com"]`), `rule "r": "rules[0].to[0]": ` + wantPrefix + `"example.com"`},
	{"to: number", withRule(`"to":[10]`), `rule "r": "rules[0].to[0]": ` + wantPrefix + `10`},
	{"to: empty", withRule(`"to":[""]`), `rule "r": "rules[0].to[0]": ` + wantPrefix + `""`},
	{"to: zeros", withRule(`"to":["010.0.0.0/8"]`), `rule "r": "rules[0].to[0]": ` + wantPrefix + `"010.0.0.0/8"`},
	{"to: zone", withRule(`"to":["fe80::1%eth0"]`), `rule "r": "rules[0].to[0]": ` + wantPrefix + `"fe80::1%eth0"`},
	{"to: mapped", withRule(`"to":["::ffff:10.0.0.0/104"]`), `rule "r": "rules[0].to[0]": ` + wantPrefix + `"::ffff:10.0.0.0/104"`},
	{"to: the mapped space", withRule(`"to":["::ffff:0:0/96"]`), `rule "r": "rules[0].to[0]": ` + wantPrefix + `"::ffff:0:0/96"`},
	{"from in egress", withRule(`"from":["10.0.0.0/8","fd00::/8"]`),
		`rule "r": "rules[0].from": want "to" in an egress rule, got ["10.0.0.0/8", "fd00::/8"]`},
	{"to in ingress", `{"rules":[{"name":"a","direction":"ingress","action":"allow","to":["10.0.0.1"]}]}`,
		`rule "a": "rules[0].to": want "from" in an ingress rule, got ["10.0.0.1/32"]`},
	{"except: without to", withRule(`"except":["10.0.0.0/8"]`),
		`rule "r": "rules[0].except[0]": want a prefix within one of "to", got "10.0.0.0/8"`},
	{"except: outside", withRule(`"to":["10.0.0.0/8"],"except":["10.1.0.0/16","11.0.0.0/16"]`),
		`rule "r": "rules[0].except[1]": want a prefix within one of "to", got "11.0.0.0/16"`},
	{"except: wider", withRule(`"to":["10.0.0.0/8"],"except":["10.0.0.0/7"]`),
		`rule "r": "rules[0].except[0]": want a prefix within one of "to", got "10.0.0.0/7"`},
	{"except: of the other family", withRule(`"to":["::/0"],"except":["10.0.0.0/8"]`),
		`rule "r": "rules[0].except[0]": want a prefix within one of "to", got "10.0.0.0/8"`},
	{"except: ingress", `{"rules":[{"name":"a","direction":"ingress","action":"allow","except":["10.0.0.1"]}]}`,
		`rule "a": "rules[0].except[0]": want a prefix within one of "from", got "10.0.0.1/32"`},
	{"protocol: word", withRule(`"protocol":"gre"`), `rule "r": "rules[0].protocol": ` + wantProtocol + `"gre"`},
	{"protocol: 256", withRule(`"protocol":256`), `rule "r": "rules[0].protocol": ` + wantProtocol + `256`},
	{"protocol: negative", withRule(`"protocol":-1`), `rule "r": "rules[0].protocol": ` + wantProtocol + `-1`},
	{"protocol: number in a string", withRule(`"protocol":"6"`), `rule "r": "rules[0].protocol": ` + wantProtocol + `"6"`},
	{"ports: number", withRule(`"protocol":"tcp","ports":[53]`), `rule "r": "rules[0].ports[0]": ` + wantPort + `53`},
	{"ports: name", withRule(`"protocol":"tcp","ports":["http"]`), `rule "r": "rules[0].ports[0]": ` + wantPort + `"http"`},
	{"ports: 65536", withRule(`"protocol":"tcp","ports":["65536"]`), `rule "r": "rules[0].ports[0]": ` + wantPort + `"65536"`},
	{"ports: backwards", withRule(`"protocol":"tcp","ports":["2-1"]`), `rule "r": "rules[0].ports[0]": ` + wantPort + `"2-1"`},
	{"ports: open", withRule(`"protocol":"tcp","ports":["1-"]`), `rule "r": "rules[0].ports[0]": ` + wantPort + `"1-"`},
	{"ports: sign", withRule(`"protocol":"tcp","ports":["+1"]`), `rule "r": "rules[0].ports[0]": ` + wantPort + `"+1"`},
	{"ports: spaces", withRule(`"protocol":"tcp","ports":["1 - 2"]`), `rule "r": "rules[0].ports[0]": ` + wantPort + `"1 - 2"`},
	{"ports: octal", withRule(`"protocol":"tcp","ports":["010"]`), `rule "r": "rules[0].ports[0]": ` + wantPort + `"010"`},
	{"ports: of no protocol", withRule(`"ports":["53"]`), `rule "r": "rules[0].ports": ` + noPorts + `["53"] with protocol any`},
	{"ports: of icmp", withRule(`"protocol":"icmp","ports":["1-2"]`), `rule "r": "rules[0].ports": ` + noPorts + `["1-2"] with protocol icmp`},
	{"ports: of a number", withRule(`"protocol":47,"ports":["1"]`), `rule "r": "rules[0].ports": ` + noPorts + `["1"] with protocol 47`},
	{"icmp: number", withRule(`"protocol":"icmp","icmp":8`), `rule "r": "rules[0].icmp": want an object, got 8`},
	{"icmp: no type", withRule(`"protocol":"icmp","icmp":{"code":0}`), `rule "r": "rules[0].icmp.type": missing, want a whole number from 0 to 255`},
	{"icmp: type 256", withRule(`"protocol":"icmp","icmp":{"type":256}`), `rule "r": "rules[0].icmp.type": want a whole number from 0 to 255, got 256`},
	{"icmp: code 256", withRule(`"protocol":"icmp","icmp":{"type":3,"code":256}`), `rule "r": "rules[0].icmp.code": want a whole number from 0 to 255, got 256`},
	{"icmp: of tcp", withRule(`"protocol":"tcp","icmp":{"type":8}`),
		`rule "r": "rules[0].icmp": want no ICMP type, or the protocol icmp or icmpv6, got type 8 with protocol tcp`},
	{"icmp: of any", withRule(`"icmp":{"type":8}`),
		`rule "r": "rules[0].icmp": want no ICMP type, or the protocol icmp or icmpv6, got type 8 with protocol any`},
	{"several", `{"stateful":0,"rules":[{"name":"a","direction":"egress","action":"allow","ports":["1"],"icmp":{"type":0}},` +
		`{"name":"a","direction":"up","action":"allow"}]}`,
		`"stateful": want true or false, got 0; ` +
			`rule "a": "rules[0].ports": ` + noPorts + `["1"] with protocol any; ` +
			`rule "a": "rules[0].icmp": want no ICMP type, or the protocol icmp or icmpv6, got type 0 with protocol any; ` +
			`rule "a": "rules[1].direction": want one of "egress", "ingress", got "up"; ` +
			`rule "a": "rules[1].name": want a name that no other rule has, got "a", as has rules[0]`},
}

func TestParseFilterErrors(t *testing.T) {
	for _, test := range brokenFilters {
		t.Run(test.name, func(t *testing.T) {
			f, ws, err := ParseFilter([]byte(test.in))
			wantError(t, err, 7, "invalid filter; "+test.details)
			if f != nil || ws != nil {
				t.Errorf("beside an error: %+v, %v", f, ws)
			}
			c, err := ParseLenient([]byte(`{"type":"xdp","filter":` + test.in + `}`))
			if err == nil || c.Filter != nil {
				t.Errorf("ParseLenient: %v, with a part of the filter: %+v", err, c.Filter)
			}
		})
	}
}
