package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/plugin/programs"
)

// Program is a program of the user that a pod is to have.
type Program struct {
	// Object is the path of the ELF object file.
	Object string
	// Name of the function or section; empty if the object has only one program.
	Name string
	// After: it runs on what the policy passes, else on all that the pod sends.
	After bool
	// Optional: the pod goes without it if it cannot be loaded.
	Optional bool
}

// Pins of the node for the users' programs, by the name of the map in the object. An array of programs takes those with
// multi-buffer support or those without (bpf_prog_map_compatible() in kernel/bpf/core.c).
var programPins = map[string][]string{
	bpf.DatapathMapPodPrograms:     {bpf.DatapathMapPodPrograms, bpf.DatapathMapPodPrograms + "_frags"},
	bpf.DatapathMapPodProgramStats: {bpf.DatapathMapPodProgramStats},
}

// programsPin returns the pin of the array of programs with multi-buffer support, or without.
func programsPin(frags bool) string {
	if frags {
		return programPins[bpf.DatapathMapPodPrograms][1]
	}
	return programPins[bpf.DatapathMapPodPrograms][0]
}

// Pins of the users' programs. No name of a C function or map has a dash in it.
const (
	pinProgramsInfo = "programs_info"
	pinProgramStats = "program_stats_map"
	dirPrograms     = "programs"    // of a pod, and of the node for programs that pods share
	dirPinned       = "pinned"      // of the node, for maps that objects pin by name
	pinProgram      = "xdp-program" // in a program's directory
)

// ownProgram is a program of the user on its way into an attachment.
type ownProgram struct {
	*programs.Program
	options Program
	pin     string // its directory's name
	id      ebpf.ProgramID
	program *ebpf.Program
	loaded  *programs.Loaded // nil for one that was loaded already
}

func (p *ownProgram) close() {
	_ = p.program.Close()
	p.loaded.Close()
}

// openPrograms reads the objects, before anything is touched. Those that are optional and unusable are left out.
func (a *attaching) openPrograms() error {
	if a.Mode == ModeTCX && len(a.Programs) > 0 {
		return fmt.Errorf("%w: XDP programs of the user run in the modes generic and native, and this pod is hooked in mode %s",
			ErrUnsupported, a.Mode)
	}
	names := map[string]int{}
	for _, options := range a.Programs {
		p, err := programs.Open(programs.Options{Object: options.Object, Name: options.Name, Type: ebpf.XDP})
		if err == nil {
			err = fits(p)
		}
		if err != nil && options.Optional {
			a.Log.Warn("the pod goes without a program", "object", options.Object, "program", options.Name, "because", err)
			continue
		}
		if err != nil {
			return err
		}
		own := &ownProgram{Program: p, options: options, pin: p.Function}
		// the tutorial calls most of its programs alike
		if names[p.Function]++; names[p.Function] > 1 {
			own.pin = fmt.Sprintf("%s-%d", p.Function, names[p.Function])
		}
		a.own = append(a.own, own)
		if options.After {
			a.meta.flags |= bpf.DatapathPodFlagPOD_PROGRAMS_AFTER
		}
	}
	if len(a.own) > 0 {
		a.meta.flags |= bpf.DatapathPodFlagPOD_PROGRAMS
	}
	return nil
}

// fits returns an error if what is noted of a program has no room.
func fits(p *programs.Program) error {
	var v bpf.DatapathPodProgram
	if len(p.Function) >= len(v.Name) || len(p.Object) >= len(v.Object) {
		return fmt.Errorf("%w: program %s of object %s: names of at most %d and paths of at most %d bytes can be noted",
			programs.ErrProgram, p.Function, p.Object, len(v.Name)-1, len(v.Object)-1)
	}
	return nil
}

// ensurePrograms makes what the node needs for programs of the user. The caller holds the node's lock.
func (a *attaching) ensurePrograms() error {
	if len(a.own) == 0 {
		return nil
	}
	for name, names := range programPins {
		for _, pin := range names {
			if err := a.node.ensureMap(a.spec.Maps[name], pin); err != nil {
				return err
			}
		}
	}
	return a.node.openProgramStats()
}

// openProgramStats opens the node's map of the programs' counters, if it is there.
func (n *node) openProgramStats() (err error) {
	if n.programStats == nil {
		n.programStats, err = n.open(programPins[bpf.DatapathMapPodProgramStats][0])
	}
	if errors.Is(err, ErrDamaged) {
		return nil // no pod has had programs
	}
	return err
}

// loadPrograms loads the user's programs, or finds them loaded, and enters them. As long as they are not all there the
// programs drop: the slot says how many there are to be.
func (a *attaching) loadPrograms(ctx context.Context) error {
	if len(a.own) == 0 {
		return nil
	}
	var err error
	if a.maps.programStats, err = makePinned(a.spec.Maps[bpf.DatapathMapProgramStatsMap], a.dir, pinProgramStats); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(a.dir, dirPrograms), 0o700); err != nil {
		return fmt.Errorf("making the directory of programs: %w", err)
	}
	var usable []*ownProgram
	for _, after := range []bool{false, true} {
		for _, p := range a.own {
			if p.options.After != after {
				continue
			}
			err := a.loadOwn(ctx, p)
			if err != nil && p.options.Optional {
				a.Log.Warn("the pod goes without a program", "object", p.Object, "program", p.Function, "because", err)
				continue
			}
			if err != nil {
				return err
			}
			usable = append(usable, p)
		}
	}
	if err := a.notePrograms(usable); err != nil {
		return err
	}
	return a.enterPrograms(ctx, usable)
}

