package integration

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/tests"
)

// TestImport switches a node from host-local without draining it.
func TestImport(t *testing.T) {
	n := startLeases(t, tests.WithoutIPv6())
	before := tests.MustNetwork(t, n, tests.Conflist("net", "1.0.0", n.Bridge(tests.IPv4), n.XDP()))
	old := tests.MustPod(t, n, "old")
	tests.MustAdd(t, before, old)
	gone := tests.MustPod(t, n, "gone")
	tests.MustAdd(t, before, gone)
	// the last one that host-local gave an address went again
	passing := tests.MustPod(t, n, "passing")
	tests.MustAdd(t, before, passing)
	if err := before.Del(t.Context(), passing); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(n.DataDir, "net")
	// what a reboot has left, and what older releases wrote
	for name, text := range map[string]string{"10.244.0.77": "stale\r\neth0", "10.244.0.78": "ancient", "notes": "no address"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	xdpctl := func(args ...string) string {
		t.Helper()
		out, err := n.RunXdpctl(t.Context(), append([]string{"ipam"}, args...)...)
		if err != nil {
			t.Fatalf("xdpctl ipam %v: %v: %s", args, err, out.Stderr)
		}
		return string(out.Stdout)
	}
	var report struct {
		Imported, Skipped []struct{ Address, ContainerID, Reason string }
	}
	if err := json.Unmarshal([]byte(xdpctl("import", "net", "--data-dir", n.DataDir, "-o", "json", "--alive")), &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Imported) != 2 || len(report.Skipped) != 2 {
		t.Errorf("imported those alive: %+v", report)
	}
	if err := json.Unmarshal([]byte(xdpctl("import", "net", "--data-dir", n.DataDir, "-o", "json")), &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Imported) != 2 || report.Imported[0].ContainerID != "stale" || report.Imported[1].ContainerID != "ancient" {
		t.Errorf("imported the rest: %+v", report)
	}
	after := tests.MustNetwork(t, n, tests.Conflist("net", "1.0.0", n.Bridge(tests.IPv4, tests.Conf{"ipam": n.Leases(tests.IPv4)}), n.XDP()))
	young := tests.MustPod(t, n, "new")
	tests.MustAdd(t, after, young)
	if want := netip.MustParseAddr("10.244.0.5"); young.IPv4() != want {
		t.Errorf("the new pod has %s, want %s: the next in turn", young.IPv4(), want)
	}
	if err := tests.Ping(t.Context(), young, old.IPv4(), 2); err != nil {
		t.Error(err)
	}
	if err := after.Check(t.Context(), old); err != nil {
		t.Errorf("CHECK of the old pod: %v", err)
	}
	if err := after.Del(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	all := leasesOf(t, n, "net")
	if _, leased := all[gone.IPv4()]; leased || len(all) != 4 {
		t.Errorf("leases: %v", all)
	}

	list := xdpctl("list", "net")
	for _, want := range []string{old.IPv4().String(), "eth0", "stale"} {
		if !strings.Contains(list, want) {
			t.Errorf("no %q in\n%s", want, list)
		}
	}
	if show := xdpctl("show"); !strings.Contains(show, "10.244.0.1-10.244.0.254") || !strings.Contains(show, "4 of 253") {
		t.Errorf("usage:\n%s", show)
	}
	if out, err := n.RunXdpctl(t.Context(), "ipam", "release", "net", young.IPv4().String()); err == nil || !strings.Contains(string(out.Stderr), "--force") {
		t.Errorf("released the address of a living pod: %s", out.Stderr)
	}
	xdpctl("release", "net", "10.244.0.77")
	xdpctl("release", "net", young.IPv4().String(), "--force")
	if all := leasesOf(t, n, "net"); len(all) != 2 {
		t.Errorf("leases: %v", all)
	}
	// the attachment has an address now that is not leased to it: whatever of the chain is asked tells
	raw, err := json.Marshal(young.Result)
	if err != nil {
		t.Fatal(err)
	}
	var prev map[string]any
	if err := json.Unmarshal(raw, &prev); err != nil {
		t.Fatal(err)
	}
	if out, err := n.RunPlugin(t.Context(), "CHECK", young, pluginConf(n, "1.0.0", prev)); err == nil {
		t.Error("CHECK of the chained plugin succeeded")
	} else if e := outputError(t, out); e.Code != 106 || !strings.Contains(e.Msg, young.IPv4().String()+", which the attachment has, is leased to nobody") {
		t.Errorf("CHECK: %v", e)
	}
	if out, err := n.RunXdpctl(t.Context(), "doctor"); err == nil || !strings.Contains(string(out.Stdout), young.IPv4().String()) {
		t.Errorf("doctor says nothing of it: %s", out.Stdout)
	}

	// an attachment whose interface is there holds its address, were it not configured at this moment
	if err := old.Do(func() error {
		eth, err := netlink.LinkByName(old.IfName)
		if err != nil {
			return err
		}
		return netlink.AddrDel(eth, &netlink.Addr{IPNet: &old.Result.IPs[0].Address})
	}); err != nil {
		t.Fatal(err)
	}
	if out, err := n.RunXdpctl(t.Context(), "ipam", "release", "net", old.IPv4().String()); err == nil || !strings.Contains(string(out.Stderr), old.ContainerID[:8]) {
		t.Errorf("released the address of a living attachment: %s", out.Stderr)
	}
	// one whose interface is gone does not
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	waitGone(t, n, old)
	xdpctl("release", "net", old.IPv4().String())
	if all := leasesOf(t, n, "net"); len(all) != 1 {
		t.Errorf("leases: %v", all)
	}
}
