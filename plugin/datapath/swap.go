package datapath

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/internal/pins"
)

// errStale: the interface of an attachment is gone.
var errStale = errors.New("its interface is gone")

// running returns the ID of the program of ours that runs at the hook. Errors: errStale, fs.ErrNotExist.
func (h hook) running(dir string, m *Meta) (ebpf.ProgramID, error) {
	if m.has(h.clsact) {
		filter, err := h.filter(m)
		if err != nil {
			return 0, err
		}
		return ebpf.ProgramID(filter.Id), nil
	}
	state, err := readLink(filepath.Join(dir, h.pin))
	if err != nil {
		return 0, err
	}
	if state.ifindex == 0 {
		return 0, errStale
	}
	return state.program, nil
}

// filter returns the filter of the hook. Errors: errStale, ErrCheck if there is none, or more.
func (h hook) filter(m *Meta) (*netlink.BpfFilter, error) {
	host, err := hostOf(m)
	if err != nil {
		return nil, err
	}
	if host == nil {
		return nil, errStale
	}
	ours, err := h.filters(host, m)
	if err != nil {
		return nil, err
	}
	if len(ours) != 1 {
		return nil, fmt.Errorf("%w: %d filters of ours on %s", ErrCheck, len(ours), m.HostName)
	}
	return ours[0], nil
}

// swap makes the hook run the program instead of the one of before, with no packet in between that none sees.
func (h hook) swap(dir string, m *Meta, prog *ebpf.Program) error {
	if !m.has(h.clsact) {
		l, err := link.LoadPinnedLink(filepath.Join(dir, h.pin), nil)
		if err != nil {
			return fmt.Errorf("opening the link of %s: %w", h, err)
		}
		defer l.Close()
		err = l.Update(prog)
		if errors.Is(err, unix.ENOLINK) {
			return errStale
		}
		if err != nil {
			return fmt.Errorf("updating the link of %s: %w", h, err)
		}
		return nil
	}
	filter, err := h.filter(m)
	if err != nil {
		return err
	}
	// by its handle: the kernel puts the new one in the old one's place in the list (cls_bpf_change() in
	// net/sched/cls_bpf.c)
	err = netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: filter.FilterAttrs, Fd: prog.FD(), Name: filterName, DirectAction: true,
	})
	if err != nil {
		return fmt.Errorf("replacing the filter of %s: %w", h, err)
	}
	return nil
}

// attachment makes an attachment run what is pinned, and notes it.
func (u *upgrading) attachment(ctx context.Context, a Attachment) (UpgradeResult, error) {
	ctx, cancel := u.limited(ctx)
	defer cancel()
	lock, err := pins.LockDir(ctx, a.dir)
	if err != nil {
		return UpgradeFailed, err
	}
	defer lock.Unlock()
	m, err := readMeta(a.dir) // again: another may have its name
	if err != nil {
		return UpgradeFailed, err
	}
	result := UpgradeNone
	var errs error
	for _, h := range hooks(m.Mode) {
		swapped, err := u.hook(a.ID, a.dir, h, m)
		if errors.Is(err, errStale) {
			return UpgradeStale, errs
		}
		if swapped {
			result = UpgradeDone
		}
		errs = errors.Join(errs, err)
	}
	if errs != nil {
		return UpgradeFailed, errs
	}
	return result, nil
}

// hook makes a hook run what is pinned, whichever release pinned it meanwhile.
func (u *upgrading) hook(id, dir string, h hook, m *Meta) (swapped bool, err error) {
	running, err := h.running(dir, m)
	if err != nil {
		return false, err
	}
	pin := h.composition(u.meta, m).pin()
	prog, err := ebpf.LoadPinnedProgram(filepath.Join(u.node.dir, pin), nil)
	if err != nil {
		return false, fmt.Errorf("opening program %s: %w", pin, err)
	}
	defer prog.Close()
	pinned, err := programID(prog)
	if err != nil {
		return false, err
	}
	if running != pinned {
		if err := u.before("swapping " + h.pin + " of " + id); err != nil {
			return false, err
		}
		if err := h.swap(dir, m, prog); err != nil {
			return false, err
		}
	}
	if h.programID(m) == pinned {
		return running != pinned, nil
	}
	if err := u.before("noting " + h.pin + " of " + id); err != nil {
		return false, err
	}
	if h.isEgress() {
		m.egressProgram = pinned
	} else {
		m.ingressProgram = pinned
	}
	return true, rewriteMeta(dir, m)
}

// rewriteMeta writes what is known of a published attachment, whose lock the caller holds.
func rewriteMeta(dir string, m *Meta) error {
	pin := filepath.Join(dir, pinMeta)
	pinned, err := ebpf.LoadPinnedMap(pin, nil)
	if err != nil {
		return fmt.Errorf("opening map %s: %w", pin, err)
	}
	defer pinned.Close()
	if err := writeMeta(pinned, m); err != nil {
		return fmt.Errorf("writing map %s: %w", pin, err)
	}
	return nil
}
