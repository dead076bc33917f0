package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/programs"
)

// verifierLines is how many lines of the verifier's log, of its end, a warning carries.
const verifierLines = 12

// loading is an attachment whose user programs are being loaded.
type loading struct {
	*attaching
	notes *ebpf.Map
	all   *ebpf.Map // of programs that ours call; nil in ModeTCX
	// place of the next, of which so many are before the policy.
	place, before uint32
}

func (l *loading) close() {
	_ = l.notes.Close()
	_ = l.all.Close()
}

// loadPrograms loads the attachment's programs, pins them with their maps and enters them in its slot. Optional ones
// that cannot be used are left out with a warning.
func (a *attaching) loadPrograms(ctx context.Context) (err error) {
	if len(a.userPrograms) == 0 {
		return nil
	}
	if err := os.Mkdir(filepath.Join(a.dir, pinPrograms), 0o700); err != nil {
		return fmt.Errorf("making the programs' directory: %w", err)
	}
	l := &loading{attaching: a}
	defer l.close()
	if l.notes, err = makePinned(a.spec.Maps[bpf.DatapathMapProgramsMeta], a.dir, pinProgramsMeta); err != nil {
		return err
	}
	if a.callsPrograms() {
		if l.all, err = a.node.open(a.composition.podProgramsPin()); err != nil {
			return err
		}
	}
	leftOut := false
	for _, p := range a.userPrograms {
		err := l.load(ctx, p)
		if err != nil && (!p.Optional || !errors.Is(err, ErrProgram)) {
			return err
		}
		if err != nil {
			if err := os.RemoveAll(filepath.Join(a.dir, pinPrograms, p.name)); err != nil {
				return fmt.Errorf("leaving out program %s: %w", p, err)
			}
			said := []any{"program", p.String(), "error", err}
			if verifier := (*ebpf.VerifierError)(nil); errors.As(err, &verifier) {
				said = append(said, "verifier", fmt.Sprintf("%-*v", verifierLines, verifier))
			}
			a.Log.Warn("leaving out an optional program", said...)
			leftOut = true
		}
	}
	return a.locked(ctx, func() error {
		if leftOut {
			if err := a.pruneShared(a.node); err != nil {
				a.Log.Warn("not all that is shared could be looked at", "error", err)
			}
		}
		// in mode tcx too: what runs behind the policy must see all that it lets pass, so nothing goes directly
		entry, err := a.node.slot(a.slot)
		if err != nil {
			return err
		}
		entry.Flags |= l.before<<bpf.DatapathSlotNumberSLOT_BEFORE | (l.place-l.before)<<bpf.DatapathSlotNumberSLOT_AFTER
		if err := a.node.slots.Put(a.slot, entry); err != nil {
			return fmt.Errorf("entering the programs of slot %d: %w", a.slot, err)
		}
		return nil
	})
}

// load loads a program, or finds it loaded, pins it and its maps for the attachment, and enters it at the next place. It
// is ErrProgram if the program is not fit for it.
func (l *loading) load(ctx context.Context, p podProgram) error {
	if err := l.attaching.before("loading program " + p.name); err != nil {
		return err
	}
	dir := filepath.Join(l.dir, pinPrograms, p.name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("making the directory of program %s: %w", p.name, err)
	}
	loaded := &loadedProgram{maps: map[string]*ebpf.Map{}}
	defer loaded.close()
	shared := map[string]*ebpf.Map{} // by name in the object
	shareable := p.picked.Shareable()
	// What is the node's is made, found and removed under its lock. No user program is verified under it: that takes up
	// to a second, for which all other ADDs would wait.
	found := false
	err := l.locked(ctx, func() (err error) {
		for _, m := range p.picked.Maps() {
			if !m.Shared {
				continue
			}
			if shared[m.Name], err = l.node.sharedProgramMap(m, l.frags()); err != nil {
				return err
			}
			loaded.maps[programs.PinName(m.Name)] = shared[m.Name]
		}
		// from now on they are in use
		if err := loaded.pinMaps(dir); err != nil || !shareable {
			return err
		}
		found, err = l.takeShared(p, loaded, dir)
		return err
	})
	switch {
	case err != nil || found:
	case shareable:
		err = l.loadShared(ctx, p, loaded, shared, dir)
	default:
		if err = l.loadOwn(p, loaded, shared); err == nil {
			err = loaded.pin(dir)
		}
	}
	if err == nil {
		err = l.attaching.before("entering program " + p.name)
	}
	if err == nil {
		err = l.enter(p, loaded.program, shareable)
	}
	if err != nil {
		return fmt.Errorf("program %s: %w", p, err)
	}
	return nil
}

