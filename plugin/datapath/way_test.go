package datapath_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

// wayRig is a node with pods of all modes, on two bridges and on none.
type wayRig struct {
	*rig
	pods []datapath.AttachOptions
	maps map[string]*ebpf.Map // of the node, that are open
}

// bridges are the bridges of the node, by index.
const bridges = 2

func newWayRig(t *testing.T) *wayRig {
	t.Helper()
	priv.Root(t)
	r := &wayRig{rig: &rig{t: t, node: tests.MustNode(t)}, maps: map[string]*ebpf.Map{}}
	err := r.node.Do(func() error {
		for i := range bridges {
			bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("br%d", i)}}
			if err := netlink.LinkAdd(bridge); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// add attaches a pod, on a bridge unless that is "".
func (r *wayRig) add(mode datapath.Mode, bridge, network string, redirect *datapath.Redirect) datapath.AttachOptions {
	r.t.Helper()
	n := len(r.pods) + 1
	_, veth, opts := r.newPod(fmt.Sprintf("pod%d", n), mode, vethDefault)
	if bridge != "" {
		err := r.node.Do(func() error {
			master, err := netlink.LinkByName(bridge)
			if err != nil {
				return err
			}
			host, err := netlink.LinkByIndex(veth.HostIndex)
			if err != nil {
				return err
			}
			return netlink.LinkSetMaster(host, master)
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	opts.Network, opts.Redirect, opts.PodMTU, opts.Peers = network, redirect, 1500-n, 0
	opts.Addresses = []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n), 0, byte(200 - n)}), 24),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 7: byte(200 - n), 15: byte(n)}), 64),
	}
	r.mustAttach(opts)
	r.t.Cleanup(func() { r.mustDetach(opts) })
	r.pods = append(r.pods, opts)
	return opts
}

// pinned opens one of the node's maps.
func (r *wayRig) pinned(name string) *ebpf.Map {
	r.t.Helper()
	if m := r.maps[name]; m != nil {
		return m
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(pins.NewRoot(r.node.BPFFS).Node(), name), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { m.Close() })
	r.maps[name] = m
	return m
}

// attachment returns the attachment of a pod.
func (r *wayRig) attachment(opts datapath.AttachOptions) datapath.Attachment {
	r.t.Helper()
	list, err := datapath.New(datapath.Options{Root: pins.NewRoot(r.node.BPFFS)}).List()
	i := slices.IndexFunc(list, func(a datapath.Attachment) bool { return a.Meta.ContainerID == opts.ContainerID })
	if err != nil || i < 0 {
		r.t.Fatalf("%v: %v", opts.ContainerID, err)
	}
	return list[i]
}

// slotOf returns the slot of a pod, which has the one that its index names.
func (r *wayRig) slotOf(opts datapath.AttachOptions) (number uint32, slot bpf.DatapathSlot) {
	r.t.Helper()
	slots := r.pinned(bpf.DatapathMapSlots)
	number = uint32(opts.HostIndex) & (slots.MaxEntries() - 1)
	if err := slots.Lookup(number, &slot); err != nil || slot.Ifindex != uint32(opts.HostIndex) {
		r.t.Fatalf("slot %d: %+v, %v", number, slot, err)
	}
	return number, slot
}

func (r *wayRig) change(opts datapath.AttachOptions, change func(*bpf.DatapathSlot)) {
	r.t.Helper()
	number, slot := r.slotOf(opts)
	change(&slot)
	if err := r.pinned(bpf.DatapathMapSlots).Put(number, slot); err != nil {
		r.t.Fatal(err)
	}
}

