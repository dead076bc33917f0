package datapath_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
)

func (r *rig) obstacles(programs []ebpf.ProgramID, links []link.ID) (found []string) {
	r.t.Helper()
	r.onHost(func(host netlink.Link) (err error) {
		found, err = datapath.Obstacles(host, programs, links, r.tcx())
		return err
	})
	return found
}

// onHost runs f in the node's network namespace, with the host end.
func (r *rig) onHost(f func(host netlink.Link) error) {
	r.t.Helper()
	err := r.node.Do(func() error {
		host, err := netlink.LinkByIndex(r.veth.HostIndex)
		if err != nil {
			return err
		}
		return f(host)
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) expectObstacles(want ...string) {
	r.t.Helper()
	for i := range want {
		want[i] = r.veth.HostName + " " + want[i]
	}
	if found := r.obstacles(nil, nil); !slices.Equal(found, want) {
		r.t.Errorf("obstacles %q, want %q", found, want)
	}
}

func rootQdisc(r *rig, handle uint16) netlink.QdiscAttrs {
	return netlink.QdiscAttrs{
		LinkIndex: r.veth.HostIndex, Handle: netlink.MakeHandle(handle, 0), Parent: netlink.HANDLE_ROOT,
	}
}

func ingressAttrs(r *rig) netlink.QdiscAttrs {
	return netlink.QdiscAttrs{
		LinkIndex: r.veth.HostIndex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}
}

// TestQueuesAreObstacles: those that shape, and no others.
func TestQueuesAreObstacles(t *testing.T) {
	for _, c := range []struct {
		name  string
		qdisc func(netlink.QdiscAttrs) netlink.Qdisc
		want  []string
	}{
		{"none", nil, nil},
		{"tbf", func(a netlink.QdiscAttrs) netlink.Qdisc {
			return &netlink.Tbf{QdiscAttrs: a, Rate: 1e6, Limit: 1e6, Buffer: 1e5}
		}, []string{"has a tbf qdisc"}},
		{"htb", func(a netlink.QdiscAttrs) netlink.Qdisc { return netlink.NewHtb(a) }, []string{"has a htb qdisc"}},
		{"pfifo", generic("pfifo"), nil},
		{"bfifo", generic("bfifo"), nil},
		{"pfifo_fast", generic("pfifo_fast"), nil},
		{"mq", generic("mq"), nil},
	} {
		r := newRig(t, datapath.ModeGeneric, tests.VethOptions{Queues: 2})
		if c.qdisc != nil {
			err := r.node.Do(func() error { return netlink.QdiscAdd(c.qdisc(rootQdisc(r, 1))) })
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
		}
		r.expectObstacles(c.want...)
	}
}

func generic(kind string) func(netlink.QdiscAttrs) netlink.Qdisc {
	return func(a netlink.QdiscAttrs) netlink.Qdisc {
		return &netlink.GenericQdisc{QdiscAttrs: a, QdiscType: kind}
	}
}

// TestQdiscUnderMq: one queue that is shaped is enough.
func TestQdiscUnderMq(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, tests.VethOptions{Queues: 2})
	r.onHost(func(netlink.Link) error {
		if err := netlink.QdiscAdd(generic("mq")(rootQdisc(r, 1))); err != nil {
			return err
		}
		child := rootQdisc(r, 2)
		child.Parent = netlink.MakeHandle(1, 2)
		return netlink.QdiscAdd(&netlink.Tbf{QdiscAttrs: child, Rate: 1e6, Limit: 1e6, Buffer: 1e5})
	})
	r.expectObstacles("has a tbf qdisc")
}

// TestFiltersAreObstacles: the qdisc is none until there are filters.
func TestFiltersAreObstacles(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	u32 := func(host netlink.Link, parent uint32) netlink.Filter {
		// as bandwidth redirects to an ifb
		return &netlink.U32{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: host.Attrs().Index, Parent: parent, Priority: 1, Protocol: unix.ETH_P_ALL,
			},
			ClassId: netlink.MakeHandle(1, 1),
			Actions: []netlink.Action{&netlink.MirredAction{
				MirredAction: netlink.TCA_EGRESS_REDIR, Ifindex: host.Attrs().Index,
			}},
		}
	}
	bpf := func(host netlink.Link, parent uint32) netlink.Filter {
		return &netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: host.Attrs().Index, Parent: parent, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL,
			},
			Fd: bareTC(t).FD(), Name: "foreign", DirectAction: true,
		}
	}
	const (
		ingress = netlink.HANDLE_MIN_INGRESS
		egress  = netlink.HANDLE_MIN_EGRESS
	)
	for _, c := range []struct {
		name   string
		qdisc  netlink.Qdisc
		filter func(netlink.Link, uint32) netlink.Filter
		parent uint32
		want   string
	}{
		{"bandwidth", &netlink.Ingress{QdiscAttrs: ingressAttrs(r)}, u32, netlink.MakeHandle(0xffff, 0),
			"has a u32 filter on its ingress qdisc at ingress"},
		{"ingress", &netlink.Ingress{QdiscAttrs: ingressAttrs(r)}, bpf, ingress,
			"has a bpf (foreign) filter on its ingress qdisc at ingress"},
		{"clsact ingress", &netlink.Clsact{QdiscAttrs: ingressAttrs(r)}, bpf, ingress,
			"has a bpf (foreign) filter on its clsact qdisc at ingress"},
		{"clsact egress", &netlink.Clsact{QdiscAttrs: ingressAttrs(r)}, u32, egress,
			"has a u32 filter on its clsact qdisc at egress"},
	} {
		r.onHost(func(netlink.Link) error { return netlink.QdiscAdd(c.qdisc) })
		r.expectObstacles()
		err := r.node.Do(func() error {
			host, err := netlink.LinkByIndex(r.veth.HostIndex)
			if err != nil {
				return err
			}
			return netlink.FilterAdd(c.filter(host, c.parent))
		})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else {
			r.expectObstacles(c.want)
		}
		r.onHost(func(netlink.Link) error { return netlink.QdiscDel(c.qdisc) })
		r.expectObstacles()
	}
}

