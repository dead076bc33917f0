package conf

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// rulesOf returns a filter of egress rules named a, b, c...; each is given by its keys beside name,
// direction and action.
func rulesOf(t testing.TB, rules ...string) *Filter {
	t.Helper()
	var objects []string
	for i, keys := range rules {
		object := fmt.Sprintf(`{"name":%q`, string(rune('a'+i)))
		for _, key := range []string{`"direction":"egress"`, `"action":"allow"`} {
			if name, _, _ := strings.Cut(key, ":"); !strings.Contains(keys, name) {
				object += "," + key
			}
		}
		if keys != "" {
			object += "," + keys
		}
		objects = append(objects, object+"}")
	}
	f, _, err := ParseFilter([]byte(`{"rules":[` + strings.Join(objects, ",") + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestWarnings(t *testing.T) {
	const never = `never decides: rule "a" (rules[0]) comes before it and matches all that it does`
	const b = `rule "b" (rules[1]): ` + never
	for _, test := range []struct {
		name  string
		rules []string
		want  []string
	}{
		{"nothing", []string{`"to":["10.0.0.0/8"]`, `"to":["11.0.0.0/8"]`}, nil},
		{"the same", []string{``, ``}, []string{b}},
		{"addresses: wider", []string{`"to":["10.0.0.0/8"]`, `"to":["10.1.0.0/16","10.2.0.1"]`}, []string{b}},
		{"addresses: narrower", []string{`"to":["10.1.0.0/16"]`, `"to":["10.0.0.0/8"]`}, nil},
		{"addresses: one outside", []string{`"to":["10.0.0.0/8"]`, `"to":["10.1.0.0/16","11.0.0.1"]`}, nil},
		{"addresses: all after some", []string{`"to":["0.0.0.0/0"]`, ``}, nil},
		{"addresses: all after all of both families", []string{`"to":["::/0","0.0.0.0/0"]`, ``}, []string{b}},
		{"addresses: IPv6 is not IPv4", []string{`"to":["::/0"]`, `"to":["10.0.0.0/8"]`}, nil},
		{"addresses: halves", []string{`"to":["10.0.0.0/9","10.128.0.0/9"]`, `"to":["10.0.0.0/8"]`}, []string{b}},
		{"except: in the earlier", []string{`"to":["10.0.0.0/8"],"except":["10.1.0.0/16"]`, `"to":["10.1.2.0/24"]`}, nil},
		{"except: in the earlier, elsewhere", []string{`"to":["10.0.0.0/8"],"except":["10.1.0.0/16"]`, `"to":["10.2.0.0/16"]`}, []string{b}},
		{"except: in both", []string{`"to":["10.0.0.0/8"],"except":["10.1.2.0/24"]`, `"to":["10.1.0.0/16"],"except":["10.1.2.0/23"]`}, []string{b}},
		{"except: in the later, too little", []string{`"to":["10.0.0.0/8"],"except":["10.1.2.0/23"]`, `"to":["10.1.0.0/16"],"except":["10.1.2.0/24"]`}, nil},
		{"protocol: any before", []string{``, `"protocol":"tcp"`}, []string{b}},
		{"protocol: any after", []string{`"protocol":"tcp"`, ``}, nil},
		{"protocol: another", []string{`"protocol":"tcp"`, `"protocol":"udp"`}, nil},
		{"protocol: by number", []string{`"protocol":6`, `"protocol":"tcp"`}, []string{b}},
		{"ports: within", []string{`"protocol":"tcp","ports":["1-100"]`, `"protocol":"tcp","ports":["100","7-9"]`}, []string{b}},
		{"ports: past the end", []string{`"protocol":"tcp","ports":["1-100"]`, `"protocol":"tcp","ports":["100-101"]`}, nil},
		{"ports: two that touch", []string{`"protocol":"tcp","ports":["51-65535","0-50"]`, `"protocol":"tcp"`}, []string{b}},
		{"ports: all after some", []string{`"protocol":"tcp","ports":["1-65535"]`, `"protocol":"tcp"`}, nil},
		{"ports: any protocol before", []string{``, `"protocol":"udp","ports":["53"]`}, []string{b}},
		{"icmp: type before code", []string{`"protocol":"icmp","icmp":{"type":3}`, `"protocol":"icmp","icmp":{"type":3,"code":4}`}, []string{b}},
		{"icmp: code before type", []string{`"protocol":"icmp","icmp":{"type":3,"code":4}`, `"protocol":"icmp","icmp":{"type":3}`}, nil},
		{"icmp: all before type", []string{`"protocol":"icmp"`, `"protocol":"icmp","icmp":{"type":3}`}, []string{b}},
		{"direction: another", []string{`"direction":"ingress"`, ``}, nil},
		{"audit decides", []string{`"action":"audit"`, `"action":"deny"`}, []string{b}},
		{"the first of several", []string{`"to":["10.0.0.0/8"]`, `"to":["11.0.0.0/8"]`, `"protocol":"udp"`, `"to":["10.1.0.0/16"],"protocol":"udp"`},
			[]string{`rule "d" (rules[3]): ` + never}},
		{"together only", []string{`"protocol":"tcp","ports":["0-9"]`, `"protocol":"tcp","ports":["10-65535"]`, `"protocol":"tcp"`}, nil},
		{"except: everything", []string{`"to":["10.0.0.0/8"],"except":["10.0.0.0/9","10.128.0.0/9"]`},
			[]string{`rule "a" (rules[0]): never matches: except leaves none of its addresses`}},
		{"nothing covers nothing", []string{`"to":["10.0.0.0/8"],"except":["10.0.0.0/8"]`, `"to":["10.0.0.0/8"]`},
			[]string{`rule "a" (rules[0]): never matches: except leaves none of its addresses`}},
		{"family: icmp", []string{`"protocol":"icmp","to":["fd00::/8"]`},
			[]string{`rule "a" (rules[0]): never matches: protocol icmp with addresses of the other family only`}},
		{"family: icmpv6", []string{`"protocol":"icmpv6","to":["10.0.0.0/8"]`},
			[]string{`rule "a" (rules[0]): never matches: protocol icmpv6 with addresses of the other family only`}},
		{"family: both", []string{`"protocol":"icmp","to":["fd00::/8","10.0.0.0/8"]`, `"protocol":"icmpv6","to":["fd00::/8","10.0.0.0/8"]`}, nil},
		{"neighbour discovery", []string{`"protocol":"icmpv6","icmp":{"type":135},"action":"deny"`, `"protocol":"icmpv6","icmp":{"type":129}`},
			[]string{`rule "a" (rules[0]): never decides: neighbour discovery and multicast listener messages pass under any rules, ` +
				`and ICMPv6 type 135 is one`}},
		{"host bits", []string{`"to":["10.0.0.1/8","fd00::1/8"],"except":["10.1.0.1/16"]`},
			[]string{`rule "a" (rules[0]): "to" has 10.0.0.1/8, which is taken as 10.0.0.0/8`,
				`rule "a" (rules[0]): "to" has fd00::1/8, which is taken as fd00::/8`,
				`rule "a" (rules[0]): "except" has 10.1.0.1/16, which is taken as 10.1.0.0/16`}},
		{"empty lists", []string{`"to":[],"protocol":"tcp","ports":[]`, `"direction":"ingress","from":[],"except":[]`},
			[]string{`rule "a" (rules[0]): "to" is an empty list, which is every address`,
				`rule "a" (rules[0]): "ports" is an empty list, which is every port`,
				`rule "b" (rules[1]): "from" is an empty list, which is every address`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			for _, w := range rulesOf(t, test.rules...).Warnings() {
				got = append(got, w.String())
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

// TestAddressSet compares sets with looking at each address in turn, in two small corners of the
// address space.
func TestAddressSet(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var universe []netip.Addr
	for _, start := range []string{"255.255.255.224", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffe0"} {
		for a := netip.MustParseAddr(start); a.IsValid(); a = a.Next() {
			universe = append(universe, a)
		}
	}
	random := func(n int) []netip.Prefix {
		var ps []netip.Prefix
		for range n {
			a := universe[rng.IntN(len(universe))]
			ps = append(ps, netip.PrefixFrom(a, a.BitLen()-rng.IntN(6)))
		}
		return ps
	}
	contains := func(prefixes, except []netip.Prefix, a netip.Addr) bool {
		in := func(p netip.Prefix) bool { return p.Contains(a) }
		return (len(prefixes) == 0 || slices.ContainsFunc(prefixes, in)) && !slices.ContainsFunc(except, in)
	}
	within := 0
	for range 20000 {
		p1, e1, p2, e2 := random(rng.IntN(4)), random(rng.IntN(3)), random(1+rng.IntN(4)), random(rng.IntN(3))
		s1, s2 := addressesOf(p1, e1), addressesOf(p2, e2)
		want := true
		for _, a := range universe {
			one := addressSet{{a, a}}
			if one.within(s1) != contains(p1, e1, a) {
				t.Fatalf("%v except %v: %v, has %s: %v", p1, e1, s1, a, !contains(p1, e1, a))
			}
			want = want && (!contains(p2, e2, a) || contains(p1, e1, a))
		}
		if s2.within(s1) != want {
			t.Fatalf("%v except %v (%v) within %v except %v (%v): want %v", p2, e2, s2, p1, e1, s1, want)
		}
		if want {
			within++
		}
	}
	if within < 1000 {
		t.Errorf("only %d sets within others", within)
	}
}

// BenchmarkWarnings is the slowest filter there can be: no rule can be told from another by its
// addresses.
func BenchmarkWarnings(b *testing.B) {
	var text strings.Builder
	text.WriteString(`{"rules":[`)
	for i := range MaxRules {
		if i > 0 {
			text.WriteString(",")
		}
		fmt.Fprintf(&text, `{"name":"r%d","direction":"egress","action":"deny","to":["10.0.0.0/8"],"protocol":"tcp","ports":["%d"]}`, i, i)
	}
	text.WriteString(`]}`)
	f, _, err := ParseFilter([]byte(text.String()))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("parse", func(b *testing.B) {
		for b.Loop() {
			if _, err := Parse([]byte(`{"type":"xdp","filter":` + text.String() + `}`)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("warnings", func(b *testing.B) {
		for b.Loop() {
			f.Warnings()
		}
	})
}
