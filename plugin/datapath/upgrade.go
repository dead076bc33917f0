package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
)

// UpgradeOptions say what Upgrade may do.
type UpgradeOptions struct {
	// DryRun only says what would be done. It takes no lock.
	DryRun bool
}

// Upgrade is what was done to make a node's attachments run this release's programs, or what there would be to do.
type Upgrade struct {
	// From is the release of the node's programs as it was noted, To is this one.
	From, To string
	// Programs are all that the node has, or gets.
	Programs []ProgramUpgrade
	// Maps that are made; all others stay.
	Maps []string
	// Attachments are all that are published.
	Attachments []AttachmentUpgrade
}

// ProgramUpgrade is one program of the node.
type ProgramUpgrade struct {
	Name string // of its pin
	// Release that loaded the one before; "" if it does not say, or if there was none.
	Release string
	// Old and New are IDs; 0 for none, or none yet. They are the same where the program is this release's.
	Old, New ebpf.ProgramID
	// Current: the one before is this release's already, and if it is a policy that others call, it is the one called.
	Current bool
}

// AttachmentUpgrade is what became of an attachment.
type AttachmentUpgrade struct {
	Attachment
	Result UpgradeResult
	Err    error // with UpgradeFailed
}

// UpgradeResult is what became of an attachment's programs.
type UpgradeResult string

// Results of an upgrade. With a dry run UpgradeDone is what would be done.
const (
	UpgradeNone   UpgradeResult = "current"  // it ran them already
	UpgradeDone   UpgradeResult = "upgraded" // it runs them now
	UpgradeStale  UpgradeResult = "stale"    // its interface is gone: left to GC
	UpgradeFailed UpgradeResult = "failed"   // it runs at least one program of before
)

// Needed tells whether there was, or is, anything to do.
func (u *Upgrade) Needed() bool {
	return len(u.Maps) > 0 ||
		slices.ContainsFunc(u.Programs, func(p ProgramUpgrade) bool { return !p.Current }) ||
		slices.ContainsFunc(u.Attachments, func(a AttachmentUpgrade) bool { return a.Result == UpgradeDone || a.Result == UpgradeFailed })
}

