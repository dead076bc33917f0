package bpf_test

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/filter"
	"github.com/xdp-cni/xdp-cni/plugin/filter/filtertest"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

var (
	podMAC  = packets.MAC(filtertest.Pod().MAC)
	pod4    = filtertest.Pod().Addresses[0]
	pod6    = filtertest.Pod().Addresses[1]
	remote4 = netip.MustParseAddr("10.9.0.1")
	remote6 = netip.MustParseAddr("fd09::1")
)

// filtered is a pod with a filter in force.
type filtered struct {
	*bench
	trial
}

// newFiltered gives the loopback interface's pod a filter.
func newFiltered(t testing.TB, text string) *filtered {
	t.Helper()
	f := &filtered{bench: newBench(t)}
	parsed, _, err := conf.ParseFilter([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	compiled, err := filter.Compile(parsed, filtertest.Pod().Addresses)
	if err != nil {
		t.Fatal(err)
	}
	f.slot = firstSlot
	f.policies[0] = f.newPolicy(t, filtertest.Pod(), compiled, 7)
	f.flows = f.newInner(t, bpf.DatapathMapFlows, int(parsed.MaxFlows), nil, nil)
	t.Cleanup(func() {
		f.flows.Close()
		f.policies[0].close()
	})
	f.enter(t, &f.trial)
	f.install(t, &f.trial, 0)
	return f
}

// enter enters a pod's flows and its first policy.
func (f *filtered) enter(t testing.TB, pod *trial) {
	t.Helper()
	policy, place := pod.policies[0], []uint32{pod.slot * places}
	put(t, f.Policies, place[0], policy.header)
	putMaps(t, f.PodPolicyWords, place, []*ebpf.Map{policy.words})
	putMaps(t, f.PodPolicyPrefixes, place, []*ebpf.Map{policy.prefixes})
	putMaps(t, f.PodRuleCounters, place, []*ebpf.Map{policy.counters})
	putMaps(t, f.PodFlows, []uint32{pod.slot}, []*ebpf.Map{pod.flows})
}

// sends sends a frame and fails the test unless it passes as said.
func (f *filtered) sends(t testing.TB, d conf.Direction, frame []byte, want bool) {
	t.Helper()
	pass, err := f.send(f.XdpEgress, frame, d, false)
	if err != nil {
		t.Fatal(err)
	}
	if pass != want {
		t.Errorf("%s of %x passes: %v, want %v", d, frame, pass, want)
	}
}

// out is a frame that the pod sends, and in one that it gets.
func out(layers ...packets.Layer) []byte {
	return packets.Frame(append([]packets.Layer{packets.Ethernet{Src: podMAC}}, layers...)...)
}

func in(layers ...packets.Layer) []byte {
	return packets.Frame(append([]packets.Layer{packets.Ethernet{Dst: podMAC}}, layers...)...)
}

func out4() packets.IPv4 { return packets.IPv4{Src: pod4, Dst: remote4} }
func in4() packets.IPv4  { return packets.IPv4{Src: remote4, Dst: pod4} }

// TestFailClosed takes away what a filter needs, piece by piece: nothing may pass.
func TestFailClosed(t *testing.T) {
	open := `{"stateful":false,"antiSpoof":false,"default":{"egress":"allow","ingress":"allow"}}`
	frame := out(out4(), packets.UDP{})
	for _, test := range []struct {
		name   string
		remove func(*filtered) error
	}{
		{"flows", func(f *filtered) error { return f.PodFlows.Delete(f.slot) }},
		{"words", func(f *filtered) error { return f.PodPolicyWords.Delete(f.slot * places) }},
		{"prefixes", func(f *filtered) error { return f.PodPolicyPrefixes.Delete(f.slot * places) }},
		{"policy", func(f *filtered) error { return f.Policies.Put(f.slot*places, bpf.DatapathPolicy{}) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFiltered(t, open)
			f.sends(t, conf.Egress, frame, true)
			if err := test.remove(f); err != nil {
				t.Fatal(err)
			}
			before := f.pod.counters(t)
			f.sends(t, conf.Egress, frame, false)
			f.sends(t, conf.Ingress, in(in4(), packets.UDP{}), false)
			for d, got := range f.pod.counters(t).minus(before) {
				if n := got[bpf.DatapathTableTABLE_VERDICT][bpf.DatapathVerdictVERDICT_DROP].Packets; n != 1 {
					t.Errorf("direction %d: %d packets counted as dropped, want 1", d, n)
				}
			}
		})
	}
}

// TestRuleCounters: packets, bytes and time of what a rule decided, and no other rule's.
func TestRuleCounters(t *testing.T) {
	f := newFiltered(t, `{"stateful":false,"rules":[
		{"name":"no","direction":"egress","action":"deny","protocol":"tcp"},
		{"name":"dns","direction":"egress","action":"deny","protocol":"udp","ports":["53"]},
		{"name":"in","direction":"ingress","action":"allow","protocol":"udp"}]}`)
	frame := out(out4(), packets.UDP{Ports: &packets.Ports{Src: 1, Dst: 53}}, packets.Data(20))
	before := monotonic(t)
	f.sends(t, conf.Egress, frame, false)
	f.sends(t, conf.Egress, frame, false)
	if got := f.policies[0].ruleCounts(t); got[0] != 0 || got[1] != 2 || got[2] != 0 {
		t.Errorf("the rules decided %v packets, want [0 2 0]", got)
	}
	var sum bpf.DatapathRuleCounter
	for cpu := range ebpf.MustPossibleCPU() {
		var c bpf.DatapathRuleCounter
		if err := f.policies[0].counters.Lookup(uint32(cpu*3+1), &c); err != nil {
			t.Fatal(err)
		}
		sum.Bytes += c.Bytes
		sum.Last = max(sum.Last, c.Last)
	}
	if want := uint64(2 * len(frame)); sum.Bytes != want {
		t.Errorf("the rule decided %d bytes, want %d", sum.Bytes, want)
	}
	// the coarse clock is a tick behind, 10 ms at 100 Hz
	if last := time.Duration(sum.Last); last < before-20*time.Millisecond || last > monotonic(t) {
		t.Errorf("the rule last decided at %v, want one after %v", last, before)
	}
}

func monotonic(t testing.TB) time.Duration {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}

// TestFlowTimeouts ages flows in their table: they live to their time and no longer.
func TestFlowTimeouts(t *testing.T) {
	const ask = `{"default":{"egress":"allow","ingress":"deny"}}`
	ports := &packets.Ports{Src: 1000, Dst: 2000}
	back := &packets.Ports{Src: 2000, Dst: 1000}
	flags := func(f uint8) *uint8 { return &f }
	for _, test := range []struct {
		name     string
		packets  [][]byte // egress and ingress in turns
		reply    []byte   // ingress; passes with the flow only
		lifetime time.Duration
	}{
		{"UDP", [][]byte{out(out4(), packets.UDP{Ports: ports})}, in(in4(), packets.UDP{Ports: back}), time.Minute},
		{"UDP, answered", [][]byte{out(out4(), packets.UDP{Ports: ports}), in(in4(), packets.UDP{Ports: back})},
			in(in4(), packets.UDP{Ports: back}), 3 * time.Minute},
		{"TCP, opening", [][]byte{out(out4(), packets.TCP{Ports: ports, Flags: flags(2)})},
			in(in4(), packets.TCP{Ports: back, Flags: flags(0x12)}), 30 * time.Second},
		{"TCP", [][]byte{out(out4(), packets.TCP{Ports: ports, Flags: flags(2)}), in(in4(), packets.TCP{Ports: back, Flags: flags(0x12)})},
			in(in4(), packets.TCP{Ports: back, Flags: flags(0x10)}), 24 * time.Hour},
		{"TCP, closing", [][]byte{out(out4(), packets.TCP{Ports: ports, Flags: flags(0x11)}), in(in4(), packets.TCP{Ports: back, Flags: flags(0x11)})},
			in(in4(), packets.TCP{Ports: back, Flags: flags(0x10)}), 10 * time.Second},
		{"ICMP", [][]byte{out(out4(), packets.ICMP{Rest: &[4]byte{1, 2}})},
			in(in4(), packets.ICMP{Type: new(uint8(0)), Rest: &[4]byte{1, 2}}), 30 * time.Second},
		{"other", [][]byte{out(packets.IPv4{Src: pod4, Dst: remote4, Protocol: new(uint8(47))}, packets.Data(8))},
			in(packets.IPv4{Src: remote4, Dst: pod4, Protocol: new(uint8(47))}, packets.Data(8)), 10 * time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFiltered(t, ask)
			f.sends(t, conf.Ingress, test.reply, false)
			for i, frame := range test.packets {
				f.sends(t, conf.Direction(i%2), frame, true)
			}
			f.age(t, test.lifetime-time.Minute/12)
			f.sends(t, conf.Ingress, test.reply, true)
			f.sends(t, conf.Ingress, test.reply, true)

			f = newFiltered(t, ask)
			for i, frame := range test.packets {
				f.sends(t, conf.Direction(i%2), frame, true)
			}
			f.age(t, test.lifetime+time.Millisecond)
			f.sends(t, conf.Ingress, test.reply, false)
		})
	}
}

// age makes the only flow there is older.
func (f *filtered) age(t testing.TB, by time.Duration) {
	t.Helper()
	var key bpf.DatapathFlowKey
	var flow bpf.DatapathFlow
	entries := f.flows.Iterate()
	if !entries.Next(&key, &flow) {
		t.Fatalf("there is no flow: %v", entries.Err())
	}
	// before boot perhaps, which is as good
	flow.Seen -= uint64(by)
	if flow.Ends != 0 {
		flow.Ends -= uint64(by)
	}
	put(t, f.flows, key, flow)
}

// TestDropEvents compares what is told of drops, field by field.
func TestDropEvents(t *testing.T) {
	f := newFiltered(t, `{"default":{"egress":"deny","ingress":"deny"},"rules":[
		{"name":"a","direction":"ingress","action":"deny","protocol":"icmp"},
		{"name":"b","direction":"egress","action":"deny","protocol":"tcp","ports":["80"]},
		{"name":"c","direction":"egress","action":"audit","protocol":"udp","ports":["53"]},
		{"name":"d","direction":"egress","action":"allow","protocol":"udp","ports":["54"]}]}`)
	reader, err := ringbuf.NewReader(f.DropEvents)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	port := func(n uint16) [2]byte { return [2]byte(binary.BigEndian.AppendUint16(nil, n)) }
	event := func(e bpf.DatapathDropEvent) bpf.DatapathDropEvent {
		e.Ifindex, e.Generation = loopback, 7
		return e
	}
	ports := func(src, dst uint16) *packets.Ports { return &packets.Ports{Src: src, Dst: dst} }
	const none = 1<<32 - 1 // DROP_NO_RULE
	for _, test := range []struct {
		name      string
		direction conf.Direction
		frame     []byte
		pass      bool
		want      bpf.DatapathDropEvent
		source    uint16
		port      uint16
	}{
		{name: "rule", frame: out(out4(), packets.TCP{Ports: ports(4000, 80)}), want: bpf.DatapathDropEvent{
			Rule: 1, Source: pod4.As16(), Destination: remote4.As16(), Ethertype: 0x800, Protocol: 6,
			Reason: uint8(bpf.DatapathDropReasonDROP_RULE)}, source: 4000, port: 80},
		{name: "audit", frame: out(out4(), packets.UDP{Ports: ports(4000, 53)}), pass: true, want: bpf.DatapathDropEvent{
			Rule: 2, Source: pod4.As16(), Destination: remote4.As16(), Ethertype: 0x800, Protocol: 17,
			Reason: uint8(bpf.DatapathDropReasonDROP_RULE), Audit: 1}, source: 4000, port: 53},
		{name: "default", frame: out(packets.IPv6{Src: pod6, Dst: remote6}, packets.UDP{Ports: ports(5, 6)}), want: bpf.DatapathDropEvent{
			Rule: none, Source: pod6.As16(), Destination: remote6.As16(), Ethertype: 0x86dd, Protocol: 17,
			Reason: uint8(bpf.DatapathDropReasonDROP_DEFAULT)}, source: 5, port: 6},
		{name: "ingress", direction: conf.Ingress, frame: in(in4(), packets.ICMP{Rest: &[4]byte{1, 2, 0, 0}}), want: bpf.DatapathDropEvent{
			Rule: 0, Source: remote4.As16(), Destination: pod4.As16(), Ethertype: 0x800, Protocol: 1, Direction: 1,
			Reason: uint8(bpf.DatapathDropReasonDROP_RULE)}, port: 8 << 8},
		{name: "spoof", frame: out(packets.IPv4{Src: remote4, Dst: pod4}, packets.UDP{Ports: ports(7, 8)}), want: bpf.DatapathDropEvent{
			Rule: none, Source: remote4.As16(), Destination: pod4.As16(), Ethertype: 0x800, Protocol: 17,
			Reason: uint8(bpf.DatapathDropReasonDROP_SPOOF)}, source: 7, port: 8},
		{name: "fragment", frame: out(packets.IPv4{Src: pod4, Dst: remote4, FragmentOffset: 1, Protocol: new(uint8(17))}, packets.Data(8)),
			want: bpf.DatapathDropEvent{
				Rule: 2, Source: pod4.As16(), Destination: remote4.As16(), Ethertype: 0x800, Protocol: 17,
				Reason: uint8(bpf.DatapathDropReasonDROP_FRAGMENT)}},
		{name: "malformed", direction: conf.Ingress, frame: in(packets.IPv4{IHL: new(uint8(4))}, packets.UDP{}),
			want: bpf.DatapathDropEvent{Rule: none, Ethertype: 0x800, Direction: 1,
				Reason: uint8(bpf.DatapathDropReasonDROP_MALFORMED)}},
		{name: "not IP", frame: out(packets.Data(50)), want: bpf.DatapathDropEvent{
			Rule: none, Ethertype: packets.EtherTypeExpmtl, Reason: uint8(bpf.DatapathDropReasonDROP_DEFAULT)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := monotonic(t)
			f.sends(t, test.direction, test.frame, test.pass)
			reader.SetDeadline(time.Now().Add(5 * time.Second))
			record, err := reader.Read()
			if err != nil {
				t.Fatal(err)
			}
			var got bpf.DatapathDropEvent
			if _, err := binary.Decode(record.RawSample, binary.NativeEndian, &got); err != nil {
				t.Fatal(err)
			}
			if at := time.Duration(got.Time); at < before-20*time.Millisecond || at > monotonic(t) {
				t.Errorf("told of %v, want one after %v", at, before)
			}
			want := event(test.want)
			want.Time, want.Len = got.Time, uint32(len(test.frame))
			source, destination := port(test.source), port(test.port)
			want.SourcePort = binary.NativeEndian.Uint16(source[:])
			want.DestinationPort = binary.NativeEndian.Uint16(destination[:])
			if got != want {
				t.Errorf("told\n%+v, want\n%+v", got, want)
			}
		})
	}
}

// TestDropEventsAreLimited drops far more than may be told: the counters have all of it, the buffer no
// more than each CPU's share.
func TestDropEventsAreLimited(t *testing.T) {
	f := newFiltered(t, `{"default":{"egress":"deny","ingress":"deny"}}`)
	reader, err := ringbuf.NewReader(f.DropEvents)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	const drops = 1_000_000
	before := monotonic(t)
	start := f.pod.counters(t)
	frame := out(out4(), packets.UDP{})
	if _, err := f.TcEgress.Run(&ebpf.RunOptions{Data: frame, Repeat: drops}); err != nil {
		t.Fatal(err)
	}
	took := monotonic(t) - before
	counted := f.pod.counters(t).minus(start)
	want := bpf.DatapathDatarec{Packets: drops, Bytes: drops * uint64(len(frame))}
	if got := counted[0][bpf.DatapathTableTABLE_DROP][bpf.DatapathDropReasonDROP_DEFAULT-1]; got != want {
		t.Errorf("counted %+v drops, want %+v", got, want)
	}
	told := 0
	for {
		reader.SetDeadline(time.Now())
		if _, err := reader.Read(); err != nil {
			break
		}
		told++
	}
	// DROP_WINDOW_EVENTS in 2^DROP_WINDOW_SHIFT ns; one more window has begun before, and the run may
	// have gone from one CPU to another
	windows := (int(took>>27) + 2) * ebpf.MustPossibleCPU()
	if most := 64 * windows; told == 0 || told > most {
		t.Errorf("%d of %d drops were told in %v, want at most %d", told, drops, took, most)
	}
}

// TestTagsHideNothing: the stack takes any number of priority tags off a frame, whatever is behind them,
// and the parser two.
func TestTagsHideNothing(t *testing.T) {
	f := newFiltered(t, `{"rules":[{"name":"no","action":"deny","direction":"egress"},{"name":"nor","action":"deny","direction":"ingress"}]}`)
	for tags := range 5 {
		for _, service := range []bool{false, true} {
			layers := slices.Repeat([]packets.Layer{packets.VLAN{Service: service}}, tags)
			f.sends(t, conf.Egress, out(append(layers, packets.IPv4{Src: remote4, Dst: pod4}, packets.UDP{})...), false)
			f.sends(t, conf.Egress, out(append(layers, out4(), packets.UDP{})...), false)
			f.sends(t, conf.Ingress, in(append(layers, in4(), packets.UDP{})...), false)
		}
	}
	counted := f.pod.counters(t)
	for d := range counted {
		if got := counted[d][bpf.DatapathTableTABLE_DROP][bpf.DatapathDropReasonDROP_MALFORMED-1].Packets; got != uint64(8-4*d) {
			t.Errorf("%s: %d frames with too many tags are malformed, want %d", conf.Direction(d), got, 8-4*d)
		}
	}
}

// TestErrorsGoToWhoeverIsQuoted: an ICMP error about a flow passes to the sender of what it quotes, and not
// to others, or a pod could send anything to anybody.
func TestErrorsGoToWhoeverIsQuoted(t *testing.T) {
	f := newFiltered(t, `{"antiSpoof":false,"default":{"egress":"deny","ingress":"deny"},"rules":[
		{"name":"dns","direction":"egress","action":"allow","to":["10.9.0.1","fd09::1"],"protocol":"udp","ports":["53"]}]}`)
	asked, answered := packets.UDP{Ports: &packets.Ports{Src: 9, Dst: 53}}, packets.UDP{Ports: &packets.Ports{Src: 53, Dst: 9}}
	f.sends(t, conf.Egress, out(out4(), asked), true)
	f.sends(t, conf.Egress, out(packets.IPv6{Src: pod6, Dst: remote6}, asked), true)
	other4, other6 := netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("fd09::2")
	unreachable4 := func(quoted ...packets.Layer) []packets.Layer {
		return []packets.Layer{packets.ICMP{Type: new(uint8(3)), Code: 3}, packets.Payload(packets.Frame(quoted...))}
	}
	unreachable6 := func(quoted ...packets.Layer) []packets.Layer {
		return []packets.Layer{packets.ICMPv6{Type: new(uint8(1)), Code: 4}, packets.Payload(packets.Frame(quoted...))}
	}
	for _, test := range []struct {
		name      string
		direction conf.Direction
		ip        packets.Layer
		quoting   []packets.Layer
		want      bool
	}{
		{"from the pod", conf.Egress, out4(), unreachable4(in4(), answered), true},
		{"from the pod to another", conf.Egress, packets.IPv4{Src: pod4, Dst: other4}, unreachable4(in4(), answered), false},
		{"from the pod, IPv6", conf.Egress, packets.IPv6{Src: pod6, Dst: remote6}, unreachable6(packets.IPv6{Src: remote6, Dst: pod6}, answered), true},
		{"from the pod to another, IPv6", conf.Egress, packets.IPv6{Src: pod6, Dst: other6}, unreachable6(packets.IPv6{Src: remote6, Dst: pod6}, answered), false},
		{"for the pod", conf.Ingress, packets.IPv4{Src: other4, Dst: pod4}, unreachable4(out4(), asked), true},
		{"for another", conf.Ingress, packets.IPv4{Src: remote4, Dst: other4}, unreachable4(out4(), asked), false},
		{"for the pod, IPv6", conf.Ingress, packets.IPv6{Src: other6, Dst: pod6}, unreachable6(packets.IPv6{Src: pod6, Dst: remote6}, asked), true},
		{"for another, IPv6", conf.Ingress, packets.IPv6{Src: remote6, Dst: other6}, unreachable6(packets.IPv6{Src: pod6, Dst: remote6}, asked), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			layers := append([]packets.Layer{test.ip}, test.quoting...)
			if test.direction == conf.Egress {
				f.sends(t, conf.Egress, out(layers...), test.want)
			} else {
				f.sends(t, conf.Ingress, in(layers...), test.want)
			}
		})
	}
}

