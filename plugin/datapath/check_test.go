package datapath_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
)

// podDir is where an attachment's pins are.
func (r *rig) podDir() string {
	return pins.NewRoot(r.node.BPFFS).Pod(pins.ID(r.opts.ContainerID, r.opts.IfName))
}

// pinsOf returns the names of the pins of r's attachment.
func (r *rig) pinsOf() []string {
	r.t.Helper()
	var names []string
	err := fs.WalkDir(os.DirFS(r.podDir()), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return names
}

// policyPins are those of pinsOf that are of policies: four of each.
func (r *rig) policyPins() []string {
	r.t.Helper()
	return slices.DeleteFunc(r.pinsOf(), func(name string) bool { return !strings.HasPrefix(name, "policy_") })
}

// unhook takes a hook of r's attachment down, its link or its filter, as somebody else might.
func (r *rig) unhook(hook string) {
	r.t.Helper()
	l, err := link.LoadPinnedLink(filepath.Join(r.podDir(), hook+"_link"), nil)
	if err == nil {
		defer l.Close()
		err = l.Detach()
	} else if errors.Is(err, os.ErrNotExist) {
		parent := uint32(netlink.HANDLE_MIN_INGRESS)
		if hook == "ingress" {
			parent = netlink.HANDLE_MIN_EGRESS
		}
		err = r.node.Do(func() error { return r.deleteFilter(parent) })
	}
	if err != nil {
		r.t.Fatalf("taking %s down: %v", hook, err)
	}
}

// deleteFilter deletes the only filter that the host end has there.
func (r *rig) deleteFilter(parent uint32) error {
	host, err := netlink.LinkByIndex(r.veth.HostIndex)
	if err != nil {
		return err
	}
	filters, err := netlink.FilterList(host, parent)
	if err != nil || len(filters) != 1 {
		return fmt.Errorf("filters: %v, %w", filters, err)
	}
	return netlink.FilterDel(filters[0])
}

// TestCheckEveryPin removes each pin of an attachment in turn, and each of the node's.
func TestCheckEveryPin(t *testing.T) {
	for _, mode := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeTCX} {
		t.Run(mode.String(), func(t *testing.T) {
			r := newRig(t, mode, vethDefault)
			r.opts.Policy = mustPolicy(t, someFilter)
			r.mustAttach(r.opts)
			want := []string{
				"drop_stats_map", "egress_link", "flows", "ingress_drop_stats_map", "ingress_kind_stats_map", "ingress_link",
				"ingress_protocol_stats_map", "ingress_xdp_stats_map", "kind_stats_map", "meta", "peers",
				"policy_0/prefixes", "policy_0/rule_counters", "policy_0/source", "policy_0/words",
				"protocol_stats_map", "xdp_stats_map",
			}
			if !r.tcx() { // filters have no pins
				want = slices.DeleteFunc(want, func(pin string) bool {
					return pin == "ingress_link" || pin == "egress_link" && mode == datapath.ModeTCX
				})
			}
			if got := r.pinsOf(); !slices.Equal(got, want) {
				t.Fatalf("pins are %v, want %v", got, want)
			}
			for _, pin := range want {
				var err error
				// a link that has lost its pin goes a moment later, and its program is nobody's until then
				if !soon(func() bool { err = r.attach(r.opts); return !errors.Is(err, datapath.ErrForeignProgram) }) || err != nil {
					t.Fatalf("attach: %v", err)
				}
				if err := os.Remove(filepath.Join(r.podDir(), pin)); err != nil {
					t.Fatal(err)
				}
				err = r.check(r.opts)
				if pin == "meta" && errors.Is(err, datapath.ErrNotFound) {
					continue
				}
				if !errors.Is(err, datapath.ErrCheck) || !strings.Contains(err.Error(), filepath.Base(pin)) {
					t.Errorf("without pin %s: %v", pin, err)
				}
			}
			r.mustAttach(r.opts)
			node := pins.NewRoot(r.node.BPFFS).Node()
			for _, pin := range []string{"tc_ingress", "slots"} {
				if err := os.Remove(filepath.Join(node, pin)); err != nil {
					t.Fatal(err)
				}
				if err := r.check(r.opts); !errors.Is(err, datapath.ErrCheck) {
					t.Errorf("without the node's pin %s: %v", pin, err)
				}
			}
			r.mustDetach(r.opts)
		})
	}
}

func bareXDP(t *testing.T) *ebpf.Program {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign", Type: ebpf.XDP, License: "GPL",
		// a link takes another program only if its attach type is the same
		AttachType:   ebpf.AttachXDP,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	return prog
}

func bareTC(t *testing.T) *ebpf.Program {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	return prog
}

