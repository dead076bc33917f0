package integration

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests"
)

// mains are the main plugins that the IPAM plugin is tested under.
func mains(n *tests.Node) map[string]tests.Conf {
	ipam := tests.Conf{"ipam": n.Leases(tests.DualStack)}
	routed := tests.Conf{"ipam": n.Leases(tests.DualStack, tests.Conf{"routes": []tests.Conf{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}}})}
	return map[string]tests.Conf{"bridge": n.Bridge(tests.DualStack, ipam), "ptp": n.PTP(tests.DualStack, routed)}
}

// TestLeasesOfPods runs the chain through libcni, from ADD to GC, with traffic.
func TestLeasesOfPods(t *testing.T) {
	for _, main := range []string{"bridge", "ptp"} {
		for _, version := range []string{"0.4.0", "1.1.0"} {
			t.Run(main+" "+version, func(t *testing.T) {
				n := startLeases(t)
				w := tests.MustNetwork(t, n, tests.Conflist("net", version, mains(n)[main], n.XDP()))
				client, server := tests.MustPod(t, n, "client"), tests.MustPod(t, n, "server")
				tests.MustAdd(t, w, client)
				tests.MustAdd(t, w, server)
				if client.IPv4() != netip.MustParseAddr("10.244.0.2") || server.IPv6() != netip.MustParseAddr("fd00:10:244::3") {
					t.Errorf("addresses %s and %s", client.IPv4(), server.IPv6())
				}
				for _, to := range []netip.Addr{server.IPv4(), server.IPv6(), client.GatewayIPv4()} {
					if err := tests.Ping(t.Context(), client, to, 2); err != nil {
						t.Error(err)
					}
				}
				if err := w.Check(t.Context(), client); err != nil {
					t.Errorf("CHECK: %v", err)
				}
				if err := w.Status(t.Context()); err != nil {
					t.Errorf("STATUS: %v", err)
				}
				if err := w.GC(t.Context(), server); err != nil {
					t.Errorf("GC: %v", err)
				}
				if version == "1.1.0" {
					// one that its runtime has forgotten: no DEL comes for it, only GC
					lost := tests.MustPod(t, n, "lost")
					tests.MustAdd(t, w, lost)
					if err := os.RemoveAll(n.CacheDir); err != nil {
						t.Fatal(err)
					}
					if err := w.GC(t.Context(), server); err != nil {
						t.Errorf("GC of what is in no cache: %v", err)
					}
				}
				all := leasesOf(t, n, "net")
				if len(all) != 2 || all[server.IPv4()].ContainerID != server.ContainerID {
					t.Errorf("leases after GC: %v", all)
				}
				if err := w.Del(t.Context(), server, tests.WithoutNetNS()); err != nil {
					t.Errorf("DEL: %v", err)
				}
				if all := leasesOf(t, n, "net"); len(all) > 0 {
					t.Errorf("leases after DEL: %v", all)
				}
			})
		}
	}
}

// TestLostLeases removes the pins of all leases under living pods. In the one case the chained
// plugin's attachments survive, in the other nothing does but the pods.
func TestLostLeases(t *testing.T) {
	for _, main := range []string{"bridge", "ptp"} {
		for _, chained := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, chained %t", main, chained), func(t *testing.T) {
				n := startLeases(t)
				plugins := []tests.Conf{mains(n)[main]}
				if chained {
					plugins = append(plugins, n.XDP())
				}
				w := tests.MustNetwork(t, n, tests.Conflist("net", "1.1.0", plugins...))
				has := map[netip.Addr]string{}
				add := func(name string) *tests.Pod {
					t.Helper()
					pod := tests.MustPod(t, n, name)
					tests.MustAdd(t, w, pod)
					for _, a := range []netip.Addr{pod.IPv4(), pod.IPv6()} {
						if other, twice := has[a]; twice {
							t.Errorf("%s was given to %s, while %s has it", a, name, other)
						}
						has[a] = name
					}
					return pod
				}
				var pods []*tests.Pod
				for i := range 3 {
					pods = append(pods, add(fmt.Sprintf("old%d", i)))
				}
				// one goes before the loss: its addresses are free
				if err := w.Del(t.Context(), pods[1]); err != nil {
					t.Fatal(err)
				}
				delete(has, pods[1].IPv4())
				delete(has, pods[1].IPv6())
				loseLeases(t, n)
				young := add("new0")
				add("new1")
				if young.IPv4() != pods[1].IPv4() {
					t.Errorf("the first new pod has %s, want %s, which is free", young.IPv4(), pods[1].IPv4())
				}
				all := leasesOf(t, n, "net")
				if len(all) != 8 || all[pods[0].IPv4()].Known() != chained {
					t.Errorf("leases after the loss: %v", all)
				}
				// old pods go as others do, with what they had
				for i, option := range []tests.CallOption{func(rt *libcniRuntimeConf) {}, tests.WithoutNetNS()} {
					pod := pods[2*i]
					if i == 1 {
						if err := pod.Close(); err != nil {
							t.Fatal(err)
						}
						waitUnseen(t, n, pod.IPv4())
					}
					if err := w.Del(t.Context(), pod, option); err != nil {
						t.Fatal(err)
					}
					if owner, leased := leasesOf(t, n, "net")[pod.IPv4()]; leased {
						t.Errorf("%s of old%d is still leased, to %v", pod.IPv4(), 2*i, owner)
					}
				}
				if all := leasesOf(t, n, "net"); len(all) != 4 {
					t.Errorf("leases: %v, want those of the two new pods", all)
				}
			})
		}
	}
}

// TestAddOfLivePod: a second ADD of an attachment that is alive fails, and what its main plugin then undoes
// (ptp asks its IPAM plugin before it finds the interface, and frees what it was given) leaves the pod its addresses.
func TestAddOfLivePod(t *testing.T) {
	for _, main := range []string{"bridge", "ptp"} {
		t.Run(main, func(t *testing.T) {
			n := startLeases(t)
			w := tests.MustNetwork(t, n, tests.Conflist("net", "1.0.0", mains(n)[main]))
			pod := tests.MustPod(t, n, "pod")
			tests.MustAdd(t, w, pod)
			had, owner := pod.IPv4(), pod.ContainerID
			if _, err := w.Add(t.Context(), pod); err == nil {
				t.Error("a second ADD of a living pod succeeded")
			}
			if all := leasesOf(t, n, "net"); len(all) != 2 || all[had].ContainerID != owner {
				t.Errorf("leases of a pod that is alive: %v", all)
			}
		})
	}
}
