package policy

import (
	"net"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

func TestMain(m *testing.M) { tests.Main(m) }

const spoofless = `{"antiSpoof": true, "default": {"egress": "allow", "ingress": "deny"},
	"rules": [{"name": "dns", "direction": "egress", "action": "deny", "protocol": "udp", "ports": ["53"]}]}`

func mustFilter(t *testing.T, text string) *conf.Filter {
	t.Helper()
	f, _, err := conf.ParseFilter([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func addresses(list ...string) []netip.Addr {
	var addresses []netip.Addr
	for _, s := range list {
		addresses = append(addresses, netip.MustParseAddr(s))
	}
	return addresses
}

func TestMake(t *testing.T) {
	pod := Pod{
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24"), netip.MustParsePrefix("fd00::2/64")},
		// RFC 4291, appendix A: 34-56-78-9A-BC-DE is 3656:78ff:fe9a:bcde
		MAC:   net.HardwareAddr{0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde},
		Netns: "/does/not/exist", IfName: "eth0",
	}
	f := mustFilter(t, spoofless)
	made, err := Make(f, pod)
	if err != nil {
		t.Fatal(err)
	}
	if want := addresses("10.0.0.2", "fd00::2", "fe80::3656:78ff:fe9a:bcde"); !slices.Equal(made.Compiled.Addresses, want) {
		t.Errorf("own addresses are %v, want %v", made.Compiled.Addresses, want)
	}
	again, _, err := conf.ParseFilter(made.Source)
	if err != nil || !reflect.DeepEqual(f, again) {
		t.Errorf("%s reads as %+v, %v; want %+v", made.Source, again, err, f)
	}
	pod.Known = addresses("fe80::7", "10.0.0.2")
	if made, err = Make(f, pod); err != nil || !slices.Contains(made.Compiled.Addresses, pod.Known[0]) || len(made.Compiled.Addresses) != 4 {
		t.Errorf("with what is known: %v, %v", made, err)
	}
	pod.Known = nil
	pod.MAC = nil // an interface without one
	if made, err = Make(f, pod); err != nil || len(made.Compiled.Addresses) != 2 {
		t.Errorf("without a MAC: %v, %v", made, err)
	}
	f.Rules[0].ICMP = &conf.ICMP{}
	if _, err := Make(f, pod); err == nil {
		t.Error("a rule that means nothing was compiled")
	}
}

// TestMakeReadsLinkLocals: an interface may have made its link-local address of something else than its MAC.
func TestMakeReadsLinkLocals(t *testing.T) {
	priv.Root(t)
	node := tests.MustNode(t)
	pod := tests.MustPod(t, node, "pod")
	veth, err := tests.MakeVeth(t.Context(), node, pod, tests.VethOptions{})
	if err != nil {
		t.Fatal(err)
	}
	err = pod.Do(func() error {
		link, err := netlink.LinkByName(pod.IfName)
		if err != nil {
			return err
		}
		for _, text := range []string{"fe80::1:2/64", "fd00::9/64"} {
			address, err := netlink.ParseAddr(text)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, address); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		ifname string
		want   []netip.Addr
	}{
		{pod.IfName, addresses("10.0.0.2", "fe80::1:2")},
		{"none0", addresses("10.0.0.2")},
	} {
		made, err := Make(mustFilter(t, spoofless), Pod{
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}, MAC: veth.PodMAC, Netns: pod.NetNS(), IfName: test.ifname,
		})
		if err != nil {
			t.Fatal(err)
		}
		own, _ := linkLocal(veth.PodMAC)
		want := append(slices.Clone(test.want), own)
		slices.SortFunc(want, netip.Addr.Compare)
		if !slices.Equal(made.Compiled.Addresses, want) {
			t.Errorf("own addresses at %s are %v, want %v", test.ifname, made.Compiled.Addresses, want)
		}
	}
	// of a pod that runs nothing is read
	made, err := Make(mustFilter(t, spoofless), Pod{MAC: veth.PodMAC, IfName: pod.IfName})
	if own, _ := linkLocal(veth.PodMAC); err != nil || !slices.Equal(made.Compiled.Addresses, []netip.Addr{own}) {
		t.Errorf("without a network namespace: %v, %v", made, err)
	}
	f := mustFilter(t, `{"antiSpoof": false}`)
	if made, err := Make(f, Pod{MAC: veth.PodMAC}); err != nil || len(made.Compiled.Addresses) != 0 {
		t.Errorf("without antiSpoof nobody asks for addresses: %v, %v", made, err)
	}
}
