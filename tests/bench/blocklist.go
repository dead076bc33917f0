package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf/samples"
	"github.com/xdp-cni/xdp-cni/internal/prefixset"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// prefixCounts are the lengths of lists that are compared.
var prefixCounts = []int{1, 1000, 100_000}

// XDP actions (include/uapi/linux/bpf.h).
const (
	actionDrop = 1
	actionPass = 2
)

// spreadFactor takes numbers to addresses all over the address space, each to one of its own: it is odd (Knuth's
// multiplicative hash).
const spreadFactor = 2654435761

// prefixFamily is what differs between the families in a frame and in a list.
type prefixFamily struct {
	name      string
	off       int16 // of the four bytes of the destination that differ, in the frame
	frame     []byte
	bits      int
	mapName   string
	addressOf func([4]byte) netip.Addr
}

var prefixFamilies = []prefixFamily{
	{
		name: "IPv4", off: 14 + 16, bits: 32, mapName: samples.BlocklistMapBlocklistV4,
		frame:     packets.Pad(packets.Frame(packets.Ethernet{}, packets.IPv4{}, packets.UDP{}), packets.MinFrame),
		addressOf: netip.AddrFrom4,
	},
	{
		name: "IPv6", off: 14 + 24 + 4, bits: 64, mapName: samples.BlocklistMapBlocklistV6,
		frame: packets.Frame(packets.Ethernet{}, packets.IPv6{}, packets.UDP{}),
		addressOf: func(b [4]byte) netip.Addr {
			to := packets.DestinationIPv6.As16()
			copy(to[4:], b[:])
			return netip.AddrFrom16(to)
		},
	},
}

// list is one of n prefixes.
func (f prefixFamily) list(n int) (prefixes []netip.Prefix) {
	for i := range uint32(n) {
		var b [4]byte
		binary.NativeEndian.PutUint32(b[:], (i+1)*spreadFactor)
		prefixes = append(prefixes, netip.PrefixFrom(f.addressOf(b), f.bits).Masked())
	}
	return prefixes
}

// lookup is one figure: packets to any of so many addresses, on a list or not.
type lookup struct {
	family prefixFamily
	n      int // 0: a program that only passes
	hit    bool
	driver driver
	costs  series
}

// blocklist measures how long the sample of that name takes to find an address in its list, or not to.
func (b *bench) blocklist(ctx context.Context) (err error) {
	rounds := b.rounds(31)
	var lookups []*lookup
	defer func() {
		for _, l := range lookups {
			l.driver.close()
		}
	}()
	loads := map[string]time.Duration{}
	for _, family := range prefixFamilies {
		pass, err := loadLinear(samples.LoadVerdicts)
		if err != nil {
			return err
		}
		defer pass.Close()
		bare := &lookup{family: family}
		if bare.driver, err = addressDriver(pass.Programs[samples.VerdictsProgXdpPass], family, 1, 1); err != nil {
			return err
		}
		lookups = append(lookups, bare)
		for _, n := range prefixCounts {
			c, err := loadLinear(samples.LoadBlocklist)
			if err != nil {
				return err
			}
			defer c.Close()
			began := time.Now()
			if _, err := prefixset.Sync(c.Maps[family.mapName], family.list(n)); err != nil {
				return err
			}
			loads[fmt.Sprint(family.name, n)] = time.Since(began)
			for _, hit := range []bool{true, false} {
				l := &lookup{family: family, n: n, hit: hit}
				first := 1
				if !hit {
					first = n + 1
				}
				if l.driver, err = addressDriver(c.Programs[samples.BlocklistProgXdpBlocklist], family, first, n); err != nil {
					return err
				}
				lookups = append(lookups, l)
			}
		}
	}
	for round := range rounds {
		order := slices.Clone(lookups)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, l := range order {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := l.measure(); err != nil {
				return fmt.Errorf("%s, %d prefixes: %w", l.family.name, l.n, err)
			}
		}
	}
	return b.printBlocklist(lookups, loads, rounds)
}

