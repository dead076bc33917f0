package datapath_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
)

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
