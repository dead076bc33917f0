package datapath_test

import (
	"context"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// Releases for tests, by what their programs and maps have that this one's have not.
const (
	releaseNext    = "next"    // an instruction more in each program
	releaseSame    = "same"    // nothing
	releaseScratch = "scratch" // longer views
	releaseLarger  = "larger"  // values of flows are longer
	releaseMoved   = "moved"   // two fields of a flow have changed places
	releaseKeys    = "keys"    // padding of a flow's key is a field
	releasePadding = "padding" // padding of a flow is a field
	releaseSlots   = "slots"   // there are more slots
	releaseSlot    = "slot"    // they are larger
	releaseBare    = "bare"    // programs without a map
)

var releases = map[string]func(*ebpf.CollectionSpec){
	releaseNext: oneMoreInstruction,
	releaseSame: func(*ebpf.CollectionSpec) {},
	releaseScratch: func(spec *ebpf.CollectionSpec) {
		oneMoreInstruction(spec)
		m := spec.Maps[bpf.DatapathMapViews]
		m.ValueSize += 8
		m.Key, m.Value = nil, nil
	},
	releaseLarger: func(spec *ebpf.CollectionSpec) {
		oneMoreInstruction(spec)
		m := spec.Maps[bpf.DatapathMapFlows]
		m.ValueSize += 8
		m.Key, m.Value = nil, nil
		spec.Maps[bpf.DatapathMapPodFlows].InnerMap = m
	},
	releaseMoved: func(spec *ebpf.CollectionSpec) {
		oneMoreInstruction(spec)
		changeStruct(&spec.Maps[bpf.DatapathMapFlows].Value, func(members []btf.Member) {
			i := slices.IndexFunc(members, func(m btf.Member) bool { return m.Name == "generation" })
			j := slices.IndexFunc(members, func(m btf.Member) bool { return m.Name == "rule" })
			members[i].Offset, members[j].Offset = members[j].Offset, members[i].Offset
		})
	},
	releaseKeys: func(spec *ebpf.CollectionSpec) {
		oneMoreInstruction(spec)
		changeStruct(&spec.Maps[bpf.DatapathMapFlows].Key, usePadding)
	},
	releasePadding: func(spec *ebpf.CollectionSpec) {
		oneMoreInstruction(spec)
		changeStruct(&spec.Maps[bpf.DatapathMapFlows].Value, usePadding)
	},
	releaseSlots: func(spec *ebpf.CollectionSpec) {
		oneMoreInstruction(spec)
		spec.Maps[bpf.DatapathMapSlots].MaxEntries *= 2
	},
	releaseSlot: func(spec *ebpf.CollectionSpec) {
		oneMoreInstruction(spec)
		spec.Maps[bpf.DatapathMapSlots].ValueSize += 8
		spec.Maps[bpf.DatapathMapSlots].Value = nil
	},
	releaseBare: func(spec *ebpf.CollectionSpec) {
		for _, prog := range spec.Programs {
			verdict := int32(2) // XDP_PASS
			if prog.Type == ebpf.SchedCLS {
				verdict = -1 // TC_ACT_UNSPEC
			}
			first := prog.Instructions[0]
			prog.Instructions = asm.Instructions{
				asm.Mov.Imm(asm.R0, verdict).WithMetadata(first.Metadata),
				asm.LoadMapValue(asm.R1, 0, 0).WithReference(".rodata"), // for what is noted
				asm.Return(),
			}
		}
	},
}

// oneMoreInstruction puts one in front of each program.
func oneMoreInstruction(spec *ebpf.CollectionSpec) {
	for _, prog := range spec.Programs {
		// what is known of the function stands at its first instruction
		more := asm.Mov.Imm(asm.R0, 1).WithMetadata(prog.Instructions[0].Metadata)
		prog.Instructions[0] = prog.Instructions[0].WithMetadata(asm.Metadata{})
		prog.Instructions = append(asm.Instructions{more}, prog.Instructions...)
	}
}

func changeStruct(t *btf.Type, change func([]btf.Member)) {
	s := btf.Copy(*t).(*btf.Struct)
	change(s.Members)
	*t = s
}

func usePadding(members []btf.Member) {
	i := slices.IndexFunc(members, func(m btf.Member) bool { return strings.HasPrefix(m.Name, "pad") })
	members[i].Name = "used"
}

// newDatapath returns that of a release, which its version names.
func newDatapath(opts datapath.Options) *datapath.Datapath {
	d := datapath.New(opts)
	if change := releases[opts.Version]; change != nil {
		d.ChangeSpec(change)
	}
	return d
}

// as runs fn with the plugin of another release.
func (r *rig) as(release string, fn func()) {
	before := r.release
	r.release = release
	defer func() { r.release = before }()
	fn()
}

func (r *rig) upgrade(change ...func(*datapath.Options)) (u *datapath.Upgrade, err error) {
	r.t.Helper()
	err = r.do(func(d *datapath.Datapath) (err error) {
		u, err = d.Upgrade(context.Background(), datapath.UpgradeOptions{})
		return err
	}, change...)
	return u, err
}

func (r *rig) wouldUpgrade() (u *datapath.Upgrade, err error) {
	r.t.Helper()
	err = r.do(func(d *datapath.Datapath) (err error) {
		u, err = d.Upgrade(context.Background(), datapath.UpgradeOptions{DryRun: true})
		return err
	})
	return u, err
}

// mustUpgrade upgrades to a release, and expects that to be in force after it, and before the dry run to have said so.
func (r *rig) mustUpgrade(release string) *datapath.Upgrade {
	r.t.Helper()
	var u *datapath.Upgrade
	r.as(release, func() {
		would, err := r.wouldUpgrade()
		if err != nil || !would.Needed() {
			r.t.Fatalf("dry run of an upgrade to %s: %+v, %v", release, would, err)
		}
		if u, err = r.upgrade(); err != nil {
			r.t.Fatalf("upgrade to %s: %v", release, err)
		}
		for i, a := range u.Attachments {
			if a.Result != would.Attachments[i].Result {
				r.t.Errorf("upgrade to %s: %s was to be %s and is %s", release, a.ID, would.Attachments[i].Result, a.Result)
			}
		}
		r.expectRuns(release)
	})
	return u
}

// expectRuns expects that there is nothing to do any more for the rig's release.
func (r *rig) expectRuns(release string) {
	r.t.Helper()
	r.as(release, func() {
		u, err := r.wouldUpgrade()
		if err != nil || u.Needed() || u.From != release {
			r.t.Errorf("after an upgrade to %s: %+v, %v", release, u, err)
		}
	})
}

// expectJudge expects that user programs' pods call the policy that is pinned.
func (r *rig) expectJudge() {
	r.t.Helper()
	node := pins.NewRoot(r.node.BPFFS).Node()
	found, err := filepath.Glob(filepath.Join(node, bpf.DatapathProgXdpJudge+"*"))
	if err != nil || len(found) != 1 {
		r.t.Fatalf("policies that are pinned: %v, %v", found, err)
	}
	prog, err := ebpf.LoadPinnedProgram(found[0], nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer prog.Close()
	pin, index := bpf.DatapathMapPodPrograms, bpf.DatapathProgramEntryPROGRAM_JUDGE
	if strings.Contains(found[0], "_frags") {
		pin += "_frags"
	}
	if strings.Contains(found[0], "_redirect") {
		index = bpf.DatapathProgramEntryPROGRAM_JUDGE_REDIRECT
	}
	all, err := ebpf.LoadPinnedMap(filepath.Join(node, pin), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer all.Close()
	var called ebpf.ProgramID
	if err := all.Lookup(uint32(index), &called); err != nil || called != programID(r.t, prog) {
		r.t.Errorf("program %d is called, %v, and %d is pinned as %s", called, err, programID(r.t, prog), filepath.Base(found[0]))
	}
}

// answersFilter lets in what hostFlood sends, and out what someFilter does.
var answersFilter = strings.Replace(someFilter, `"rules": [`,
	`"rules": [{"name": "answers", "direction": "ingress", "action": "allow", "protocol": "udp", "from": ["10.0.0.1"]},`, 1)

// newUpgradeRig is a rig of a variant whose pod may get and send what floods are of.
func newUpgradeRig(t *testing.T, v variant) *rig {
	t.Helper()
	r := newVariantRig(t, v, tests.VethOptions{Queues: 2}, tests.WithoutIPv6())
	r.release = releaseSame
	if v.filter {
		r.opts.Policy = mustPolicy(t, answersFilter)
	}
	return r
}

// hostFlood sends answers to the packets that a flood to a port is of to the pod, one after the other.
func (r *rig) hostFlood(port uint16) *flood {
	r.t.Helper()
	var fd int
	err := r.node.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	f := &flood{stop: make(chan struct{}), ended: make(chan struct{})}
	frame := packets.Frame(
		packets.Ethernet{Src: packets.MAC(r.veth.HostMAC), Dst: packets.MAC(r.veth.PodMAC)},
		packets.IPv4{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2")},
		packets.UDP{SrcPort: port, DstPort: 1000}, packets.Data(18))
	go sendUntil(f, fd, r.veth.HostIndex, frame)
	return f
}

// sendUntil sends a frame by a packet socket, which it closes, until the flood is to stop, and counts what it sent.
func sendUntil(f *flood, fd, ifindex int, frame []byte) {
	defer close(f.ended)
	defer unix.Close(fd)
	for {
		select {
		case <-f.stop:
			return
		default:
		}
		// ENOBUFS: it was dropped on its way, which a program at tc egress has seen; without a queue kernels differ in
		// whether they say so (commit 151e887d8ff9, "veth: Fixing transmit return status for dropped packets")
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: ifindex}); err == nil || err == unix.ENOBUFS {
			f.sent.Add(1)
		}
	}
}