func (r *wayRig) endpoints() *datapath.Endpoints {
	r.t.Helper()
	var all *datapath.Endpoints
	err := r.do(func(d *datapath.Datapath) (err error) {
		all, err = d.Endpoints()
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}

var sizes = datapath.Redirect{MaxEndpoints: 64, MaxFlows: 128}

// TestEndpoints has an address in each state.
func TestEndpoints(t *testing.T) {
	r := newWayRig(t)
	if all := r.endpoints(); len(all.List) != 0 || all.MaxEndpoints != 0 {
		t.Errorf("without a node: %+v", all)
	}
	r.add(datapath.ModeTCX, "", "net", nil)
	if all := r.endpoints(); len(all.List) != 0 || all.MaxEndpoints != 0 {
		t.Errorf("without a pod that has redirect: %+v", all)
	}
	across := sizes
	across.AcrossNetworks = true
	bridged := r.add(datapath.ModeTCX, "br1", "net", &sizes)
	routed := r.add(datapath.ModeGeneric, "", "net", &across)
	stale := r.add(datapath.ModeTCX, "", "other", &sizes)
	off := r.add(datapath.ModeTCX, "", "other", &sizes)
	missing := r.add(datapath.ModeTCX, "", "other", &sizes)
	taken := r.add(datapath.ModeTCX, "", "taken", &sizes)
	later := r.add(datapath.ModeTCX, "", "taken", &sizes)

	r.change(stale, func(s *bpf.DatapathSlot) { s.Owner++ })
	r.change(off, func(s *bpf.DatapathSlot) { s.Flags &^= uint32(bpf.DatapathSlotFlagSLOT_REDIRECT) })
	entries := r.pinned(bpf.DatapathMapEndpoints)
	key := func(opts datapath.AttachOptions) bpf.DatapathEndpointKey {
		_, slot := r.slotOf(opts)
		return bpf.DatapathEndpointKey{Network: slot.Self.Network, Address: opts.Addresses[0].Addr().As16()}
	}
	if err := entries.Delete(key(missing)); err != nil {
		t.Fatal(err)
	}
	_, laterSlot := r.slotOf(later)
	if err := entries.Put(key(taken), laterSlot.Self); err != nil {
		t.Fatal(err)
	}
	if err := r.pinned(bpf.DatapathMapDirectFlows).Put(bpf.DatapathDirectKey{}, bpf.DatapathDirectFlow{}); err != nil {
		t.Fatal(err)
	}

	all := r.endpoints()
	if all.Entered != 13 || all.MaxEndpoints != 64 || all.Flows != 1 || all.MaxFlows != 128 {
		t.Errorf("%d of %d addresses, %d of %d flows", all.Entered, all.MaxEndpoints, all.Flows, all.MaxFlows)
	}
	states := func(opts datapath.AttachOptions) (states []datapath.EndpointState) {
		for _, e := range all.List {
			if e.Attachment != nil && e.Attachment.Meta.ContainerID == opts.ContainerID && e.Address.Is4() {
				states = append(states, e.State)
			}
		}
		return states
	}
	for _, want := range []struct {
		name string
		opts datapath.AttachOptions
		want []datapath.EndpointState
	}{
		{"bridged", bridged, []datapath.EndpointState{datapath.EndpointInForce}},
		{"routed", routed, []datapath.EndpointState{datapath.EndpointInForce}},
		{"stale", stale, []datapath.EndpointState{datapath.EndpointStale}},
		{"off", off, []datapath.EndpointState{datapath.EndpointOff}},
		{"missing", missing, []datapath.EndpointState{datapath.EndpointMissing}},
		{"taken", taken, []datapath.EndpointState{datapath.EndpointTaken}},
		{"later", later, []datapath.EndpointState{datapath.EndpointInForce, datapath.EndpointInForce}},
		{"no redirect", r.pods[0], nil},
	} {
		if have := states(want.opts); !slices.Equal(have, want.want) {
			t.Errorf("%s: states %v, want %v", want.name, have, want.want)
		}
	}
	for i, e := range all.List {
		if i > 0 && e.Address.Less(all.List[i-1].Address) {
			t.Errorf("%s comes behind %s", e.Address, all.List[i-1].Address)
		}
		switch e.Address {
		case bridged.Addresses[0].Addr():
			if e.BridgeName != "br1" || e.AcrossNetworks || e.Mode != datapath.ModeTCX || e.MTU != bridged.PodMTU ||
				e.HostIndex != bridged.HostIndex || e.PodMAC.String() != bridged.PodMAC.String() {
				t.Errorf("bridged: %+v", e)
			}
		case routed.Addresses[0].Addr():
			if e.Bridge != 0 || e.BridgeName != "" || !e.AcrossNetworks || e.Mode != datapath.ModeGeneric || e.TakesFrames {
				t.Errorf("routed: %+v", e)
			}
		}
	}
}

// wayProgram loads a program that returns what redirect_way() says of the packet in the CPU's view. It works
// on the node's own maps.
func wayProgram(r *wayRig, slot uint32) *ebpf.Program {
	r.t.Helper()
	spec, err := bpf.LoadDatapath()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := spec.Variables["config_redirect"].Set(uint8(1)); err != nil {
		r.t.Fatal(err)
	}
	from := spec.Programs[bpf.DatapathProgTcEgress]
	functions := map[string]asm.Instructions{}
	var name string
	for _, ins := range from.Instructions {
		if symbol := ins.Symbol(); symbol != "" {
			name = symbol
		}
		functions[name] = append(functions[name], ins)
	}
	program := asm.Instructions{
		asm.Mov.Imm(asm.R1, int32(slot)),
		asm.Call.Label("redirect_way"),
		asm.Return(),
	}
	program[0].Metadata = from.Instructions[0].Metadata
	taken := map[string]bool{}
	var take func(instructions asm.Instructions)
	take = func(instructions asm.Instructions) {
		for _, ins := range instructions {
			called := ins.Reference()
			if !ins.IsFunctionCall() || taken[called] {
				continue
			}
			taken[called] = true
			program = append(program, functions[called]...)
			take(functions[called])
		}
	}
	take(program)
	from.Instructions = program
	replacements := map[string]*ebpf.Map{}
	for _, name := range []string{
		bpf.DatapathMapSlots, bpf.DatapathMapViews, bpf.DatapathMapEndpoints, bpf.DatapathMapDirectFlows,
	} {
		replacements[name] = r.pinned(name)
		spec.Maps[name].MaxEntries = replacements[name].MaxEntries()
	}
	spec.Programs, spec.Variables = map[string]*ebpf.ProgramSpec{"way": from}, nil
	used := map[string]bool{}
	for _, ins := range program {
		if ins.IsLoadFromMap() {
			used[ins.Reference()] = true
		}
	}
	for name := range spec.Maps {
		if !used[name] {
			delete(spec.Maps, name)
		}
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements})
	if err != nil {
		r.t.Fatalf("%+v", err)
	}
	r.t.Cleanup(collection.Close)
	return collection.Programs["way"]
}

// port returns what lies in memory in network byte order.
func port(number uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, number))
}

