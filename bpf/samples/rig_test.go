package samples

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

// XDP actions (include/uapi/linux/bpf.h).
const (
	xdpAborted uint32 = iota
	xdpDrop
	xdpPass
	xdpTX
	xdpRedirect
)

func TestMain(m *testing.M) { tests.Main(m) }

// samples are all there are.
var samples = map[string]func() (*ebpf.CollectionSpec, error){
	"blocklist": LoadBlocklist,
	"cpus":      LoadCpus,
	"echo":      LoadEcho,
	"ports":     LoadPorts,
	"router":    LoadRouter,
	"sources":   LoadSources,
	"switch":    LoadSwitch,
	"verdicts":  LoadVerdicts,
	"vlan":      LoadVlan,
}

var kernel = sync.OnceValues(datapath.ProbeFeatures)

// spec is a sample as a loader makes it for this kernel. Maps that are for the node are each test's own.
func spec(t testing.TB, name string) *ebpf.CollectionSpec {
	t.Helper()
	priv.Root(t)
	s, err := samples[name]()
	if err != nil {
		t.Fatal(err)
	}
	features, err := kernel()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range s.Maps {
		m.Pinning = ebpf.PinNone
	}
	if !features.XDPFrags {
		linear(s)
	}
	return s
}

// linear makes of programs for frames in any number of buffers such for frames in one.
func linear(s *ebpf.CollectionSpec) {
	for _, p := range s.Programs {
		p.Flags &^= unix.BPF_F_XDP_HAS_FRAGS
	}
}

func load(t testing.TB, name string) *ebpf.Collection {
	t.Helper()
	c, err := ebpf.NewCollection(spec(t, name))
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(c.Close)
	return c
}

// run runs a program on a frame, and returns its action and the frame as it then is.
func run(t testing.TB, p *ebpf.Program, frame []byte) (action uint32, out []byte) {
	t.Helper()
	options := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
	action, err := p.Run(&options)
	if err != nil {
		t.Fatalf("running a frame of %d bytes: %v", len(frame), err)
	}
	return action, options.DataOut
}

// expect runs a program on a frame and compares action and frame with what they should be.
func expect(t *testing.T, p *ebpf.Program, frame []byte, action uint32, want []byte) {
	t.Helper()
	got, out := run(t, p, frame)
	if got != action {
		t.Errorf("action %d, want %d", got, action)
	}
	if !bytes.Equal(out, want) {
		t.Errorf("got  %x\nwant %x\nfrom %x", out, want, frame)
	}
}

// unchanged runs a program on frames that it must let pass as they are.
func unchanged(t *testing.T, p *ebpf.Program, frames map[string][]byte) {
	t.Helper()
	for name, frame := range frames {
		t.Run(name, func(t *testing.T) { expect(t, p, frame, xdpPass, frame) })
	}
}

func put(t testing.TB, m *ebpf.Map, key, value any) {
	t.Helper()
	if err := m.Put(key, value); err != nil {
		t.Fatal(err)
	}
}

// frame returns the layers behind an Ethernet header.
func frame(layers ...packets.Layer) []byte {
	return packets.Frame(append([]packets.Layer{packets.Ethernet{}}, layers...)...)
}

// tags are what may be between the Ethernet header and IP, and be looked through.
var tags = map[string][]packets.Layer{
	"":         nil,
	"802.1Q ":  {packets.VLAN{ID: 7}},
	"802.1ad ": {packets.VLAN{ID: 9, Service: true}, packets.VLAN{ID: 7}},
}

// behind is frame with tags in front of the layers.
func behind(tag string, layers ...packets.Layer) []byte {
	return frame(append(append([]packets.Layer{}, tags[tag]...), layers...)...)
}

// shortened is every frame that ends before the one given does, from the Ethernet header on.
func shortened(whole []byte) map[string][]byte {
	cut := map[string][]byte{}
	for n := 14; n < len(whole); n++ {
		cut[fmt.Sprintf("%d bytes of %d", n, len(whole))] = whole[:n]
	}
	return cut
}