// Upgrade puts this release's programs in the place of another's under all attachments, while packets pass: each is
// seen by the old or the new program. Maps stay, and with them counters, flows and policies. All of it is decided
// and the programs are loaded before anything is changed. Then the pins are replaced, so that attachments to come
// run the new programs, and after that the programs of each attachment. An attachment that fails does not keep the
// others from it: releases whose layouts agree may run beside each other. What was left, by an error or by the
// process's end, the next Upgrade does, of whichever release.
//
// What became of the attachments is returned also with an error about one.
//
// Errors: fs.ErrNotExist if nothing is loaded, ErrLayout if the releases do not read the maps in the same way, or if
// an attachment has what this one does not know, ErrOtherNetns, ErrDamaged, ErrPrivileges, pins.ErrBusy,
// *ebpf.VerifierError: then nothing was changed, but for pins.ErrBusy joined to others.
func (d *Datapath) Upgrade(ctx context.Context, opts UpgradeOptions) (*Upgrade, error) {
	if err := liftMemlock(); err != nil {
		return nil, err
	}
	u := &upgrading{Datapath: d, Upgrade: Upgrade{To: d.Version}}
	defer u.close()
	if _, err := os.Stat(d.Root.Node()); err != nil {
		// the lock would make a root
		return nil, errors.Join(fmt.Errorf("opening the node's maps: %w", err), d.otherLayouts())
	}
	if opts.DryRun {
		if err := u.plan(); err != nil {
			return nil, fmt.Errorf("comparing the programs: %w", err)
		}
		return &u.Upgrade, nil
	}
	err := u.lockNode(ctx, func() error {
		for _, step := range []struct {
			name string
			run  func() error
		}{
			{"comparing", u.plan},
			{"loading", u.load},
			{"pinning", u.pin},
		} {
			if err := d.before(step.name); err != nil {
				return fmt.Errorf("%s: %w", step.name, err)
			}
			if err := step.run(); err != nil {
				return fmt.Errorf("%s: %w", step.name, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("upgrading the programs: %w", err)
	}
	return &u.Upgrade, u.attachments(ctx)
}

// upgrading is an Upgrade under way.
type upgrading struct {
	*Datapath
	Upgrade
	node *node
	meta *bpf.DatapathNodeMeta
	spec *ebpf.CollectionSpec
	// missing are the maps to make, by pin.
	missing map[string]*ebpf.MapSpec
	made    map[string]*ebpf.Map
	// wanted are the compositions of Programs, in that order, loaded the programs of those that are not current.
	wanted []composition
	loaded []*ebpf.Program
}

func (u *upgrading) close() {
	if u.node != nil {
		u.node.close()
	}
	for _, m := range u.made {
		_ = m.Close()
	}
	for _, prog := range u.loaded {
		_ = prog.Close()
	}
}

// otherLayouts returns ErrLayout if what is pinned is only of releases with another version of the layout.
func (d *Datapath) otherLayouts() error {
	others, err := d.Root.OtherLayouts()
	if err != nil || len(others) == 0 {
		return err
	}
	return fmt.Errorf("%w: what is pinned is under %s", ErrLayout, strings.Join(others, ", "))
}

// lockNode holds the node's lock, for which it waits as long as an operation may.
func (u *upgrading) lockNode(ctx context.Context, fn func() error) error {
	ctx, cancel := u.limited(ctx)
	defer cancel()
	return u.locked(ctx, fn)
}

// plan finds out what there is to do, and whether it can be done.
func (u *upgrading) plan() (err error) {
	if u.spec, err = u.Datapath.spec(); err != nil {
		return err
	}
	if u.node, err = openNode(u.Root.Node()); err != nil {
		return err
	}
	if u.meta, err = u.node.meta(); err != nil {
		return err
	}
	u.From = cString(u.meta.PluginVersion[:])
	own, err := netnsInode()
	if err != nil {
		return err
	}
	if u.meta.Netns != own {
		return fmt.Errorf("%w (inode %d): run it in that one", ErrOtherNetns, u.meta.Netns)
	}
	if u.missing, err = u.node.compareMaps(u.spec, u.From); err != nil {
		return err
	}
	for _, pin := range scratchMaps {
		if err := compareMap(filepath.Join(u.node.dir, pin), u.spec.Maps[pin], u.From, true); errors.Is(err, ErrLayout) {
			u.missing[pin] = u.spec.Maps[pin]
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	u.Maps = slices.Sorted(maps.Keys(u.missing))
	attachments, err := u.List()
	if err != nil {
		return err
	}
	if err := comparePods(u.spec, attachments, true); err != nil {
		return err
	}
	if err := u.planPrograms(attachments); err != nil {
		return err
	}
	return u.planAttachments(attachments)
}

// planPrograms compares the programs that the node has, and those that its attachments want, with this release's.
func (u *upgrading) planPrograms(attachments []Attachment) error {
	wanted := map[composition]bool{}
	for _, a := range attachments {
		for _, h := range hooks(a.Meta.Mode) {
			c := h.composition(u.meta, a.Meta)
			wanted[c] = true
			if judge, calls := c.judge(); calls {
				wanted[judge] = true
			}
		}
	}
	for _, c := range compositions() {
		if !wanted[c] && !u.node.hasPin(c.pin()) {
			continue
		}
		p := ProgramUpgrade{Name: c.pin()}
		prog, err := ebpf.LoadPinnedProgram(filepath.Join(u.node.dir, c.pin()), nil)
		if err == nil {
			err = u.compareProgram(&p, c, prog)
			_ = prog.Close()
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("comparing program %s: %w", c.pin(), err)
		}
		u.Programs = append(u.Programs, p)
		u.wanted = append(u.wanted, c)
	}
	return nil
}

func (u *upgrading) compareProgram(p *ProgramUpgrade, c composition, prog *ebpf.Program) (err error) {
	if p.Old, err = programID(prog); err != nil {
		return err
	}
	notes, err := readNotes(prog)
	if err != nil {
		return err
	}
	p.Release = notes.release
	spec := u.spec.Copy()
	if err := c.reduce(spec, u.hasCoarseClock()); err != nil {
		return err
	}
	if p.Current = notes.digest == digest(spec); p.Current && c.function == bpf.DatapathProgXdpJudge {
		// an upgrade that died may have entered another
		if p.Current, err = u.isEntered(c, p.Old); err != nil {
			return err
		}
	}
	if p.Current {
		p.New = p.Old
	}
	return nil
}

// isEntered tells whether a policy is the one that programs call.
func (u *upgrading) isEntered(judge composition, id ebpf.ProgramID) (bool, error) {
	all, err := u.node.open(judge.podProgramsPin())
	if err != nil {
		return false, err
	}
	defer all.Close()
	entered, err := programAt(all, judge.judgeIndex())
	return entered == id, err
}

// program returns what the plan says of the program of an attachment's hook.
func (u *upgrading) program(h hook, m *Meta) *ProgramUpgrade {
	pin := h.composition(u.meta, m).pin()
	i := slices.IndexFunc(u.Programs, func(p ProgramUpgrade) bool { return p.Name == pin })
	return &u.Programs[i]
}

// planAttachments says of each attachment whether its programs are to be replaced.
func (u *upgrading) planAttachments(attachments []Attachment) error {
	for _, a := range attachments {
		result := UpgradeNone
		for _, h := range hooks(a.Meta.Mode) {
			running, err := h.running(a.dir, a.Meta)
			if errors.Is(err, errStale) {
				result = UpgradeStale
				break
			}
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrCheck) {
				continue // it is broken, which CHECK and doctor say, or goes
			}
			if err != nil {
				return err
			}
			if p := u.program(h, a.Meta); !p.Current || running != p.Old || h.programID(a.Meta) != p.Old {
				result = UpgradeDone
			}
		}
		u.Attachments = append(u.Attachments, AttachmentUpgrade{Attachment: a, Result: result})
	}
	return nil
}

// load makes the maps and loads the programs that are missing. Nobody sees them yet.
func (u *upgrading) load() error {
	u.made = map[string]*ebpf.Map{}
	for pin, spec := range u.missing {
		m, err := ebpf.NewMap(spec)
		if err != nil {
			return fmt.Errorf("making map %s: %w", pin, err)
		}
		u.made[pin] = m
	}
	open := func(pin string) (*ebpf.Map, error) {
		if m := u.made[pin]; m != nil {
			return m.Clone()
		}
		return u.node.open(pin)
	}
	var wait sync.WaitGroup
	u.loaded = make([]*ebpf.Program, len(u.wanted))
	errs := make([]error, len(u.wanted))
	for i, c := range u.wanted {
		if u.Programs[i].Current {
			continue
		}
		spec := u.spec.Copy()
		wait.Go(func() {
			if u.loaded[i], errs[i] = u.Datapath.load(spec, c, open); errs[i] == nil {
				u.Programs[i].New, errs[i] = programID(u.loaded[i])
			}
		})
	}
	wait.Wait()
	return errors.Join(errs...)
}

// nextPin is what a pin is called before it takes another's place.
const nextPin = "_next"

// pin puts what was loaded in the place of what was there, pin by pin: what is pinned is always a whole program
// of one release, with the maps it wants, which are pinned first.
func (u *upgrading) pin() error {
	if err := u.removeNext(); err != nil {
		return err
	}
	for _, pin := range u.Maps {
		if err := u.replacePin(pin, u.made[pin].Pin); err != nil {
			return err
		}
	}
	for i, prog := range u.loaded {
		if prog == nil {
			continue
		}
		if err := u.enterJudge(u.wanted[i], prog); err != nil {
			return err
		}
		if err := u.replacePin(u.wanted[i].pin(), prog.Pin); err != nil {
			return err
		}
	}
	if u.From == u.To {
		return nil
	}
	if err := u.before("noting the release"); err != nil {
		return err
	}
	clear(u.meta.PluginVersion[:])
	copy(u.meta.PluginVersion[:len(u.meta.PluginVersion)-1], u.To)
	if err := u.node.info.Put(uint32(0), u.meta); err != nil {
		return fmt.Errorf("writing the node's info: %w", err)
	}
	return nil
}

// enterJudge has programs that call it call a new policy instead of that of before, if it is one. Its pin follows: if
// that does not come to pass, the next upgrade finds the old one there, or, if it is that one's, not entered.
func (u *upgrading) enterJudge(c composition, prog *ebpf.Program) error {
	if c.function != bpf.DatapathProgXdpJudge {
		return nil
	}
	if err := u.before("entering " + c.pin()); err != nil {
		return err
	}
	return u.node.enterJudge(c, prog)
}

func (u *upgrading) replacePin(pin string, pinTo func(string) error) error {
	if err := u.before("pinning " + pin); err != nil {
		return err
	}
	path := filepath.Join(u.node.dir, pin)
	if err := pinTo(path + nextPin); err != nil {
		return fmt.Errorf("pinning %s: %w", pin, err)
	}
	if err := u.before("replacing pin " + pin); err != nil {
		return errors.Join(err, os.Remove(path+nextPin))
	}
	if err := os.Rename(path+nextPin, path); err != nil {
		return fmt.Errorf("replacing pin %s: %w", pin, errors.Join(err, os.Remove(path+nextPin)))
	}
	return nil
}

// removeNext removes what a process that died left.
func (u *upgrading) removeNext() error {
	entries, err := os.ReadDir(u.node.dir)
	if err != nil {
		return fmt.Errorf("listing the node's pins: %w", err)
	}
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), nextPin) {
			continue
		}
		if err := os.Remove(filepath.Join(u.node.dir, entry.Name())); err != nil {
			return fmt.Errorf("removing a leftover pin: %w", err)
		}
	}
	return nil
}

// attachments makes each attachment run what is pinned. An ADD that opened programs before they were replaced is
// waited for: it has its directory locked.
func (u *upgrading) attachments(ctx context.Context) error {
	staged, errs := u.Root.StagedPods()
	for _, id := range staged {
		errs = errors.Join(errs, u.waitForStaged(ctx, id))
	}
	all, err := u.List()
	errs = errors.Join(errs, err)
	u.Attachments = nil
	for _, a := range all {
		done := AttachmentUpgrade{Attachment: a}
		done.Result, done.Err = u.attachment(ctx, a)
		if errors.Is(done.Err, fs.ErrNotExist) {
			if _, gone := os.Stat(a.dir); errors.Is(gone, fs.ErrNotExist) {
				continue // meanwhile
			}
		}
		if done.Err != nil {
			done.Err = fmt.Errorf("upgrading container %s, interface %s: %w", a.Meta.ContainerID, a.Meta.IfName, done.Err)
			errs = errors.Join(errs, done.Err)
		}
		u.Attachments = append(u.Attachments, done)
	}
	return errs
}

// waitForStaged returns when nobody makes or takes down what was in staging.
func (u *upgrading) waitForStaged(ctx context.Context, id string) error {
	ctx, cancel := u.limited(ctx)
	defer cancel()
	lock, err := pins.LockDir(ctx, u.Root.Staged(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock.Unlock()
	return err
}
