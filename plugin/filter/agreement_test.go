package filter_test

import (
	"encoding/json"
	"math/rand/v2"
	"testing"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/filter"
	"github.com/xdp-cni/xdp-cni/plugin/filter/filtertest"
	"github.com/xdp-cni/xdp-cni/plugin/filter/model"
)

// portOf is what stands in the place of a port for a subject.
func portOf(s model.Subject) uint16 {
	if s.Protocol == uint8(conf.ProtocolICMP) || s.Protocol == uint8(conf.ProtocolICMPv6) {
		return conf.ICMPPort(s.ICMPType, s.ICMPCode)
	}
	return s.Port
}

// agree compares the compiled policy with the model on n random subjects, and returns on how many of
// them a rule decided.
func agree(t *testing.T, rng *rand.Rand, f *conf.Filter, n int) (decided int) {
	t.Helper()
	p, err := filter.Compile(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkLayout(t, p)
	for range n {
		s := filtertest.RandomSubject(rng, f)
		for _, d := range []conf.Direction{conf.Egress, conf.Ingress} {
			want := model.Match(f, d, s)
			if got := p.Lookup(d, s.Remote, s.Protocol, portOf(s)); got != want {
				t.Fatalf("%s %+v: rule %d, want %d, of %s", d, s, got, want, show(t, f))
			}
			if want >= 0 {
				decided++
			}
			want, wantNeeds := model.MatchFragment(f, d, s)
			if got, needs := p.LookupFragment(d, s.Remote, s.Protocol); got != want || needs != wantNeeds {
				t.Fatalf("fragment, %s %+v: rule %d (%v), want %d (%v), of %s", d, s, got, needs, want, wantNeeds, show(t, f))
			}
		}
	}
	return decided
}

func show(t *testing.T, f *conf.Filter) string {
	t.Helper()
	text, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestCompileAgreesWithModel compares Compile and Lookup with walking the rules.
func TestCompileAgreesWithModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const filters, subjects = 2000, 100
	decided := 0
	for range filters {
		decided += agree(t, rng, filtertest.RandomFilter(rng), subjects)
	}
	if all := filters * subjects * 2; decided < all/4 || decided > all*9/10 {
		t.Errorf("a rule decided on %d of %d subjects: the generator tests little", decided, all)
	}
}

func FuzzCompile(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		rng := rand.New(rand.NewPCG(a, b))
		agree(t, rng, filtertest.RandomFilter(rng), 200)
	})
}

// checkLayout fails the test unless the words of p are where its headers and each other say.
func checkLayout(t *testing.T, p *filter.Policy) {
	t.Helper()
	end := uint32(0)
	for d := range p.Directions {
		head := p.Directions[d]
		if head.Protocols != end {
			t.Fatalf("direction %d: at %d, want %d", d, head.Protocols, end)
		}
		if want := max(1, (head.Count+63)/64) + 1; head.RowWords != want {
			t.Fatalf("direction %d: rows of %d words for %d rules, want %d", d, head.RowWords, head.Count, want)
		}
		// isOne: in the place of a row stands the one rule that is in it
		isOne := func(row uint32) bool {
			if row&filter.OneRule != 0 && row&^filter.OneRule >= head.Count {
				t.Fatalf("direction %d: rule %d of %d in the place of a row", d, row&^filter.OneRule, head.Count)
			}
			return row&filter.OneRule != 0
		}
		first := head.AddressRows // row for ports
		checkPortRow := func(at uint32) {
			if isOne(at) {
				return
			}
			first = min(first, at)
			if at+head.RowWords > head.AddressRows || (head.AddressRows-at)%head.RowWords != 0 {
				t.Fatalf("direction %d: no row for ports at %d", d, at)
			}
			checkRow(t, p.Words[at:][:head.RowWords])
		}
		end = head.Protocols + 512
		for protocol := range uint32(256) {
			word := p.Words[head.Protocols+2*protocol]
			at, count := uint32(word), uint32(word>>32)
			if at < head.Protocols+512 || count == 0 || count > 65536 || uint16(p.Words[at]) != 0 {
				t.Fatalf("direction %d, protocol %d: %d intervals at %d", d, protocol, count, at)
			}
			for i := range count {
				interval := p.Words[at+i]
				if i > 0 && uint16(interval) <= uint16(p.Words[at+i-1]) {
					t.Fatalf("direction %d, protocol %d: interval %d is not after the one before", d, protocol, i)
				}
				checkPortRow(uint32(interval >> 32))
			}
			end = max(end, at+count)
			checkPortRow(uint32(p.Words[head.Protocols+2*protocol+1]))
		}
		if first != end {
			t.Fatalf("direction %d: rows for ports from %d, want them behind the intervals, at %d", d, first, end)
		}
		classes := uint32(0)
		for _, prefix := range p.Prefixes {
			if int(prefix.Direction) == d && !isOne(prefix.Class) {
				classes = max(classes, prefix.Class+1)
			}
		}
		for class := range classes {
			checkRow(t, p.Words[head.AddressRows+class*head.RowWords:][:head.RowWords])
		}
		if head.Rules != head.AddressRows+classes*head.RowWords {
			t.Fatalf("direction %d: rules at %d behind %d rows from %d", d, head.Rules, classes, head.AddressRows)
		}
		end = head.Rules + head.Count
	}
	if int(end) != len(p.Words) {
		t.Fatalf("%d words, want %d", len(p.Words), end)
	}
}

// checkRow fails the test unless the first word of a row tells which of the others are not zero.
func checkRow(t *testing.T, row []uint64) {
	t.Helper()
	for i, w := range row[1:] {
		if (row[0]>>i&1 != 0) != (w != 0) {
			t.Fatalf("summary %#x of %#x", row[0], row[1:])
		}
	}
}
