package datapath_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

// TestForeignXDPStays attaches where somebody else's XDP program is, by link and by netlink.
func TestForeignXDPStays(t *testing.T) {
	for _, by := range []string{"link", "netlink"} {
		for _, theirs := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeNative} {
			for _, mode := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeNative, datapath.ModeTCX} {
				t.Run(fmt.Sprintf("%s %s then %s", by, theirs, mode), func(t *testing.T) {
					r := newRig(t, mode, vethDefault)
					prog := bareXDP(t)
					attachForeign(t, r, prog, by, theirs)
					before := r.world()
					err := r.attach(r.opts)
					if mode == datapath.ModeTCX {
						// the tc hooks are nobody's alone
						if err != nil {
							t.Errorf("attach: %v", err)
						}
						r.mustDetach(r.opts)
					} else if !errors.Is(err, datapath.ErrForeignProgram) || !strings.Contains(err.Error(), "foreign") {
						t.Errorf("attach: %v, want ErrForeignProgram that names it", err)
					}
					r.expectUnchanged(before)
					if got := xdpProgram(t, r); got != programID(t, prog) {
						t.Errorf("the interface runs program %d, want the foreign one", got)
					}
				})
			}
		}
	}
}

func attachForeign(t *testing.T, r *rig, prog *ebpf.Program, by string, mode datapath.Mode) {
	t.Helper()
	err := r.node.Do(func() error {
		host, err := netlink.LinkByIndex(r.veth.HostIndex)
		if err != nil {
			return err
		}
		flags := link.XDPGenericMode
		if mode == datapath.ModeNative {
			flags = link.XDPDriverMode
		}
		if by == "netlink" {
			return netlink.LinkSetXdpFdWithFlags(host, prog.FD(), int(flags))
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: r.veth.HostIndex, Flags: flags})
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func xdpProgram(t *testing.T, r *rig) ebpf.ProgramID {
	t.Helper()
	var id ebpf.ProgramID
	err := r.node.Do(func() error {
		host, err := netlink.LinkByIndex(r.veth.HostIndex)
		if err == nil && host.Attrs().Xdp != nil {
			id = ebpf.ProgramID(host.Attrs().Xdp.ProgId)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func programID(t *testing.T, prog *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	info, err := prog.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return id
}

// TestForeignTCStays: other programs at the tc hooks stay where they are, ours is before them on
// the way from the pod and behind them on the way to it.
func TestForeignTCStays(t *testing.T) {
	priv.Root(t)
	if !kernel().TCX {
		t.Skip("this kernel has no tcx: TestForeignFilterStays is what there is to test")
	}
	r := newRig(t, datapath.ModeTCX, vethDefault)
	theirs := bareTC(t)
	for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		err := r.node.Do(func() error {
			l, err := link.AttachTCX(link.TCXOptions{Interface: r.veth.HostIndex, Program: theirs, Attach: hook})
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	before := r.world()
	r.mustAttach(r.opts)
	err := r.node.Do(func() error {
		ingress := tcxPrograms(t, r.veth.HostIndex, ebpf.AttachTCXIngress)
		egress := tcxPrograms(t, r.veth.HostIndex, ebpf.AttachTCXEgress)
		foreign := programID(t, theirs)
		if len(ingress) != 2 || ingress[1].ID != foreign || len(egress) != 2 || egress[0].ID != foreign {
			t.Errorf("tc ingress runs %v, tc egress %v; the foreign program is %d", ingress, egress, foreign)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r.mustDetach(r.opts)
	r.expectUnchanged(before)
}

// TestForeignFilterStays: a clsact qdisc and a filter of others stay.
func TestForeignFilterStays(t *testing.T) {
	r := newRig(t, datapath.ModeTCX, vethDefault)
	r.features = &datapath.Features{}
	err := r.node.Do(func() error {
		attrs := netlink.QdiscAttrs{LinkIndex: r.veth.HostIndex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
		if err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: attrs}); err != nil {
			return err
		}
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: r.veth.HostIndex, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL,
			},
			Fd: bareTC(t).FD(), Name: "foreign", DirectAction: true,
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	before := r.world()
	r.mustAttach(r.opts)
	r.mustDetach(r.opts)
	r.expectUnchanged(before)
	err = r.node.Do(func() error {
		host, err := netlink.LinkByIndex(r.veth.HostIndex)
		if err != nil {
			return err
		}
		filters, err := netlink.FilterList(host, netlink.HANDLE_MIN_INGRESS)
		if err != nil || len(filters) != 1 {
			t.Errorf("filters: %v, %v; want the foreign one", filters, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestIngressQdisc: where clsact is needed, an ingress qdisc such as bandwidth adds is in the way.
func TestIngressQdisc(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	err := r.node.Do(func() error {
		return netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: r.veth.HostIndex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
		}})
	})
	if err != nil {
		t.Fatal(err)
	}
	before := r.world()
	r.features = &datapath.Features{XDPFrags: true}
	if err := r.attach(r.opts); !errors.Is(err, datapath.ErrUnsupported) || !strings.Contains(err.Error(), "bandwidth") {
		t.Errorf("attach by clsact: %v", err)
	}
	r.expectUnchanged(before)
	if !kernel().TCX {
		return
	}
	r.features = nil
	r.mustAttach(r.opts)
	// tcx goes with it, and takes the place of generic XDP, which would see packets twice
	if host := r.hostState(r.veth.HostName); host.xdp || host.tcx != 2 {
		t.Errorf("the host end is %+v, want two programs at tc", host)
	}
	if err := r.check(r.opts); err != nil {
		t.Errorf("check: %v", err)
	}
	r.mustDetach(r.opts)
	r.expectUnchanged(before)
}

// TestSeenTwice: an ingress qdisc that comes after the attachment is noticed.
func TestSeenTwice(t *testing.T) {
	for _, mode := range []datapath.Mode{datapath.ModeGeneric, datapath.ModeTCX} {
		r := newRig(t, mode, vethDefault)
		r.mustAttach(r.opts)
		seen := func() (twice bool) {
			err := r.do(func(d *datapath.Datapath) error {
				list, err := d.List()
				if err != nil || len(list) != 1 {
					t.Fatalf("list: %v, %v", list, err)
				}
				twice, err = d.SeenTwice(list[0])
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return twice
		}
		if seen() {
			t.Errorf("mode %s: seen twice without a qdisc", mode)
		}
		err := r.node.Do(func() error {
			return netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
				LinkIndex: r.veth.HostIndex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
			}})
		})
		if !r.tcx() {
			// our clsact qdisc excludes it
			if !errors.Is(err, unix.EEXIST) {
				t.Errorf("mode %s: adding an ingress qdisc: %v", mode, err)
			}
			r.mustDetach(r.opts)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := seen(); got != (mode == datapath.ModeGeneric) {
			t.Errorf("mode %s with an ingress qdisc: seen twice %v", mode, got)
		}
		r.mustDetach(r.opts)
	}
}

// TestNativeLimits: what native XDP on veth cannot do is said in words.
func TestNativeLimits(t *testing.T) {
	t.Run("MTU without frags", func(t *testing.T) {
		r := newRig(t, datapath.ModeNative, tests.VethOptions{MTU: 9000})
		before := r.world()
		r.features = &datapath.Features{TCX: kernel().TCX}
		if err := r.attach(r.opts); !errors.Is(err, datapath.ErrUnsupported) || !strings.Contains(err.Error(), "MTU") {
			t.Errorf("attach: %v", err)
		}
		r.expectUnchanged(before)
		if !kernel().XDPFrags {
			return
		}
		r.features = nil
		r.mustAttach(r.opts) // with frags it goes
		r.mustDetach(r.opts)
		r.expectUnchanged(before)
	})
	t.Run("queues", func(t *testing.T) {
		r := newRig(t, datapath.ModeNative, vethDefault)
		err := r.node.Do(func() error { // a veth whose host end cannot have as many queues as the pod end
			host, err := netlink.LinkByIndex(r.veth.HostIndex)
			if err != nil {
				return err
			}
			return netlink.LinkDel(host)
		})
		if err != nil {
			t.Fatal(err)
		}
		r.veth, r.opts = unevenVeth(r)
		before := r.world()
		if err := r.attach(r.opts); !errors.Is(err, datapath.ErrUnsupported) || !strings.Contains(err.Error(), "queues") {
			t.Errorf("attach: %v", err)
		}
		r.expectUnchanged(before)
	})
}

func unevenVeth(r *rig) (*tests.Veth, datapath.AttachOptions) {
	r.t.Helper()
	opts := r.opts
	err := r.node.Do(func() error {
		err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "uneven0", TxQLen: -1, NumTxQueues: 1, NumRxQueues: 1},
			PeerName:  "uneven1", PeerNumTxQueues: 4, PeerNumRxQueues: 4,
		})
		if err != nil {
			return err
		}
		host, err := netlink.LinkByName("uneven0")
		if err != nil {
			return err
		}
		opts.HostName, opts.HostIndex, opts.PodIndex, opts.PodTxQueues = "uneven0", host.Attrs().Index, host.Attrs().ParentIndex, 4
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return &tests.Veth{HostName: opts.HostName, HostIndex: opts.HostIndex}, opts
}

// TestSlotsCollide makes interfaces whose indexes want the same slot.
func TestSlotsCollide(t *testing.T) {
	r := newRig(t, datapath.ModeTCX, vethDefault)
	before := r.world()
	const slots = 4096
	var all []datapath.AttachOptions
	for i := range 3 {
		opts := r.opts
		opts.ContainerID = fmt.Sprintf("collide%d", i)
		opts.HostName = fmt.Sprintf("collide%d", i)
		opts.HostIndex = 77 + i*slots
		err := r.node.Do(func() error {
			return netlink.LinkAdd(&netlink.Veth{
				LinkAttrs: netlink.LinkAttrs{Name: opts.HostName, Index: opts.HostIndex, TxQLen: -1}, PeerName: opts.HostName + "p",
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		err = r.node.Do(func() error {
			host, err := netlink.LinkByIndex(opts.HostIndex)
			if err == nil {
				opts.PodIndex = host.Attrs().ParentIndex
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, opts)
		r.mustAttach(opts)
	}
	r.opts = all[0]
	for i, opts := range all {
		if err := r.check(opts); err != nil {
			t.Errorf("check of attachment %d: %v", i, err)
		}
	}
	r.mustDetach(all[0])
	for _, opts := range all[1:] {
		if err := r.check(opts); err != nil {
			t.Errorf("check after the first went: %v", err)
		}
		r.mustDetach(opts)
	}
	r.expectUnchanged(before)
}

// TestSameInterfaceTwice: one host end is one attachment's.
func TestSameInterfaceTwice(t *testing.T) {
	r := newRig(t, datapath.ModeTCX, vethDefault)
	r.mustAttach(r.opts)
	before := r.world()
	second := r.opts
	second.ContainerID = "second"
	if err := r.attach(second); !errors.Is(err, datapath.ErrForeignProgram) {
		t.Errorf("second attachment of one interface: %v", err)
	}
	r.expectUnchanged(before)
	r.mustDetach(r.opts)
}

// TestIndexUsedAgain: the index of an interface that went without a DEL is given to another one.
// What the first left, published or in staging, must not take what the second has.
func TestIndexUsedAgain(t *testing.T) {
	for _, killed := range []bool{false, true} {
		for _, v := range variants {
			t.Run(fmt.Sprintf("%s, killed %v", v.name, killed), func(t *testing.T) {
				r := newVariantRig(t, v, vethDefault)
				before := r.node.Tree()
				if killed {
					r.attachKilled(r.opts, "publishing")
				} else {
					r.mustAttach(r.opts)
				}
				r.deleteVeth(r.veth.HostName)
				second := r.opts
				second.ContainerID, second.HostName = "second", "again0"
				err := r.node.Do(func() error {
					err := netlink.LinkAdd(&netlink.Veth{
						LinkAttrs: netlink.LinkAttrs{Name: second.HostName, Index: second.HostIndex, TxQLen: -1}, PeerName: "again1",
					})
					if err != nil {
						return err
					}
					host, err := netlink.LinkByName(second.HostName)
					if err == nil {
						second.PodIndex = host.Attrs().ParentIndex
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				r.mustAttach(second)
				r.mustDetach(r.opts)
				if err := r.check(second); err != nil {
					t.Errorf("after DEL of the first: %v", err)
				}
				r.collect(datapath.CollectOptions{})
				if err := r.check(second); err != nil {
					t.Errorf("after GC: %v", err)
				}
				r.mustDetach(second)
				if after := r.node.Tree(); !slices.Equal(before, after) {
					t.Errorf("left: %v", after)
				}
			})
		}
	}
}

// TestDamagedNode: a pin of the node is gone. ADD and STATUS say so, DEL works, and once no pod is
// there the node is made anew.
func TestDamagedNode(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	_, _, other := r.newPod("other", datapath.ModeGeneric, vethDefault)
	for _, pin := range []string{"idle_table", "slots", "node_info"} {
		r.mustAttach(r.opts)
		if err := os.Remove(filepath.Join(pins.NewRoot(r.node.BPFFS).Node(), pin)); err != nil {
			t.Fatal(err)
		}
		before := r.world()
		if err := r.attach(other); !errors.Is(err, datapath.ErrDamaged) || !strings.Contains(err.Error(), pin) {
			t.Errorf("attach without %s: %v", pin, err)
		}
		r.expectUnchanged(before)
		err := r.do(func(d *datapath.Datapath) error { return d.Ready(datapath.ReadyOptions{Mode: datapath.ModeGeneric}) })
		if !errors.Is(err, datapath.ErrDamaged) {
			t.Errorf("ready without %s: %v", pin, err)
		}
		r.mustDetach(r.opts)
		if left := r.node.Tree(); len(left) > 0 {
			t.Errorf("left without %s: %v", pin, left)
		}
	}
}

// TestMountLockHasALimit: the lock of a mount point is not waited for without end.
func TestMountLockHasALimit(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	root := filepath.Join(r.node.Dir, "elsewhere")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := pins.LockDir(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	err = r.attach(r.opts, func(o *datapath.Options) {
		o.Root, o.LockTimeout = pins.NewRoot(root), 50*time.Millisecond
	})
	if !errors.Is(err, pins.ErrBusy) {
		t.Errorf("attach while somebody else mounts: %v", err)
	}
}

// TestManyAddresses: more addresses than can be noted are no reason to refuse a pod.
func TestManyAddresses(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	for i := range 2 * datapath.MaxAddresses {
		r.opts.Addresses = append(r.opts.Addresses, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), 24))
	}
	r.mustAttach(r.opts)
	r.mustDetach(r.opts)
}

func TestFull(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	_, _, other := r.newPod("other", datapath.ModeGeneric, vethDefault)
	r.mustAttach(r.opts)
	ready := func() error {
		return r.do(func(d *datapath.Datapath) error { return d.Ready(datapath.ReadyOptions{Mode: datapath.ModeGeneric}) })
	}
	if err := ready(); err != nil {
		t.Errorf("ready: %v", err)
	}
	slots, err := ebpf.LoadPinnedMap(filepath.Join(pins.NewRoot(r.node.BPFFS).Node(), "slots"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer slots.Close()
	for i := range slots.MaxEntries() {
		var have bpf.DatapathSlot
		if err := slots.Lookup(i, &have); err != nil {
			t.Fatal(err)
		}
		if have.Ifindex == 0 {
			if err := slots.Put(i, bpf.DatapathSlot{Ifindex: 1<<20 + i}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := ready(); !errors.Is(err, datapath.ErrFull) {
		t.Errorf("ready on a full node: %v", err)
	}
	before := r.world()
	if err := r.attach(other); !errors.Is(err, datapath.ErrFull) {
		t.Errorf("attach on a full node: %v", err)
	}
	r.expectUnchanged(before)
	// nobody owns those slots: GC frees them
	err = r.do(func(d *datapath.Datapath) error {
		_, err := d.Collect(context.Background(), datapath.CollectOptions{})
		return err
	})
	if err != nil {
		t.Error(err)
	}
	r.mustAttach(other)
	for _, opts := range []datapath.AttachOptions{other, r.opts} {
		if err := r.check(opts); err != nil {
			t.Error(err)
		}
		r.mustDetach(opts)
	}
}

// TestLockHasALimit holds the node's lock, and then the attachment's, longer than others wait.
func TestLockHasALimit(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	r.mustAttach(r.opts)
	_, _, other := r.newPod("other", datapath.ModeGeneric, vethDefault)
	short := func(o *datapath.Options) { o.LockTimeout = 50 * time.Millisecond }
	node, err := pins.NewRoot(r.node.BPFFS).Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before := r.world()
	if err := r.attach(other, short); !errors.Is(err, pins.ErrBusy) {
		t.Errorf("attach under another's lock: %v", err)
	}
	node.Unlock()
	r.expectUnchanged(before)
	pod, err := pins.LockDir(t.Context(), r.podDir())
	if err != nil {
		t.Fatal(err)
	}
	err = r.do(func(d *datapath.Datapath) error {
		return d.Detach(context.Background(), r.opts.ContainerID, r.opts.IfName)
	}, short)
	if !errors.Is(err, pins.ErrBusy) {
		t.Errorf("detach under another's lock: %v", err)
	}
	pod.Unlock()
	r.mustDetach(r.opts)
}

// TestOtherNetns: interface indexes of another namespace are not ours.
func TestOtherNetns(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	r.mustAttach(r.opts)
	stranger := tests.MustNode(t)
	in := func(fn func(*datapath.Datapath) error) error {
		return stranger.Do(func() error {
			return fn(datapath.New(datapath.Options{Root: pins.NewRoot(r.node.BPFFS)}))
		})
	}
	pod := tests.MustPod(t, stranger, "pod")
	veth, err := tests.MakeVeth(t.Context(), stranger, pod, vethDefault)
	if err != nil {
		t.Fatal(err)
	}
	opts := r.opts
	opts.ContainerID, opts.HostName, opts.HostIndex = "stranger", veth.HostName, veth.HostIndex
	before := r.world()
	ready := func(d *datapath.Datapath) error { return d.Ready(datapath.ReadyOptions{Mode: datapath.ModeTCX}) }
	attach := func(d *datapath.Datapath) error { return d.Attach(context.Background(), opts) }
	if err := in(attach); !errors.Is(err, datapath.ErrOtherNetns) {
		t.Errorf("attach from another namespace: %v", err)
	}
	if err := in(ready); !errors.Is(err, datapath.ErrOtherNetns) {
		t.Errorf("ready in another namespace: %v", err)
	}
	r.expectUnchanged(before)
	// once its interfaces are gone, the pins are nobody's
	if err := r.pod.Close(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(settle)
	for err = in(ready); err != nil && time.Now().Before(deadline); err = in(ready) {
		time.Sleep(20 * time.Millisecond) // a namespace is taken down by a worker
	}
	if err != nil {
		t.Errorf("ready after the other namespace's pods are gone: %v", err)
	}
	if err := in(attach); err != nil {
		t.Errorf("attach after the other namespace's pods are gone: %v", err)
	}
	if err := in(func(d *datapath.Datapath) error { return d.Detach(context.Background(), "stranger", opts.IfName) }); err != nil {
		t.Error(err)
	}
}
