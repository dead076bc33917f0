package integration

import (
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/tests"
)

// traced is what scripts read of `xdpctl trace -o json`.
type traced struct {
	Result, Why, Detail, Flow string
	To                        *struct{ HostInterface struct{ Name string } }
	Flows                     []struct {
		Protocol, State             string
		SourcePort, DestinationPort uint16
	}
}

func (r *redirected) trace(t *testing.T, protocol string, local, remote netip.AddrPort) traced {
	t.Helper()
	var have traced
	args := []string{"trace", r.client.ContainerID, "--to", remote.Addr().String(), "--protocol", protocol}
	if local.Port() != 0 {
		args = append(args, "--from", local.Addr().String(), "--port", strconv.Itoa(int(remote.Port())), "--from-port", strconv.Itoa(int(local.Port())))
	}
	xdpctlJSON(t, r.node, &have, args...)
	return have
}

// exchange sends a byte and waits for its echo.
func exchange(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 1)
	if _, err := conn.Write([]byte{7}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, buffer); err != nil {
		t.Fatal(err)
	}
}

// TestTrace asks about packets before they are sent, and compares the answer with what the counters say became of them.
func TestTrace(t *testing.T) {
	for _, shape := range shapes {
		for _, mode := range modes[:3] {
			t.Run(shape.name+" "+mode, func(t *testing.T) {
				var r *redirected
				if mode == "native" {
					r, _ = startNative(t, shape.conf)
				} else {
					r = startRedirected(t, shape.conf, tests.Conf{"mode": mode, "redirect": true})
				}
				directly := map[string]string{"bridge": "bridged", "ptp": "routed"}[shape.name]
				for _, server := range []netip.Addr{r.server.IPv4(), r.server.IPv6()} {
					client := r.client.IPv4()
					if server.Is6() {
						client = r.client.IPv6()
					}
					echo := tests.MustEcho(t, r.server, server)
					quiet(t, r.client, r.server)
					for _, protocol := range []string{"udp", "tcp"} {
						remote := map[string]netip.AddrPort{"udp": echo.UDP, "tcp": echo.TCP}[protocol]
						local := netip.AddrPortFrom(client, 41000)
						if have := r.trace(t, protocol, local, remote); have.Result != "stack" || have.Flow != "none" {
							t.Errorf("%s %s that has not begun: %+v", protocol, server, have)
						}
						conn := connect(t, r.client, protocol, local, remote)
						var results []string
						for range 4 {
							quiet(t, r.client, r.server)
							before := readStats(t, r.node, r.client)
							have := r.trace(t, protocol, local, remote)
							exchange(t, conn)
							quiet(t, r.client, r.server)
							since := readStats(t, r.node, r.client).since(before)
							sent, went := since.Egress, "stack"
							// neighbours may be looked up at any time
							stack := sent["pass"].Packets - since.Protocols.Egress["icmpv6"].Packets - since.Protocols.Egress["other"].Packets
							switch {
							case sent["redirect"].Packets > 0 && stack > 0:
								went = "both"
							case sent["redirect"].Packets > 0:
								went = "direct"
							}
							if have.Result != went || went == "direct" && have.Why != directly {
								t.Errorf("%s %s: trace says %+v, and it went by %s", protocol, server, have, went)
							}
							results = append(results, went)
						}
						want := []string{"direct", "direct", "direct", "direct"}
						switch {
						case protocol == "udp":
							want[0] = "stack"
						case mode == "generic":
							want = []string{"stack", "stack", "stack", "stack"}
						}
						if !slices.Equal(results, want) {
							t.Errorf("%s %s went %v, want %v", protocol, server, results, want)
						}
						flows := r.trace(t, protocol, netip.AddrPort{}, netip.AddrPortFrom(server, 0)).Flows
						listed := slices.ContainsFunc(flows, func(f struct {
							Protocol, State             string
							SourcePort, DestinationPort uint16
						}) bool {
							return f.Protocol == protocol && f.SourcePort == local.Port() && f.DestinationPort == remote.Port() && f.State == "untranslated"
						})
						if listed != (want[3] == "direct") {
							t.Errorf("%s %s: flows %+v", protocol, server, flows)
						}
						if err := conn.Close(); err != nil {
							t.Error(err)
						}
					}
				}
				var endpoints struct {
					Endpoints []struct {
						Address, Shape string
						InForce        bool
						MTU            int
					}
					Entered int
				}
				xdpctlJSON(t, r.node, &endpoints, "endpoints")
				if endpoints.Entered != 4 || len(endpoints.Endpoints) != 4 {
					t.Errorf("endpoints %+v", endpoints)
				}
				for _, e := range endpoints.Endpoints {
					if !e.InForce || e.MTU != 1500 || e.Shape != map[string]string{"bridge": "bridge", "ptp": "routed"}[shape.name] {
						t.Errorf("%+v", e)
					}
				}
			})
		}
	}
}

// connect connects from a port of a pod.
func connect(t *testing.T, from *tests.Pod, protocol string, local, remote netip.AddrPort) net.Conn {
	t.Helper()
	if protocol == "tcp" {
		conn, err := tests.DialTCP(t.Context(), from, local, remote, patience)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	var conn net.Conn
	err := from.Do(func() (err error) {
		conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(local), net.UDPAddrFromAddrPort(remote))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// TestDoctorRedirect has a node whose firewall is in the way of what goes directly.
func TestDoctorRedirect(t *testing.T) {
	r := startRedirected(t, shapes[1].conf, tests.Conf{"mode": "tcx", "redirect": true})
	statuses := func() string {
		t.Helper()
		var report struct {
			Checks []struct{ Name, Status, Detail string }
		}
		xdpctlJSON(t, r.node, &report, "doctor")
		var have []string
		for _, c := range report.Checks {
			if slices.Contains([]string{"redirect", "host firewall", "forward rules", "INVALID", "masquerade"}, c.Name) {
				have = append(have, c.Name+" "+c.Status)
			}
		}
		return strings.Join(have, ", ")
	}
	expect(t, "without rules", statuses(), "redirect ok, forward rules ok, INVALID ok, masquerade ok")
	for _, rule := range []string{
		"iptables-nft -A FORWARD -s 10.0.0.1 -j DROP",
		"iptables-nft -A FORWARD -m conntrack --ctstate INVALID -j DROP",
		"iptables-nft -t nat -A POSTROUTING -j MASQUERADE",
	} {
		words := strings.Fields(rule)
		if out, err := r.node.Run(exec.CommandContext(t.Context(), words[0], words[1:]...)); err != nil {
			t.Fatalf("%s: %v: %s", rule, err, out.Stderr)
		}
	}
	expect(t, "with rules", statuses(), "redirect ok, forward rules warn, INVALID warn, masquerade warn")

	// and the last one is right
	echo := tests.MustEcho(t, r.server, r.server.IPv4())
	local := netip.AddrPortFrom(r.client.IPv4(), 41000)
	conn := connect(t, r.client, "udp", local, echo.UDP)
	defer conn.Close()
	for range 3 {
		exchange(t, conn)
	}
	if have := r.trace(t, "udp", local, echo.UDP); have.Result != "stack" || have.Flow != "oneEnd" && have.Flow != "mixed" {
		t.Errorf("a masqueraded flow: %+v", have)
	}
}