// TestNeighboursAreOnTheLink: what passes without rules has not come, and does not go, through a router.
func TestNeighboursAreOnTheLink(t *testing.T) {
	f := newFiltered(t, `{"default":{"egress":"deny","ingress":"deny"}}`)
	solicit := []packets.Layer{packets.ICMPv6{Type: new(uint8(135)), Rest: new([4]byte)}, packets.Payload(remote6.AsSlice())}
	report := []packets.Layer{packets.ICMPv6{Type: new(uint8(143)), Rest: new([4]byte)}, packets.Data(200)}
	for _, test := range []struct {
		name     string
		hopLimit uint8
		message  []packets.Layer
		want     bool
	}{
		{"neighbour discovery", 255, solicit, true},
		{"neighbour discovery, routed", 254, solicit, false},
		{"neighbour discovery, 1", 1, solicit, false},
		{"multicast listeners", 1, report, true},
		{"multicast listeners, routable", 2, report, false},
		{"multicast listeners, 255", 255, report, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			f.sends(t, conf.Egress, out(append([]packets.Layer{packets.IPv6{Src: pod6, Dst: remote6, HopLimit: &test.hopLimit}}, test.message...)...), test.want)
			f.sends(t, conf.Ingress, in(append([]packets.Layer{packets.IPv6{Src: remote6, Dst: pod6, HopLimit: &test.hopLimit}}, test.message...)...), test.want)
		})
	}
}

