package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// In mode tcx the user programs are tc programs with tcx links of their own, on both sides of the link of our
// egress.

// pinProgramLink is the link of a tc program, in the directory of its pins. No map has such a name: C has no dashes in
// names.
const pinProgramLink = "the-link"

// needsTCX returns ErrUnsupported if the kernel has no tcx.
func (d *Datapath) needsTCX() error {
	tcx, err := d.hasTCX()
	if err == nil && !tcx {
		err = fmt.Errorf("%w: tc programs are attached by tcx links, which kernels have from 6.6 on", ErrUnsupported)
	}
	return err
}

// callsPrograms tells whether our programs call user programs: tc programs are run by the kernel.
func (a *attaching) callsPrograms() bool {
	return a.meta.has(bpf.DatapathPodFlagPOD_PROGRAMS) && a.Mode != ModeTCX
}

// goesOn tells whether what the program does not drop or redirect goes on to the next whatever it returns: in front of
// the policy, or TC_ACT_OK would pass what the policy has not seen.
func (a *attaching) goesOn(p podProgram) bool { return a.Mode == ModeTCX && !p.After }

// goesOnSuffix is that of the pin of a shared program that was changed so.
func (a *attaching) goesOnSuffix(p podProgram) string {
	if a.goesOn(p) {
		return "_goes_on"
	}
	return ""
}

// attachPrograms attaches the tc programs that were loaded, when the policy is in force. Those before it come directly
// in front of our link, so each behind the one of before it; those after it directly behind that, or behind one
// another. What others have attached stays where it is: our link was first.
func (a *attaching) attachPrograms(context.Context) error {
	if len(a.userPrograms) == 0 || a.Mode != ModeTCX {
		return nil
	}
	list, err := readPrograms(a.dir)
	if err != nil {
		return err
	}
	a.undo.Push("detaching programs", func() error { return detachPrograms(a.dir) })
	last := filepath.Join(a.dir, pinEgressLink)
	for _, p := range list {
		if err := a.before("attaching program " + p.Name); err != nil {
			return err
		}
		dir := filepath.Join(a.dir, pinPrograms, p.Name)
		if err := attachProgram(dir, last, p.After, a.HostIndex); err != nil {
			return fmt.Errorf("%w: attaching program %s: %w", ErrProgram, p.Name, err)
		}
		if p.After {
			last = filepath.Join(dir, pinProgramLink)
		}
	}
	return nil
}

// attachProgram attaches the program that is pinned in dir directly before or after a pinned link.
func attachProgram(dir, pinned string, after bool, ifindex int) error {
	prog, err := ebpf.LoadPinnedProgram(filepath.Join(dir, pinProgram), nil)
	if err != nil {
		return fmt.Errorf("opening it: %w", err)
	}
	defer prog.Close()
	neighbour, err := link.LoadPinnedLink(pinned, nil)
	if err != nil {
		return fmt.Errorf("opening link %s: %w", pinned, err)
	}
	defer neighbour.Close()
	anchor := link.BeforeLink(neighbour)
	if after {
		anchor = link.AfterLink(neighbour)
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Program: prog, Interface: ifindex, Attach: ebpf.AttachTCXIngress, Anchor: anchor,
	})
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("the hook runs it already: one with no maps of its own is one program for all: %w", err)
	}
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Pin(filepath.Join(dir, pinProgramLink)); err != nil {
		return fmt.Errorf("pinning its link: %w", err)
	}
	return nil
}

// eachProgramLink calls fn with the link of each tc program of an attachment, its pin, and the program's name. It goes
// on past errors.
func eachProgramLink(dir string, fn func(l link.Link, pin, name string) error) error {
	entries, err := os.ReadDir(filepath.Join(dir, pinPrograms))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing the programs: %w", err)
	}
	var errs error
	for _, entry := range entries {
		path := filepath.Join(dir, pinPrograms, entry.Name(), pinProgramLink)
		l, err := link.LoadPinnedLink(path, nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("opening link %s: %w", path, err))
			continue
		}
		errs = errors.Join(errs, fn(l, path, entry.Name()))
		_ = l.Close()
	}
	return errs
}

// detachPrograms detaches the tc programs of an attachment and removes the pins of their links. What is gone is no
// error.
func detachPrograms(dir string) error {
	return eachProgramLink(dir, func(l link.Link, pin, name string) error { return detachLink(l, pin, "program "+name) })
}

// programLinks returns the links of the tc programs of an attachment.
func programLinks(dir string) ([]link.ID, error) {
	var ids []link.ID
	err := eachProgramLink(dir, func(l link.Link, pin, _ string) error {
		info, err := l.Info()
		if err != nil {
			return fmt.Errorf("reading link %s: %w", pin, err)
		}
		ids = append(ids, info.ID)
		return nil
	})
	return ids, err
}

// checkTCPrograms checks that the interface runs the links of the attachment's tc programs, and ours, in their order,
// and each the program that was loaded for it. Links of others may be between them.
func checkTCPrograms(dir string, m *Meta, list []PodProgram) error {
	result, err := link.QueryPrograms(link.QueryOptions{Target: m.HostIndex, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return fmt.Errorf("reading the programs of %s: %w", m.HostName, err)
	}
	places := map[link.ID]int{}
	for i, prog := range result.Programs {
		if id, ok := prog.LinkID(); ok {
			places[id] = i
		}
	}
	last := -1
	next := func(what, path string, program ebpf.ProgramID) error {
		state, err := readLink(path)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: the link of %s is not pinned", ErrCheck, what)
		}
		if err != nil {
			return err
		}
		place, runs := places[state.id]
		switch {
		case state.ifindex == 0:
			return fmt.Errorf("%w: the link of %s is detached", ErrCheck, what)
		case !runs:
			return fmt.Errorf("%w: %s does not run the link of %s", ErrCheck, m.HostName, what)
		case program != 0 && state.program != program:
			return fmt.Errorf("%w: the link of %s runs program %d, which should be %d", ErrCheck, what, state.program, program)
		case place < last:
			return fmt.Errorf("%w: %s runs %s out of its order", ErrCheck, m.HostName, what)
		}
		last = place
		return nil
	}
	egress := func() error {
		return next("our egress", filepath.Join(dir, pinEgressLink), 0) // its program is checked elsewhere
	}
	seen := false
	for _, p := range list {
		if p.After && !seen {
			seen = true
			if err := egress(); err != nil {
				return err
			}
		}
		if err := next("program "+p.Name, filepath.Join(dir, pinPrograms, p.Name, pinProgramLink), p.ID); err != nil {
			return err
		}
	}
	if !seen {
		return egress()
	}
	return nil
}
