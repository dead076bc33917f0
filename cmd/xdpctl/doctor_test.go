package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/internal/firewall"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// TestJudge changes one fact at a time of a node where all is well.
func TestJudge(t *testing.T) {
	broken := errors.New("broken")
	for _, test := range []struct {
		name   string
		change func(*facts)
		check  string
		status status
		want   string
	}{
		{"privileges", func(f *facts) { f.privileges = datapath.ErrPrivileges }, "privileges", statusFail, "missing capabilities"},
		{"program types", func(f *facts) { f.programTypes = broken }, "program types", statusFail, "broken"},
		{"links", func(f *facts) { f.links = broken }, "BPF links", statusFail, "5.9"},
		{"tcx", func(f *facts) { f.features.TCX = false }, "tcx", statusWarn, "6.6"},
		{"features", func(f *facts) { f.featuresErr = broken }, "tcx", statusFail, "broken"},
		{"frags", func(f *facts) { f.features.XDPFrags = false }, "XDP frags", statusWarn, "3500"},
		{"no JIT", func(f *facts) { f.jitted = false }, "JIT", statusWarn, "interpreted"},
		{"JIT debugs", func(f *facts) { f.jitSysctl = "2" }, "JIT", statusWarn, "kernel log"},
		{"JIT unknown", func(f *facts) { f.jitErr = broken }, "JIT", statusWarn, "cannot tell"},
		{"JIT in a namespace", func(f *facts) { f.jitSysctl = "" }, "JIT", statusOK, "on"},
		{"LRU maps", func(f *facts) { f.attachments[3].capacities.Flows = 256 }, "LRU maps", statusOK, "filled"},
		{"LRU maps unknown", withCPUs(2, func(f *facts) { f.lru.err = broken }), "LRU maps", statusWarn, "cannot tell: broken"},
		{"LRU maps large enough", withCPUs(16, func(f *facts) {
			f.attachments[3].capacities = datapath.Capacities{Flows: 4096, Peers: 4096}
		}), "LRU maps", statusOK, "less than 4096, 256 for each of 16 CPUs"},
		{"LRU maps for flows", withCPUs(17, func(f *facts) {
			f.attachments[3].capacities.Flows, f.attachments[2].capacities.Flows = 4096, 4352
		}), "LRU maps", statusWarn, "\nmaxFlows of filter: 4096 of demo/serverset them to 4352, 256 for each of 17 CPUs, or more"},
		{"LRU map for peers", withCPUs(2, func(f *facts) { f.attachments[3].capacities.Peers = 511 }),
			"LRU maps", statusWarn, "\nstats.peers: 511 of demo/serverset them to 512,"},
		{"LRU map of redirect", withCPUs(65, withRedirect(nil)), "LRU maps", statusWarn, "\nmaxFlows of redirect: 16384 of the nodeset them to 16640,"},
		{"bpffs of the host", func(f *facts) { f.mounted, f.rootIsThere = false, false }, "bpffs", statusWarn, "first ADD"},
		{"bpffs not there", func(f *facts) { f.mounted = false }, "bpffs", statusFail, "mount -t bpf"},
		{"bpffs unknown", func(f *facts) { f.mounted, f.rootIsThere, f.mountable = false, false, broken }, "bpffs", statusFail, "broken"},
		{"bpffs error", func(f *facts) { f.mountedErr = broken }, "bpffs", statusFail, "broken"},
		{"root", func(f *facts) { f.rootIsThere = false }, "bpffs", statusOK, "first ADD"},
		{"layouts", func(f *facts) { f.otherLayouts = []string{"/x/v2"} }, "layout", statusWarn, "/x/v2"},
		{"no node", func(f *facts) { f.node, f.nodeErr = nil, fs.ErrNotExist }, "node", statusFail, "start the pods anew"},
		{"no pods", func(f *facts) { f.node, f.nodeErr, f.attachments = nil, fs.ErrNotExist, nil }, "node", statusOK, "no attachment"},
		{"node layout", func(f *facts) { f.node, f.nodeErr = nil, datapath.ErrLayout }, "node", statusFail, "that release"},
		{"node error", func(f *facts) { f.node, f.nodeErr = nil, broken }, "node", statusFail, "broken"},
		{"release", func(f *facts) { f.release = "v9" }, "node", statusWarn, "v9"},
		{"full", func(f *facts) { f.node.Taken = 4000 }, "node", statusWarn, "4000"},
		{"elsewhere", func(f *facts) { f.node.Here, f.ready = false, fmt.Errorf("x: %w", datapath.ErrOtherNetns) }, "node", statusFail, "another network namespace"},
		{"abandoned node", func(f *facts) { f.node.Here = false }, "node", statusWarn, "gone"},
		{"not checked", func(f *facts) { f.node.Here = false }, "attachments", statusWarn, "not checked"},
		{"ready", func(f *facts) { f.ready = broken }, "ready", statusFail, "broken"},
		{"intact", func(*facts) {}, "attachments", statusOK, "4 intact"},
		{"one not", func(f *facts) { f.attachments[3].verify = broken }, "attachment demo/server", statusFail, "veth22222222 (eth0): broken"},
		{"seen twice", func(f *facts) { f.attachments[3].seenTwice = true }, "attachment demo/server", statusWarn, "bandwidth"},
		{"the others", func(f *facts) { f.attachments[3].verify = broken }, "attachments", statusOK, "3 intact"},
		{"unreadable", func(f *facts) { f.attachmentErr = broken }, "attachments", statusFail, "broken"},
		{"stale", func(f *facts) { f.attachments[0].stale = true }, "stale", statusWarn, "xdpctl gc"},
		{"filters", func(*facts) {}, "filters", statusOK, "1 of 4 attachments have one"},
		{"filter unreadable", func(f *facts) { f.attachments[0].filterErr = broken }, "filters", statusFail, "broken"},
		{"odd filter", func(f *facts) {
			f.attachments[0].filter = oddFilter()
			f.attachments[1].filter = oddFilter()
		}, "filters", statusWarn, `3 of 4 attachments have one
rule "b" (rules[1]): never decides: rule "a" (rules[0]) comes before it and matches all that it does, of 77bb00000000, demo/client`},
		{"tail calls", func(*facts) {}, "tail calls", statusOK, "can run user programs"},
		{"no tail calls", func(f *facts) { f.tailCalls = broken }, "tail calls", statusWarn, "broken"},
		{"programs", withPrograms(nil), "programs", statusOK, "4 user programs, on 2 of 4 attachments"},
		{"object changed", withPrograms(func(p programFacts) { p["/etc/cni/xdp/blocklist.bpf.o"] = objectFacts{} }),
			"programs", statusWarn,
			"blocklist.bpf.o has changed since block was loaded (now 000000000000), of 77bb00000000, demo/server"},
		{"object gone", withPrograms(func(p programFacts) {
			p["/etc/cni/xdp/count.bpf.o"] = objectFacts{err: fs.ErrNotExist}
		}), "programs", statusWarn,
			"/etc/cni/xdp/count.bpf.o, which count was loaded from, is not there any more, of demo/server"},
		{"object unreadable", withPrograms(func(p programFacts) {
			p["/etc/cni/xdp/count.bpf.o"] = objectFacts{err: broken}
		}),
			"programs", statusWarn, "count was loaded from: broken"},
		{"no leases", func(f *facts) { f.leases = leaseFacts{} }, "leases", statusOK, "no address"},
		{"leases", func(*facts) {}, "leases", statusOK, "3 in 1 networks"},
		{"leases unreadable", func(f *facts) { f.leases.err = broken }, "leases", statusFail, "broken"},
		{"not leased", func(f *facts) { f.leases.wrong = []string{"demo/server has 10.88.0.3"} }, "leases", statusFail, "demo/server has 10.88.0.3"},
		{"redirect", withRedirect(nil), "redirect", statusOK, "in force for 3 of 3"},
		{"redirect unreadable", func(f *facts) { f.redirect.err = broken }, "redirect", statusFail, "broken"},
		{"not in force", func(f *facts) { f.redirect.endpoints = sampleEndpoints() }, "redirect", statusWarn, "10.88.0.10 of 77bb00000000: redirect is turned off for the pod: GRO is off"},
		{"addresses", withRedirect(func(r *redirectFacts) { r.endpoints.Entered, r.endpoints.MaxEndpoints = 9, 10 }), "redirect", statusWarn, "maxEndpoints"},
		{"rules unreadable", withRedirect(func(r *redirectFacts) { r.rulesErr = broken }), "host firewall", statusWarn, "broken"},
		{"no rules", withRedirect(nil), "forward rules", statusOK, "none"},
		{"forward", withRedirect(func(r *redirectFacts) { r.forward = []string{"chain x"} }), "forward rules", statusWarn, "chain x"},
		{"forward, legacy", withRedirect(func(r *redirectFacts) { r.legacy = []firewall.Legacy{{Family: "ip6", Table: "filter", Forward: true}} }), "forward rules", statusWarn, "table ip6 filter"},
		{"empty legacy", withRedirect(func(r *redirectFacts) { r.legacy = []firewall.Legacy{{Family: "ip6", Table: "filter"}} }), "forward rules", statusOK, "none"},
		{"no INVALID", withRedirect(nil), "INVALID", statusOK, "no rule"},
		{"INVALID", withRedirect(func(r *redirectFacts) { r.invalid = []string{"rule x"} }), "INVALID", statusWarn, "rule x"},
		{"INVALID, liberal", withRedirect(func(r *redirectFacts) { r.invalid, r.liberal = []string{"rule x"}, true }), "INVALID", statusOK, "be_liberal is 1"},
		{"no masquerade", withRedirect(nil), "masquerade", statusOK, "no rule"},
		{"masquerade", withRedirect(func(r *redirectFacts) { r.masquerades = []string{"rule x"} }), "masquerade", statusWarn, "rule x"},
		{"masquerade, legacy", withRedirect(func(r *redirectFacts) { r.legacy = []firewall.Legacy{{Family: "ip", Table: "nat", Postrouting: true}} }), "masquerade", statusWarn, "table ip nat"},
		{"killed", func(f *facts) { f.abandoned = []string{"x"} }, "stale", statusWarn, "killed"},
	} {
		f := goodFacts()
		test.change(f)
		found := false
		for _, c := range judge(f) {
			if c.Name == test.check && c.Status == test.status && strings.Contains(c.Detail+c.Hint, test.want) {
				found = true
			}
		}
		if !found {
			t.Errorf("%s: no check %s %s with %q in %v", test.name, test.check, test.status, test.want, judge(f))
		}
	}
}

