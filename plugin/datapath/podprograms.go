package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/plugin/programs"
)

// ErrProgram: a user program cannot be used.
var ErrProgram = errors.New("a program cannot be used")

// Program is a user program that an attachment is to run on what its pod sends.
type Program struct {
	Object   string // path of the object file
	Program  string // function or section, "" for the only one
	Name     string // directory of its pins, "" for the function's name
	After    bool   // on what the policy lets pass, else before it
	Optional bool   // if it cannot be used, the attachment is made without it
}

// Pins of user programs: directories of an attachment and of the node, and what is in them.
const (
	pinPrograms        = "programs"    // of an attachment: a directory for each program; of the node: for each shared
	pinProgram         = "the-program" // in such a directory, beside the maps: no name of C has a dash
	pinProgramMaps     = "program_maps"
	pinProgramsMeta    = bpf.DatapathMapProgramsMeta
	pinProgramCounters = "program_counters"

	pinPodPrograms      = bpf.DatapathMapPodPrograms
	pinPodProgramsFrags = bpf.DatapathMapPodPrograms + "_frags"
	suffixFrags         = "_frags"
)

// MaxPrograms is how many user programs an attachment can have.
const MaxPrograms = uint32(bpf.DatapathPodLimitMAX_POD_PROGRAMS)

// programPins are the node's maps for user programs, by the name of the map in the object.
var programPins = map[string][]string{
	bpf.DatapathMapPodPrograms:        {pinPodPrograms, pinPodProgramsFrags},
	bpf.DatapathMapPodProgramCounters: {bpf.DatapathMapPodProgramCounters},
	bpf.DatapathMapWalks:              {bpf.DatapathMapWalks},
}

// podProgram is a program of an attachment under way.
type podProgram struct {
	Program
	name   string
	picked *programs.Program
}

// inHook names the loaded program that a shareable one is, in ModeTCX.
func (p *podProgram) inHook() string {
	return fmt.Sprintf("%x %s %t", p.picked.Object.Digest, p.picked.Function, p.After)
}

func (p Program) String() string {
	if p.Program == "" {
		return p.Object
	}
	return p.Program + " of " + p.Object
}

// pickPrograms reads the objects, those that come before the policy first. Optional programs that cannot be used are
// left out with a warning.
func (d *Datapath) pickPrograms(list []Program, mode Mode) ([]podProgram, error) {
	if len(list) > int(MaxPrograms) {
		return nil, fmt.Errorf("%w: %d are more than %d", ErrProgram, len(list), MaxPrograms)
	}
	if len(list) == 0 {
		return nil, nil
	}
	cannot := d.canRunPrograms(mode)
	var picked []podProgram
	objects := map[string]*programs.Object{}
	names, once := map[string]bool{}, map[string]bool{}
	for _, after := range []bool{false, true} {
		for _, p := range list {
			if p.After != after {
				continue
			}
			one, err := pickProgram(p, mode, objects)
			if err == nil {
				err = cannot
			}
			if err == nil && mode == ModeTCX && one.picked.Shareable() && once[one.inHook()] {
				err = errors.New("it has no maps of its own, so all of it is one program, which the hook takes once")
			}
			if err == nil && names[one.name] {
				err = fmt.Errorf("another program is known as %q too: give one of them a \"name\"", one.name)
			}
			if err != nil {
				err = fmt.Errorf("%w: %s: %w", ErrProgram, p, err)
				if !p.Optional {
					return nil, err
				}
				d.Log.Warn("leaving out an optional program", "program", p.String(), "error", err)
				continue
			}
			names[one.name], once[one.inHook()] = true, true
			picked = append(picked, *one)
		}
	}
	return picked, nil
}

// canRunPrograms returns ErrUnsupported if the kernel cannot run user programs in a mode.
func (d *Datapath) canRunPrograms(mode Mode) error {
	if mode == ModeTCX {
		return d.needsTCX()
	}
	return CheckTailCalls()
}

