package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/xdp-cni/xdp-cni/conf"
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
		{"no leases", func(f *facts) { f.leases = leaseFacts{} }, "leases", statusOK, "no address"},
		{"leases", func(*facts) {}, "leases", statusOK, "3 in 1 networks"},
		{"leases unreadable", func(f *facts) { f.leases.err = broken }, "leases", statusFail, "broken"},
		{"not leased", func(f *facts) { f.leases.wrong = []string{"demo/server has 10.88.0.3"} }, "leases", statusFail, "demo/server has 10.88.0.3"},
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