// withRedirect makes redirect in force for some pods, and changes what is known of it.
func withRedirect(change func(*redirectFacts)) func(*facts) {
	return func(f *facts) {
		f.redirect.endpoints = sampleEndpoints()
		f.redirect.endpoints.List = slices.DeleteFunc(f.redirect.endpoints.List, func(e datapath.Endpoint) bool {
			return e.State != datapath.EndpointInForce
		})
		if change != nil {
			change(&f.redirect)
		}
	}
}

// withPrograms gives some pods user programs, and changes what is known of the files.
func withPrograms(change func(programFacts)) func(*facts) {
	return func(f *facts) {
		*f = *programmedFacts()
		if change != nil {
			change(f.programs)
		}
	}
}

// withCPUs is a kernel that does not fill LRU maps, and changes what else is known.
func withCPUs(n int, change func(*facts)) func(*facts) {
	return func(f *facts) {
		f.lru = lruFacts{cpus: n}
		change(f)
	}
}

func TestCountCPUs(t *testing.T) {
	for list, want := range map[string]int{"0\n": 1, "0-3\n": 4, "0-3,8,10-11\n": 7} {
		if have, err := countCPUs(list); err != nil || have != want {
			t.Errorf("%q: %d, %v, want %d", list, have, err, want)
		}
	}
	for _, list := range []string{"", "x", "0-", "1,,2"} {
		if have, err := countCPUs(list); err == nil {
			t.Errorf("%q: %d, want an error", list, have)
		}
	}
}

