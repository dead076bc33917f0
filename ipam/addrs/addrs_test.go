package addrs

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// randomSet makes a set of up to three ranges of one family, in subnets of 4 to 1024 addresses.
func randomSet(random *rand.Rand) Set {
	six := random.IntN(2) == 0
	var set Set
	for i := range 1 + random.IntN(3) {
		host := 2 + random.IntN(9)
		var subnet netip.Prefix
		if six {
			subnet = netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 5: byte(i), 14: byte(random.Uint32())}), 128-host)
		} else {
			subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), byte(random.Uint32()), byte(random.Uint32())}), 32-host)
		}
		subnet = subnet.Masked()
		at := func(n int) netip.Addr { return plus(subnet.Addr(), n) }
		first := random.IntN(1 << host)
		last := first + random.IntN(1<<host-first)
		set = append(set, Range{Subnet: subnet, First: at(first), Last: at(last), Gateway: at(random.IntN(1 << host))})
	}
	return set
}

func plus(a netip.Addr, n int) netip.Addr {
	sum := new(big.Int).Add(new(big.Int).SetBytes(a.AsSlice()), big.NewInt(int64(n)))
	b, _ := netip.AddrFromSlice(sum.FillBytes(make([]byte, len(a.AsSlice()))))
	return b
}

// TestRoundRobin hands out all of a set, from every place to begin at: never what is outside, the
// gateway, network or broadcast address; all else, once, in order.
func TestRoundRobin(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		set := randomSet(random)
		if err := CheckSet(set); err != nil {
			t.Fatal(err)
		}
		want := allowed(set)
		if got := set.Usable(); got != uint64(len(want)) {
			t.Fatalf("%v has %d usable addresses, want %d", set, got, len(want))
		}
		pick := set[random.IntN(len(set))]
		last := plus(pick.First, random.IntN(int(Count(pick.First, pick.Last))))
		got := walk(set, last)
		if at := slices.IndexFunc(want, func(a netip.Addr) bool { return set.order(last) < set.order(a) }); at > 0 {
			want = append(slices.Clone(want[at:]), want[:at]...)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%v after %s:\n%v, want\n%v", set, last, got, want)
		}
		if begin := walk(set, netip.MustParseAddr("192.0.2.1")); !slices.Equal(begin, allowed(set)) {
			t.Fatalf("%v from the start: %v", set, begin)
		}
	}
}

// allowed is written as plainly as can be, to compare with.
func allowed(set Set) []netip.Addr {
	var list []netip.Addr
	for _, r := range set {
		for n := range int(Count(r.Subnet.Addr(), LastOf(r.Subnet))) {
			a := plus(r.Subnet.Addr(), n)
			size := 1 << (a.BitLen() - r.Subnet.Bits())
			if a.Less(r.First) || r.Last.Less(a) || a == r.Gateway || n == 0 || a.Is4() && n == size-1 {
				continue
			}
			list = append(list, a)
		}
	}
	return list
}

// order numbers the addresses of a set.
func (s Set) order(a netip.Addr) int {
	before := 0
	for _, r := range s {
		if r.Contains(a) {
			return before + int(Count(r.First, a))
		}
		before += int(Count(r.First, r.Last))
	}
	return 0
}

func walk(set Set, last netip.Addr) []netip.Addr {
	var list []netip.Addr
	for _, span := range set.SpansAfter(last) {
		for a := span.First; ; a = a.Next() {
			if !span.Range.Contains(a) {
				panic(fmt.Sprintf("%s is outside %s", a, span.Range))
			}
			if set.Reserved(a) == "" {
				list = append(list, a)
			}
			if a == span.Last {
				break
			}
		}
	}
	return list
}

