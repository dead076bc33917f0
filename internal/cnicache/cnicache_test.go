package cnicache

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/internal/conflist"
)

const chain = `{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"main"}]}`

// cached makes libcni note an attachment, of a plugin that only prints.
func cached(t *testing.T) (string, *libcni.CNIConfig, *libcni.RuntimeConf) {
	t.Helper()
	dir := t.TempDir()
	plugin := `#!/bin/sh
case "$CNI_COMMAND" in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}' ;;
ADD) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/proc/self/ns/net"}],"ips":[{"address":"10.0.0.2/24","interface":0}]}' ;;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "main"), []byte(plugin), 0o755); err != nil {
		t.Fatal(err)
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{dir}, dir, &invoke.DefaultExec{RawExec: &invoke.RawExec{}})
	rt := &libcni.RuntimeConf{
		ContainerID: "c1", NetNS: "/proc/self/ns/net", IfName: "eth0",
		Args:           [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", "web"}},
		CapabilityArgs: map[string]any{"xdpFilter": map[string]any{"antiSpoof": false}, "portMappings": []any{}},
	}
	list, err := libcni.NetworkConfFromBytes([]byte(chain))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cni.AddNetworkList(context.Background(), list, rt); err != nil {
		t.Fatal(err)
	}
	return dir, cni, rt
}

func only(t *testing.T, dir string) Attachment {
	t.Helper()
	list, err := Read(dir)
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %+v", err, list)
	}
	return list[0]
}

// TestRead: what libcni notes is what the plugin would have been given.
func TestRead(t *testing.T) {
	dir, _, _ := cached(t)
	for name, text := range map[string]string{"half": `{"kind":"cniCac`, "old": `{"cniVersion":"0.4.0"}`} {
		if err := os.WriteFile(filepath.Join(dir, "results", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := only(t, dir)
	if a.ContainerID != "c1" || a.IfName != "eth0" || a.Network != "pods" || a.Args != "IgnoreUnknown=1;K8S_POD_NAME=web" || !a.Alive() || a.HasEntry() {
		t.Errorf("%+v", a)
	}
	list, err := conflist.Parse("1.conflist", []byte(`{"cniVersion":"1.1.0","name":"pods","plugins":[{"type":"main"},
		{"type":"xdp","mode":"tcx","capabilities":{"xdpFilter":true,"portMappings":false}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := a.Stdin(list)
	if err != nil {
		t.Fatal(err)
	}
	c, err := conf.Parse(stdin)
	if err != nil {
		t.Fatal(err)
	}
	result, err := c.Result()
	if err != nil || c.Name != "pods" || c.CNIVersion != "1.1.0" || c.Mode != conf.ModeTCX ||
		result.IPs[0].Address.String() != "10.0.0.2/24" || c.RuntimeConfig.XDPFilter == nil || strings.Contains(string(stdin), "portMappings\":[") {
		t.Errorf("%v: %s", err, stdin)
	}
}

// TestReadOld: where libcni notes no namespace, as before 1.2, the result has it.
func TestReadOld(t *testing.T) {
	dir, _, _ := cached(t)
	file := only(t, dir).file
	for _, test := range []struct{ old, new, want string }{
		{`"netns":"/proc/self/ns/net"`, `"netns":""`, "/proc/self/ns/net"},
		{`"name":"eth0"`, `"name":"eth1"`, ""},
	} {
		text := mustJSON(t, file)
		changed := strings.Replace(text, test.old, test.new, 1)
		if changed == text {
			t.Fatalf("no %s in %s", test.old, text)
		}
		if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		if a := only(t, dir); a.Netns != test.want || a.Alive() != (test.want != "") {
			t.Errorf("%s: namespace %q", test.new, a.Netns)
		}
	}
}

func TestAlive(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for netns, want := range map[string]bool{"/proc/self/ns/net": true, file: false, file + "x": false, "": false} {
		if have := (Attachment{Netns: netns}).Alive(); have != want {
			t.Errorf("%q: %v", netns, have)
		}
	}
}

// TestSetEntry: the chain that libcni reads for a DEL has the entry, or no longer, and nothing else is
// otherwise.
func TestSetEntry(t *testing.T) {
	dir, cni, rt := cached(t)
	file := filepath.Join(dir, "results", "pods-c1-eth0")
	before := mustJSON(t, file)
	list, err := libcni.NetworkConfFromBytes([]byte(chain))
	if err != nil {
		t.Fatal(err)
	}
	noted := func() string {
		t.Helper()
		config, have, err := cni.GetNetworkListCachedConfig(list, rt)
		if err != nil || have.CapabilityArgs["xdpFilter"] == nil {
			t.Fatal(err, have)
		}
		return string(config)
	}
	if err := only(t, dir).SetEntry(json.RawMessage(`{"type":"xdp"}`)); err != nil {
		t.Fatal(err)
	}
	if have := noted(); have != strings.Replace(chain, `"main"}`, `"main"}, {"type":"xdp"}`, 1) || !only(t, dir).HasEntry() {
		t.Error(have)
	}
	if err := only(t, dir).SetEntry(nil); err != nil {
		t.Fatal(err)
	}
	if have := noted(); have != chain {
		t.Error(have)
	}
	if after := mustJSON(t, file); after != before {
		t.Errorf("have\n%s\nwant\n%s", after, before)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode() != 0o600 {
		t.Error(err, info.Mode())
	}

	// a pod that went meanwhile does not come back
	a := only(t, dir)
	if err := cni.DelNetworkList(t.Context(), list, rt); err != nil {
		t.Fatal(err)
	}
	if err := a.SetEntry(json.RawMessage(`{"type":"xdp"}`)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Error("the attachment is noted again:", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".xdp-cni*"))
	if err != nil || left != nil {
		t.Error(left, err)
	}
}

// mustJSON returns a file's JSON in one form.
func mustJSON(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var value any
	if err := json.Unmarshal(text, &value); err != nil {
		t.Fatal(err)
	}
	text, err = json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