func (l *loading) frags() bool { return l.callsPrograms() && l.composition.frags }

// sharedDir is where the node has a program that serves all pods.
func (l *loading) sharedDir(p podProgram) string {
	name := fmt.Sprintf("%x-%s", p.picked.Object.Digest[:16], p.picked.Function)
	return filepath.Join(l.node.dir, pinPrograms, name+fragsSuffix(l.frags())+l.goesOnSuffix(p))
}

// takeShared opens what another attachment loaded and shares, and pins it in a directory of this one: false if there is
// none. The caller holds the node's lock: a DEL that looks for what nobody uses comes before or after.
func (l *loading) takeShared(p podProgram, to *loadedProgram, dir string) (bool, error) {
	err := to.open(l.sharedDir(p))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, to.pin(dir)
}

// loadShared loads a program that is to serve all pods, and pins it for them and for this one. Of attachments that come
// at once with the same program one loads it, and the others wait for that one, not for the node's lock.
func (l *loading) loadShared(
	ctx context.Context, p podProgram, to *loadedProgram, shared map[string]*ebpf.Map, dir string,
) error {
	lock, err := l.lockShared(ctx, p)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	found := false
	err = l.locked(ctx, func() (err error) {
		found, err = l.takeShared(p, to, dir)
		return err
	})
	if err != nil || found {
		return err
	}
	if err := l.loadOwn(p, to, shared); err != nil {
		return err
	}
	if err := l.attaching.before("sharing program " + p.name); err != nil {
		return err
	}
	return l.locked(ctx, func() error {
		node := l.sharedDir(p)
		// an older release removes it though it is locked; who then loads the same pins its own, and each pod keeps what
		// it has
		if err := os.MkdirAll(node, 0o700); err != nil {
			return fmt.Errorf("making %s: %w", node, err)
		}
		left, _ := filepath.Glob(filepath.Join(node, "*")) // the pattern is well formed
		for _, pin := range left {
			if err := os.Remove(pin); err != nil { // of a process that was killed while it pinned
				return fmt.Errorf("removing what was left of it: %w", err)
			}
		}
		if err := to.pin(node); err != nil {
			return err
		}
		return to.pin(dir)
	})
}

// lockShared takes the lock of a program that is not loaded yet: that of its directory, which it makes.
func (l *loading) lockShared(ctx context.Context, p podProgram) (*pins.Lock, error) {
	dir := l.sharedDir(p)
	for {
		err := l.locked(ctx, func() error {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return fmt.Errorf("making %s: %w", dir, err)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		lock, err := pins.LockDir(ctx, dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a DEL found it empty before it was locked
		}
		return lock, err
	}
}

// loadOwn loads a program: ErrProgram if it cannot.
func (l *loading) loadOwn(p podProgram, to *loadedProgram, shared map[string]*ebpf.Map) error {
	prog, own, err := p.picked.Load(programs.LoadOptions{Frags: l.frags(), GoesOn: l.goesOn(p), Maps: shared})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProgram, err)
	}
	to.program = prog
	for name, m := range own {
		to.maps[programs.PinName(name)] = m
	}
	return nil
}

// enter notes a loaded program and enters it at the next place.
func (l *loading) enter(p podProgram, prog *ebpf.Program, shared bool) error {
	id, err := programID(prog)
	if err != nil {
		return err
	}
	note := bpf.DatapathProgramMeta{Id: uint32(id), Digest: p.picked.Object.Digest}
	if p.After {
		note.Order = uint32(bpf.DatapathProgramOrderPROGRAM_AFTER)
	}
	note.Shared, note.Tc, note.Optional = flag(shared), flag(!l.callsPrograms()), flag(p.Optional)
	for _, field := range []struct {
		what string
		to   []uint8
		from string
	}{
		{"name", note.Name[:], p.name}, {"function", note.Function[:], p.picked.Function},
		{"program", note.Wanted[:], p.Program.Program}, {"object", note.Object[:], p.Object},
	} {
		if len(field.from) >= len(field.to) {
			return fmt.Errorf("%w: the %s %q is longer than %d bytes", ErrProgram, field.what, field.from, len(field.to)-1)
		}
		copy(field.to, field.from)
	}
	if l.all != nil {
		err := l.all.Put(l.slot*MaxPrograms+l.place, prog)
		if errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("%w: %w: the kernel does not let our programs call it: %w", ErrProgram, ErrUnsupported, err)
		}
		if err != nil {
			return fmt.Errorf("entering it at place %d of slot %d: %w", l.place, l.slot, err)
		}
	}
	if err := l.notes.Put(l.place, note); err != nil {
		return fmt.Errorf("noting it: %w", err)
	}
	l.place++
	if !p.After {
		l.before++
	}
	return nil
}