// TestProbeObjects: of a file that several programs are from, or that is none, is told what it is now.
func TestProbeObjects(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "object")
	if err := os.WriteFile(path, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := &facts{attachments: []attachmentFacts{{}, {programs: []datapath.PodProgram{
		{Name: "a", Object: path, Digest: sha256.Sum256([]byte("abc"))}, {Name: "b", Object: path},
		{Name: "c", Object: path + "x"}, {Name: "d", Object: dir},
	}}}}
	f.probeObjects()
	var have []string
	for _, p := range f.attachments[1].programs {
		have = append(have, f.programs[p.Object].oddity(p))
	}
	want := []string{
		"", path + " has changed since b was loaded (now ba7816bf8f01)", // FIPS 180-2, B.1
		path + "x, which c was loaded from, is not there any more",
	}
	if !slices.Equal(have[:3], want) || !strings.Contains(have[3], "no regular file") {
		t.Errorf("%q", have)
	}
}

// TestNoRedirect: of what no pod has, doctor says nothing.
func TestNoRedirect(t *testing.T) {
	silent := []string{"redirect", "host firewall", "forward rules", "INVALID", "masquerade", "programs"}
	for _, c := range judge(goodFacts()) {
		if slices.Contains(silent, c.Name) {
			t.Errorf("%+v", c)
		}
	}
}

