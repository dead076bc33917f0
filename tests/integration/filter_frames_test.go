package integration

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// silence is how long a frame that must not come is waited for, once the filter has counted it.
const silence = 20 * time.Millisecond

// arrivals are the frames that come to a pod, as they were sent.
type arrivals struct {
	r       *filterRig
	capture *tests.Capture
	want    []byte
	from    *tests.Pod
}

// capture starts to look for frames that come to a pod with what frame has from its IP header on; but for the hop
// limit, as routers count that down.
func (r *filterRig) capture(at *tests.Pod, frame []byte) *arrivals {
	r.t.Helper()
	want := routed(frame)
	capture, err := tests.NewCapture(at, at.IfName, func(got []byte) bool { return bytes.Equal(routed(got), want) })
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = capture.Close() })
	from := r.peer
	if at == r.peer {
		from = r.pod
	}
	return &arrivals{r: r, capture: capture, want: want, from: from}
}

// routed is what of an IP packet routers do not change: neither the Ethernet header nor the hop limit, nor the checksum
// over that.
func routed(frame []byte) []byte {
	packet := bytes.Clone(frame[min(ethernetLen, len(frame)):])
	switch {
	case len(packet) >= ipv4Len && packet[0]>>4 == 4:
		packet[8], packet[10], packet[11] = 0, 0, 0
	case len(packet) >= ipv6Len && packet[0]>>4 == 6:
		packet[7] = 0
	}
	return packet
}

// send sends a frame from the other pod.
func (a *arrivals) send(frame []byte) {
	a.r.t.Helper()
	if err := tests.SendFrame(a.from, a.from.IfName, frame); err != nil {
		a.r.t.Fatal(err)
	}
}

// next waits for the frame.
func (a *arrivals) next(what string) {
	a.r.t.Helper()
	if _, err := a.capture.Next(a.r.t.Context(), patience); err != nil {
		a.r.t.Errorf("%s: %v", what, err)
	}
}

// none checks that the frame has not come. Call it when the filter has counted it.
func (a *arrivals) none(what string) {
	a.r.t.Helper()
	if _, err := a.capture.Next(a.r.t.Context(), silence); !errors.Is(err, os.ErrDeadlineExceeded) {
		a.r.t.Errorf("%s: a packet came that should not: %x, %v", what, a.want, err)
	}
}

// fromPeer makes a frame of the peer for an address, which is the pod's, of the layers behind IP.
func (r *filterRig) fromPeer(to netip.Addr, layers ...packets.Layer) []byte {
	r.t.Helper()
	src := r.peer.IPv4()
	if to.Is6() {
		src = r.peer.IPv6()
	}
	return r.frame(r.peer, src, to, layers...)
}

// fromPod makes a frame of the pod for an address, from any.
func (r *filterRig) fromPod(src, to netip.Addr, layers ...packets.Layer) []byte {
	r.t.Helper()
	return r.frame(r.pod, src, to, layers...)
}

// frame makes a frame that a pod would send: to the MAC of the next hop.
func (r *filterRig) frame(from *tests.Pod, src, to netip.Addr, layers ...packets.Layer) []byte {
	r.t.Helper()
	mac, err := from.MAC()
	if err != nil {
		r.t.Fatal(err)
	}
	ethernet := packets.Ethernet{Src: packets.MAC(mac), Dst: r.nextHop(from, to)}
	if to.Is6() {
		return packets.Frame(append([]packets.Layer{ethernet, packets.IPv6{Src: src, Dst: to}}, layers...)...)
	}
	return packets.Frame(append([]packets.Layer{ethernet, packets.IPv4{Src: src, Dst: to}}, layers...)...)
}

// nextHop is the MAC that a pod sends to for an address: that of the other pod's if they share a bridge, else the
// node's.
func (r *filterRig) nextHop(from *tests.Pod, to netip.Addr) packets.MAC {
	r.t.Helper()
	for _, other := range []*tests.Pod{r.pod, r.peer} {
		if other != from && r.shape == "bridge" && (other.IPv4() == to || other.IPv6() == to) {
			mac, err := other.MAC()
			if err != nil {
				r.t.Fatal(err)
			}
			return packets.MAC(mac)
		}
	}
	var gateway netlink.Link
	err := r.Do(func() (err error) {
		if r.shape == "bridge" {
			gateway, err = netlink.LinkByName("cni0")
			return err
		}
		index, err := from.HostIndex()
		if err != nil {
			return err
		}
		gateway, err = netlink.LinkByIndex(index)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return packets.MAC(gateway.Attrs().HardwareAddr)
}
