package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/plugin/pins"
	"github.com/xdp-cni/xdp-cni/plugin/undo"
)

// AttachOptions describe an attachment to be made.
type AttachOptions struct {
	ContainerID, IfName           string
	Netns, Network                string
	PodNamespace, PodName, PodUID string // "" outside Kubernetes
	HostName                      string
	HostIndex, PodIndex           int
	PodMAC                        net.HardwareAddr
	PodTxQueues                   int
	Addresses                     []netip.Prefix
	Mode                          Mode
	Peers                         uint32 // peers counted apart, 0 for none
}

// Attach makes an attachment: its maps, entered in the node's, and then its hooks. It is done
// whole or, on any error, not at all. What an earlier Attach of the same container and interface
// left, whole or broken, is removed first.
//
// Errors: ErrForeignProgram, ErrUnsupported, ErrFull, ErrOtherNetns, ErrLayout, ErrPrivileges,
// pins.ErrBusy, pins.ErrNoBPFFS, *ebpf.VerifierError.
func (d *Datapath) Attach(ctx context.Context, opts AttachOptions) (err error) {
	a, err := d.newAttaching(opts)
	if err != nil {
		return fmt.Errorf("attaching to %s: %w", opts.HostName, err)
	}
	defer a.close()
	defer a.undo.OnFailure(&err)
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"mounting bpffs", d.Root.Mount},
		{"removing leftovers", a.removeLeftovers},
		{"entering the node", a.enterNode},
		{"making maps", a.makeMaps},
		{"entering maps", a.enterMaps},
		{"preparing the interface", a.prepareInterface},
		{"attaching egress", a.attachEgress},
		{"attaching ingress", a.attachIngress},
		{"publishing", a.publish},
	} {
		if d.BeforeStep != nil {
			err = d.BeforeStep(step.name)
		}
		if err == nil {
			err = step.run(ctx)
		}
		if err != nil {
			return fmt.Errorf("attaching to %s: %s: %w", opts.HostName, step.name, err)
		}
	}
	return nil
}

// attaching is an Attach under way.
type attaching struct {
	*Datapath
	AttachOptions
	id     string
	dir    string // in staging
	kernel Features
	meta   *Meta
	host   netlink.Link // as it was at the beginning
	undo   undo.Stack

	lock    *pins.Lock // on dir
	node    *node
	slot    uint32
	metaMap *ebpf.Map
	maps    *podMaps
	egress  *ebpf.Program
	ingress *ebpf.Program
}

func (d *Datapath) newAttaching(opts AttachOptions) (*attaching, error) {
	id := pins.ID(opts.ContainerID, opts.IfName)
	a := &attaching{Datapath: d, AttachOptions: opts, id: id, dir: d.Root.Staged(id)}
	a.meta = &Meta{
		ContainerID: opts.ContainerID, IfName: opts.IfName, Netns: opts.Netns, Network: opts.Network,
		PodNamespace: opts.PodNamespace, PodName: opts.PodName, PodUID: opts.PodUID,
		HostName: opts.HostName, HostIndex: opts.HostIndex, PodIndex: opts.PodIndex, PodMAC: opts.PodMAC,
		Addresses: opts.Addresses, Mode: opts.Mode, Created: time.Now(), PluginVersion: d.Version,
	}
	// what cannot be noted is refused before anything is touched
	if _, err := a.meta.encode(); err != nil {
		return nil, err
	}
	var err error
	if a.kernel, err = d.features(); err != nil {
		return nil, err
	}
	if a.host, err = netlink.LinkByIndex(opts.HostIndex); err != nil {
		return nil, fmt.Errorf("looking up the interface: %w", err)
	}
	if a.Mode, err = effectiveMode(opts.Mode, a.kernel, a.host); err != nil {
		return nil, err
	}
	if a.Mode != opts.Mode {
		d.Log.Warn("an ingress qdisc would show generic XDP each packet twice: hooking egress at tc instead",
			"hostInterface", opts.HostName, "mode", a.Mode.String())
		a.meta.Mode = a.Mode
		a.meta.flags |= bpf.DatapathPodFlagPOD_FOR_GENERIC
	}
	return a, nil
}

