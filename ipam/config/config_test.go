package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"

	"github.com/xdp-cni/xdp-cni/conf"
)

func conflistOf(ipam string, more ...string) string {
	return fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": %s%s}`, ipam, strings.Join(append([]string{""}, more...), ", "))
}

// samples are configurations, host-local's own tests' among them, and what is wrong with them
// here ("" if nothing).
var samples = []struct{ name, stdin, args, wrong string }{
	{"legacy", conflistOf(`{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.20", "gateway": "10.1.2.30"}`), "", ""},
	{"defaults", conflistOf(`{"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]]}`), "", ""},
	{"several", conflistOf(`{"ranges": [[{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9"}, {"subnet": "10.1.4.0/24"}], [{"subnet": "11.1.2.0/24"}]]}`), "", ""},
	{"legacy and list", conflistOf(`{"subnet": "10.1.1.0/24", "ranges": [[{"subnet": "10.1.2.0/24"}]]}`), "", ""},
	{"one subnet, two ranges", conflistOf(`{"ranges": [[{"subnet": "10.1.2.0/24", "rangeEnd": "10.1.2.9"}, {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.10"}]]}`), "", ""},
	{"routes", conflistOf(`{"subnet": "10.1.2.0/24", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "gw": "10.1.2.4", "mtu": 1300}]}`), "", ""},
	{"case and strangers", conflistOf(`{"Subnet": "10.1.2.0/24", "rangestart": "10.1.2.7", "comment": 1}`, `"bridge": "cni0"`), "", ""},
	{"empty texts", conflistOf(`{"subnet": "10.1.2.0/24", "rangeStart": "", "gateway": ""}`), "", ""},
	{"mapped", conflistOf(`{"subnet": "10.1.2.0/24", "rangeStart": "::ffff:10.1.2.9"}`), "", ""},
	{"runtime ranges", conflistOf(`{"subnet": "10.1.1.0/24"}`, `"runtimeConfig": {"ipRanges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/24"}]]}`), "", ""},
	{"runtime ips", conflistOf(`{"subnet": "10.1.1.0/24"}`, `"runtimeConfig": {"ips": ["10.1.1.7/24", "fd00::1"]}`, `"args": {"cni": {"ips": ["10.1.1.9"]}}`), "IP=10.1.1.8", ""},
	{"foreign args", conflistOf(`{"subnet": "10.1.1.0/24"}`), "IgnoreUnknown=1;K8S_POD_NAME=x", ""},
	{"args without ip", conflistOf(`{"subnet": "10.1.1.0/24"}`, `"args": {"labels": {"a": "b"}}`, `"runtimeConfig": {"portMappings": []}`), "", ""},

	{"old version", `{"cniVersion": "0.2.0", "name": "net", "ipam": {"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]]}}`, "", ""},
	{"no version", `{"name": "net", "ipam": {"subnet": "10.1.2.0/24"}}`, "", ""},
	{"two of a family in an old version", `{"cniVersion": "0.2.0", "name": "net", "ipam": {"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/24"}]]}}`, "", "CNI version 0.2.0 does not support more than 1 address per family"},

	{"no ipam", `{"name": "net"}`, "", "missing 'ipam'"},
	{"no ranges", conflistOf(`{}`), "", "no IP ranges specified"},
	{"empty set", conflistOf(`{"ranges": [[]]}`), "", "empty range set"},
	{"small", conflistOf(`{"subnet": "10.1.2.0/31"}`), "", "10.1.2.0/31 too small"},
	{"host bits", conflistOf(`{"subnet": "10.1.2.7/24"}`), "", "10.1.2.7/24 has host bits set"},
	{"no subnet", conflistOf(`{"ranges": [[{"rangeStart": "10.1.2.7"}]]}`), "", "without subnet"},
	{"bad subnet", conflistOf(`{"subnet": "10.1.2.0"}`), "", "invalid CIDR address: 10.1.2.0"},
	{"start outside", conflistOf(`{"subnet": "10.1.2.0/24", "rangeStart": "10.1.3.1"}`), "", "RangeStart 10.1.3.1 not in network 10.1.2.0/24"},
	{"end outside", conflistOf(`{"subnet": "10.1.2.0/24", "rangeEnd": "10.1.3.1"}`), "", "RangeEnd 10.1.3.1 not in network 10.1.2.0/24"},
	{"empty range", conflistOf(`{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.8"}`), "", "RangeEnd 10.1.2.8 is before RangeStart 10.1.2.9"},
	{"families", conflistOf(`{"ranges": [[{"subnet": "10.1.2.0/24"}, {"subnet": "fd00::/64"}]]}`), "", "mixed address families"},
	{"start of another family", conflistOf(`{"subnet": "10.1.2.0/24", "rangeStart": "fd00::1"}`), "", "RangeStart fd00::1 not in network"},
	{"overlap in a set", conflistOf(`{"ranges": [[{"subnet": "10.1.0.0/16"}, {"subnet": "10.1.2.0/24"}]]}`), "", "10.1.0.1-10.1.255.254 and 10.1.2.1-10.1.2.254 overlap"},
	{"overlap of sets", conflistOf(`{"ranges": [[{"subnet": "10.1.0.0/16"}], [{"subnet": "10.1.2.0/24"}]]}`), "", "range set 0 overlaps with 1: 10.1.0.1-10.1.255.254 and 10.1.2.1-10.1.2.254"},
	{"bad request", conflistOf(`{"subnet": "10.1.1.0/24"}`, `"runtimeConfig": {"ips": ["10.1.1"]}`), "", "10.1.1"},
	{"bad CNI_ARGS", conflistOf(`{"subnet": "10.1.1.0/24"}`), "IP=nonsense", "CNI_ARGS"},
	{"unknown CNI_ARGS", conflistOf(`{"subnet": "10.1.1.0/24"}`), "FOO=bar", "unknown args"},
}

