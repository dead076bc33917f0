package bpf_test

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

const (
	loopback = 1 // the ifindex that a test run has unless its context names another

	maxPods   = 4096 // MAX_PODS in lib/pod.h
	podTables = 8    // POD_TABLES in lib/stats.h
	records   = 5    // TABLE_RECORDS in lib/stats.h

	directions = bpf.DatapathDirectionDIRECTIONS
	tables     = bpf.DatapathTableTABLES
)

// A rig is the packet path, loaded on its own, as the loader does for a node.
type rig struct {
	bpf.DatapathObjects
	spec *ebpf.CollectionSpec
}

func TestMain(m *testing.M) { tests.Main(m) }

// kernel is what the kernel has: nothing else loads than what the loader makes for it.
var kernel = sync.OnceValues(datapath.ProbeFeatures)

// haveFrags tells whether the kernel has multi-buffer XDP (5.18).
func haveFrags(t testing.TB) bool {
	t.Helper()
	f, err := kernel()
	if err != nil {
		t.Fatal(err)
	}
	return f.XDPFrags
}

// needFrags is for tests of multi-buffer XDP. Without it is not ok, and the kernel is held to that: what the loader does
// without for its sake does not load.
func needFrags(t testing.TB) (ok bool) {
	t.Helper()
	priv.Root(t)
	if haveFrags(t) {
		return true
	}
	collection, err := ebpf.NewCollection(loadSpec(t, true))
	if err == nil {
		collection.Close()
		t.Error("programs with multi-buffer XDP load, which the kernel was said not to have")
	}
	return false
}

// newRig loads the objects, as the loader does for this kernel; without frags as for one below 5.18.
func newRig(t testing.TB, frags bool) *rig {
	t.Helper()
	priv.Root(t)
	r := &rig{spec: loadSpec(t, frags && haveFrags(t))}
	if err := r.spec.LoadAndAssign(&r.DatapathObjects, nil); err != nil {
		t.Fatalf("loading the objects: %+v", err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func loadSpec(t testing.TB, frags bool) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := bpf.LoadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	if !frags {
		withoutFrags(t, spec)
	}
	if f, err := kernel(); err == nil && !f.CoarseClock { // 5.11
		if err := spec.Variables[bpf.DatapathVarConfigCoarseClock].Set(uint8(0)); err != nil {
			t.Fatal(err)
		}
	}
	return spec
}

// withoutFrags makes spec what the loader makes of it on a kernel without multi-buffer XDP.
func withoutFrags(t testing.TB, spec *ebpf.CollectionSpec) {
	t.Helper()
	if err := spec.Variables[bpf.DatapathVarConfigXdpFrags].Set(uint8(0)); err != nil {
		t.Fatal(err)
	}
	for _, prog := range spec.Programs {
		prog.Flags &^= unix.BPF_F_XDP_HAS_FRAGS
	}
}

// withRedirect makes spec what the loader makes of it for pods whose packets may go directly.
func withRedirect(t testing.TB, spec *ebpf.CollectionSpec) {
	t.Helper()
	if err := spec.Variables[bpf.DatapathVarConfigRedirect].Set(uint8(1)); err != nil {
		t.Fatal(err)
	}
}

// onOneCPU runs f on the same CPU each time: what programs note by CPU is then of all that came before.
func onOneCPU(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var cpus unix.CPUSet
	cpus.Set(0)
	// where it may not, a program runs on another CPU, and a test fails
	_ = unix.SchedSetaffinity(0, &cpus)
	f()
}

// A pod is one attachment's tables of counters.
type pod struct {
	tables [directions][tables]*ebpf.Map
}

// addPod enters a pod with empty tables in slot.
func (r *rig) addPod(t testing.TB, slot, ifindex uint32, flags bpf.DatapathSlotFlag) *pod {
	t.Helper()
	p := &pod{}
	for d := range p.tables {
		for table := range p.tables[d] {
			m, err := ebpf.NewMap(r.spec.Maps[bpf.DatapathMapXdpStatsMap])
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { m.Close() })
			index := slot*podTables + uint32(d)*uint32(tables) + uint32(table)
			put(t, r.PodTables, index, m)
			p.tables[d][table] = m
		}
	}
	put(t, r.Slots, slot, bpf.DatapathSlot{Ifindex: ifindex, Flags: uint32(flags)})
	return p
}

func put(t testing.TB, m *ebpf.Map, key, value any) {
	t.Helper()
	if err := m.Put(key, value); err != nil {
		t.Fatal(err)
	}
}

// counters are those of one pod, summed over the CPUs.
type counters [directions][tables][records]bpf.DatapathDatarec

// counters reads all tables of the pod.
func (p *pod) counters(t testing.TB) (sum counters) {
	t.Helper()
	cpus := ebpf.MustPossibleCPU()
	keys := make([]uint32, records)
	values := make([]bpf.DatapathDatarec, records*cpus)
	for d := range p.tables {
		for table, m := range p.tables[d] {
			n, err := lookupAll(m, keys, values)
			if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) || n != records {
				t.Fatalf("reading a table: %d records, %v", n, err)
			}
			for i, key := range keys {
				for _, rec := range values[i*cpus : (i+1)*cpus] {
					sum[d][table][key].Packets += rec.Packets
					sum[d][table][key].Bytes += rec.Bytes
				}
			}
		}
	}
	return sum
}

// noBatches: the kernel has no batches of per-CPU arrays (5.12 and older).
var noBatches atomic.Bool

