package filter_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/filter"
)

func parse(t testing.TB, text string) *conf.Filter {
	t.Helper()
	f, _, err := conf.ParseFilter([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func compile(t testing.TB, f *conf.Filter, addresses ...netip.Addr) *filter.Policy {
	t.Helper()
	p, err := filter.Compile(f, addresses)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestCompileWords has one policy word for word, as the packet path reads it.
func TestCompileWords(t *testing.T) {
	p := compile(t, parse(t, `{"default":{"ingress":"deny"},"allowHost":false,"maxFlows":300,"rules":[
		{"name":"in","direction":"ingress","action":"deny"},
		{"name":"web","direction":"egress","action":"allow","to":["10.0.0.0/8"],"except":["10.1.0.0/16"],"protocol":"tcp","ports":["80","8000-8999"]},
		{"name":"rest","direction":"egress","action":"audit","to":["10.0.0.0/8"]}]}`),
		netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fe80::1"), netip.MustParseAddr("::ffff:10.9.0.1"))

	if p.Flags != filter.FlagStateful|filter.FlagAntiSpoof || p.DefaultAction != [2]conf.Action{conf.Allow, conf.Deny} ||
		p.RuleCount != 3 || p.MaxFlows != 300 {
		t.Errorf("policy %+v", p)
	}
	if want := []netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fe80::1")}; !reflect.DeepEqual(p.Addresses, want) {
		t.Errorf("addresses %v, want %v", p.Addresses, want)
	}
	const (
		intervals = 512           // of tcp five, of the others one
		portRows  = intervals + 6 // {web, rest}; two words each
		addresses = portRows + 2  // {}, {web, rest}
		rules     = addresses + 4
		ingress   = rules + 2
		rest      = filter.OneRule | 1 // {rest}
	)
	words := make([]uint64, ingress)
	for protocol := range 256 {
		words[2*protocol], words[2*protocol+1] = 1<<32|(intervals+5), rest
	}
	words[2*6], words[2*6+1] = 5<<32|intervals, portRows
	copy(words[intervals:], []uint64{
		0 | rest<<32, 80 | portRows<<32, 81 | rest<<32, 8000 | portRows<<32, 9000 | rest<<32,
		0 | rest<<32,
		1, 0b11,
		0, 0, 1, 0b11,
		1<<32 | 1<<8, 2<<32 | 2,
	})
	if got := p.Words[:ingress]; !reflect.DeepEqual(got, words) {
		t.Errorf("egress words\n got %#x\nwant %#x", got, words)
	}
	if got, want := p.Directions[0], (filter.Direction{Protocols: 0, AddressRows: addresses, Rules: rules, RowWords: 2, Count: 2}); got != want {
		t.Errorf("egress %+v, want %+v", got, want)
	}
	// No row at all: one rule, of all ports and all addresses.
	if got, want := p.Directions[1], (filter.Direction{
		Protocols: ingress, AddressRows: ingress + 512 + 1, Rules: ingress + 512 + 1, RowWords: 2, Count: 1,
	}); got != want {
		t.Errorf("ingress %+v, want %+v", got, want)
	}
	mapped := func(b ...byte) (a [16]byte) {
		a[10], a[11] = 0xff, 0xff
		copy(a[12:], b)
		return a
	}
	if want := []filter.PrefixClass{
		{conf.Egress, mapped(), 96, 0},
		{conf.Egress, mapped(10), 104, 1},
		{conf.Egress, mapped(10, 1), 112, rest},
		{conf.Egress, [16]byte{}, 0, 0},
		{conf.Ingress, mapped(), 96, filter.OneRule},
		{conf.Ingress, [16]byte{}, 0, filter.OneRule},
	}; !reflect.DeepEqual(p.Prefixes, want) {
		t.Errorf("prefixes %+v, want %+v", p.Prefixes, want)
	}
	for i, want := range []struct {
		action    conf.Action
		needsPort bool
		number    int
	}{{conf.Allow, true, 1}, {conf.Audit, false, 2}} {
		w := filter.RuleWord(p.Words[rules+i])
		if w.Action() != want.action || w.NeedsPort() != want.needsPort || w.Number() != want.number {
			t.Errorf("rule %d: %#x, want %+v", i, w, want)
		}
	}
	checkLayout(t, p)
}

// TestCompileEmpty: a filter without rules has rows to look up all the same.
func TestCompileEmpty(t *testing.T) {
	p := compile(t, parse(t, `{}`))
	checkLayout(t, p)
	if got := p.Lookup(conf.Ingress, netip.MustParseAddr("10.0.0.1"), 6, 80); got != -1 {
		t.Errorf("rule %d", got)
	}
	if len(p.Prefixes) != 4 || len(p.Addresses) != 0 {
		t.Errorf("%+v", p)
	}
}

// TestCompileShares: what is equal is there once, and what a shorter prefix says already not at all.
func TestCompileShares(t *testing.T) {
	var to []string
	for i := range 200 {
		to = append(to, fmt.Sprintf(`"10.0.%d.0/24"`, i))
	}
	list := strings.Join(to, ",")
	p := compile(t, parse(t, `{"rules":[{"name":"a","direction":"egress","action":"deny","to":[`+list+`]},
		{"name":"b","direction":"egress","action":"deny","to":[`+list+`,"10.0.3.7"]}]}`))
	if len(p.Prefixes) != 200+4 {
		t.Errorf("%d prefixes, want 204", len(p.Prefixes))
	}
	if d := p.Directions[0]; d.Rules-d.AddressRows != 2*d.RowWords {
		t.Errorf("rows for addresses from %d to %d, want two", d.AddressRows, d.Rules)
	}
}

func TestCompileTwiceIsTheSame(t *testing.T) {
	f := largeFilter(t, 500, 3)
	if a, b := compile(t, f), compile(t, f); !reflect.DeepEqual(a, b) {
		t.Error("the same filter compiled to two policies")
	}
}

func TestCompileErrors(t *testing.T) {
	with := func(change func(*conf.Filter, *conf.Rule)) *conf.Filter {
		f := &conf.Filter{Rules: []conf.Rule{{Name: "r", Protocol: conf.ProtocolAny}}}
		change(f, &f.Rules[0])
		return f
	}
	for want, f := range map[string]*conf.Filter{
		`rule "r" (rules[0]): unknown direction 2`:                                  with(func(_ *conf.Filter, r *conf.Rule) { r.Direction = 2 }),
		`rule "r" (rules[0]): unknown action 3`:                                     with(func(_ *conf.Filter, r *conf.Rule) { r.Action = 3 }),
		`rule "r" (rules[0]): unknown protocol 256`:                                 with(func(_ *conf.Filter, r *conf.Rule) { r.Protocol = 256 }),
		`rule "r" (rules[0]): unknown protocol -2`:                                  with(func(_ *conf.Filter, r *conf.Rule) { r.Protocol = -2 }),
		`rule "r" (rules[0]): protocol any has no ports`:                            with(func(_ *conf.Filter, r *conf.Rule) { r.Ports = []conf.PortRange{{}} }),
		`rule "r" (rules[0]): protocol any has no ICMP types`:                       with(func(_ *conf.Filter, r *conf.Rule) { r.ICMP = &conf.ICMP{} }),
		`rule "r" (rules[0]): ports 2-1: the first is after the last`:               with(func(_ *conf.Filter, r *conf.Rule) { r.Protocol, r.Ports = 6, []conf.PortRange{{First: 2, Last: 1}} }),
		`rule "r" (rules[0]): prefix "invalid Prefix": want one of IPv4 or of IPv6`: with(func(_ *conf.Filter, r *conf.Rule) { r.To = make([]netip.Prefix, 1) }),
		`rule "r" (rules[0]): prefix "::ffff:0.0.0.0/96": want one of IPv4 or of IPv6`: with(func(_ *conf.Filter, r *conf.Rule) {
			r.To = []netip.Prefix{netip.MustParsePrefix("::ffff:0:0/96")}
		}),
		`default of egress: want allow or deny, got audit`: with(func(f *conf.Filter, _ *conf.Rule) { f.Default.Egress = conf.Audit }),
		`egress rules: want at most 4096, got 4097`: with(func(f *conf.Filter, r *conf.Rule) {
			for len(f.Rules) <= conf.MaxRules {
				f.Rules = append(f.Rules, *r)
			}
		}),
	} {
		if p, err := filter.Compile(f, nil); p != nil || err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	for _, a := range []netip.Addr{{}, netip.MustParseAddr("fe80::1%eth0")} {
		if _, err := filter.Compile(&conf.Filter{}, []netip.Addr{a}); err == nil {
			t.Errorf("address %s: no error", a)
		}
	}
}

// largeFilter returns a filter of rules with prefixes and ports of their own.
func largeFilter(t testing.TB, rules, prefixesEach int) *conf.Filter {
	t.Helper()
	rng := rand.New(rand.NewPCG(5, 6))
	f := parse(t, `{}`)
	for i := range rules {
		r := conf.Rule{Name: fmt.Sprint(i), Action: conf.Deny, Protocol: conf.ProtocolTCP}
		for range prefixesEach {
			a := netip.AddrFrom4([4]byte{10, byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32())})
			r.To = append(r.To, netip.PrefixFrom(a, 16+rng.IntN(17)))
		}
		r.Ports = []conf.PortRange{{First: uint16(i), Last: uint16(i + rng.IntN(100))}}
		f.Rules = append(f.Rules, r)
	}
	return f
}

func BenchmarkCompile(b *testing.B) {
	for _, size := range []struct{ rules, prefixesEach int }{{1, 1}, {10, 2}, {100, 4}, {1000, 4}, {4096, 4}} {
		f := largeFilter(b, size.rules, size.prefixesEach)
		b.Run(fmt.Sprintf("rules=%d/prefixes=%d", size.rules, size.rules*size.prefixesEach), func(b *testing.B) {
			b.ReportAllocs()
			var p *filter.Policy
			for b.Loop() {
				p = compile(b, f)
			}
			b.ReportMetric(float64(len(p.Words)*8)/1024, "KiB-words")
			b.ReportMetric(float64(len(p.Prefixes)), "trie-entries")
		})
	}
}