// stricter are samples that host-local takes and this plugin does not.
var stricter = []struct{ name, stdin, args, wrong string }{
	{"gateway outside", conflistOf(`{"subnet": "10.1.2.0/24", "gateway": "10.1.3.1"}`), "", "gateway 10.1.3.1 not in network 10.1.2.0/24"},
	{"gateway of another family", conflistOf(`{"subnet": "10.1.2.0/24", "gateway": "fe80::1"}`), "", "gateway fe80::1 not in network"},
	{"only the gateway", conflistOf(`{"subnet": "10.1.2.0/24", "rangeEnd": "10.1.2.1"}`), "", "10.1.2.1-10.1.2.1 holds nothing but"},
	{"only the network address", conflistOf(`{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.0", "rangeEnd": "10.1.2.1"}`), "", "holds nothing but"},
}

// TestLikeHostLocal: what host-local takes is taken and means the same; what it refuses is refused.
func TestLikeHostLocal(t *testing.T) {
	for _, sample := range samples {
		t.Run(sample.name, func(t *testing.T) {
			want, _, wantErr := allocator.LoadIPAMConfig([]byte(sample.stdin), sample.args)
			got, err := Parse([]byte(sample.stdin), sample.args)
			if (err == nil) != (wantErr == nil) || (err == nil) != (sample.wrong == "") {
				t.Fatalf("%v; host-local: %v", err, wantErr)
			}
			if err != nil {
				checkError(t, err, sample.wrong)
				return
			}
			var sets, wantSets []string
			for _, set := range got.Sets {
				for _, r := range set {
					sets = append(sets, fmt.Sprintf("%s %s %s", r.Subnet, r, r.Gateway))
				}
			}
			for _, set := range want.Ranges {
				for _, r := range set {
					ones, _ := r.Subnet.Mask.Size()
					wantSets = append(wantSets, fmt.Sprintf("%s/%d %s %s", r.Subnet.IP, ones, r.String(), r.Gateway))
				}
			}
			if !slices.Equal(sets, wantSets) || len(got.Sets) != len(want.Ranges) {
				t.Errorf("ranges %v, host-local: %v", sets, wantSets)
			}
			var requested []string
			for _, a := range want.IPArgs {
				requested = append(requested, a.String())
			}
			if have := texts(got.Requested); !slices.Equal(have, requested) {
				t.Errorf("requested %v, host-local: %v", have, requested)
			}
			if !reflect.DeepEqual(got.Routes, want.Routes) {
				t.Errorf("routes %v, host-local: %v", got.Routes, want.Routes)
			}
		})
	}
}

func texts(list []netip.Addr) []string {
	var s []string
	for _, a := range list {
		s = append(s, a.String())
	}
	return s
}

func checkError(t *testing.T, err error, wrong string) {
	t.Helper()
	var cni *types.Error
	if !errors.As(err, &cni) || cni.Code != 4 && cni.Code != 6 && cni.Code != 7 {
		t.Errorf("%v is no CNI error with a code for it", err)
	}
	if !strings.Contains(err.Error(), wrong) {
		t.Errorf("%v; want %q", err, wrong)
	}
}

