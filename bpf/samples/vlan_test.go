package samples

import (
	"testing"

	"github.com/xdp-cni/xdp-cni/tests/packets"
)

func vlanFrames(tag ...packets.Layer) map[string][]byte {
	with := func(layers ...packets.Layer) []byte {
		return frame(append(append([]packets.Layer{}, tag...), layers...)...)
	}
	return map[string][]byte{
		"arp":          with(packets.ARP{}),
		"ipv4":         with(packets.IPv4{}, packets.UDP{}, packets.Data(1472)),
		"ipv6":         with(packets.IPv6{}, packets.Fragment{Offset: 1}, packets.Data(100)),
		"802.1Q ipv4":  with(packets.VLAN{ID: 7}, packets.IPv4{}, packets.TCP{}),
		"802.1ad ipv6": with(packets.VLAN{ID: 9, Service: true}, packets.VLAN{ID: 7}, packets.IPv6{}, packets.TCP{}),
		"no payload":   with(packets.Payload{}),
	}
}

var vlanTags = map[string]packets.VLAN{
	"customer": {ID: 4094}, "service": {ID: 1, Service: true}, "priority": {ID: 0x6000 | 100},
}

func TestVLANPush(t *testing.T) {
	c := load(t, "vlan")
	p := c.Programs["xdp_vlan_push"]
	plain := vlanFrames()
	unchanged(t, p, plain) // no tag was set
	for name, layer := range vlanTags {
		tpid := uint16(packets.EtherTypeVLAN)
		if layer.Service {
			tpid = packets.EtherTypeQinQ
		}
		put(t, c.Maps["vlan_push"], uint32(0), VlanTag{Tpid: packets.NetworkOrder(tpid), Tci: packets.NetworkOrder(layer.ID)})
		for what, want := range vlanFrames(layer) {
			if what != "no payload" { // whose EtherType depends on what is in front
				t.Run(name+" "+what, func(t *testing.T) { expect(t, p, plain[what], xdpPass, want) })
			}
		}
	}
}

func TestVLANPop(t *testing.T) {
	p := load(t, "vlan").Programs["xdp_vlan_pop"]
	plain := vlanFrames()
	for name, layer := range vlanTags {
		for what, tagged := range vlanFrames(layer) {
			t.Run(name+" "+what, func(t *testing.T) { expect(t, p, tagged, xdpPass, plain[what]) })
		}
	}
	unchanged(t, p, map[string][]byte{"ipv4": plain["ipv4"], "arp": plain["arp"]})
	cut := shortened(frame(packets.VLAN{ID: 7}, packets.Payload{}))
	unchanged(t, p, cut)
}