// TestWay compares the ways of random packets, on random states of the node, with what the packet path says.
func TestWay(t *testing.T) {
	r := newWayRig(t)
	across := sizes
	across.AcrossNetworks = true
	r.add(datapath.ModeTCX, "br0", "net", &sizes)
	r.add(datapath.ModeGeneric, "br0", "net", &sizes)
	r.add(datapath.ModeNative, "br0", "net", &sizes)
	r.add(datapath.ModeTCX, "br1", "net", &sizes)
	r.add(datapath.ModeTCX, "", "net", &sizes)
	r.add(datapath.ModeTCX, "", "elsewhere", &sizes)
	r.add(datapath.ModeTCX, "", "net", &across)
	r.add(datapath.ModeTCX, "br0", "net", nil)

	seed := uint64(20240511)
	random := rand.New(rand.NewPCG(seed, 0))
	some := func(of int) bool { return random.IntN(of) == 0 }
	views, flows, entries := r.pinned(bpf.DatapathMapViews), r.pinned(bpf.DatapathMapDirectFlows), r.pinned(bpf.DatapathMapEndpoints)
	attachments, programs := []datapath.Attachment{}, []*ebpf.Program{}
	for _, opts := range r.pods {
		number, _ := r.slotOf(opts)
		attachments, programs = append(attachments, r.attachment(opts)), append(programs, wayProgram(r, number))
	}
	cpus := ebpf.MustPossibleCPU()
	seen := map[string]int{}
	for i := range 10000 {
		from := random.IntN(len(r.pods) - 1) // the last has no redirect, and no program asks for its way
		to := r.pods[random.IntN(len(r.pods))]
		if !some(5) {
			to = r.pods[random.IntN(5)] // of the network of most
		}
		sender, target := r.pods[from], to
		family := random.IntN(2)
		source, destination := sender.Addresses[family].Addr(), target.Addresses[family].Addr()
		if some(30) {
			destination = destination.Next()
		}
		r.change(sender, func(s *bpf.DatapathSlot) {
			s.Flags |= uint32(bpf.DatapathSlotFlagSLOT_REDIRECT)
			before, after := uint32(random.IntN(2)), uint32(0)
			if some(10) {
				after = 1
			}
			s.Flags &= 1<<bpf.DatapathSlotNumberSLOT_BEFORE - 1 // those of the trial before
			s.Flags |= before<<bpf.DatapathSlotNumberSLOT_BEFORE | after<<bpf.DatapathSlotNumberSLOT_AFTER
		})
		_, senderSlot := r.slotOf(sender)
		_, targetSlot := r.slotOf(target)

		// the state: whether the target takes frames, is on, is its slot's; and what is known of the flow
		takes := some(2)
		if target.Redirect != nil {
			r.change(target, func(s *bpf.DatapathSlot) {
				s.Flags |= uint32(bpf.DatapathSlotFlagSLOT_REDIRECT)
				if some(20) && target.HostIndex != sender.HostIndex {
					s.Flags &^= uint32(bpf.DatapathSlotFlagSLOT_REDIRECT)
				}
				s.Self.Flags = 0
				if takes {
					s.Self.Flags = uint8(bpf.DatapathEndpointFlagENDPOINT_TAKES_FRAMES)
				}
				targetSlot = *s
			})
			entry := targetSlot.Self
			if some(20) {
				entry.Owner++
			}
			key := bpf.DatapathEndpointKey{Network: targetSlot.Self.Network, Address: target.Addresses[family].Addr().As16()}
			if err := entries.Put(key, entry); err != nil {
				t.Fatal(err)
			}
		}

		// the packet
		p := datapath.Packet{
			Protocol: []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP}[random.IntN(3)],
			Source:   netip.AddrPortFrom(source, uint16(random.IntN(3))), Destination: netip.AddrPortFrom(destination, uint16(random.IntN(3))),
			Special: some(30), Length: 100, Hops: 64, DestinationMAC: net.HardwareAddr(targetSlot.Self.Mac[:]),
		}
		p.SYN = p.Protocol == unix.IPPROTO_TCP && some(4)
		if senderSlot.Self.Segment == 0 || some(3) {
			p.DestinationMAC = net.HardwareAddr(senderSlot.Self.RouterMac[:])
		}
		if some(20) {
			p.DestinationMAC = net.HardwareAddr{2, 1, 1, 1, 1, byte(i)}
		}
		if some(10) {
			p.Length = 1480 + random.IntN(30)
		}
		if some(10) {
			p.Hops = uint8(random.IntN(3))
		}
		if some(4) {
			_ = flows.Delete(flowKey(senderSlot.Self.Network, p))
		} else if err := flows.Put(flowKey(senderSlot.Self.Network, p), randomFlow(random, t, senderSlot.Owner, targetSlot.Owner, senderIsLow(p), p.Protocol)); err != nil {
			t.Fatal(err)
		}

		var have *datapath.Way
		err := r.do(func(d *datapath.Datapath) (err error) {
			have, err = d.Way(attachments[from], p)
			return err
		})
		if err != nil || have.Sender != datapath.EndpointInForce {
			t.Fatalf("%+v, %v", have, err)
		}
		view := bpf.DatapathView{Packets: 1, DatagramLen: uint32(p.Length), Hops: p.Hops, Sequence: random.Uint32()}
		view.Key = bpf.DatapathFlowKey{
			Local: source.As16(), Remote: destination.As16(), Protocol: p.Protocol,
			LocalPort: port(p.Source.Port()), RemotePort: port(p.Destination.Port()),
		}
		copy(view.DestinationMac[:], p.DestinationMAC)
		if p.SYN {
			view.TcpFlags = 2
		}
		if !p.Special {
			view.Flags = viewPlain
		}
		all := make([]bpf.DatapathView, cpus)
		for cpu := range all {
			all[cpu] = view
		}
		if err := views.Put(uint32(0), all); err != nil {
			t.Fatal(err)
		}
		want, err := programs[from].Run(&ebpf.RunOptions{Data: make([]byte, 64)})
		if err != nil {
			t.Fatal(err)
		}
		if err := views.Lookup(uint32(0), &all); err != nil {
			t.Fatal(err)
		}
		routed := slices.ContainsFunc(all, func(v bpf.DatapathView) bool { return v.Routed != 0 })
		if uint32(have.Way) != want || have.Way == bpf.DatapathWayWAY_DIRECT && have.Routed != routed {
			t.Fatalf("seed %d, packet %d: %+v of pod %d: way %d routed %v, and the packet path says %d %v",
				seed, i, p, from+1, have.Way, have.Routed, want, routed)
		}
		seen[fmt.Sprint(want, " routed ", routed && want == 0, " ", p.Protocol)]++
	}
	for _, protocol := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		for way := range bpf.DatapathWayWAY_PROGRAMS + 1 {
			if seen[fmt.Sprint(uint32(way), " routed false ", protocol)] < 10 {
				t.Errorf("way %d of protocol %d is hardly tested: %v", way, protocol, seen)
			}
		}
		if seen[fmt.Sprint("0 routed true ", protocol)] < 20 {
			t.Errorf("routed ways of protocol %d are hardly tested: %v", protocol, seen)
		}
	}
}

