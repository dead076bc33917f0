package tests

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

// counters reads the packets that have left and reached the pod's interface.
func counters(t *testing.T, p *Pod) (tx, rx uint64) {
	t.Helper()
	err := p.Do(func() error {
		l, err := netlink.LinkByName(p.IfName)
		if err == nil {
			tx, rx = l.Attrs().Statistics.TxPackets, l.Attrs().Statistics.RxPackets
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tx, rx
}

func quiet(t *testing.T, p *Pod) {
	t.Helper()
	if err := WaitQuiet(t.Context(), p, p.IfName, 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
}

func TestChains(t *testing.T) {
	priv.Root(t)
	MustBuildReference(t)
	for _, test := range []struct {
		name     string
		families Families
		chain    func(*Node, Families, ...Conf) Conf
	}{
		{"bridge IPv4", IPv4, (*Node).Bridge},
		{"bridge IPv6", IPv6, (*Node).Bridge},
		{"bridge dual stack", DualStack, (*Node).Bridge},
		{"ptp dual stack", DualStack, (*Node).PTP},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := MustNode(t)
			w := MustNetwork(t, n, Conflist("net", "1.1.0", test.chain(n, test.families)))
			if err := w.Validate(t.Context()); err != nil {
				t.Error(err)
			}
			if err := w.Status(t.Context()); err != nil {
				t.Error(err)
			}
			client, server := MustPod(t, n, "client"), MustPod(t, n, "server")
			MustAdd(t, w, client, KubernetesArgs("demo", "client", ""))
			MustAdd(t, w, server)
			if err := w.Check(t.Context(), client, KubernetesArgs("demo", "client", "")); err != nil {
				t.Error(err)
			}
			destinations := []netip.Addr{server.IPv4(), server.IPv6(), client.GatewayIPv4(), client.GatewayIPv6()}
			destinations = slices.DeleteFunc(destinations, func(a netip.Addr) bool { return !a.IsValid() })
			if len(destinations) < 2 {
				t.Fatalf("the result has too few addresses: %v", server.Result)
			}
			for _, destination := range destinations {
				if err := Ping(t.Context(), client, destination, 2); err != nil {
					t.Error(err)
				}
			}
			if err := w.GC(t.Context(), client); err != nil {
				t.Error(err)
			}
			if _, err := server.HostIndex(); err == nil {
				t.Error("GC has left the interface of a pod that is not valid")
			}
		})
	}
}

// TestExactCounts checks each load against the counters of the interface.
func TestExactCounts(t *testing.T) {
	priv.Root(t)
	MustBuildReference(t)
	for _, families := range []Families{IPv4, IPv6} {
		t.Run([]string{"IPv4", "IPv6"}[families], func(t *testing.T) {
			var options []NodeOption
			if families == IPv4 {
				options = append(options, WithoutIPv6())
			}
			n := MustNode(t, options...)
			w := MustNetwork(t, n, Conflist("net", "1.1.0", n.Bridge(families)))
			client, server := MustPod(t, n, "client"), MustPod(t, n, "server")
			MustAdd(t, w, client)
			MustAdd(t, w, server)
			if err := Introduce(client, server); err != nil {
				t.Fatal(err)
			}
			address := server.IPv4()
			if families == IPv6 {
				address = server.IPv6()
			}
			if err := WaitAddress(t.Context(), server, address); err != nil {
				t.Fatal(err)
			}
			echo := MustEcho(t, server, address)
			loads := map[string]func() error{
				"ping": func() error { return Ping(t.Context(), client, address, 20) },
				"UDP":  func() error { return EchoUDP(t.Context(), client, echo.UDP, 20, 1000) },
				"ping count": func() error {
					replies, err := PingCount(t.Context(), client, address, 20, time.Second)
					if replies != 20 {
						t.Errorf("%d replies to 20 pings", replies)
					}
					return err
				},
				"UDP count": func() error {
					echoes, err := EchoUDPCount(t.Context(), client, echo.UDP, 20, 8, time.Second)
					if echoes != 20 {
						t.Errorf("%d echoes of 20 datagrams", echoes)
					}
					return err
				},
			}
			for name, load := range loads {
				quiet(t, client)
				tx, rx := counters(t, client)
				if err := load(); err != nil {
					t.Error(err)
				}
				nowTx, nowRx := counters(t, client)
				if nowTx-tx != 20 || nowRx-rx != 20 {
					t.Errorf("%s: %d packets sent, %d received, want 20 each", name, nowTx-tx, nowRx-rx)
				}
			}
			if err := EchoTCP(t.Context(), client, echo.TCP, 1<<20); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLoadsNoticeLoss(t *testing.T) {
	priv.Root(t)
	n := MustNode(t, WithoutIPv6())
	p := MustPod(t, n, "pod")
	_, err := MakeVeth(t.Context(), n, p, VethOptions{
		HostAddress: netip.MustParsePrefix("10.1.0.1/24"), PodAddress: netip.MustParsePrefix("10.1.0.2/24"),
	})
	if err != nil {
		t.Fatal(err)
	}
	nobody := netip.MustParseAddr("10.1.0.3")
	if err := p.Neighbour(nobody, []byte{2, 0, 0, 0, 0, 3}); err != nil {
		t.Fatal(err)
	}
	if replies, err := PingCount(t.Context(), p, nobody, 3, 100*time.Millisecond); replies != 0 || err != nil {
		t.Errorf("%d replies from nobody, %v", replies, err)
	}
	echoes, err := EchoUDPCount(t.Context(), p, netip.AddrPortFrom(nobody, 7), 3, 100, 100*time.Millisecond)
	if echoes != 0 || err != nil {
		t.Errorf("%d echoes from nobody, %v", echoes, err)
	}
	if err := Ping(t.Context(), p, nobody, 1); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ping to nobody: %v", err)
	}
}

func TestMakeVeth(t *testing.T) {
	priv.Root(t)
	n := MustNode(t)
	p := MustPod(t, n, "pod")
	veth, err := MakeVeth(t.Context(), n, p, VethOptions{
		HostName: "host0", Queues: 3, MTU: 2000,
		HostAddress: netip.MustParsePrefix("fd00::1/64"), PodAddress: netip.MustParsePrefix("fd00::2/64"),
	})
	if err != nil {
		t.Fatal(err)
	}
	host, err := p.HostInterface()
	if err != nil {
		t.Fatal(err)
	}
	attrs := host.Attrs()
	if attrs.Name != "host0" || attrs.Index != veth.HostIndex || attrs.MTU != 2000 || attrs.NumRxQueues != 3 || attrs.NumTxQueues != 3 {
		t.Errorf("host end: %+v", attrs)
	}
	if mac, err := p.MAC(); err != nil || !bytes.Equal(mac, veth.PodMAC) {
		t.Errorf("pod's MAC is %s, %v; want %s", mac, err, veth.PodMAC)
	}
	if err := Ping(t.Context(), p, netip.MustParseAddr("fd00::1"), 3); err != nil {
		t.Error(err)
	}
}

func TestFramesArriveAsSent(t *testing.T) {
	priv.Root(t)
	n := MustNode(t, WithoutIPv6())
	p := MustPod(t, n, "pod")
	veth, err := MakeVeth(t.Context(), n, p, VethOptions{})
	if err != nil {
		t.Fatal(err)
	}
	addresses := append(slices.Clone(veth.HostMAC), veth.PodMAC...)
	marked := func(frame []byte) bool { return bytes.HasSuffix(frame, []byte("mark")) }
	capture, err := NewCapture(n, veth.HostName, marked)
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Close()
	for name, header := range map[string][]byte{
		"plain":   {0x88, 0xb5},
		"802.1Q":  {0x81, 0x00, 0x20, 0x07, 0x88, 0xb5},
		"802.1ad": {0x88, 0xa8, 0x00, 0x05, 0x81, 0x00, 0x00, 0x06, 0x88, 0xb5},
	} {
		frame := slices.Concat(addresses, header, make([]byte, 50), []byte("mark"))
		if err := SendFrame(p, p.IfName, slices.Concat(addresses, header, make([]byte, 50))); err != nil {
			t.Error(err)
		}
		if err := SendFrame(p, p.IfName, frame); err != nil {
			t.Error(err)
		}
		if got, err := capture.Next(t.Context(), time.Second); err != nil || !bytes.Equal(got, frame) {
			t.Errorf("%s: got %x, %v\nwant %x", name, got, err, frame)
		}
	}
	// The node's own frames are not arrivals.
	if err := SendFrame(n, veth.HostName, slices.Concat(addresses, []byte{0x88, 0xb5}, []byte("mark"))); err != nil {
		t.Error(err)
	}
	if frame, err := capture.Next(t.Context(), 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("captured %x, %v", frame, err)
	}
}
