package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// NodeInfo is what is known of the programs and maps that all attachments share.
type NodeInfo struct {
	// Release whose programs they run: that which made them, or the last upgrade's.
	Release string
	// Created is when they were made.
	Created time.Time
	// Netns is the inode of the network namespace whose interfaces they serve.
	Netns uint64
	// Here tells whether that is the network namespace of the caller.
	Here bool
	// XDPFrags tells whether the XDP programs take multi-buffer packets.
	XDPFrags bool
	// Slots is how many attachments there can be, Taken how many there are.
	Slots, Taken int
	// Programs that are loaded; one that no attachment has needed yet is not.
	Programs []NodeProgram
}

// NodeProgram is a program that the node's attachments share.
type NodeProgram struct {
	Name   string // of its pin
	ID     ebpf.ProgramID
	Type   ebpf.ProgramType
	Tag    string // the kernel's hash of the instructions
	Loaded time.Time
	// Release that loaded it; "" if it does not say.
	Release string
}

// NodeInfo reads what is known of the node's programs and maps. It takes no lock. fs.ErrNotExist:
// there are none. ErrLayout: they were made by a release that notes it otherwise.
func (d *Datapath) NodeInfo() (*NodeInfo, error) {
	n, err := openNode(d.Root.Node())
	if err != nil {
		return nil, err
	}
	defer n.close()
	meta, err := n.meta()
	if err != nil {
		return nil, err
	}
	netns, err := netnsInode()
	if err != nil {
		return nil, err
	}
	taken, err := n.takenSlots()
	if err != nil {
		return nil, err
	}
	info := &NodeInfo{
		Release:  cString(meta.PluginVersion[:]),
		Created:  time.Unix(0, int64(meta.Created)),
		Netns:    meta.Netns,
		Here:     meta.Netns == netns,
		XDPFrags: meta.XdpFrags != 0,
		Slots:    int(n.slots.MaxEntries()),
		Taken:    len(taken),
	}
	for _, c := range compositions() {
		prog, err := n.programInfo(c.pin())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading program %s: %w", c.pin(), err)
		}
		info.Programs = append(info.Programs, *prog)
	}
	return info, nil
}

func (n *node) programInfo(name string) (*NodeProgram, error) {
	prog, err := ebpf.LoadPinnedProgram(filepath.Join(n.dir, name), nil)
	if err != nil {
		return nil, err
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return nil, err
	}
	notes, err := readNotes(prog)
	if err != nil {
		return nil, err
	}
	id, _ := info.ID()
	// on the clock that goes on while the machine sleeps (bpf_prog_load() in kernel/bpf/syscall.c)
	sinceBoot, _ := info.LoadTime()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return nil, fmt.Errorf("reading the time since boot: %w", err)
	}
	return &NodeProgram{
		Name: name, ID: id, Type: info.Type, Tag: info.Tag, Release: notes.release,
		Loaded: time.Now().Add(sinceBoot - time.Duration(now.Nano())),
	}, nil
}
