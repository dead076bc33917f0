package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
)

// PodProgram is a user program of an attachment.
type PodProgram struct {
	// Name is its directory's, Function that in the object, and Program what the configuration asked for.
	Name, Function, Program string
	Object                  string // path of the file
	Digest                  [32]byte
	After                   bool
	Optional                bool
	// Shared: one loaded program serves all pods.
	Shared bool
	ID     ebpf.ProgramID
	// TC: a tc program with a link of its own, whose runs only the kernel counts: see ReadKernel.
	TC bool
	// Maps are the paths of its maps' pins.
	Maps []string
	// Runs by the verdict that they ended with.
	Runs [bpf.DatapathVerdictVERDICTS]uint64
	// Timed of the runs took Time together.
	Timed uint64
	Time  time.Duration
}

// ReadPrograms returns an attachment's user programs, in the order in which they run; none if it has none.
func (d *Datapath) ReadPrograms(a Attachment) ([]PodProgram, error) {
	list, err := readPrograms(a.dir)
	if err != nil {
		return nil, fmt.Errorf("reading the programs of container %s, interface %s: %w", a.Meta.ContainerID, a.Meta.IfName, err)
	}
	return list, nil
}

func readPrograms(dir string) ([]PodProgram, error) {
	notes, err := ebpf.LoadPinnedMap(filepath.Join(dir, pinProgramsMeta), &ebpf.LoadPinOptions{ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening map %s: %w", pinProgramsMeta, err)
	}
	defer notes.Close()
	var list []PodProgram
	for place := range MaxPrograms {
		var note bpf.DatapathProgramMeta
		if err := notes.Lookup(place, &note); err != nil {
			return nil, fmt.Errorf("reading map %s: %w", pinProgramsMeta, err)
		}
		if note.Id == 0 {
			break
		}
		p := PodProgram{
			Name: cString(note.Name[:]), Function: cString(note.Function[:]), Program: cString(note.Wanted[:]),
			Object: cString(note.Object[:]), Digest: note.Digest,
			After:    note.Order == uint32(bpf.DatapathProgramOrderPROGRAM_AFTER),
			Optional: note.Optional != 0, Shared: note.Shared != 0, ID: ebpf.ProgramID(note.Id), TC: note.Tc != 0,
		}
		if !p.TC {
			if err := p.readRuns(dir, place); err != nil {
				return nil, err
			}
		}
		entries, err := os.ReadDir(filepath.Join(dir, pinPrograms, p.Name))
		if err != nil {
			return nil, fmt.Errorf("listing the pins of program %s: %w", p.Name, err)
		}
		for _, entry := range entries {
			if entry.Name() != pinProgram && entry.Name() != pinProgramLink {
				p.Maps = append(p.Maps, filepath.Join(dir, pinPrograms, p.Name, entry.Name()))
			}
		}
		list = append(list, p)
	}
	return list, nil
}

// readRuns reads what became of the program's runs, by its place among the attachment's.
func (p *PodProgram) readRuns(dir string, place uint32) error {
	counters, err := ebpf.LoadPinnedMap(filepath.Join(dir, pinProgramCounters), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("opening map %s: %w", pinProgramCounters, err)
	}
	defer counters.Close()
	var cpus []bpf.DatapathProgramCounters
	if err := counters.Lookup(place, &cpus); err != nil {
		return fmt.Errorf("reading map %s: %w", pinProgramCounters, err)
	}
	for _, cpu := range cpus {
		for verdict, runs := range cpu.Verdicts {
			p.Runs[verdict] += runs
		}
		p.Timed += cpu.Timed
		p.Time += time.Duration(cpu.Nanoseconds)
	}
	return nil
}

// checkPrograms checks that the attachment runs the programs that it was made with, and that their pins are there.
func (n *node) checkPrograms(dir string, m *Meta, list []PodProgram, slot uint32, entry bpf.DatapathSlot) error {
	if !m.has(bpf.DatapathPodFlagPOD_PROGRAMS) {
		return nil
	}
	before, after := programCounts(entry)
	if have := before + after; have != len(list) {
		return fmt.Errorf("%w: it runs %d programs, and was made with %d", ErrCheck, have, len(list))
	}
	for _, p := range list {
		if err := p.checkPins(filepath.Join(dir, pinPrograms, p.Name)); err != nil {
			return err
		}
	}
	if m.Mode == ModeTCX {
		return checkTCPrograms(dir, m, list)
	}
	shared, err := n.meta()
	if err != nil {
		return err
	}
	egress := hooks(m.Mode)[0].composition(shared, m)
	pin := egress.podProgramsPin()
	all, err := n.open(pin)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCheck, err)
	}
	defer all.Close()
	for place, p := range list {
		id, err := programAt(all, slot*MaxPrograms+uint32(place))
		if err != nil {
			return err
		}
		if id != p.ID {
			return fmt.Errorf("%w: in the place of program %s (%d) runs program %d", ErrCheck, p.Name, p.ID, id)
		}
	}
	if err := n.checkJudge(egress, all); err != nil {
		return err
	}
	counters, err := n.open(bpf.DatapathMapPodProgramCounters)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCheck, err)
	}
	defer counters.Close()
	return checkEntry(counters, slot, dir, pinProgramCounters)
}

