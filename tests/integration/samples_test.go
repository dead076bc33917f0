package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
)

// TestSamples runs each sample conflist as it is, but for where its state goes: two pods get what
// the sample promises, talk to each other and to the node, and are counted.
func TestSamples(t *testing.T) {
	samples := conf.Samples()
	names, err := fs.Glob(samples, "*.conflist")
	if err != nil || len(names) < 5 {
		t.Fatalf("samples: %v, %v", names, err)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			data, err := fs.ReadFile(samples, name)
			if err != nil {
				t.Fatal(err)
			}
			n := start(t)
			w := tests.MustNetwork(t, n, relocate(t, n, data))
			client, server := tests.MustPod(t, n, "client"), tests.MustPod(t, n, "server")
			options := []tests.CallOption{tests.KubernetesArgs("default", "web", "uid")}
			if bytes.Contains(data, []byte(`"ipMasq": true`)) || bytes.Contains(data, []byte(`"portmap"`)) {
				needsFirewall(t)
			}
			if name == "full.conflist" {
				options = append(options, tests.Capability("portMappings",
					[]any{map[string]any{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}))
				limits := map[string]any{"ingressRate": 1_000_000_000, "ingressBurst": 10_000_000,
					"egressRate": 1_000_000_000, "egressBurst": 10_000_000}
				if !haveTCX(t) {
					refusesLimit(t, w, client, append(slices.Clone(options), tests.Capability("bandwidth", limits)))
					delete(limits, "egressRate")
					delete(limits, "egressBurst")
				}
				options = append(options, tests.Capability("bandwidth", limits))
			}
			tests.MustAdd(t, w, client, options...)
			tests.MustAdd(t, w, server)
			if err := w.Check(t.Context(), client, options...); err != nil {
				t.Errorf("CHECK: %v", err)
			}
			for _, to := range []netip.Addr{server.IPv4(), server.IPv6(), client.GatewayIPv4(), client.GatewayIPv6()} {
				if !to.IsValid() {
					continue
				}
				before := readStats(t, n, client)
				if err := tests.Ping(t.Context(), client, to, 3); err != nil {
					t.Fatal(err)
				}
				protocol := "icmp"
				if to.Is6() {
					protocol = "icmpv6"
				}
				diff := readStats(t, n, client).since(before)
				if got := diff.Protocols.Egress[protocol].Packets; got < 3 || to.Is4() && got != 3 {
					t.Errorf("ping %s: %d packets counted, want 3", to, got)
				}
			}
			ran := podPrograms(t, n, client)
			if want := bytes.Count(data, []byte(`"object"`)); len(ran) != want {
				t.Errorf("the pod has %d programs, want %d", len(ran), want)
			}
			for _, p := range ran {
				if p.Runs == [5]uint64{} {
					t.Errorf("program %s has not run", p.Name)
				}
			}
			if err := w.Del(t.Context(), client, options...); err != nil {
				t.Errorf("DEL: %v", err)
			}
			if err := w.Del(t.Context(), client, options...); err != nil {
				t.Errorf("second DEL: %v", err)
			}
		})
	}
}

func haveTCX(t *testing.T) bool {
	t.Helper()
	kernel, err := datapath.ProbeFeatures()
	if err != nil {
		t.Fatal(err)
	}
	return kernel.TCX
}

// refusesLimit: without tcx a pod whose egress bandwidth limits is refused, with the kernel that it takes.
func refusesLimit(t *testing.T, w *tests.Network, pod *tests.Pod, options []tests.CallOption) {
	t.Helper()
	_, err := w.Add(t.Context(), pod, options...)
	var refused *types.Error
	if !errors.As(err, &refused) || refused.Code != 104 || !strings.Contains(refused.Error(), "6.6") {
		t.Errorf("ADD with a limit for egress: %v, want an error of code 104 that says which kernel it takes", err)
	}
	if err := w.Del(t.Context(), pod, options...); err != nil {
		t.Errorf("DEL of what was refused: %v", err)
	}
}

// needsFirewall: portmap and masquerading run one of these, as on any node that has them in its chain.
func needsFirewall(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"iptables", "nft"} {
		if _, err := exec.LookPath(tool); err == nil {
			return
		}
	}
	t.Skip("neither iptables nor nft is installed, and portmap needs one: apt-get install nftables")
}

// relocate moves the state that a conflist names into the node, and names the programs of bpf/samples where they are.
func relocate(t *testing.T, n *tests.Node, conflist []byte) string {
	t.Helper()
	var list struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(conflist, &list); err != nil {
		t.Fatal(err)
	}
	for _, plugin := range list.Plugins {
		if ipam, ok := plugin["ipam"].(map[string]any); ok {
			ipam["dataDir"] = n.DataDir
		}
		if plugin["type"] == "xdp" {
			plugin["bpffs"] = n.BPFFS
			programs, _ := plugin["programs"].([]any)
			for _, p := range programs {
				p := p.(map[string]any)
				sample, named := strings.CutSuffix(filepath.Base(p["object"].(string)), "_bpfel.o")
				object, err := tests.SampleObject(sample)
				if _, statErr := os.Stat(object); !named || err != nil || statErr != nil {
					t.Fatalf("%s is no object of bpf/samples: %v, %v", p["object"], err, statErr)
				}
				p["object"] = object
			}
			if plugin["logFile"] != nil {
				plugin["logFile"] = n.Dir + "/xdp-cni.log"
			}
		}
	}
	data, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
