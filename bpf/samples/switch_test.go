package samples

import (
	"testing"

	"github.com/xdp-cni/xdp-cni/tests/packets"
)

const loopback = 1 // the index of an interface that there always is

func TestSwitch(t *testing.T) {
	c := load(t, "switch")
	p := c.Programs["xdp_redirect_mac"]
	short := frame(packets.IPv4{}, packets.UDP{}, packets.Data(100))
	unchanged(t, p, map[string][]byte{"unknown": short})
	put(t, c.Maps["mac_table"], SwitchMac{Bytes: packets.DestinationMAC},
		SwitchMacPort{Port: 3, MaxLength: uint32(len(short))})
	unchanged(t, p, map[string][]byte{"no interface": short})
	put(t, c.Maps["mac_ports"], uint32(3), uint32(loopback))
	for tag := range tags {
		f := behind(tag, packets.IPv4{}, packets.UDP{}, packets.Data(10))
		expect(t, p, f, xdpRedirect, f)
	}
	expect(t, p, short, xdpRedirect, short)
	to := func(mac packets.MAC) []byte {
		return packets.Frame(packets.Ethernet{Dst: mac}, packets.IPv6{}, packets.UDP{})
	}
	group := packets.MAC{0x33, 0x33, 0, 0, 0, 1}
	put(t, c.Maps["mac_table"], SwitchMac{Bytes: group}, SwitchMacPort{Port: 3, MaxLength: 1514})
	unchanged(t, p, map[string][]byte{
		"longer than the interface takes": frame(packets.IPv4{}, packets.UDP{}, packets.Data(101)),
		"another":                         to(packets.MAC{2, 0, 0, 0, 0, 3}),
		"to a group, though in the table": to(group),
		"to all":                          to(packets.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}),
	})
}