// programAt returns the ID of a program in a map of programs: 0 if there is none.
func programAt(all *ebpf.Map, index uint32) (id ebpf.ProgramID, err error) {
	if err := all.Lookup(index, &id); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, fmt.Errorf("reading place %d of the programs that are called: %w", index, err)
	}
	return id, nil
}

// checkJudge checks that the policy that a composition calls is the pinned one, or that of another release: an upgrade
// enters it, and pins it then.
func (n *node) checkJudge(calling composition, all *ebpf.Map) error {
	judge, _ := calling.judge()
	// first: what an upgrade enters behind this is known by its name, what it took out before is known no more
	pinned, err := pinnedProgramID(filepath.Join(n.dir, judge.pin()))
	if err != nil {
		return fmt.Errorf("%w: the policy that is called: %w", ErrCheck, err)
	}
	id, err := programAt(all, judge.judgeIndex())
	if err != nil {
		return err
	}
	if id == pinned {
		return nil
	}
	ours, err := isFunction(id, judge.function)
	if err != nil {
		return err
	}
	if !ours {
		return fmt.Errorf("%w: the policy that is called is program %d, pinned is program %d", ErrCheck, id, pinned)
	}
	return nil
}

// checkPins checks that the program and all maps that it uses are pinned in the directory.
func (p *PodProgram) checkPins(dir string) error {
	prog, err := ebpf.LoadPinnedProgram(filepath.Join(dir, pinProgram), nil)
	if err != nil {
		return fmt.Errorf("%w: program %s: %w", ErrCheck, p.Name, err)
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return fmt.Errorf("reading program %s: %w", p.Name, err)
	}
	if id, _ := info.ID(); id != p.ID {
		return fmt.Errorf("%w: program %s is pinned as %d, and was loaded as %d", ErrCheck, p.Name, id, p.ID)
	}
	pinned := map[ebpf.MapID]bool{}
	for _, path := range p.Maps {
		id, err := pinnedMapID(path)
		if err != nil {
			return fmt.Errorf("%w: program %s: %w", ErrCheck, p.Name, err)
		}
		pinned[id] = true
	}
	used, _ := info.MapIDs()
	for _, id := range used {
		if pinned[id] {
			continue
		}
		kconfig, err := isKconfig(id)
		if err != nil {
			return err
		}
		if !kconfig {
			return fmt.Errorf("%w: map %d of program %s is not pinned", ErrCheck, id, p.Name)
		}
	}
	return nil
}

// isKconfig tells whether a map is that of `__kconfig` constants, which cilium/ebpf makes while it loads a program and
// gives to nobody (resolveKconfigReferences() in its linker.go).
func isKconfig(id ebpf.MapID) (bool, error) {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return false, fmt.Errorf("opening map %d: %w", id, err)
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return false, fmt.Errorf("reading map %d: %w", id, err)
	}
	return info.Name == ".kconfig" && info.Frozen(), nil
}