// TestCheckEachFault makes each thing wrong that can be, and expects CHECK to say which.
func TestCheckEachFault(t *testing.T) {
	openLink := func(r *rig, name string) link.Link {
		l, err := link.LoadPinnedLink(filepath.Join(r.podDir(), name), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	unhook := func(hook string) func(*testing.T, *rig) {
		return func(_ *testing.T, r *rig) { r.unhook(hook) }
	}
	for _, test := range []struct {
		name   string
		modes  []datapath.Mode // none: all
		break_ func(t *testing.T, r *rig)
		want   string // a regular expression
		tcx    bool   // it takes tcx links
	}{
		{"egress detached", nil, unhook("egress"), "^egress .*(detached|0 filters)", false},
		{"ingress detached", nil, unhook("ingress"), "^ingress .*(detached|0 filters)", false},
		{
			"another program in the link", []datapath.Mode{datapath.ModeGeneric, datapath.ModeNative},
			func(t *testing.T, r *rig) {
				if err := openLink(r, "egress_link").Update(bareXDP(t)); err != nil {
					t.Fatal(err)
				}
			}, "runs program", false,
		},
		{
			"another link under the pin", []datapath.Mode{datapath.ModeTCX},
			func(t *testing.T, r *rig) {
				if err := os.Remove(filepath.Join(r.podDir(), "egress_link")); err != nil {
					t.Fatal(err)
				}
				l, err := link.AttachTCX(link.TCXOptions{Interface: r.veth.HostIndex, Program: bareTC(t), Attach: ebpf.AttachTCXIngress})
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				if err := l.Pin(filepath.Join(r.podDir(), "egress_link")); err != nil {
					t.Fatal(err)
				}
			}, "runs program", true,
		},
		{
			"link on another interface", []datapath.Mode{datapath.ModeTCX},
			func(t *testing.T, r *rig) {
				_, other, _ := r.newPod("other", datapath.ModeTCX, vethDefault)
				prog, err := ebpf.LoadPinnedProgram(filepath.Join(pins.NewRoot(r.node.BPFFS).Node(), "tc_egress"), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer prog.Close()
				if err := os.Remove(filepath.Join(r.podDir(), "egress_link")); err != nil {
					t.Fatal(err)
				}
				l, err := link.AttachTCX(link.TCXOptions{Interface: other.HostIndex, Program: prog, Attach: ebpf.AttachTCXIngress})
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				if err := l.Pin(filepath.Join(r.podDir(), "egress_link")); err != nil {
					t.Fatal(err)
				}
			}, "not on", true,
		},
		{
			"a counter map exchanged", nil,
			func(t *testing.T, r *rig) {
				pin := filepath.Join(r.podDir(), "xdp_stats_map")
				if err := os.Remove(pin); err != nil {
					t.Fatal(err)
				}
				spec, err := bpf.LoadDatapath()
				if err != nil {
					t.Fatal(err)
				}
				m, err := ebpf.NewMap(spec.Maps[bpf.DatapathMapXdpStatsMap])
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				if err := m.Pin(pin); err != nil {
					t.Fatal(err)
				}
			}, "xdp_stats_map", false,
		},
		{
			"slot gone", nil,
			func(t *testing.T, r *rig) {
				slots, err := ebpf.LoadPinnedMap(filepath.Join(pins.NewRoot(r.node.BPFFS).Node(), "slots"), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer slots.Close()
				if err := slots.Put(uint32(r.veth.HostIndex)&(slots.MaxEntries()-1), bpf.DatapathSlot{}); err != nil {
					t.Fatal(err)
				}
			}, "do not know interface", false,
		},
		{
			"interface gone", nil,
			func(t *testing.T, r *rig) {
				err := r.node.Do(func() error {
					host, err := netlink.LinkByName(r.veth.HostName)
					if err != nil {
						return err
					}
					return netlink.LinkDel(host)
				})
				if err != nil {
					t.Fatal(err)
				}
			}, "host interface", false,
		},
		{"another mode", []datapath.Mode{datapath.ModeGeneric}, func(_ *testing.T, r *rig) { r.opts.Mode = datapath.ModeNative }, "mode generic", false},
		{"another network", nil, func(_ *testing.T, r *rig) { r.opts.Network = "other" }, "network net", false},
		{"another host end", nil, func(_ *testing.T, r *rig) { r.opts.HostIndex++ }, "host interface index", false},
		{"another address", nil, func(_ *testing.T, r *rig) { r.opts.Addresses = []netip.Prefix{netip.MustParsePrefix("10.9.9.9/24")} }, "addresses", false},
	} {
		if test.tcx && !kernel().TCX {
			continue // no links to break: TestCheckClsact is of the filters that are there instead
		}
		modes := test.modes
		if modes == nil {
			modes = []datapath.Mode{datapath.ModeGeneric, datapath.ModeNative, datapath.ModeTCX}
		}
		for _, mode := range modes {
			t.Run(test.name+" "+mode.String(), func(t *testing.T) {
				r := newRig(t, mode, vethDefault)
				r.mustAttach(r.opts)
				if err := r.check(r.opts); err != nil {
					t.Fatalf("check before: %v", err)
				}
				test.break_(t, r)
				err := r.check(r.opts)
				if !errors.Is(err, datapath.ErrCheck) || !regexp.MustCompile(test.want).MatchString(err.Error()) {
					t.Errorf("check: %v, want ErrCheck with %s", err, test.want)
				}
				r.mustDetach(r.opts)
			})
		}
	}
}

// TestCheckClsact removes our filters one after the other.
func TestCheckClsact(t *testing.T) {
	r := newRig(t, datapath.ModeTCX, vethDefault)
	r.features = &datapath.Features{}
	for _, hook := range []string{"egress", "ingress"} {
		r.mustAttach(r.opts)
		if err := r.check(r.opts); err != nil {
			t.Fatal(err)
		}
		r.unhook(hook)
		if err := r.check(r.opts); !errors.Is(err, datapath.ErrCheck) {
			t.Errorf("check without a filter: %v", err)
		}
	}
	r.mustDetach(r.opts)
}

func TestCheckNothing(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, tests.VethOptions{})
	if err := r.check(r.opts); !errors.Is(err, datapath.ErrNotFound) {
		t.Errorf("check of what was never attached: %v", err)
	}
}
