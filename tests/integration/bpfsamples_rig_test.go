package integration

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// xdpModes are those in which pods run XDP programs.
var xdpModes = []string{"generic", "native"}

// inXDPModes runs a test of a sample in each of them.
func inXDPModes(t *testing.T, test func(t *testing.T, mode string)) {
	for _, mode := range xdpModes {
		t.Run(mode, func(t *testing.T) { test(t, mode) })
	}
}

// sampleProgram is how a network configuration names a program of bpf/samples.
func sampleProgram(t *testing.T, sample, program string) tests.Conf {
	t.Helper()
	object, err := tests.SampleObject(sample)
	if err != nil {
		t.Fatal(err)
	}
	return tests.Conf{"object": object, "program": program}
}

// sampleRig is a node whose pods run programs of bpf/samples.
type sampleRig struct {
	*tests.Node
	mode string
	w    *tests.Network
}

// newSampleRig makes a node with a network whose pods are on a bridge (n.Bridge), or routed (n.PTP).
func newSampleRig(t *testing.T, mode string, chain sampleChain, programs ...tests.Conf) *sampleRig {
	t.Helper()
	return newSampleRigOf(t, start(t), mode, chain, tests.Conf{"programs": programs})
}

// sampleChain is what makes the interfaces of a rig's pods.
type sampleChain func(*tests.Node, tests.Families, ...tests.Conf) tests.Conf

// newSampleRigOf is newSampleRig on a node, with another configuration.
func newSampleRigOf(t *testing.T, n *tests.Node, mode string, chain sampleChain, conf tests.Conf) *sampleRig {
	t.Helper()
	xdp := n.XDP(tests.Conf{"mode": mode}, conf)
	return &sampleRig{n, mode, tests.MustNetwork(t, n, tests.Conflist("net", "1.1.0", chain(n, tests.DualStack), xdp))}
}

// samplePod is a pod that runs them.
type samplePod struct {
	*tests.Pod
	rig              *sampleRig
	mac, host        packets.MAC // of its interface, and of the host end
	hostName         string
	hostIndex        int
	received, passed *tests.Capture // what of our frames comes to its interface, and to the host end behind XDP
}

// sampleMark is in the payload of all frames that tests send.
const sampleMark = "frame of a test"

func (r *sampleRig) add(t *testing.T, name string) *samplePod {
	t.Helper()
	p := &samplePod{Pod: tests.MustPod(t, r.Node, name), rig: r}
	tests.MustAdd(t, r.w, p.Pod)
	for _, address := range families(p.Pod) {
		if err := tests.WaitAddress(t.Context(), p, address); err != nil {
			t.Fatal(err)
		}
	}
	host, err := p.HostInterface()
	if err != nil {
		t.Fatal(err)
	}
	mac, err := p.MAC()
	if err != nil {
		t.Fatal(err)
	}
	p.mac, p.host = packets.MAC(mac), packets.MAC(host.Attrs().HardwareAddr)
	p.hostName, p.hostIndex = host.Attrs().Name, host.Attrs().Index
	if r.mode == "native" && !nativeTargets() {
		takesFrames(t, p.Pod, true)
	}
	p.received, p.passed = capture(t, p, p.IfName), capture(t, r, p.hostName)
	return p
}

func capture(t *testing.T, at tests.Place, ifname string) *tests.Capture {
	t.Helper()
	c, err := tests.NewCapture(at, ifname, func(frame []byte) bool { return bytes.Contains(frame, []byte(sampleMark)) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ethernet is the header of a frame from the pod to the node.
func (p *samplePod) ethernet() packets.Ethernet { return packets.Ethernet{Src: p.mac, Dst: p.host} }

func (p *samplePod) send(t *testing.T, frame []byte) {
	t.Helper()
	if err := tests.SendFrame(p, p.IfName, frame); err != nil {
		t.Fatal(err)
	}
}

// arrives waits for the next frame of a capture, which must be the one given.
func arrives(t *testing.T, c *tests.Capture, want []byte) {
	t.Helper()
	got, err := c.Next(t.Context(), 5*time.Second)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v\ngot  %x\nwant %x", err, got, want)
	}
}

// passesNext sends a frame that goes its way up to the capture, and finds it the next one there: none of those that
// were sent before has come.
func (p *samplePod) passesNext(t *testing.T, frame []byte) {
	t.Helper()
	p.send(t, frame)
	arrives(t, p.passed, frame)
}

// reachesNext has the node send a frame to the pod, and finds it the next one there: nothing else has come.
func (p *samplePod) reachesNext(t *testing.T) {
	t.Helper()
	frame := of(packets.Ethernet{Src: p.host, Dst: p.mac, Type: new(uint16(packets.EtherTypeExpmtl))})
	if err := tests.SendFrame(p.rig, p.hostName, frame); err != nil {
		t.Fatal(err)
	}
	arrives(t, p.received, frame)
}

// of returns frame with the mark at its end.
func (p *samplePod) of(layers ...packets.Layer) []byte {
	return of(p.ethernet(), layers...)
}

func of(ethernet packets.Ethernet, layers ...packets.Layer) []byte {
	all := append([]packets.Layer{ethernet}, layers...)
	return packets.Frame(append(all, packets.Payload(sampleMark))...)
}

// sampleMap opens a map of the rig's pods by its name, of which there must be one, whatever number of pods has it
// pinned.
func (r *sampleRig) sampleMap(t *testing.T, name string) *ebpf.Map {
	t.Helper()
	found := map[ebpf.MapID]*ebpf.Map{}
	for _, path := range r.Tree() {
		if !strings.HasSuffix(path, "/"+name) {
			continue
		}
		m, err := ebpf.LoadPinnedMap(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		info, err := m.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		found[id] = m
	}
	if len(found) != 1 {
		t.Fatalf("maps of the name %s: %v", name, found)
	}
	return slices.Collect(maps.Values(found))[0]
}

// put enters a value in a map of the rig's pods; an interface's index means that of the node.
func (r *sampleRig) put(t *testing.T, name string, key, value any) {
	t.Helper()
	m := r.sampleMap(t, name)
	if err := r.Do(func() error { return m.Put(key, value) }); err != nil {
		t.Fatal(err)
	}
}

// acted compares how many of the pod's packets ended in an XDP action since a reading.
func (p *samplePod) acted(t *testing.T, before stats, action string, want uint64) {
	t.Helper()
	if got := readStats(t, p.rig.Node, p.Pod).since(before).Egress[action].Packets; got != want {
		t.Errorf("%d packets counted as %s, want %d", got, action, want)
	}
}

// nobody is an address of each family on the pods' link that nobody has; the pod knows the node's MAC for it.
func (p *samplePod) nobody(t *testing.T) []netip.Addr {
	t.Helper()
	addresses := []netip.Addr{netip.MustParseAddr("10.244.0.200"), netip.MustParseAddr("fd00:10:244::dead")}
	for _, a := range addresses {
		if err := p.Neighbour(a, p.host[:]); err != nil {
			t.Fatal(err)
		}
	}
	return addresses
}
