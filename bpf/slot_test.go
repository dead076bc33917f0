package bpf_test

import (
	"testing"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// TestSlots sends a frame through an interface that has a slot, has it elsewhere, or has none.
func TestSlots(t *testing.T) {
	const (
		elsewhere = 77
		collides  = loopback + maxPods // an ifindex with the same low bits
	)
	frame := frame(packets.IPv4{}, packets.TCP{}, packets.Data(10))
	taken := bpf.DatapathSlot{Ifindex: collides}
	free := bpf.DatapathSlot{}
	for _, test := range []struct {
		name     string
		own      bpf.DatapathSlot // the slot by the low bits of the ifindex
		overflow []uint32         // of the ifindex, if it is there
		there    bpf.DatapathSlot // the slot elsewhere
		counted  string           // where
	}{
		{"own slot", bpf.DatapathSlot{Ifindex: loopback}, nil, free, "own"},
		{"own slot before overflow", bpf.DatapathSlot{Ifindex: loopback}, []uint32{elsewhere}, bpf.DatapathSlot{Ifindex: loopback}, "own"},
		{"no slot", free, nil, free, ""},
		{"slot is another's", taken, nil, free, ""},
		{"overflow, slot is another's", taken, []uint32{elsewhere}, bpf.DatapathSlot{Ifindex: loopback}, "elsewhere"},
		{"overflow, slot is free again", free, []uint32{elsewhere}, bpf.DatapathSlot{Ifindex: loopback}, "elsewhere"},
		{"overflow to a free slot", taken, []uint32{elsewhere}, free, ""},
		{"overflow to another's slot", taken, []uint32{elsewhere}, bpf.DatapathSlot{Ifindex: 5}, ""},
		{"overflow to no slot", taken, []uint32{maxPods}, free, ""},
		{"slot elsewhere without overflow", taken, nil, bpf.DatapathSlot{Ifindex: loopback}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, true)
			own := r.addPod(t, loopback, 0, 0)
			there := r.addPod(t, elsewhere, 0, 0)
			put(t, r.Slots, uint32(loopback), test.own)
			put(t, r.Slots, uint32(elsewhere), test.there)
			for _, slot := range test.overflow {
				put(t, r.SlotOverflow, uint32(loopback), slot)
			}
			var want, wantOwn, wantThere counters
			for _, h := range r.hooks(nil) {
				if err := h.run(t, input{frame: frame}); err != nil {
					t.Fatal(err)
				}
				for d, counted := range tcp4.counters(h.direction, 1, uint64(len(frame))) {
					for table := range counted {
						for key, rec := range counted[table] {
							want[d][table][key].Packets += rec.Packets
							want[d][table][key].Bytes += rec.Bytes
						}
					}
				}
			}
			switch test.counted {
			case "own":
				wantOwn = want
			case "elsewhere":
				wantThere = want
			}
			if got := own.counters(t); got != wantOwn {
				t.Errorf("the pod in the own slot counted %v\nwant %v", got, wantOwn)
			}
			if got := there.counters(t); got != wantThere {
				t.Errorf("the pod elsewhere counted %v\nwant %v", got, wantThere)
			}
		})
	}
}

// TestMissingTables sends frames for a pod that lacks some of its tables, as one does for a moment
// while it is entered or removed: they pass, and the other tables count.
func TestMissingTables(t *testing.T) {
	r := newRig(t, true)
	p := r.addPod(t, loopback, loopback, bpf.DatapathSlotFlagSLOT_PEERS) // nor has it a map of peers
	var gone [directions][tables]bool
	for _, table := range []bpf.DatapathTable{
		bpf.DatapathTableTABLE_KIND, bpf.DatapathTableTABLE_VERDICT, bpf.DatapathTableTABLE_PROTOCOL,
	} {
		for d := range gone {
			if err := r.PodTables.Delete(loopback*podTables + uint32(d)*uint32(tables) + uint32(table)); err != nil {
				t.Fatal(err)
			}
			gone[d][table] = true
		}
		for _, h := range r.hooks(p) {
			in := input{frame: frame(packets.IPv6{}, packets.UDP{})}
			before := p.counters(t)
			if err := h.run(t, in); err != nil {
				t.Fatal(err)
			}
			want := udp6.counters(h.direction, 1, uint64(len(in.frame)))
			for d := range want {
				for table := range want[d] {
					if gone[d][table] {
						want[d][table] = [records]bpf.DatapathDatarec{}
					}
				}
			}
			if got := p.counters(t).minus(before); got != want {
				t.Errorf("%s without tables %v counted %v\nwant %v", h.name, gone, got, want)
			}
		}
	}
}
