package datapath_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// TestMemlock has a process of its own, which may lock no memory, attach a second pod: below
// kernel 5.11 that limits BPF objects, and the first pod's count against it.
func TestMemlock(t *testing.T) {
	r := newRig(t, datapath.ModeGeneric, vethDefault)
	_, _, other := r.newPod("other", datapath.ModeGeneric, vethDefault)
	r.mustAttach(r.opts)
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 0, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	r.attachKilled(other, "publishing") // the last step
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &before); err != nil {
		t.Fatal(err)
	}
	r.mustDetach(other)
	r.mustDetach(r.opts)
}