func (a *attaching) close() {
	a.lock.Unlock()
	if a.node != nil {
		a.node.close()
	}
	_ = a.metaMap.Close()
	if a.maps != nil {
		a.maps.close()
	}
	_ = a.egress.Close()
	_ = a.ingress.Close()
}

func (a *attaching) removeLeftovers(ctx context.Context) error {
	if err := a.remove(ctx, a.id); err != nil {
		return err
	}
	if a.Mode == ModeTCX {
		return nil // another's XDP program is not in the way
	}
	host, err := netlink.LinkByIndex(a.HostIndex) // again: ours may have been there
	if err != nil {
		return fmt.Errorf("looking up the interface: %w", err)
	}
	return foreignXDP(host)
}

// enterNode does all that needs the node's lock: it opens or makes what is shared, and reserves
// the attachment's place in staging and among the slots.
func (a *attaching) enterNode(ctx context.Context) error {
	return a.locked(ctx, func() (err error) {
		a.undo.Push("pruning the node", func() error { return a.prune(context.WithoutCancel(ctx)) })
		if err := a.Root.Prepare(); err != nil {
			return err
		}
		if a.node, err = a.ensureNode(); err != nil {
			return err
		}
		shared, err := a.node.meta()
		if err != nil {
			return err
		}
		for _, h := range hooks(a.Mode) {
			prog, err := a.node.program(h.composition(shared.XdpFrags != 0))
			if err != nil {
				return err
			}
			if h.isEgress() {
				a.egress = prog
			} else {
				a.ingress = prog
			}
		}
		if a.meta.egressProgram, err = programID(a.egress); err != nil {
			return err
		}
		if a.meta.ingressProgram, err = programID(a.ingress); err != nil {
			return err
		}
		if err := a.stage(); err != nil {
			return err
		}
		return a.takeSlot()
	})
}

