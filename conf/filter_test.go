package conf

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

// filterWith returns the default filter, changed.
func filterWith(change func(*Filter)) *Filter {
	f := &Filter{Stateful: true, AllowHost: true, AntiSpoof: true, MaxFlows: 4096}
	if change != nil {
		change(f)
	}
	return f
}

func prefixes(words ...string) []netip.Prefix {
	ps := make([]netip.Prefix, 0, len(words))
	for _, w := range words {
		ps = append(ps, netip.MustParsePrefix(w))
	}
	return ps
}

// withRule returns a filter with the keys of one rule beside name, direction and action.
func withRule(keys string) string {
	return `{"rules":[{"name":"r","direction":"egress","action":"allow",` + keys + `}]}`
}

func parsedRule(change func(*Rule)) *Filter {
	return filterWith(func(f *Filter) {
		f.Rules = []Rule{{Name: "r", Protocol: ProtocolAny}}
		change(&f.Rules[0])
	})
}

// filters are right, and what they are read as.
var filters = []struct {
	name, in string
	want     *Filter
}{
	{"defaults", `{}`, filterWith(nil)},
	{"flags off", `{"stateful":false,"allowHost":false,"antiSpoof":false}`,
		filterWith(func(f *Filter) { f.Stateful, f.AllowHost, f.AntiSpoof = false, false, false })},
	{"flags on", `{"stateful":true,"allowHost":true,"antiSpoof":true}`, filterWith(nil)},
	{"default: one", `{"default":{"ingress":"deny"}}`, filterWith(func(f *Filter) { f.Default.Ingress = Deny })},
	{"default: both", `{"default":{"egress":"deny","ingress":"allow"}}`, filterWith(func(f *Filter) { f.Default.Egress = Deny })},
	{"least flows", `{"maxFlows":256}`, filterWith(func(f *Filter) { f.MaxFlows = 256 })},
	{"most flows", `{"maxFlows":1048576}`, filterWith(func(f *Filter) { f.MaxFlows = 1 << 20 })},
	{"no rules", `{"rules":[]}`, filterWith(func(f *Filter) { f.Rules = []Rule{} })},
	{"the issue's", `{"stateful": true, "allowHost": true, "antiSpoof": true,
		"default": {"egress":"allow","ingress":"deny"}, "rules": [
		{"name":"dns","direction":"egress","action":"allow","to":["10.96.0.10/32"],"except":[],"protocol":"udp","ports":["53"]},
		{"name":"metrics","direction":"ingress","action":"allow","from":["10.0.0.0/8","fd00::/8"],"protocol":"tcp","ports":["9100","8000-8999"]},
		{"name":"trial","direction":"egress","action":"audit"}]}`,
		filterWith(func(f *Filter) {
			f.Default.Ingress = Deny
			f.Rules = []Rule{
				{Name: "dns", To: prefixes("10.96.0.10/32"), Except: []netip.Prefix{}, Protocol: ProtocolUDP, Ports: []PortRange{{53, 53}}},
				{Name: "metrics", Direction: Ingress, From: prefixes("10.0.0.0/8", "fd00::/8"), Protocol: ProtocolTCP,
					Ports: []PortRange{{9100, 9100}, {8000, 8999}}},
				{Name: "trial", Action: Audit, Protocol: ProtocolAny},
			}
		})},
	{"addresses", withRule(`"to":["10.0.0.1","fd00::1","::/0","0.0.0.0/0","10.0.0.9/8"]`),
		parsedRule(func(r *Rule) { r.To = prefixes("10.0.0.1/32", "fd00::1/128", "::/0", "0.0.0.0/0", "10.0.0.9/8") })},
	{"except", withRule(`"to":["10.0.0.0/8","fd00::/8"],"except":["10.1.0.0/16","fd00::1","10.0.0.0/8"]`),
		parsedRule(func(r *Rule) {
			r.To, r.Except = prefixes("10.0.0.0/8", "fd00::/8"), prefixes("10.1.0.0/16", "fd00::1/128", "10.0.0.0/8")
		})},
	{"protocol: any", withRule(`"protocol":"any"`), parsedRule(func(*Rule) {})},
	{"protocol: sctp", withRule(`"protocol":"sctp"`), parsedRule(func(r *Rule) { r.Protocol = ProtocolSCTP })},
	{"protocol: least", withRule(`"protocol":0`), parsedRule(func(r *Rule) { r.Protocol = 0 })},
	{"protocol: most", withRule(`"protocol":255`), parsedRule(func(r *Rule) { r.Protocol = 255 })},
	{"protocol: number with ports", withRule(`"protocol":6,"ports":["0-65535"]`),
		parsedRule(func(r *Rule) { r.Protocol, r.Ports = ProtocolTCP, []PortRange{{0, 65535}} })},
	{"no ports", withRule(`"ports":[]`), parsedRule(func(r *Rule) { r.Ports = []PortRange{} })},
	{"icmp: type", withRule(`"protocol":"icmp","icmp":{"type":8}`),
		parsedRule(func(r *Rule) { r.Protocol, r.ICMP = ProtocolICMP, &ICMP{Type: 8} })},
	{"icmp: code", withRule(`"protocol":58,"icmp":{"type":1,"code":0}`),
		parsedRule(func(r *Rule) { r.Protocol, r.ICMP = ProtocolICMPv6, &ICMP{1, new(uint8)} })},
	{"the other direction's list, empty", withRule(`"from":[]`), parsedRule(func(r *Rule) { r.From = []netip.Prefix{} })},
	{"longest name", `{"rules":[{"name":"` + strings.Repeat("x", 63) + `","direction":"ingress","action":"deny"}]}`,
		filterWith(func(f *Filter) {
			f.Rules = []Rule{{Name: strings.Repeat("x", 63), Direction: Ingress, Action: Deny, Protocol: ProtocolAny}}
		})},
}