func flag(on bool) uint8 {
	if on {
		return 1
	}
	return 0
}

func fragsSuffix(frags bool) string {
	if frags {
		return suffixFrags
	}
	return ""
}

// loadedProgram is an open user program, and its maps by their pins.
type loadedProgram struct {
	program *ebpf.Program
	maps    map[string]*ebpf.Map
}

func (l *loadedProgram) close() {
	_ = l.program.Close()
	for _, m := range l.maps {
		_ = m.Close()
	}
}

// open opens what pin has pinned in a directory: fs.ErrNotExist if that is not whole.
func (l *loadedProgram) open(dir string) (err error) {
	if l.program, err = ebpf.LoadPinnedProgram(filepath.Join(dir, pinProgram), nil); err != nil {
		return fmt.Errorf("opening program %s: %w", dir, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("listing the pins of program %s: %w", dir, err)
	}
	for _, entry := range entries {
		name := entry.Name()
		if name == pinProgram || l.maps[name] != nil {
			continue
		}
		if l.maps[name], err = ebpf.LoadPinnedMap(filepath.Join(dir, name), nil); err != nil {
			return fmt.Errorf("opening map %s of program %s: %w", name, dir, err)
		}
	}
	return nil
}

// pin pins the program and its maps in a directory, beside other pins that they have. The program comes last: where it
// is, all is.
func (l *loadedProgram) pin(dir string) error {
	if err := l.pinMaps(dir); err != nil {
		return err
	}
	clone, err := l.program.Clone()
	if err != nil {
		return fmt.Errorf("pinning it: %w", err)
	}
	defer clone.Close()
	if err := clone.Pin(filepath.Join(dir, pinProgram)); err != nil {
		return fmt.Errorf("pinning it in %s: %w", dir, err)
	}
	return nil
}

// pinMaps pins those maps that are not yet pinned in a directory.
func (l *loadedProgram) pinMaps(dir string) error {
	for name, m := range l.maps {
		path := filepath.Join(dir, name)
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		// to pin again what knows its pin would move that
		clone, err := m.Clone()
		if err == nil {
			err = clone.Pin(path)
			_ = clone.Close()
		}
		if err != nil {
			return fmt.Errorf("pinning map %s in %s: %w", name, dir, err)
		}
	}
	return nil
}

// sharedProgramMap opens the node's map that a program asks for by name, or makes it: ErrProgram if there is another of
// that name. The caller holds the node's lock.
func (n *node) sharedProgramMap(m programs.Map, frags bool) (*ebpf.Map, error) {
	pin := programs.PinName(m.Name)
	if m.OfPrograms {
		pin += fragsSuffix(frags)
	}
	dir := filepath.Join(n.dir, pinProgramMaps)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making %s: %w", dir, err)
	}
	path := filepath.Join(dir, pin)
	have, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		if err := m.Spec.Compatible(have); err != nil {
			_ = have.Close()
			return nil, fmt.Errorf("%w: the node's map %s was made by another object and is different: %w", ErrProgram, m.Name, err)
		}
		return have, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening the node's map %s: %w", m.Name, err)
	}
	if m.HoldsObjects() && len(m.Spec.Contents) > 0 {
		return nil, fmt.Errorf("%w: map %s is pinned by name and has programs or maps in it from the object, "+
			"which would be one pod's: leave out either", ErrProgram, m.Name)
	}
	spec := m.Spec.Copy()
	spec.Pinning = ebpf.PinNone
	made, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("%w: making the node's map %s: %w", ErrProgram, m.Name, err)
	}
	if err := made.Pin(path); err != nil {
		_ = made.Close()
		return nil, fmt.Errorf("pinning the node's map %s: %w", m.Name, err)
	}
	return made, nil
}