func TestLargeRanges(t *testing.T) {
	for subnet, want := range map[string]struct {
		last  string
		count uint64
	}{
		"10.0.0.0/8":     {"10.255.255.255", 1 << 24},
		"0.0.0.0/0":      {"255.255.255.255", 1 << 32},
		"fd00::/64":      {"fd00::ffff:ffff:ffff:ffff", math.MaxUint64},
		"fd00::/65":      {"fd00::7fff:ffff:ffff:ffff", 1 << 63},
		"fd00::/48":      {"fd00::ffff:ffff:ffff:ffff:ffff", math.MaxUint64},
		"::/0":           {"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", math.MaxUint64},
		"192.0.2.128/30": {"192.0.2.131", 4},
	} {
		p := netip.MustParsePrefix(subnet)
		if got := LastOf(p); got != netip.MustParseAddr(want.last) {
			t.Errorf("last of %s is %s", subnet, got)
		}
		if got := Count(p.Addr(), LastOf(p)); got != want.count {
			t.Errorf("%s has %d addresses, want %d", subnet, got, want.count)
		}
	}
	p := netip.MustParsePrefix("fd00::/64")
	set := Set{{Subnet: p, First: p.Addr(), Last: LastOf(p), Gateway: p.Addr().Next()}}
	if got := set.Usable(); got != math.MaxUint64 {
		t.Errorf("usable: %d", got)
	}
	if spans := set.SpansAfter(LastOf(p)); len(spans) != 1 || spans[0].First != p.Addr() {
		t.Errorf("after the last address: %v", spans)
	}
}

func TestCheckSet(t *testing.T) {
	r := func(first, last string) Range {
		return Range{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)}
	}
	for _, test := range []struct {
		set Set
		ok  bool
	}{
		{Set{}, false},
		{Set{r("10.0.0.1", "10.0.0.9"), r("10.0.0.10", "10.0.0.12")}, true},
		{Set{r("10.0.0.1", "10.0.0.9"), r("10.0.0.9", "10.0.0.12")}, false},
		{Set{r("10.0.0.5", "10.0.0.6"), r("10.0.0.1", "10.0.0.12")}, false},
		{Set{r("10.0.0.1", "10.0.0.12"), r("10.0.0.5", "10.0.0.6")}, false},
		{Set{r("10.0.0.1", "10.0.0.9"), r("fd00::1", "fd00::2")}, false},
	} {
		if err := CheckSet(test.set); (err == nil) != test.ok {
			t.Errorf("%v: %v", test.set, err)
		}
	}
}

// TestBlock compares blocks with a map of booleans.
func TestBlock(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	base, bit := BlockOf(netip.MustParseAddr("10.1.7.255"))
	if At(base, bit) != netip.MustParseAddr("10.1.7.255") || EndOfBlock(At(base, 0)) != At(base, BlockSize-1) {
		t.Error("an address is not at its place in its block")
	}
	if six, bit := BlockOf(netip.MustParseAddr("fd00::1:0:ffff")); At(six, bit) != netip.MustParseAddr("fd00::1:0:ffff") {
		t.Error("an IPv6 address is not at its place")
	}
	var block Block
	has := map[int]bool{}
	for range 20_000 {
		bit := random.IntN(BlockSize)
		if random.IntN(9) > 0 {
			block.Set(bit)
			has[bit] = true
		} else {
			block.Clear(bit)
			delete(has, bit)
		}
		from, to := random.IntN(BlockSize), random.IntN(BlockSize)
		want := -1
		for i := from; i <= to && want < 0; i++ {
			if !has[i] {
				want = i
			}
		}
		if got := block.NextClear(from, to); got != want {
			t.Fatalf("next clear in [%d, %d] is %d, want %d", from, to, got, want)
		}
		if block.Has(from) != has[from] || block.Empty() != (len(has) == 0) {
			t.Fatal("Has or Empty")
		}
	}
	set := Set{{First: netip.MustParseAddr("10.1.0.0"), Last: At(base, 99)}, {First: At(base, 200), Last: At(base, 201)}}
	var want uint64
	for bit := range has {
		if bit < 100 || bit == 200 || bit == 201 {
			want++
		}
	}
	if got := block.CountIn(base, set); got != want {
		t.Errorf("%d of the set, want %d", got, want)
	}
}