func TestStricter(t *testing.T) {
	for _, sample := range stricter {
		if _, _, err := allocator.LoadIPAMConfig([]byte(sample.stdin), sample.args); err != nil {
			t.Errorf("%s: host-local refuses it too: %v", sample.name, err)
		}
		_, err := Parse([]byte(sample.stdin), sample.args)
		if err == nil {
			t.Errorf("%s: taken", sample.name)
			continue
		}
		checkError(t, err, sample.wrong)
	}
	for _, linkLocal := range []string{`{"subnet": "fd00::/64", "gateway": "fe80::1"}`, `{"subnet": "10.1.2.0/24", "gateway": "169.254.1.1"}`} {
		if _, err := Parse([]byte(conflistOf(linkLocal)), ""); err != nil {
			t.Errorf("%s: %v", linkLocal, err)
		}
	}
	many := strings.TrimSuffix(strings.Repeat(`[{"subnet": "10.1.2.0/24"}],`, MaxSets+1), ",")
	if _, err := Parse([]byte(conflistOf(`{"ranges": [`+many+`]}`)), ""); err == nil {
		t.Error("too many sets are taken")
	}
}

func TestBPFFS(t *testing.T) {
	for _, test := range []struct {
		ipam, want string
		ok         bool
	}{
		{`{"subnet": "10.1.1.0/24"}`, conf.DefaultBPFFS, true},
		{`{"subnet": "10.1.1.0/24", "bpffs": "/mnt/bpf/x"}`, "/mnt/bpf/x", true},
		{`{"subnet": "10.1.1.0/24", "bpffs": "x"}`, conf.DefaultBPFFS, false},
		{`{"subnet": "10.1.1.0/24", "bpffs": "/a/../b"}`, conf.DefaultBPFFS, false},
		{`{"subnet": "nonsense", "bpffs": 7}`, conf.DefaultBPFFS, false},
		{`{"subnet": "nonsense", "bpffs": "/mnt/bpf/x"}`, "/mnt/bpf/x", false},
	} {
		c, err := Parse([]byte(conflistOf(test.ipam)), "")
		if (err == nil) != test.ok || err == nil && c.BPFFS != test.want {
			t.Errorf("%s: %v, %v", test.ipam, c, err)
		}
		c, err = ParseLenient([]byte(conflistOf(test.ipam)))
		if err != nil || c.BPFFS != test.want || c.Name != "net" {
			t.Errorf("%s, lenient: %v, %v", test.ipam, c, err)
		}
	}
}

// TestValid: a list that cannot be read in whole says nothing, and an absent one is not an empty one.
func TestValid(t *testing.T) {
	for list, want := range map[string]string{
		`"cni.dev/valid-attachments": []`:                                          "[]",
		`"cni.dev/attachments": [{"containerID": "a", "ifname": "b"}]`:             "[{a b}]",
		`"cni.dev/valid-attachments": [{"containerID": "a", "ifname": "b"}]`:       "[{a b}]",
		`"cni.dev/valid-attachments": null`:                                        "nothing",
		`"cni.dev/valid-attachments": [{"containerID": "a", "ifname": "b"}, "oh"]`: "nothing",
		`"cni.dev/valid-attachments": [{"id": "a", "ifname": "b"}]`:                "nothing",
		`"x": 1`: "nothing",
	} {
		c, err := ParseLenient([]byte(conflistOf(`{}`, list)))
		if err != nil {
			t.Fatal(err)
		}
		got := "nothing"
		if c.Valid != nil {
			got = fmt.Sprint(*c.Valid)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", list, got, want)
		}
	}
}

func TestReadDNS(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	text := "# comment\n; another\nnameserver 192.0.2.0\n  nameserver 192.0.2.1\nsearch example.com example.net\ndomain example.org\noptions four\noptions five six\nsortlist\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := ReadDNS(file)
	want := &types.DNS{Nameservers: []string{"192.0.2.0", "192.0.2.1"}, Domain: "example.org",
		Search: []string{"example.com", "example.net"}, Options: []string{"four", "five", "six"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := ReadDNS(file + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, sample := range slices.Concat(samples, stricter) {
		f.Add(sample.stdin, sample.args)
	}
	f.Fuzz(func(t *testing.T, stdin, args string) {
		_, _ = ParseLenient([]byte(stdin))
		c, err := Parse([]byte(stdin), args)
		if err != nil {
			return
		}
		if _, _, err := allocator.LoadIPAMConfig([]byte(stdin), args); err != nil {
			t.Errorf("host-local refuses what is taken here: %v", err)
		}
		for _, set := range c.Sets {
			if set.Usable() == 0 {
				t.Errorf("%v has no address", set)
			}
		}
	})
}