func programID(prog *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := prog.Info()
	if err != nil {
		return 0, fmt.Errorf("reading a program's ID: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

// stage makes the attachment's directory with its meta map in it: from then on DEL and GC know
// what to take down, whatever happens to this process.
func (a *attaching) stage() error {
	if err := os.Mkdir(a.dir, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w: another ADD of this attachment", pins.ErrBusy)
		}
		return fmt.Errorf("making %s: %w", a.dir, err)
	}
	a.undo.Push("removing "+a.dir, func() error { return pins.RemoveAll(a.dir, pinMeta) })
	var err error
	if a.lock, err = tryLockDir(a.dir); err != nil {
		return err
	}
	spec, err := bpf.LoadDatapath()
	if err != nil {
		return err
	}
	if a.metaMap, err = ebpf.NewMap(spec.Maps[bpf.DatapathMapMeta]); err != nil {
		return fmt.Errorf("making map %s: %w", pinMeta, err)
	}
	if err := a.note(); err != nil {
		return err
	}
	if err := a.metaMap.Pin(filepath.Join(a.dir, pinMeta)); err != nil {
		return fmt.Errorf("pinning map %s in %s: %w", pinMeta, a.dir, err)
	}
	return nil
}

// note writes what is known into the meta map.
func (a *attaching) note() error {
	if err := writeMeta(a.metaMap, a.meta); err != nil {
		return fmt.Errorf("writing map %s: %w", pinMeta, err)
	}
	return nil
}

func (a *attaching) takeSlot() error {
	if err := a.evictStale(a.node, a.HostIndex); err != nil {
		return err
	}
	var (
		flags bpf.DatapathSlotFlag
		err   error
	)
	if a.Peers > 0 {
		flags |= bpf.DatapathSlotFlagSLOT_PEERS
	}
	if a.slot, err = a.node.takeSlot(a.HostIndex, flags); err != nil {
		return err
	}
	a.undo.Push("freeing the slot", func() error { return a.node.freeSlot(a.HostIndex) })
	return nil
}

// evictStale frees the slot of an interface index that an attachment without DEL left taken. If
// that attachment is alive, it is another one for the same interface: ErrForeignProgram.
func (d *Datapath) evictStale(n *node, ifindex int) error {
	_, taken, err := n.slotOf(ifindex)
	if err != nil || !taken {
		return err
	}
	attachments, err := d.List()
	if err != nil {
		d.Log.Warn("looking for the attachment that has this slot", "error", err)
	}
	for _, other := range attachments {
		if other.Meta.HostIndex != ifindex {
			continue
		}
		alive, err := hooksAlive(other.dir, true)
		if err != nil {
			return err
		}
		if alive {
			return fmt.Errorf("%w: ours, for container %s, interface %s", ErrForeignProgram, other.Meta.ContainerID, other.Meta.IfName)
		}
		if err := d.removeDir(other.dir); err != nil {
			return err
		}
	}
	return n.freeSlot(ifindex)
}

func (a *attaching) makeMaps(context.Context) (err error) {
	spec, err := bpf.LoadDatapath()
	if err != nil {
		return err
	}
	// pinned maps go with the directory
	a.maps, err = makePodMaps(spec, a.dir, a.Peers)
	return err
}

func (a *attaching) enterMaps(context.Context) error {
	a.undo.Push("taking the maps out", func() error { return a.node.leaveTables(a.slot) })
	return a.node.enterTables(a.slot, a.maps)
}

func (a *attaching) prepareInterface(context.Context) error {
	if a.Mode != ModeNative {
		return nil
	}
	a.undo.Push("restoring the interface", func() error { return restoreVeth(a.meta) })
	return nativeVeth(a.meta, a.PodTxQueues, a.note)
}

func (a *attaching) attachEgress(context.Context) error {
	return a.attachHook(hooks(a.Mode)[0], a.egress)
}

func (a *attaching) attachIngress(context.Context) error {
	return a.attachHook(hooks(a.Mode)[1], a.ingress)
}

func (a *attaching) attachHook(h hook, prog *ebpf.Program) error {
	if !h.isXDP() && !a.kernel.TCX {
		return a.attachClsact(h, prog)
	}
	l, err := h.attachLink(prog, a.HostIndex)
	if err != nil {
		return fmt.Errorf("%s: %w", h, err)
	}
	defer l.Close()
	pin := filepath.Join(a.dir, h.pin)
	a.undo.Push("detaching "+h.String(), func() error { return h.detach(a.dir, a.meta) })
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("pinning the link of %s: %w", h, err)
	}
	return nil
}

func (a *attaching) attachClsact(h hook, prog *ebpf.Program) error {
	kind, err := ingressQdisc(a.host)
	if err != nil {
		return fmt.Errorf("reading the qdiscs of %s: %w", a.HostName, err)
	}
	// noted before it is done: if we are killed in between, DEL finds nothing, which is no error
	if kind == "" {
		a.meta.flags |= bpf.DatapathPodFlagPOD_MADE_CLSACT
	}
	a.meta.flags |= h.clsact
	if err := a.note(); err != nil {
		return err
	}
	if kind == "" {
		a.undo.Push("removing the clsact qdisc", func() error { return removeClsact(a.meta) })
	}
	made, err := ensureClsact(a.host)
	if err != nil {
		return err
	}
	if kind == "" && !made {
		a.meta.flags &^= bpf.DatapathPodFlagPOD_MADE_CLSACT
		if err := a.note(); err != nil {
			return err
		}
	}
	a.undo.Push("removing the filter of "+h.String(), func() error { return h.detach(a.dir, a.meta) })
	if err := h.attachFilter(prog, a.HostIndex); err != nil {
		return fmt.Errorf("adding a filter for %s: %w", h, err)
	}
	return nil
}

func (a *attaching) publish(context.Context) error {
	if err := os.Rename(a.dir, a.Root.Pod(a.id)); err != nil {
		return fmt.Errorf("moving %s to %s: %w", a.dir, a.Root.Pod(a.id), err)
	}
	return nil
}
