package integration

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf/samples"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

func TestSampleSources(t *testing.T) {
	inXDPModes(t, func(t *testing.T, mode string) {
		r := newSampleRig(t, mode, (*tests.Node).Bridge, sampleProgram(t, "sources", "xdp_count_sources"))
		p := r.add(t, "pod")
		m := r.sampleMap(t, "sources")
		for _, source := range []netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8::9")} {
			var ip packets.Layer = packets.IPv4{Src: source}
			if source.Is6() {
				ip = packets.IPv6{Src: source}
			}
			frame := p.of(ip, packets.UDP{})
			for range sent {
				p.send(t, frame)
				arrives(t, p.passed, frame)
			}
			var counts []samples.SourcesSourceCount
			if err := m.Lookup(samples.SourcesSource{Address: source.As16()}, &counts); err != nil {
				t.Fatal(err)
			}
			var sum samples.SourcesSourceCount
			for _, c := range counts {
				sum.Packets += c.Packets
				sum.Bytes += c.Bytes
			}
			if sum.Packets != sent || sum.Bytes != uint64(sent*len(frame)) {
				t.Errorf("%s: %d packets of %d bytes, want %d of %d", source, sum.Packets, sum.Bytes, sent, sent*len(frame))
			}
		}
	})
}

func TestSampleEcho(t *testing.T) {
	inXDPModes(t, func(t *testing.T, mode string) {
		r := newSampleRig(t, mode, (*tests.Node).Bridge, sampleProgram(t, "echo", "xdp_icmp_echo"))
		p := r.add(t, "pod")
		quiet(t, p.Pod)
		before := readStats(t, r.Node, p.Pod)
		for _, address := range p.nobody(t) {
			if err := tests.Ping(t.Context(), p, address, sent); err != nil {
				t.Error(err)
			}
		}
		p.acted(t, before, "tx", 2*sent)

		back := packets.Ethernet{Src: p.host, Dst: p.mac}
		tag := packets.VLAN{ID: 7}
		p.send(t, p.of(packets.IPv4{TTL: new(uint8(1))}, packets.ICMP{}))
		arrives(t, p.received, of(back, packets.IPv4{Src: packets.DestinationIPv4, Dst: packets.SourceIPv4}, packets.ICMP{Type: new(uint8(0))}))
		p.send(t, p.of(tag, packets.IPv6{}, packets.ICMPv6{}))
		arrives(t, p.received, of(back, tag, packets.IPv6{Src: packets.DestinationIPv6, Dst: packets.SourceIPv6}, packets.ICMPv6{Type: new(uint8(129))}))
		// the stack gets what is not answered
		other := p.of(packets.IPv4{MoreFragments: true}, packets.ICMP{}, packets.Data(64))
		p.send(t, other)
		arrives(t, p.passed, other)
		nothing(t, p.received)
	})
}