// loadLinear loads a sample for frames in one buffer, as drivers are.
func loadLinear(load func() (*ebpf.CollectionSpec, error)) (*ebpf.Collection, error) {
	spec, err := load()
	if err != nil {
		return nil, err
	}
	for _, p := range spec.Programs {
		p.Flags &^= unix.BPF_F_XDP_HAS_FRAGS
	}
	return ebpf.NewCollection(spec)
}

// addressDriver gives each packet one of n destinations by chance, those of the numbers from first on, and calls the
// program.
func addressDriver(program *ebpf.Program, f prefixFamily, first, n int) (d driver, err error) {
	d.calls, err = ebpf.NewMap(&ebpf.MapSpec{Name: "bench_calls", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return d, err
	}
	if err := d.calls.Put(uint32(0), program); err != nil {
		return d, errors.Join(err, d.calls.Close())
	}
	factor := uint32(spreadFactor)
	d.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "bench_driver", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "BSD",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.FnGetPrandomU32.Call(),
			asm.Mul.Imm(asm.R0, int32(n)),
			asm.RSh.Imm(asm.R0, 32),
			asm.Add.Imm(asm.R0, int32(first)),
			asm.Mul.Imm(asm.R0, int32(factor)),
			asm.LoadMem(asm.R2, asm.R6, 0, asm.Word), // data
			asm.LoadMem(asm.R3, asm.R6, 4, asm.Word), // data_end
			asm.Mov.Reg(asm.R4, asm.R2),
			asm.Add.Imm(asm.R4, int32(f.off)+4),
			asm.JGT.Reg(asm.R4, asm.R3, "out"),
			asm.StoreMem(asm.R2, f.off, asm.R0, asm.Word),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.LoadMapPtr(asm.R2, d.calls.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"), // aborted: not what is wanted of any
			asm.Return(),
		},
	})
	if err != nil {
		return d, errors.Join(err, d.calls.Close())
	}
	return d, nil
}

// measure notes the processor time of a packet, and that the last one was dropped, or not, as it should be.
func (l *lookup) measure() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	restore, err := pin(sendCPU)
	if err != nil {
		return err
	}
	defer restore()
	begin := threadTime()
	action, err := l.driver.program.Run(&ebpf.RunOptions{Data: l.family.frame, Repeat: testRepeat})
	took := threadTime() - begin
	if err != nil {
		return err
	}
	want := uint32(actionPass)
	if l.hit {
		want = actionDrop
	}
	if action != want {
		return fmt.Errorf("action %d, want %d", action, want)
	}
	l.costs = append(l.costs, float64(took.Nanoseconds())/testRepeat)
	return nil
}

func (b *bench) printBlocklist(lookups []*lookup, loads map[string]time.Duration, rounds int) error {
	fmt.Fprintf(b.out, `
Nanoseconds a packet by BPF_PROG_TEST_RUN, over a program that only passes it: medians of %d rounds of %d packets, with
what reading the headers takes. Each packet is to another address, by chance, of as many as there are prefixes, all on
the list (and counted, and dropped) or none. The prefixes are spread over the address space; IPv4 /32, IPv6 /64.
"Loaded" is what xdpctl takes for it, without reading the file.

`, rounds, testRepeat)
	find := func(f prefixFamily, n int, hit bool) series {
		i := slices.IndexFunc(lookups, func(l *lookup) bool { return l.family.name == f.name && l.n == n && l.hit == hit })
		return lookups[i].costs
	}
	t := table{header: []string{"prefixes", "IPv4 on it", "not on it", "loaded, ms", "IPv6 on it", "not on it", "loaded, ms"}}
	for _, n := range prefixCounts {
		row := []string{fmt.Sprint(n)}
		for _, f := range prefixFamilies {
			for _, hit := range []bool{true, false} {
				row = append(row, fmt.Sprintf("%.0f", find(f, n, hit).minus(find(f, 0, false)).median()))
			}
			row = append(row, fmt.Sprintf("%.1f", milliseconds(loads[fmt.Sprint(f.name, n)])))
		}
		t.add(row...)
	}
	return t.write(b.out)
}