// TestDuplicateAddressDetection: who looks for another with an address claims it; whoever has not yet got
// that address for sure would give it up (addrconf_dad_failure() in net/ipv6/addrconf.c).
func TestDuplicateAddressDetection(t *testing.T) {
	f := newFiltered(t, `{}`)
	for _, test := range []struct {
		target netip.Addr
		want   bool
	}{{pod6, true}, {filtertest.Pod().Addresses[2], true}, {remote6, false}} {
		f.sends(t, conf.Egress, out(packets.IPv6{Src: netip.IPv6Unspecified(), Dst: remote6, HopLimit: new(uint8(255))},
			packets.ICMPv6{Type: new(uint8(135)), Rest: new([4]byte)}, packets.Payload(test.target.AsSlice())), test.want)
	}
}

// TestFlowsOfAnotherPod fills a pod's table of flows many times over: another pod's flow is still known.
func TestFlowsOfAnotherPod(t *testing.T) {
	f := newFiltered(t, `{"maxFlows":256,"default":{"egress":"allow","ingress":"deny"}}`)
	other := trial{slot: f.slot + 1, policies: f.policies, flows: f.newInner(t, bpf.DatapathMapFlows, 256, nil, nil)}
	defer other.flows.Close()
	f.enter(t, &other)

	frame := func(port uint16) []byte { return out(out4(), packets.UDP{Ports: &packets.Ports{Src: port, Dst: 53}}) }
	reply := func(port uint16) []byte { return in(in4(), packets.UDP{Ports: &packets.Ports{Src: 53, Dst: port}}) }
	for _, pod := range []*trial{&f.trial, &other} {
		f.install(t, pod, 0)
		f.sends(t, conf.Egress, frame(1), true)
		f.sends(t, conf.Ingress, reply(1), true)
	}
	f.install(t, &f.trial, 0)
	for port := range uint16(5000) {
		f.sends(t, conf.Egress, frame(1000+port), true)
	}
	f.sends(t, conf.Ingress, reply(1000), false) // forgotten: the table was full
	f.install(t, &other, 0)
	f.sends(t, conf.Ingress, reply(1), true)
}