func pickProgram(p Program, mode Mode, objects map[string]*programs.Object) (*podProgram, error) {
	object := objects[p.Object]
	if object == nil {
		var err error
		if object, err = programs.Read(p.Object); err != nil {
			return nil, err
		}
		objects[p.Object] = object
	}
	picked, err := object.Program(p.Program)
	if err != nil {
		return nil, err
	}
	one := &podProgram{p, p.Name, picked}
	if one.name == "" {
		one.name = picked.Function
	}
	kind := picked.Type()
	switch {
	case mode == ModeTCX && kind == ebpf.XDP:
		return nil, fmt.Errorf("%w: %s is an XDP program, and mode tcx has no XDP: use mode generic or native", ErrUnsupported, picked.Function)
	case mode == ModeTCX && kind != ebpf.SchedCLS:
		return nil, fmt.Errorf("%w: %s is a program of type %s; mode tcx takes tc programs (SchedCLS)", ErrUnsupported, picked.Function, kind)
	case mode != ModeTCX && kind == ebpf.SchedCLS:
		return nil, fmt.Errorf("%w: %s is a tc program, and mode %s takes XDP programs: use mode tcx", ErrUnsupported, picked.Function, mode)
	case mode != ModeTCX && kind != ebpf.XDP:
		return nil, fmt.Errorf("%w: %s is a program of type %s; mode %s takes XDP programs", ErrUnsupported, picked.Function, kind, mode)
	}
	return one, nil
}

// ensurePrograms makes and pins the node's maps for user programs, but for those that are there.
func (n *node) ensurePrograms(spec *ebpf.CollectionSpec) error {
	for pin, mapSpec := range pinSpecs(spec, programPins) {
		if err := n.ensureMap(mapSpec, pin); err != nil {
			return err
		}
	}
	return nil
}

// podProgramsPin is the map of programs that a composition calls.
func (c composition) podProgramsPin() string {
	if c.frags {
		return pinPodProgramsFrags
	}
	return pinPodPrograms
}

// judge is the policy that the composition calls for pods with user programs; false if it calls none.
func (c composition) judge() (composition, bool) {
	calls := c.function == bpf.DatapathProgXdpEgressPrograms
	c.function = bpf.DatapathProgXdpJudge
	return c, calls
}

// judgeIndex is where the composition's policy is among the programs that are called.
func (c composition) judgeIndex() uint32 {
	if c.redirect {
		return uint32(bpf.DatapathProgramEntryPROGRAM_JUDGE_REDIRECT)
	}
	return uint32(bpf.DatapathProgramEntryPROGRAM_JUDGE)
}

// enterJudge enters a program of a composition that judge returned where those who call it find it. The caller holds
// the node's lock.
func (n *node) enterJudge(c composition, prog *ebpf.Program) error {
	all, err := n.open(c.podProgramsPin())
	if err != nil {
		return err
	}
	defer all.Close()
	if err := all.Put(c.judgeIndex(), prog); err != nil {
		return fmt.Errorf("entering program %s: %w", c.pin(), err)
	}
	return nil
}

// leavePrograms removes the programs of a slot. A node that never had user programs has no maps of them.
func (n *node) leavePrograms(slot uint32) error {
	var errs error
	for _, pin := range []string{pinPodPrograms, pinPodProgramsFrags} {
		all, err := ebpf.LoadPinnedMap(filepath.Join(n.dir, pin), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("opening the node's map %s: %w", pin, err))
			continue
		}
		for place := range MaxPrograms {
			if err := all.Delete(slot*MaxPrograms + place); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = errors.Join(errs, fmt.Errorf("removing a program of slot %d: %w", slot, err))
			}
		}
		_ = all.Close()
	}
	return errs
}

// probeTailCalls tells whether a function of a program may tail call (x86-64 5.10, arm64 6.0).
func probeTailCalls() bool {
	all, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return false
	}
	defer all.Close()
	// without BTF the verifier cannot know that the function returns a number, and refuses
	// (check_abnormal_return() in kernel/bpf/verifier.c)
	function := func(name string, first asm.Instruction) asm.Instruction {
		number := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
		return btf.WithFuncMetadata(first.WithSymbol(name), &btf.Func{
			Name: name, Type: &btf.FuncProto{Return: number}, Linkage: btf.StaticFunc,
		})
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{
			function("probe", asm.Call.Label("call")),
			asm.Return(),
			function("call", asm.LoadMapPtr(asm.R2, all.FD())),
			asm.Mov.Imm(asm.R3, 0), asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, 0), asm.Return(),
		},
	})
	if err != nil {
		return false
	}
	_ = prog.Close()
	return true
}