// viewPlain is VIEW_PLAIN of bpf/lib/view.h.
const viewPlain = 1 << 12

func senderIsLow(p datapath.Packet) bool {
	source, destination := p.Source.Addr().As16(), p.Destination.Addr().As16()
	// words of 8 bytes, read as this machine does
	for _, at := range []int{0, 8} {
		for byteOf := 7; byteOf >= 0; byteOf-- {
			place := at + byteOf
			if !littleEndian {
				place = at + 7 - byteOf
			}
			if source[place] != destination[place] {
				return source[place] < destination[place]
			}
		}
	}
	return false
}

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

func flowKey(network uint64, p datapath.Packet) bpf.DatapathDirectKey {
	key := bpf.DatapathDirectKey{
		Network: network, Low: p.Source.Addr().As16(), High: p.Destination.Addr().As16(),
		LowPort: port(p.Source.Port()), HighPort: port(p.Destination.Port()), Protocol: p.Protocol,
	}
	if !senderIsLow(p) {
		key.Low, key.High, key.LowPort, key.HighPort = key.High, key.Low, key.HighPort, key.LowPort
	}
	return key
}

// randomFlow is one that is often known to be untranslated, and else nearly so.
func randomFlow(random *rand.Rand, t *testing.T, sender, target uint64, low bool, protocol uint8) bpf.DatapathDirectFlow {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	f := bpf.DatapathDirectFlow{
		Seen: uint64(now.Nano()), Owner: [2]uint64{target, sender}, Sent: [2]uint32{1, 1}, Delivered: [2]uint32{1, 1},
		SynSent: 7, SynDelivered: 7, AnswerSent: 8, AnswerDelivered: 8, Opener: uint8(random.IntN(2)),
	}
	if low {
		f.Owner = [2]uint64{sender, target}
	}
	switch random.IntN(14) {
	case 0:
		f.Owner[random.IntN(2)]++
	case 1:
		f.Sent[random.IntN(2)]++
	case 2:
		f.Delivered[random.IntN(2)]++
	case 3:
		f.Delivered[random.IntN(2)] = 0
	case 4:
		f.Sent[0], f.Delivered[0] = 0, 0
	case 5:
		f.SynDelivered = ^f.SynSent
	case 9:
		f.AnswerDelivered++
	case 6:
		f.Tainted = 1
	case 7:
		f.Sent[random.IntN(2)] = 0
	case 8:
		f.Seen -= uint64([]int{119, 121}[random.IntN(2)]) * 1e9
	}
	return f
}
