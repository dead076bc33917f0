package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/internal/release"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// facts are what doctor judges. An error stands for "no", with the reason.
type facts struct {
	release    string // of xdpctl
	privileges error
	kernel     string

	// these are there only with privileges
	features      datapath.Features
	featuresErr   error
	programTypes  error
	links         error
	tailCalls     error
	jitted        bool
	jitErr        error
	jitSysctl     string // "" where it is not to be seen, as outside the first network namespace
	root          string
	rootIsThere   bool
	mounted       bool
	mountedErr    error
	mountable     error
	otherLayouts  []string
	node          *datapath.NodeInfo
	nodeErr       error
	ready         error
	attachments   []attachmentFacts
	attachmentErr error
	abandoned     []string // in staging, for longer than an operation takes
	leases        leaseFacts
	redirect      redirectFacts
	programs      programFacts
	lru           lruFacts
}

type attachmentFacts struct {
	datapath.Attachment
	stale      bool
	verify     error
	seenTwice  bool
	filter     *conf.Filter // nil if there is none
	filterErr  error
	programs   []datapath.PodProgram
	capacities datapath.Capacities
}

// operationTime is longer than any ADD or DEL is at work.
const operationTime = time.Minute

func gather(ctx context.Context, d *datapath.Datapath) *facts {
	f := &facts{release: release.Version(), privileges: datapath.CheckPrivileges(), root: d.Root.String()}
	var name unix.Utsname
	if err := unix.Uname(&name); err == nil {
		f.kernel = unix.ByteSliceToString(name.Release[:])
	}
	if f.privileges != nil {
		return f
	}
	f.features, f.featuresErr = datapath.ProbeFeatures()
	f.programTypes = errors.Join(probeProgramType(ebpf.XDP), probeProgramType(ebpf.SchedCLS))
	f.probeProgram()
	f.links = datapath.CheckXDPLinks()
	f.tailCalls = datapath.CheckTailCalls()
	if value, err := os.ReadFile("/proc/sys/net/core/bpf_jit_enable"); err == nil {
		f.jitSysctl = strings.TrimSpace(string(value))
	}
	f.lru = probeLRU()
	f.probePins(d)
	f.node, f.nodeErr = d.NodeInfo()
	f.ready = d.Ready(datapath.ReadyOptions{Mode: datapath.ModeGeneric})
	f.probeAttachments(ctx, d)
	f.probeObjects()
	f.leases = probeLeases(d.Root, f.attachments)
	if f.node != nil && f.node.Here {
		f.redirect = probeRedirect(d)
	}
	return f
}

func probeProgramType(kind ebpf.ProgramType) error {
	if err := features.HaveProgramType(kind); err != nil {
		return fmt.Errorf("%s programs: %w", kind, err)
	}
	return nil
}

// probeProgram loads the least XDP program there is, to see whether it is compiled.
func (f *facts) probeProgram() {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.XDP,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}, // XDP_PASS
		License:      "Dual BSD/GPL",
	})
	if err != nil {
		f.jitErr = err
		return
	}
	defer prog.Close()
	info, err := prog.Info()
	if err == nil {
		var size uint32
		size, err = info.JitedSize()
		f.jitted = size > 0
	}
	// an interpreted program has no size, which is an error of this kind
	if !errors.Is(err, ebpf.ErrNotSupported) {
		f.jitErr = err
	}
}

func (f *facts) probePins(d *datapath.Datapath) {
	f.mounted, f.mountedErr = d.Root.Mounted()
	f.mountable = d.Root.Mountable()
	_, err := os.Stat(f.root)
	f.rootIsThere = err == nil
	f.otherLayouts, _ = d.Root.OtherLayouts() // what cannot be read is told of the rest
	staged, _ := d.Root.StagedPods()
	for _, id := range staged {
		info, err := os.Stat(d.Root.Staged(id))
		if err == nil && time.Since(info.ModTime()) > operationTime {
			f.abandoned = append(f.abandoned, id)
		}
	}
}

// probeAttachments needs f.node.
func (f *facts) probeAttachments(ctx context.Context, d *datapath.Datapath) {
	all, err := d.List()
	sortAttachments(all)
	stale, staleErr := d.Collect(ctx, datapath.CollectOptions{DryRun: true})
	f.attachmentErr = err
	if err == nil {
		f.attachmentErr = staleErr // else it says the same again
	}
	isStale := map[string]bool{}
	for _, a := range stale {
		isStale[a.ID] = true
	}
	for _, a := range all {
		facts := attachmentFacts{Attachment: a, stale: isStale[a.ID]}
		// of another namespace's interfaces nothing can be said from here
		if !facts.stale && (f.node == nil || f.node.Here) {
			facts.verify = d.Verify(a)
			facts.seenTwice, _ = d.SeenTwice(a) // what is in its way, verify tells
			facts.capacities, _ = d.Capacities(a)
			f, err := readFilter(d, a)
			if f != nil {
				facts.filter = f.Filter
			}
			facts.filterErr = err
			if isGone(d.Root, a, errors.Join(facts.verify, err)) {
				continue
			}
			facts.programs, _ = d.ReadPrograms(a) // what cannot be read, verify tells
		}
		f.attachments = append(f.attachments, facts)
	}
}
