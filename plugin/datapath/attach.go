package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/undo"
)

// MaxAddresses is how many of a pod's addresses are noted.
const MaxAddresses = len(bpf.DatapathPodMeta{}.Addresses)

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
	// Policy is in force before the first hook; nil for no filter.
	Policy *Policy
	// PodMTU of the pod end, bytes.
	PodMTU int
	// Redirect: packets go directly where they can; nil for none.
	Redirect *Redirect
	// BigTCP: needs ModeTCX.
	BigTCP BigTCP
	// User programs, in order: XDP programs, in ModeTCX tc programs.
	Programs []Program
}

// Attach makes an attachment: its maps, entered in the node's, and then its hooks. It is done
// whole or, on any error, not at all. What an earlier Attach of the same container and interface
// left, whole or broken, is removed first.
//
// Errors: ErrForeignProgram, ErrUnsupported, ErrFull, ErrOtherNetns, ErrLayout, ErrPrivileges,
// ErrDamaged, pins.ErrBusy, pins.ErrNoBPFFS, *ebpf.VerifierError.
//
// What was attached before for the same container and interface is not brought back.
func (d *Datapath) Attach(ctx context.Context, opts AttachOptions) (err error) {
	ctx, cancel := d.limited(ctx)
	defer cancel()
	d.Prepare()
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
		{"loading programs", a.loadPrograms},
		{"entering maps", a.enterMaps},
		{"preparing the interface", a.prepareInterface},
		{"attaching egress", a.attachEgress},
		{"attaching programs", a.attachPrograms},
		{"attaching ingress", a.attachIngress},
		{"preparing the pod's end", a.preparePodEnd},
		{"entering the endpoint", a.enterEndpoint},
		{"publishing", a.publish},
	} {
		if err = d.before(step.name); err == nil {
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
	tcx    bool   // the kernel has it
	meta   *Meta
	policy *encodedPolicy
	host   netlink.Link // as it was at the beginning
	spec   *ebpf.CollectionSpec
	undo   undo.Stack

	lock     *pins.Lock // on dir
	node     *node
	slot     uint32
	metaMap  *ebpf.Map
	maps     *podMaps
	entering *change
	egress   *ebpf.Program
	ingress  *ebpf.Program

	userPrograms []podProgram
	composition  composition // of egress
	counters     *ebpf.Map   // of all pods' programs
}

func (d *Datapath) newAttaching(opts AttachOptions) (*attaching, error) {
	id := pins.ID(opts.ContainerID, opts.IfName)
	a := &attaching{Datapath: d, AttachOptions: opts, id: id, dir: d.Root.Staged(id)}
	a.meta = &Meta{
		ContainerID: opts.ContainerID, IfName: opts.IfName, Netns: opts.Netns, Network: opts.Network,
		PodNamespace: opts.PodNamespace, PodName: opts.PodName, PodUID: opts.PodUID,
		HostName: opts.HostName, HostIndex: opts.HostIndex, PodIndex: opts.PodIndex, PodMAC: opts.PodMAC,
		Addresses: opts.Addresses, Mode: opts.Mode, Created: time.Now(), PluginVersion: d.Version,
		owner: rand.Uint64N(math.MaxUint64) + 1,
	}
	if most := MaxAddresses; len(opts.Addresses) > most {
		d.Log.Warn("noting some of the pod's addresses", "addresses", len(opts.Addresses), "noted", most)
		a.meta.Addresses = opts.Addresses[:most]
	}
	// what cannot be noted is refused before anything is touched
	if opts.Redirect != nil {
		a.meta.flags |= bpf.DatapathPodFlagPOD_REDIRECT
		a.meta.networkID = networkID(opts.Network, opts.Redirect)
	}
	if _, err := a.meta.encode(); err != nil {
		return nil, err
	}
	if err := liftMemlock(); err != nil {
		return nil, err
	}
	var err error
	if opts.Policy != nil {
		if a.policy, err = encodePolicy(*opts.Policy, opts.PodMAC); err != nil {
			return nil, err
		}
		a.policy.value.Generation = 1
	}
	if a.tcx, err = d.hasTCX(); err != nil {
		return nil, err
	}
	if a.host, err = netlink.LinkByIndex(opts.HostIndex); err != nil {
		return nil, fmt.Errorf("looking up the interface: %w", err)
	}
	if a.Mode, err = effectiveMode(opts.Mode, a.tcx, a.host); err != nil {
		return nil, err
	}
	if a.Mode != opts.Mode {
		d.Log.Warn("an ingress qdisc would show generic XDP each packet twice: hooking egress at tc instead",
			"hostInterface", opts.HostName, "mode", a.Mode.String())
		a.meta.Mode = a.Mode
		a.meta.flags |= bpf.DatapathPodFlagPOD_FOR_GENERIC
	}
	if a.userPrograms, err = d.pickPrograms(opts.Programs, a.Mode); err != nil {
		if a.Mode != opts.Mode {
			err = fmt.Errorf("mode %s is %s here, since %s has an ingress qdisc, as bandwidth before us adds (use mode native): %w",
				opts.Mode, a.Mode, opts.HostName, err)
		}
		return nil, err
	}
	if len(a.userPrograms) > 0 {
		a.meta.flags |= bpf.DatapathPodFlagPOD_PROGRAMS
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
	_ = a.counters.Close()
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
func (a *attaching) enterNode(ctx context.Context) (err error) {
	if a.spec, err = a.Datapath.spec(); err != nil {
		return err
	}
	if a.metaMap, err = ebpf.NewMap(a.spec.Maps[bpf.DatapathMapMeta]); err != nil {
		return fmt.Errorf("making map %s: %w", pinMeta, err)
	}
	return a.locked(ctx, func() (err error) {
		a.undo.Push("pruning the node", func() error { return a.prune(ctx) })
		if len(a.userPrograms) > 0 {
			a.undo.Push("removing shared programs", func() error {
				ctx, cancel := a.limited(context.Background()) // that of the ADD may be why it is undone
				defer cancel()
				return a.locked(ctx, func() error { return a.withNode(a.pruneShared) })
			})
		}
		if err := a.Root.Prepare(); err != nil {
			return err
		}
		if a.node, err = a.ensureNode(a.spec); err != nil {
			return err
		}
		shared, err := a.node.meta()
		if err != nil {
			return err
		}
		var compositions []composition
		for _, h := range hooks(a.Mode) {
			compositions = append(compositions, h.composition(shared, a.meta))
		}
		if a.Redirect != nil {
			if err := a.node.ensureRedirect(a.spec, a.Redirect); err != nil {
				return err
			}
		}
		a.composition = compositions[0]
		judge, calls := a.composition.judge()
		if calls {
			if err := a.node.ensurePrograms(a.spec); err != nil {
				return err
			}
			compositions = append(compositions, judge)
		}
		programs, err := a.programs(a.node, a.spec, compositions)
		if err != nil {
			return err
		}
		a.egress, a.ingress = programs[0], programs[1]
		if calls {
			defer programs[2].Close()
			if err := a.node.enterJudge(judge, programs[2]); err != nil {
				return err
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
	if a.policy != nil {
		// from now on: as long as anything of it is missing, the programs drop
		flags |= bpf.DatapathSlotFlagSLOT_FILTER
	}
	if a.slot, err = a.node.takeSlot(a.meta, flags); err != nil {
		return err
	}
	a.undo.Push("leaving the node's maps", func() error { return a.leave(a.node, a.meta) })
	return nil
}

// evictStale makes sure that nobody alive has the slot of an interface index. If it is another
// attachment of a living interface, that is ErrForeignProgram; what a killed process left is
// removed, and the slot of an interface that is gone may be taken over. The caller holds the
// node's lock.
func (d *Datapath) evictStale(n *node, ifindex int) error {
	_, entry, taken, err := n.slotOf(ifindex)
	if err != nil || !taken {
		return err
	}
	dirs, err := d.allDirs()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		m, err := readMeta(dir)
		if err != nil || m.owner != entry.Owner {
			continue // the slot is not its
		}
		alive, err := alive(dir, true, 0)
		if err != nil || !alive {
			return err
		}
		lock, err := tryLockDir(dir)
		if err != nil {
			return fmt.Errorf("container %s, interface %s has this host end: %w", m.ContainerID, m.IfName, err)
		}
		defer lock.Unlock()
		if dir == d.Root.Pod(pins.ID(m.ContainerID, m.IfName)) {
			return fmt.Errorf("%w: ours, for container %s, interface %s", ErrForeignProgram, m.ContainerID, m.IfName)
		}
		return d.removeUnlocked(dir)
	}
	return nil
}

func (a *attaching) makeMaps(context.Context) (err error) {
	// pinned maps go with the directory
	if a.maps, err = makePodMaps(a.spec, a.dir, a.Peers, a.policy); err != nil {
		return err
	}
	if a.callsPrograms() {
		a.maps.programs, err = makePinned(a.spec.Maps[bpf.DatapathMapProgramCountersMap], a.dir, pinProgramCounters)
	}
	return err
}

// enterMaps is undone with the slot. It returns when programs would see the maps; that none uses any
// more what was in the slot before is waited for while the hooks are attached.
func (a *attaching) enterMaps(context.Context) error {
	if a.policy != nil {
		if err := a.node.policies.Put(policyIndex(a.slot, 0), a.policy.value); err != nil {
			return fmt.Errorf("entering the policy of slot %d: %w", a.slot, err)
		}
	}
	entries := a.node.entries(a.slot, a.maps)
	if a.maps.programs != nil {
		counters, err := a.node.open(bpf.DatapathMapPodProgramCounters)
		if err != nil {
			return err
		}
		a.counters = counters
		entries = append(entries, entry{counters, a.slot, a.maps.programs})
	}
	a.entering = begin(entries)
	a.undo.Push("waiting for the node's maps", func() error {
		_ = a.entering.done() // said already
		return nil
	})
	return a.entering.visible()
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
	if !h.isXDP() && !a.tcx {
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
	if err := h.attachFilter(prog, a.host); err != nil {
		return fmt.Errorf("adding a filter for %s: %w", h, err)
	}
	return nil
}

// enterEndpoint comes last: from then on packets go directly. A pod whose packets the stack would treat in ways
// that a direct way leaves out is not entered.
func (a *attaching) enterEndpoint(ctx context.Context) error {
	if a.Redirect == nil {
		return nil
	}
	self, err := a.meta.describe(a.slot, a.PodMTU)
	if err != nil {
		return err
	}
	unfit, err := a.unfit(a.dir, a.meta)
	if err != nil {
		return err
	}
	if len(unfit) > 0 {
		a.Log.Warn("the pod's packets go by the stack", "hostInterface", a.HostName, "because", unfit)
		a.meta.flags |= bpf.DatapathPodFlagPOD_UNFIT
		if err := a.note(); err != nil {
			return err
		}
	}
	return a.locked(ctx, func() error {
		a.undo.Push("leaving the endpoints", func() error { return a.leaveEndpoint(a.node, a.meta) })
		return a.node.enterEndpoint(a.meta, self, len(unfit) == 0)
	})
}

// publish holds the node's lock, so that who looks through all attachments under it finds each.
func (a *attaching) publish(ctx context.Context) error {
	if err := a.entering.done(); err != nil {
		return err
	}
	return a.locked(ctx, func() error {
		if err := os.Rename(a.dir, a.Root.Pod(a.id)); err != nil {
			return fmt.Errorf("moving %s to %s: %w", a.dir, a.Root.Pod(a.id), err)
		}
		return nil
	})
}