func TestParseFilter(t *testing.T) {
	for _, test := range filters {
		t.Run(test.name, func(t *testing.T) {
			got, _, err := ParseFilter([]byte(test.in))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
			text, err := json.Marshal(got)
			if err != nil {
				t.Fatal(err)
			}
			if again, _, err := ParseFilter(text); err != nil || !reflect.DeepEqual(again, got) {
				t.Errorf("parsing %s: %+v, %v", text, again, err)
			}
		})
	}
}

func TestPodFilter(t *testing.T) {
	for in, want := range map[string]*Filter{
		`{"type":"xdp"}`: nil,
		`{"type":"xdp","runtimeConfig":{"portMappings":[]}}`:                                         nil,
		`{"type":"xdp","filter":{"maxFlows":300}}`:                                                   filterWith(func(f *Filter) { f.MaxFlows = 300 }),
		`{"type":"xdp","filter":{"maxFlows":300},"runtimeConfig":null}`:                              filterWith(func(f *Filter) { f.MaxFlows = 300 }),
		`{"type":"xdp","runtimeConfig":{"xdpFilter":{}}}`:                                            filterWith(nil),
		`{"type":"xdp","filter":{"maxFlows":300,"stateful":false},"runtimeConfig":{"xdpFilter":{}}}`: filterWith(nil),
	} {
		c, err := Parse([]byte(in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got := c.PodFilter(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", in, got, want)
		}
	}
}

func TestFilterInRuntimeConfigErrors(t *testing.T) {
	for in, details := range map[string]string{
		`1`:                  `"runtimeConfig": want an object, got 1`,
		`{"xdpFilter":null}`: `"runtimeConfig.xdpFilter": want an object, got null`,
		`{"xdpfilter":{}}`: `"runtimeConfig.xdpfilter": unknown key with value {}, want one of "xdpFilter", ` +
			`did you mean "runtimeConfig.xdpFilter"?`,
		`{"xdpFilter":{"rules":[{"name":"a","direction":"in","action":"allow"}]}}`: `rule "a": "runtimeConfig.xdpFilter.rules[0].direction": ` +
			`want one of "egress", "ingress", got "in"`,
	} {
		_, err := Parse([]byte(`{"type":"xdp","runtimeConfig":` + in + `}`))
		wantError(t, err, 7, "invalid network configuration for the xdp plugin; "+details)
	}
}

func TestParseFilterNotAnObject(t *testing.T) {
	_, _, err := ParseFilter([]byte(`[]`))
	wantError(t, err, 6, "filter is not a JSON object; got []")
	_, _, err = ParseFilter([]byte(`{"rules":`))
	wantError(t, err, 6, "filter is not JSON; unexpected end of JSON input, at byte 9")
}

// TestLimits has the limits that take more text than a table of errors should hold.
func TestLimits(t *testing.T) {
	rules := func(n, prefixesEach int) []byte {
		var b strings.Builder
		b.WriteString(`{"rules":[`)
		for i := range n {
			if i > 0 {
				b.WriteString(",")
			}
			to := make([]string, prefixesEach)
			for j := range to {
				to[j] = fmt.Sprintf(`"10.%d.%d.%d"`, i>>4, i&15<<4|j>>8, j&0xff)
			}
			fmt.Fprintf(&b, `{"name":"r%d","direction":"egress","action":"deny","to":[%s]}`, i, strings.Join(to, ","))
		}
		b.WriteString(`]}`)
		return []byte(b.String())
	}
	for _, test := range []struct {
		name            string
		rules, prefixes int
		details         string
	}{
		{"most rules, most prefixes", 4096, 4, ""},
		{"one rule, most prefixes", 1, 16384, ""},
		{"rules", 4097, 0, `"rules": want at most 4096 rules, got 4097`},
		{"prefixes", 4096, 5, `rule "r3276": "rules[3276]": want at most 16384 prefixes in to, from and except of all rules ` +
			`together, got 16385 up to this one`},
		{"prefixes of one rule", 1, 16385, `rule "r0": "rules[0]": want at most 16384 prefixes in to, from and except of all rules ` +
			`together, got 16385 up to this one`},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, ws, err := ParseFilter(rules(test.rules, test.prefixes))
			if test.details != "" {
				wantError(t, err, 7, "invalid filter; "+test.details)
				return
			}
			if err != nil || len(f.Rules) != test.rules || len(ws) != 0 {
				t.Errorf("%d warnings, %v", len(ws), err)
			}
		})
	}
}

// TestManyProblems: an error stays readable, whatever somebody's generator did.
func TestManyProblems(t *testing.T) {
	in := `{"rules":[` + strings.TrimSuffix(strings.Repeat(`{"name":"r"},`, 100), ",") + `]}`
	_, _, err := ParseFilter([]byte(in))
	if err == nil || !strings.HasSuffix(err.Error(), "; and 267 more") || len(err.Error()) > 10000 {
		t.Errorf("error: %v", err)
	}
}

func TestParseProtocol(t *testing.T) {
	for in, want := range map[string]Protocol{"any": ProtocolAny, "tcp": 6, "icmpv6": 58, "0": 0, "255": 255} {
		if got, err := ParseProtocol(in); err != nil || got != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "256", "-1", "TCP", "0x6", "gre"} {
		if got, err := ParseProtocol(in); err == nil {
			t.Errorf("%q: %v", in, got)
		}
	}
}