// TestFirewallPairs: each pod is a sender, to one of its network, and to one that it has no bridge in common with.
func TestFirewallPairs(t *testing.T) {
	if pairs := firewallPairs(&datapath.Endpoints{}); len(pairs) != 0 {
		t.Errorf("%v", pairs)
	}
	endpoint := func(address, network string, bridge int) datapath.Endpoint {
		return datapath.Endpoint{
			Address: netip.MustParseAddr(address), State: datapath.EndpointInForce, HostIndex: 7, Bridge: bridge, BridgeName: "cni0",
			Attachment: &datapath.Attachment{Meta: &datapath.Meta{Network: network, HostName: "veth7"}},
		}
	}
	all := &datapath.Endpoints{List: []datapath.Endpoint{
		endpoint("10.0.0.1", "a", 5), endpoint("10.0.0.2", "a", 5), endpoint("10.0.0.3", "a", 0),
		endpoint("10.0.0.4", "b", 0), endpoint("fd00::1", "a", 5), endpoint("fd00::2", "a", 5),
	}}
	var have []string
	for _, p := range firewallPairs(all) {
		have = append(have, fmt.Sprintf("%s>%s %s>%s %v", p.Source, p.Destination, p.In.Name, p.Out.Name, p.Bridged))
	}
	want := []string{
		"10.0.0.1>10.0.0.2 cni0>cni0 true", "10.0.0.1>10.0.0.3 cni0>veth7 false", "10.0.0.2>10.0.0.3 cni0>veth7 false",
		"10.0.0.3>10.0.0.1 veth7>cni0 false", "fd00::1>fd00::2 cni0>cni0 true", "fd00::2>fd00::1 cni0>cni0 true",
	}
	if !slices.Equal(have, want) {
		t.Errorf("%s, want\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
	for i := range 1000 {
		all.List = append(all.List, endpoint(fmt.Sprintf("10.1.%d.%d", i/256, i%256), "a", 5))
	}
	if n := len(firewallPairs(all)); n != mostPairs {
		t.Errorf("%d pairs, want %d", n, mostPairs)
	}
}

func oddFilter() *conf.Filter {
	return &conf.Filter{Rules: []conf.Rule{{Name: "a", Protocol: conf.ProtocolAny}, {Name: "b", Protocol: conf.ProtocolTCP}}}
}

func TestDoctorStatus(t *testing.T) {
	if err := newDoctorReport(goodFacts()).err(); err != nil {
		t.Error(err)
	}
	f := goodFacts()
	f.features = datapath.Features{} // warnings are no failure
	if err := newDoctorReport(f).err(); err != nil {
		t.Error(err)
	}
	if err := newDoctorReport(badFacts()).err(); err == nil || err.Error() != "2 checks failed" {
		t.Error(err)
	}
}

func TestModes(t *testing.T) {
	for _, kernel := range []datapath.Features{{}, {TCX: true}, {XDPFrags: true}, {TCX: true, XDPFrags: true}} {
		var auto []string
		for _, m := range modeReports(kernel) {
			if m.Auto {
				auto = append(auto, m.Mode)
			}
			if m.TCPCPU == "" || m.Why == "" || m.RightFor == "" || m.Here == "" {
				t.Errorf("%+v: %s is not told of", kernel, m.Mode)
			}
		}
		if want := datapath.AutoMode(kernel).String(); len(auto) != 1 || auto[0] != want {
			t.Errorf("%+v: auto is %v, want %s", kernel, auto, want)
		}
	}
}

func TestWrap(t *testing.T) {
	if have, want := wrap("a bb ccc dddd", 6, "  "), "a bb\n  ccc\n  dddd\n"; have != want {
		t.Errorf("%q, want %q", have, want)
	}
}