// loadOwn loads one program and pins it with its maps, or takes the node's one that is the same.
func (a *attaching) loadOwn(ctx context.Context, p *ownProgram) (err error) {
	if p.HasOwnMaps() {
		err = a.locked(ctx, func() error { return a.loadNew(p) })
	} else {
		err = a.locked(ctx, func() error { return a.loadShared(p) })
	}
	if err != nil {
		return err
	}
	if p.id, err = programID(p.program); err != nil {
		return err
	}
	dir := filepath.Join(a.dir, dirPrograms, p.pin)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("making the directory of program %s: %w", p.Function, err)
	}
	if err := p.program.Pin(filepath.Join(dir, pinProgram)); err != nil {
		return fmt.Errorf("pinning program %s of object %s: %w", p.Function, p.Object, err)
	}
	if p.loaded == nil {
		return nil
	}
	for name, m := range p.loaded.Own {
		if err := m.Pin(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("pinning map %s of program %s of object %s: %w", name, p.Function, p.Object, err)
		}
	}
	return nil
}

// loadNew loads a program with maps of its own. The caller holds the node's lock, for those pinned by name.
func (a *attaching) loadNew(p *ownProgram) (err error) {
	p.loaded, err = p.Load(programs.LoadOptions{
		AttachType: a.spec.Programs[bpf.DatapathProgXdpEgress].AttachType,
		Frags:      a.frags(),
		Shared:     filepath.Join(a.node.dir, dirPinned),
	})
	if err == nil {
		p.program, err = p.loaded.Program.Clone()
	}
	return err
}

// frags tells whether the attachment's egress program has multi-buffer support.
func (a *attaching) frags() bool { return a.Mode == ModeNative && a.nodeFrags }

// loadShared takes the node's program that is the same, or makes this one that. The caller holds the node's lock.
func (a *attaching) loadShared(p *ownProgram) error {
	dir := filepath.Join(a.node.dir, dirPrograms)
	name := p.Digest
	if a.frags() {
		name += "_frags"
	}
	shared, err := ebpf.LoadPinnedProgram(filepath.Join(dir, name), nil)
	if err == nil {
		defer shared.Close()
		// a clone has no pin yet; one that has would be moved by the next
		p.program, err = shared.Clone()
		return err
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("opening program %s of object %s: %w", p.Function, p.Object, err)
	}
	if err := a.loadNew(p); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the directory of shared programs: %w", err)
	}
	if shared, err = p.program.Clone(); err != nil {
		return err
	}
	defer shared.Close()
	if err := shared.Pin(filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("pinning program %s of object %s: %w", p.Function, p.Object, err)
	}
	return nil
}

// notePrograms writes the list of programs.
func (a *attaching) notePrograms(usable []*ownProgram) error {
	m, err := makePinned(a.spec.Maps[bpf.DatapathMapProgramsInfo], a.dir, pinProgramsInfo)
	if err != nil {
		return err
	}
	defer m.Close()
	for i, p := range usable {
		v := bpf.DatapathPodProgram{Id: uint32(p.id)}
		if p.options.After {
			v.Flags |= uint32(bpf.DatapathPodProgramFlagPROGRAM_AFTER)
		}
		if !p.HasOwnMaps() {
			v.Flags |= uint32(bpf.DatapathPodProgramFlagPROGRAM_SHARED)
		}
		copy(v.Name[:], p.Function)
		copy(v.Pin[:], p.pin)
		copy(v.Object[:], p.Object)
		copy(v.Digest[:], p.Digest)
		if err := m.Put(uint32(i), v); err != nil {
			return fmt.Errorf("writing map %s: %w", pinProgramsInfo, err)
		}
	}
	return nil
}

// enterPrograms makes the programs known in the attachment's slot. What it enters goes with the slot.
func (a *attaching) enterPrograms(ctx context.Context, usable []*ownProgram) error {
	array, err := a.node.open(programsPin(a.frags()))
	if err != nil {
		return err
	}
	defer array.Close()
	var before uint32
	for i, p := range usable {
		if err := array.Put(a.node.programIndex(array, a.slot)+uint32(i), p.program); err != nil {
			return fmt.Errorf("entering program %s of object %s: %w", p.Function, p.Object, err)
		}
		if !p.options.After {
			before++
		}
	}
	return a.locked(ctx, func() error {
		entry, err := a.node.slot(a.slot)
		if err != nil {
			return err
		}
		entry.Flags |= before<<bpf.DatapathSlotFlagSLOT_PROGRAMS_BEFORE_SHIFT |
			uint32(len(usable))<<bpf.DatapathSlotFlagSLOT_PROGRAMS_SHIFT
		if err := a.node.slots.Put(a.slot, entry); err != nil {
			return fmt.Errorf("changing slot %d: %w", a.slot, err)
		}
		return nil
	})
}

// programIndex is where the programs of a slot begin in an array of them.
func (n *node) programIndex(array *ebpf.Map, slot uint32) uint32 {
	return slot * (array.MaxEntries() / n.slots.MaxEntries())
}

// leavePrograms takes a slot's programs out of the node's arrays.
func (n *node) leavePrograms(slot uint32) error {
	var errs error
	for _, pin := range programPins[bpf.DatapathMapPodPrograms] {
		array, err := n.open(pin)
		if errors.Is(err, ErrDamaged) {
			continue // no pod ever had programs
		}
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		first := n.programIndex(array, slot)
		for i := range n.programIndex(array, 1) {
			if err := array.Delete(first + i); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = errors.Join(errs, fmt.Errorf("leaving entry %d of %s: %w", first+i, pin, err))
			}
		}
		_ = array.Close()
	}
	return errs
}
