package samples

import (
	"testing"

	"github.com/xdp-cni/xdp-cni/tests/packets"
)

func TestVerdicts(t *testing.T) {
	c := load(t, "verdicts")
	for name, action := range map[string]uint32{"xdp_pass": xdpPass, "xdp_drop": xdpDrop, "xdp_abort": xdpAborted} {
		for _, frame := range [][]byte{
			frame(packets.ARP{}), frame(packets.IPv4{}, packets.UDP{}), frame(packets.IPv6{}, packets.TCP{}),
		} {
			t.Run(name, func(t *testing.T) { expect(t, c.Programs[name], frame, action, frame) })
		}
	}
}