func TestSamplePorts(t *testing.T) {
	inXDPModes(t, func(t *testing.T, mode string) {
		r := newSampleRig(t, mode, (*tests.Node).Bridge, sampleProgram(t, "ports", "xdp_rewrite_ports"))
		p := r.add(t, "pod")
		rewrite := func(protocol uint8, from, to uint16) {
			r.put(t, "port_rewrites", samples.PortsPort{Port: network(from), Protocol: protocol}, samples.PortsPortRewrite{Port: network(to)})
		}
		rewrite(unix.IPPROTO_TCP, 80, 8080)
		rewrite(unix.IPPROTO_UDP, 53, 5353)
		for _, ip := range []packets.Layer{packets.IPv4{}, packets.IPv6{}} {
			p.send(t, p.of(ip, packets.TCP{DstPort: 80}))
			arrives(t, p.passed, p.of(ip, packets.TCP{DstPort: 8080}))
			p.send(t, p.of(packets.VLAN{ID: 9}, ip, packets.UDP{DstPort: 53}))
			arrives(t, p.passed, p.of(packets.VLAN{ID: 9}, ip, packets.UDP{DstPort: 5353}))
		}
		// a socket leaves its checksum to the device: the server must find it right
		for _, address := range []netip.Addr{p.GatewayIPv4(), p.GatewayIPv6()} {
			if err := tests.WaitAddress(t.Context(), r, address); err != nil {
				t.Fatal(err)
			}
			echo := tests.MustEcho(t, r, address)
			rewrite(unix.IPPROTO_UDP, 7, echo.UDP.Port())
			if _, err := tests.EchoUDPCount(t.Context(), p, netip.AddrPortFrom(address, 7), 1, 100, 100*time.Millisecond); err != nil {
				t.Fatal(err)
			}
			deadline := time.Now().Add(5 * time.Second)
			for _, from := echo.Peers(); !from.IsValid(); _, from = echo.Peers() {
				if time.Now().After(deadline) {
					t.Fatalf("the server at %s got nothing", address)
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
	})
}

func TestSampleVLAN(t *testing.T) {
	inXDPModes(t, func(t *testing.T, mode string) {
		plain := [][]packets.Layer{{packets.IPv4{}, packets.UDP{}}, {packets.IPv6{}, packets.TCP{}}, {packets.VLAN{ID: 7}, packets.IPv4{}, packets.UDP{}}}
		tagged := func(tag packets.VLAN, layers []packets.Layer) []packets.Layer {
			return append([]packets.Layer{tag}, layers...)
		}
		t.Run("push", func(t *testing.T) {
			r := newSampleRig(t, mode, (*tests.Node).Bridge, sampleProgram(t, "vlan", "xdp_vlan_push"))
			p := r.add(t, "pod")
			r.put(t, "vlan_push", uint32(0), samples.VlanTag{Tpid: network(packets.EtherTypeQinQ), Tci: network(0x6000 | 100)})
			for _, layers := range plain {
				p.send(t, p.of(layers...))
				arrives(t, p.passed, p.of(tagged(packets.VLAN{ID: 0x6000 | 100, Service: true}, layers)...))
			}
		})
		t.Run("pop", func(t *testing.T) {
			r := newSampleRig(t, mode, (*tests.Node).Bridge, sampleProgram(t, "vlan", "xdp_vlan_pop"))
			p := r.add(t, "pod")
			for _, layers := range plain[:2] {
				p.send(t, p.of(tagged(packets.VLAN{ID: 5}, layers)...))
				arrives(t, p.passed, p.of(layers...))
				p.send(t, p.of(layers...))
				arrives(t, p.passed, p.of(layers...))
			}
		})
	})
}

// blocklistFile is a list of 50,000 prefixes of either family, in which are 198.51.100.0/24 and 2001:db8:bad::/48.
func blocklistFile(t *testing.T) string {
	t.Helper()
	var list strings.Builder
	list.WriteString("# of a test\n198.51.100.0/24 ; one of many\n2001:db8:bad::/48\n")
	for i := range 49_999 {
		fmt.Fprintf(&list, "10.%d.%d.%d/32\n2001:db8:%x::/56\n", 1+i>>16, i>>8&0xff, i&0xff, 0x1000+i%0xe000)
		if i >= 0xe000 {
			t.Fatal("the list repeats itself")
		}
	}
	path := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(path, []byte(list.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSampleBlocklist(t *testing.T) {
	inXDPModes(t, func(t *testing.T, mode string) {
		r := newSampleRig(t, mode, (*tests.Node).Bridge, sampleProgram(t, "blocklist", "xdp_blocklist"))
		p := r.add(t, "pod")
		load := func(file string, flags ...string) string {
			t.Helper()
			out, err := r.RunXdpctl(t.Context(), append([]string{"programs", "load", p.ContainerID,
				"blocklist_v4", "blocklist_v6", "-f", file, "--bytes"}, flags...)...)
			if err != nil {
				t.Fatalf("%v: %s", err, out.Stderr)
			}
			return string(out.Stdout)
		}
		if out := load(blocklistFile(t)); strings.Count(out, " 50000 ") != 4 {
			t.Errorf("xdpctl programs load:\n%s", out)
		}
		quiet(t, p.Pod)
		before := readStats(t, r.Node, p.Pod)
		open := p.of(packets.IPv4{Dst: netip.MustParseAddr("198.51.101.1")}, packets.UDP{})
		blocked := [][]byte{
			p.of(packets.IPv4{Dst: netip.MustParseAddr("198.51.100.77")}, packets.UDP{}),
			p.of(packets.IPv4{Dst: netip.MustParseAddr("10.1.0.77"), FragmentOffset: 3}, packets.Data(8)),
			p.of(packets.VLAN{ID: 3}, packets.IPv6{Dst: netip.MustParseAddr("2001:db8:bad::1")}, packets.TCP{}),
		}
		for _, frame := range blocked {
			p.send(t, frame)
		}
		p.send(t, open)
		arrives(t, p.passed, open) // and none of the others, which were before it
		p.counted(t, before, "drop", uint64(len(blocked)))

		empty := filepath.Join(t.TempDir(), "empty")
		if err := os.WriteFile(empty, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		load(empty, "--empty")
		for _, frame := range blocked {
			p.send(t, frame)
			arrives(t, p.passed, frame)
		}
	})
}