// lookupAll reads a whole table.
func lookupAll(m *ebpf.Map, keys []uint32, values []bpf.DatapathDatarec) (int, error) {
	if !noBatches.Load() {
		var cursor ebpf.MapBatchCursor
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return n, err
		}
		noBatches.Store(true)
	}
	for i := range keys {
		var cpus []bpf.DatapathDatarec
		if err := m.Lookup(uint32(i), &cpus); err != nil {
			return i, err
		}
		keys[i] = uint32(i)
		copy(values[i*len(cpus):], cpus)
	}
	return len(keys), nil
}

// minus returns what was counted since before.
func (c counters) minus(before counters) counters {
	for d := range c {
		for table := range c[d] {
			for key := range c[d][table] {
				c[d][table][key].Packets -= before[d][table][key].Packets
				c[d][table][key].Bytes -= before[d][table][key].Bytes
			}
		}
	}
	return c
}

// String lists the counters that are not zero.
func (c counters) String() string {
	names := [directions][tables]string{
		{"egress verdict", "egress protocol", "egress kind", "egress drop"},
		{"ingress verdict", "ingress protocol", "ingress kind", "ingress drop"},
	}
	keys := [tables][records]string{
		{"aborted", "drop", "pass", "tx", "redirect"},
		{"tcp", "udp", "icmp", "icmpv6", "other"},
		{"ipv4", "ipv6", "other", "truncated", "malformed"},
		{"spoof", "rule", "default", "malformed", "fragment"},
	}
	var lines []string
	for d := range c {
		for table := range c[d] {
			for key, rec := range c[d][table] {
				if rec != (bpf.DatapathDatarec{}) {
					lines = append(lines, fmt.Sprintf("%s %s: %d packets, %d bytes",
						names[d][table], keys[table][key], rec.Packets, rec.Bytes))
				}
			}
		}
	}
	if lines == nil {
		return "nothing"
	}
	return strings.Join(lines, "; ")
}

// A hook is a program, as a frame of the pod at the loopback interface meets it.
type hook struct {
	name      string
	program   *ebpf.Program
	direction bpf.DatapathDirection
	xdp       bool
	pod       *pod
}

// newHooks loads the objects with frags, if the kernel has them, and without, and returns every
// program once, each with a pod.
func newHooks(t testing.TB) []hook {
	t.Helper()
	plain := newRig(t, false)
	if !haveFrags(t) {
		return plain.hooks(plain.addPod(t, loopback, loopback, 0))
	}
	frags := newRig(t, true)
	p := frags.addPod(t, loopback, loopback, 0)
	h := append(frags.hooks(p), plain.hooks(plain.addPod(t, loopback, loopback, 0))[0])
	h[len(h)-1].name += " without frags"
	return h
}

// hooks returns the programs of the rig, that of XDP first.
func (r *rig) hooks(p *pod) []hook {
	const egress, ingress = bpf.DatapathDirectionDIRECTION_EGRESS, bpf.DatapathDirectionDIRECTION_INGRESS
	return []hook{
		{bpf.DatapathProgXdpEgress, r.XdpEgress, egress, true, p},
		{bpf.DatapathProgTcEgress, r.TcEgress, egress, false, p},
		{bpf.DatapathProgTcIngress, r.TcIngress, ingress, false, p},
	}
}

// input is a frame and what a hook is told about it.
type input struct {
	frame    []byte
	readable int    // bytes of it that XDP can read in place; 0: as many as there can be
	gsoSize  uint32 // tc only
	gsoSegs  uint32 // tc only
}

// String gives what it takes to send the frame again.
func (in input) String() string {
	return fmt.Sprintf("%d bytes %x, readable %d, gso_size %d, gso_segs %d",
		len(in.frame), in.frame, in.readable, in.gsoSize, in.gsoSegs)
}

// skBuff is struct __sk_buff (include/uapi/linux/bpf.h); what is not named must be 0 in a test run.
type skBuff struct {
	_       [8]byte
	Mark    uint32
	_       [152]byte
	GSOSegs uint32
	_       [8]byte
	GSOSize uint32
	_       [12]byte
}

// pass is the verdict of the hook that lets a packet go on.
func (h hook) pass() uint32 {
	if h.xdp {
		return 2 // XDP_PASS
	}
	return 1<<32 - 1 // TC_ACT_UNSPEC, TCX_NEXT
}

// run sends a frame through the hook, and fails the test if the frame does not pass as it was.
// Its error is that of the kernel, which refuses some frames before the program runs.
func (h hook) run(t testing.TB, in input) error {
	t.Helper()
	opts := ebpf.RunOptions{Data: in.frame, DataOut: make([]byte, len(in.frame)+256), Repeat: 1}
	switch {
	case !h.xdp && (in.gsoSize != 0 || in.gsoSegs != 0):
		opts.Context = skBuff{GSOSize: in.gsoSize, GSOSegs: in.gsoSegs}
	case h.xdp && in.readable != 0:
		opts.Context = packets.XDPContext{DataEnd: uint32(in.readable)}
	}
	verdict, err := h.program.Run(&opts)
	if err != nil {
		return err
	}
	if verdict != h.pass() {
		t.Errorf("verdict %d, want %d", int32(verdict), int32(h.pass()))
	}
	if !bytes.Equal(opts.DataOut, in.frame) {
		t.Errorf("the frame came out changed:\n got %x\nwant %x", opts.DataOut, in.frame)
	}
	return nil
}