// TestOursAreNoObstacles: what Attach makes, by tcx links or by filters, with others' beside it.
func TestOursAreNoObstacles(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *rig) {
		r.mustAttach(r.opts)
		defer r.mustDetach(r.opts)
		if !r.tcx() {
			r.expectObstacles()
			// the programs of others at tcx are not asked for where there is none
			return
		}
		programs, links := atTCX(r)
		if r.opts.Mode == datapath.ModeTCX && len(programs) != 2+len(r.opts.Programs) || len(programs) == 0 {
			t.Fatalf("we run programs %v", programs)
		}
		if found := r.obstacles(nil, nil); len(found) != len(programs) {
			t.Errorf("not knowing ours: obstacles %q", found)
		}
		theirs := bareTC(t)
		for hook, where := range map[ebpf.AttachType]string{ebpf.AttachTCXIngress: "ingress", ebpf.AttachTCXEgress: "egress"} {
			var foreign link.Link
			r.onHost(func(netlink.Link) (err error) {
				foreign, err = link.AttachTCX(link.TCXOptions{Interface: r.veth.HostIndex, Program: theirs, Attach: hook})
				return err
			})
			want := fmt.Sprintf("%s runs tcx program %d (foreign) at %s", r.veth.HostName, programID(t, theirs), where)
			for _, found := range [][]string{r.obstacles(programs, nil), r.obstacles(nil, links)} {
				if !slices.Equal(found, []string{want}) {
					t.Errorf("a foreign program at %s: obstacles %q, want %q", where, found, want)
				}
			}
			if err := foreign.Detach(); err != nil {
				t.Fatal(err)
			}
			foreign.Close()
			for _, found := range [][]string{r.obstacles(programs, nil), r.obstacles(nil, links)} {
				if len(found) > 0 {
					t.Errorf("only ours: obstacles %q", found)
				}
			}
		}
	})
}

// atTCX returns the programs at the tcx hooks of the host end, and their links.
func atTCX(r *rig) (programs []ebpf.ProgramID, links []link.ID) {
	r.t.Helper()
	r.onHost(func(host netlink.Link) error {
		for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			for _, prog := range tcxPrograms(r.t, host.Attrs().Index, hook) {
				id, _ := prog.LinkID()
				programs, links = append(programs, prog.ID), append(links, id)
			}
		}
		return nil
	})
	return programs, links
}