// programCounts returns how many user programs a slot's pod runs before the policy and after it.
func programCounts(slot bpf.DatapathSlot) (before, after int) {
	number := func(from bpf.DatapathSlotNumber) int {
		return int(slot.Flags >> from & (1<<bpf.DatapathSlotNumberSLOT_BITS - 1))
	}
	return number(bpf.DatapathSlotNumberSLOT_BEFORE), number(bpf.DatapathSlotNumberSLOT_AFTER)
}

// comparePrograms compares the programs that an attachment was made with and those asked for now; optional ones may be
// missing.
func comparePrograms(list []PodProgram, wanted []Program) error {
	// in the order in which they run
	wanted = slices.Clone(wanted)
	slices.SortStableFunc(wanted, func(a, b Program) int { return int(flag(a.After)) - int(flag(b.After)) })
	for _, w := range wanted {
		place := slices.IndexFunc(list, func(p PodProgram) bool { return p.isOf(w) })
		switch {
		case place < 0 && w.Optional:
			continue
		case place < 0:
			return fmt.Errorf("%w: it was made without program %s, which is asked for now", ErrCheck, w)
		case place > 0 && slices.ContainsFunc(wanted, list[0].isOf):
			return fmt.Errorf("%w: it runs program %s in another order than is asked for now", ErrCheck, w)
		case place > 0:
			return notAskedFor(list[0])
		}
		list = list[1:]
	}
	if len(list) > 0 {
		return notAskedFor(list[0])
	}
	return nil
}

func notAskedFor(p PodProgram) error {
	return fmt.Errorf("%w: it was made with program %s of %s, which is not asked for now", ErrCheck, p.Name, p.Object)
}

// isOf tells whether it is what the configuration asks for with w.
func (p *PodProgram) isOf(w Program) bool {
	return p.Object == w.Object && p.Program == w.Program && p.After == w.After && (w.Name == "" || w.Name == p.Name)
}

// pruneShared removes the node's shared programs and maps that no attachment has pinned any more. The caller holds the
// node's lock, under which they are pinned.
func (d *Datapath) pruneShared(n *node) error {
	sharedPrograms, _ := filepath.Glob(filepath.Join(n.dir, pinPrograms, "*")) // the patterns are well formed
	sharedMaps, _ := filepath.Glob(filepath.Join(n.dir, pinProgramMaps, "*"))
	if len(sharedPrograms)+len(sharedMaps) == 0 {
		return nil
	}
	dirs, err := d.allDirs()
	if err != nil {
		return err
	}
	programs, maps := map[ebpf.ProgramID]bool{}, map[string]bool{}
	for _, dir := range dirs {
		pinned, _ := filepath.Glob(filepath.Join(dir, pinPrograms, "*", "*"))
		for _, path := range pinned {
			if filepath.Base(path) != pinProgram {
				maps[filepath.Base(path)] = true
				continue
			}
			id, err := pinnedProgramID(path)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			programs[id] = true
		}
	}
	var errs error
	for _, dir := range sharedPrograms {
		id, err := pinnedProgramID(filepath.Join(dir, pinProgram))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = errors.Join(errs, err)
			continue
		}
		if err == nil && programs[id] {
			continue
		}
		lock, err := tryLockDir(dir)
		if errors.Is(err, pins.ErrBusy) {
			continue // it is being loaded
		}
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		errs = errors.Join(errs, os.RemoveAll(dir))
		lock.Unlock()
	}
	for _, path := range sharedMaps {
		name := filepath.Base(path)
		if !maps[name] && !maps[strings.TrimSuffix(name, suffixFrags)] {
			errs = errors.Join(errs, os.Remove(path))
		}
	}
	if errs != nil {
		return fmt.Errorf("removing shared programs that nobody uses: %w", errs)
	}
	return nil
}

func pinnedProgramID(path string) (ebpf.ProgramID, error) {
	prog, err := ebpf.LoadPinnedProgram(path, nil)
	if err != nil {
		return 0, fmt.Errorf("opening program %s: %w", path, err)
	}
	defer prog.Close()
	return programID(prog)
}
