package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// PodProgram is a program of the user that an attachment has.
type PodProgram struct {
	// Name of its function; Object is the path of the file that it was loaded from, Digest stands for both.
	Name, Object, Digest string
	// After: it runs on what the policy passes, else on all that the pod sends.
	After bool
	// Shared: pods with the same program run one.
	Shared bool
	// ID of the program loaded.
	ID ebpf.ProgramID
	// Dir has the pins of its own maps, by their names, and the program's.
	Dir string
	// Verdicts counts the frames that came to it by what it said, indexed by XDP action.
	Verdicts []Counter
}

// Runs is how often the program ran.
func (p *PodProgram) Runs() (n uint64) {
	for _, c := range p.Verdicts {
		n += c.Packets
	}
	return n
}

// Maps returns the pins of the program's own maps, sorted.
func (p *PodProgram) Maps() ([]string, error) {
	entries, err := os.ReadDir(p.Dir)
	if err != nil {
		return nil, fmt.Errorf("listing the maps of program %s: %w", p.Name, err)
	}
	var all []string
	for _, entry := range entries {
		if entry.Name() != pinProgram {
			all = append(all, filepath.Join(p.Dir, entry.Name()))
		}
	}
	return all, nil
}

// Programs returns the attachment's own programs in the order in which they run.
func (a *Attachment) Programs() ([]PodProgram, error) {
	notes, err := a.programNotes()
	if err != nil || len(notes) == 0 {
		return nil, err
	}
	const verdicts = int(bpf.DatapathVerdictVERDICTS)
	counters := make([]Counter, len(notes)*verdicts)
	if err := readTable(filepath.Join(a.dir, pinProgramStats), counters); err != nil {
		return nil, fmt.Errorf("reading the counters of programs of container %s, interface %s: %w", a.Meta.ContainerID, a.Meta.IfName, err)
	}
	var all []PodProgram
	for i, v := range notes {
		p := PodProgram{
			Name: cString(v.Name[:]), Object: cString(v.Object[:]), Digest: cString(v.Digest[:]),
			After:  v.Flags&uint32(bpf.DatapathPodProgramFlagPROGRAM_AFTER) != 0,
			Shared: v.Flags&uint32(bpf.DatapathPodProgramFlagPROGRAM_SHARED) != 0,
			ID:     ebpf.ProgramID(v.Id), Dir: filepath.Join(a.dir, dirPrograms, cString(v.Pin[:])),
			Verdicts: counters[i*verdicts : (i+1)*verdicts],
		}
		all = append(all, p)
	}
	return all, nil
}

// programNotes reads what ADD noted of the attachment's programs.
func (a *Attachment) programNotes() ([]bpf.DatapathPodProgram, error) {
	if !a.Meta.has(bpf.DatapathPodFlagPOD_PROGRAMS) {
		return nil, nil
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(a.dir, pinProgramsInfo), &ebpf.LoadPinOptions{ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: pin %s is gone", ErrCheck, pinProgramsInfo)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the list of programs: %w", err)
	}
	defer m.Close()
	var notes []bpf.DatapathPodProgram
	for i := range m.MaxEntries() {
		var v bpf.DatapathPodProgram
		if err := m.Lookup(i, &v); err != nil {
			return nil, fmt.Errorf("reading the list of programs: %w", err)
		}
		if v.Name[0] == 0 {
			break
		}
		notes = append(notes, v)
	}
	return notes, nil
}

// checkAsked returns ErrCheck if the attachment's programs are others than those asked for. Optional ones may be missing.
func checkAsked(a Attachment, asked []Program) error {
	notes, err := a.programNotes()
	if err != nil {
		return err
	}
	for _, after := range []bool{false, true} {
		for _, p := range asked {
			if p.After != after {
				continue
			}
			if len(notes) > 0 && cString(notes[0].Object[:]) == p.Object &&
				(notes[0].Flags&uint32(bpf.DatapathPodProgramFlagPROGRAM_AFTER) != 0) == after {
				notes = notes[1:]
			} else if !p.Optional {
				return fmt.Errorf("%w: program %s of object %s is not there, or not in that order", ErrCheck, p.Name, p.Object)
			}
		}
	}
	if len(notes) > 0 {
		return fmt.Errorf("%w: program %s of object %s is not in the configuration", ErrCheck, cString(notes[0].Name[:]), cString(notes[0].Object[:]))
	}
	return nil
}

// checkPrograms returns ErrCheck if what the slot runs is not what ADD noted.
func (n *node) checkPrograms(dir string, m *Meta, slot uint32, entry bpf.DatapathSlot) error {
	if !m.has(bpf.DatapathPodFlagPOD_PROGRAMS) {
		return nil
	}
	notes, err := (&Attachment{Meta: m, dir: dir}).programNotes()
	if err != nil {
		return err
	}
	if got := entry.Flags >> bpf.DatapathSlotFlagSLOT_PROGRAMS_SHIFT & uint32(bpf.DatapathSlotFlagSLOT_PROGRAMS_MASK); got != uint32(len(notes)) {
		return fmt.Errorf("%w: %d programs of the user run, which should be %d", ErrCheck, got, len(notes))
	}
	if len(notes) == 0 {
		return nil
	}
	if n.programStats == nil {
		return fmt.Errorf("%w: the node's map of the programs' counters is gone", ErrCheck)
	}
	if err := checkEntry(n.programStats, slot, dir, pinProgramStats); err != nil {
		return err
	}
	shared, err := n.meta()
	if err != nil {
		return err
	}
	array, err := n.open(programsPin(m.Mode == ModeNative && shared.XdpFrags != 0))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCheck, err)
	}
	defer array.Close()
	first := n.programIndex(array, slot)
	ids := make([]uint32, len(notes))
	for i := range notes {
		err := array.Lookup(first+uint32(i), &ids[i])
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("reading the programs of slot %d: %w", slot, err)
		}
	}
	want := make([]uint32, len(notes))
	for i, v := range notes {
		want[i] = v.Id
	}
	if !slices.Equal(ids, want) {
		return fmt.Errorf("%w: the user's programs %v run, which should be %v", ErrCheck, ids, want)
	}
	return nil
}
