package prefixset

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

func TestMain(m *testing.M) { tests.Main(m) }

func TestParse(t *testing.T) {
	got, err := Parse(strings.NewReader(`
# a list
2001:db8::1
10.1.2.3/16 ; as Spamhaus has it
	192.0.2.7   # one address
10.1.0.0/16
::ffff:198.51.100.0/120
0.0.0.0/0
::/0
`))
	if err != nil {
		t.Fatal(err)
	}
	var want []netip.Prefix
	for _, s := range []string{"0.0.0.0/0", "10.1.0.0/16", "192.0.2.7/32", "198.51.100.0/24", "::/0", "2001:db8::1/128"} {
		want = append(want, netip.MustParsePrefix(s))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	for _, text := range []string{"10.0.0.0/33", "10.0.0/8", "host", "fe80::1%eth0", "::ffff:0:0/95", "1.2.3.4 5.6.7.8", "2001:db8::/129"} {
		if list, err := Parse(strings.NewReader("10.0.0.1\n" + text)); err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%q: %v, %v", text, list, err)
		}
	}
}

func trie(t *testing.T, keySize, max uint32) *ebpf.Map {
	t.Helper()
	priv.Root(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LPMTrie, KeySize: keySize, ValueSize: 8, MaxEntries: max, Flags: 1}) // BPF_F_NO_PREALLOC
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// holds compares a trie with what it should hold.
func holds(t *testing.T, m *ebpf.Map, want ...string) {
	t.Helper()
	all, err := keys(m)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, k := range all {
		got = append(got, prefix(k).String())
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("it holds %v, want %v", got, want)
	}
}

func TestSync(t *testing.T) {
	list := func(lines ...string) []netip.Prefix {
		parsed, err := Parse(strings.NewReader(strings.Join(lines, "\n")))
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	sync := func(m *ebpf.Map, want Changes, lines ...string) {
		t.Helper()
		if got, err := Sync(m, list(lines...)); err != nil || got != want {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	}
	v4, v6 := trie(t, 8, 4), trie(t, 20, 4)
	both := []string{"10.0.0.0/8", "10.1.0.0/16", "192.0.2.1", "2001:db8::/32", "::1"}
	sync(v4, Changes{Added: 3}, both...)
	sync(v6, Changes{Added: 2}, both...)
	holds(t, v4, "10.0.0.0/8", "10.1.0.0/16", "192.0.2.1/32")
	holds(t, v6, "2001:db8::/32", "::1/128")

	// values of what stays are kept
	if err := v4.Put(key(netip.MustParsePrefix("10.1.0.0/16")), uint64(7)); err != nil {
		t.Fatal(err)
	}
	sync(v4, Changes{Added: 1, Removed: 2, Kept: 1}, "10.1.0.0/16", "0.0.0.0/0")
	holds(t, v4, "10.1.0.0/16", "0.0.0.0/0")
	var value uint64
	if err := v4.Lookup(key(netip.MustParsePrefix("10.1.0.0/16")), &value); err != nil || value != 7 {
		t.Errorf("value %d, %v; want 7", value, err)
	}
	// a full trie, another list
	sync(v4, Changes{Added: 3, Kept: 1, Removed: 1}, "10.1.0.0/16", "1.0.0.0/8", "2.0.0.0/8", "3.0.0.0/8")
	sync(v4, Changes{Added: 4, Removed: 4}, "5.0.0.0/8", "6.0.0.0/8", "7.0.0.0/8", "8.0.0.0/8")
	if _, err := Sync(v4, list("1.0.0.0/8", "2.0.0.0/8", "3.0.0.0/8", "4.0.0.0/8", "5.0.0.0/8")); err == nil {
		t.Error("5 prefixes fit into a trie of 4")
	}
	holds(t, v4, "5.0.0.0/8", "6.0.0.0/8", "7.0.0.0/8", "8.0.0.0/8")
	sync(v4, Changes{Removed: 4})
	holds(t, v4)
	for _, keySize := range []uint32{5, 12} {
		if _, err := Sync(trie(t, keySize, 1), nil); !errors.Is(err, ErrNotPrefixes) {
			t.Errorf("keys of %d bytes: %v", keySize, err)
		}
	}
}

// TestSyncMany fills and empties tries with 100,000 prefixes.
func TestSyncMany(t *testing.T) {
	const n = 100_000
	m := trie(t, 8, n)
	list := func(first uint32) (prefixes []netip.Prefix) {
		for i := range uint32(n) {
			var a [4]byte
			binary.BigEndian.PutUint32(a[:], (first+i)<<8)
			prefixes = append(prefixes, netip.PrefixFrom(netip.AddrFrom4(a), 24))
		}
		return prefixes
	}
	for _, step := range []struct {
		first uint32
		want  Changes
	}{{1 << 16, Changes{Added: n}}, {1<<16 + 10, Changes{Added: 10, Removed: 10, Kept: n - 10}}} {
		if got, err := Sync(m, list(step.first)); err != nil || got != step.want {
			t.Fatalf("%+v, %v; want %+v", got, err, step.want)
		}
	}
}
