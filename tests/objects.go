package tests

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// Snapshot is the BPF objects of the kernel at one time, by ID. IDs are not given twice (until 2^31 are used up).
type Snapshot struct {
	Programs map[ebpf.ProgramID]struct{}
	Maps     map[ebpf.MapID]struct{}
	Links    map[link.ID]struct{}
}

// Objects takes a snapshot. It sees the objects of the whole machine, those of other processes too.
func Objects() (Snapshot, error) {
	programs, err := ids(ebpf.ProgramGetNextID)
	if err != nil {
		return Snapshot{}, fmt.Errorf("list BPF programs: %w", err)
	}
	bpfMaps, err := ids(ebpf.MapGetNextID)
	if err != nil {
		return Snapshot{}, fmt.Errorf("list BPF maps: %w", err)
	}
	links, err := ids(linkGetNextID)
	if err != nil {
		return Snapshot{}, fmt.Errorf("list BPF links: %w", err)
	}
	return Snapshot{Programs: programs, Maps: bpfMaps, Links: links}, nil
}

func ids[ID comparable](next func(ID) (ID, error)) (map[ID]struct{}, error) {
	found := map[ID]struct{}{}
	var id ID
	for {
		var err error
		id, err = next(id)
		if errors.Is(err, fs.ErrNotExist) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		found[id] = struct{}{}
	}
}

// linkGetNextID is BPF_LINK_GET_NEXT_ID. The link.Iterator of cilium/ebpf opens each link, and for that time keeps
// alive those that are going away; counting them must not.
func linkGetNextID(after link.ID) (link.ID, error) {
	attr := struct{ start, next, flags uint32 }{start: uint32(after)}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_LINK_GET_NEXT_ID, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return 0, errno
	}
	return link.ID(attr.next), nil
}

// Difference is what a later snapshot has that an earlier one has not.
type Difference struct {
	Programs []ebpf.ProgramID
	Maps     []ebpf.MapID
	Links    []link.ID
}

// Diff returns the objects that later has and s has not.
func (s Snapshot) Diff(later Snapshot) Difference {
	return Difference{
		Programs: added(s.Programs, later.Programs),
		Maps:     added(s.Maps, later.Maps),
		Links:    added(s.Links, later.Links),
	}
}

func added[ID interface{ ~uint32 }](before, later map[ID]struct{}) []ID {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(later)), func(id ID) bool {
		_, ok := before[id]
		return ok
	})
}

// Empty tells whether there is no difference.
func (d Difference) Empty() bool { return len(d.Programs)+len(d.Maps)+len(d.Links) == 0 }

// String names the objects, as far as they still exist.
func (d Difference) String() string {
	var names []string
	for _, id := range d.Programs {
		names = append(names, programName(id))
	}
	for _, id := range d.Maps {
		names = append(names, mapName(id))
	}
	for _, id := range d.Links {
		names = append(names, linkName(id))
	}
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}

func programName(id ebpf.ProgramID) string {
	name := fmt.Sprintf("program %d", id)
	if program, err := ebpf.NewProgramFromID(id); err == nil {
		defer program.Close()
		if info, err := program.Info(); err == nil {
			name += fmt.Sprintf(" (%s %q)", info.Type, info.Name)
		}
	}
	return name
}

func mapName(id ebpf.MapID) string {
	name := fmt.Sprintf("map %d", id)
	if m, err := ebpf.NewMapFromID(id); err == nil {
		defer m.Close()
		if info, err := m.Info(); err == nil {
			name += fmt.Sprintf(" (%s %q)", info.Type, info.Name)
		}
	}
	return name
}

func linkName(id link.ID) string {
	name := fmt.Sprintf("link %d", id)
	if l, err := link.NewFromID(id); err == nil {
		defer l.Close()
		if info, err := l.Info(); err == nil {
			name += fmt.Sprintf(" (type %d, program %d)", info.Type, info.Program)
		}
	}
	return name
}

// errObjectsLeft: there are BPF objects that there were not before.
var errObjectsLeft = errors.New("BPF objects left")

// WaitNoNew waits until the kernel has no BPF object that it had not before: it frees them some time after their last
// user has let go. What is left at the end counts if it has the name of something of ours: other software of the
// machine may load programs at any time. Names are asked for only then: to open a PROG_ARRAY that is going away and
// close it again keeps it for good (prog_array_map_clear() in kernel/bpf/arraymap.c takes a reference for work that is
// scheduled already; seen on 6.18).
func WaitNoNew(ctx context.Context, before Snapshot, timeout time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := poll(limited, 10*time.Millisecond, func() error {
		now, err := Objects()
		if err != nil {
			return err
		}
		if before.Diff(now).Empty() {
			return nil
		}
		// cilium/ebpf maps global data into memory, and leaves it to this to unmap it
		runtime.GC()
		return errObjectsLeft
	})
	if err == nil {
		return nil
	}
	now, listErr := Objects()
	if listErr != nil {
		return errors.Join(err, listErr)
	}
	left, listErr := before.Diff(now).ours()
	if listErr != nil {
		return errors.Join(err, listErr)
	}
	if left.Empty() {
		return nil
	}
	return fmt.Errorf("%w: %s", errObjectsLeft, left)
}

// nameLen is how much of a name the kernel keeps (BPF_OBJ_NAME_LEN less the NUL).
const nameLen = 15

// ours returns those that have the names of our programs and maps, or of those that tests load as somebody else's, and
// the links to such programs.
func (d Difference) ours() (Difference, error) {
	spec, err := bpf.LoadDatapath()
	if err != nil {
		return Difference{}, err
	}
	names := map[string]bool{"foreign": true, "policy_source": true}
	for name := range spec.Programs {
		names[name[:min(len(name), nameLen)]] = true
	}
	for name := range spec.Maps {
		names[name[:min(len(name), nameLen)]] = true
	}
	var left Difference
	for _, id := range d.Programs {
		if isOurs(names, programName(id)) {
			left.Programs = append(left.Programs, id)
		}
	}
	for _, id := range d.Maps {
		if isOurs(names, mapName(id)) {
			left.Maps = append(left.Maps, id)
		}
	}
	for _, id := range d.Links {
		l, err := link.NewFromID(id)
		if err != nil {
			continue // gone
		}
		info, err := l.Info()
		_ = l.Close()
		if err == nil && isOurs(names, programName(info.Program)) {
			left.Links = append(left.Links, id)
		}
	}
	return left, nil
}

// isOurs takes what programName and mapName return, which have the name in quotes.
func isOurs(names map[string]bool, description string) bool {
	parts := strings.Split(description, "\"")
	return len(parts) == 3 && names[parts[1]]
}
