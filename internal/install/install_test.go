package install

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/internal/conflist"
	"github.com/xdp-cni/xdp-cni/internal/wholefile"
)

// TestConfigure: the first file in lexical order has the entry, once, and back is every byte and the mode.
func TestConfigure(t *testing.T) {
	n := newNode(t)
	n.write("20-other.conflist", bridge)
	n.write("10-pods.conflist", bridge)
	n.write("00-readme.txt", "nothing")
	if err := os.Mkdir(filepath.Join(n.ConfDir, "05-dir.conflist"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(n.ConfDir, "10-pods.conflist")
	if err := errors.Join(os.Chmod(path, 0o640), os.Chown(path, 12, 34)); err != nil {
		t.Fatal(err)
	}
	owned := func() {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if a := wholefile.Of(info); a != (wholefile.Attributes{Mode: 0o640, UID: 12, GID: 34}) {
			t.Errorf("mode and owner %+v", a)
		}
	}

	n.DryRun = true
	changes := n.configure()
	if len(changes) != 1 || changes[0].Result != Changed || !strings.Contains(changes[0].Diff, "\n+          \"type\": \"xdp\",\n") ||
		n.text("10-pods.conflist") != bridge {
		t.Errorf("dry run: %+v", changes)
	}
	n.DryRun = false
	if err := os.Remove(n.statePath("")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a dry run left a state:", err)
	}

	if again := n.configure(); !slices.Equal(again, changes) {
		t.Errorf("%+v, the dry run said %+v", again, changes)
	}
	if have := n.types("10-pods.conflist"); have != "bridge portmap xdp" {
		t.Error(have)
	}
	owned()
	with := n.text("10-pods.conflist")
	if changes := n.configure(); changes[0].Result != Unchanged || n.text("10-pods.conflist") != with {
		t.Errorf("a second time: %+v", changes)
	}
	n.Settings.Mode = conf.ModeTCX
	if changes := n.configure(); changes[0].Result != Changed || !strings.Contains(n.text("10-pods.conflist"), `"tcx"`) {
		t.Errorf("another mode: %+v", changes)
	}
	if changes := n.unconfigure(); len(changes) != 1 || changes[0].Result != Restored || n.text("10-pods.conflist") != bridge {
		t.Errorf("%+v:\n%s", changes, n.text("10-pods.conflist"))
	}
	owned()
	if n.text("20-other.conflist") != bridge {
		t.Error("the second file was changed")
	}
	if changes := n.unconfigure(); len(changes) != 0 {
		t.Errorf("a second time: %+v", changes)
	}
}

// TestChangedMeanwhile: what others did since then stays.
func TestChangedMeanwhile(t *testing.T) {
	n := newNode(t)
	n.write("10.conflist", bridge)
	n.configure()
	n.write("10.conflist", strings.Replace(n.text("10.conflist"), `"portmap"`, `"tuning"`, 1))
	n.configure() // notes no original: it would take the change back
	if changes := n.unconfigure(); changes[0].Result != Changed {
		t.Errorf("%+v", changes)
	}
	if want := strings.Replace(bridge, `"portmap"`, `"tuning"`, 1); n.text("10.conflist") != want {
		t.Errorf("have\n%s", n.text("10.conflist"))
	}

	// another's installer wrote it anew: that is the original then
	n.write("10.conflist", bridge)
	n.configure()
	other := strings.Replace(bridge, "pods", "others", 1)
	n.write("10.conflist", other)
	n.configure()
	if changes := n.unconfigure(); changes[0].Result != Restored || n.text("10.conflist") != other {
		t.Errorf("%+v\n%s", changes, n.text("10.conflist"))
	}
}

// TestByHand: an entry that somebody wrote stays as it is, and goes with the binaries.
func TestByHand(t *testing.T) {
	n := newNode(t)
	list := strings.Replace(bridge, `{ "type": "portmap" }`, `{ "type": "portmap" }, { "type": "xdp", "stats": {"peers": 7} }`, 1)
	n.write("10.conflist", list)
	n.write("20.conflist", list)
	if changes := n.configure(); changes[0].Result != Unchanged || n.text("10.conflist") != list {
		t.Errorf("%+v", changes)
	}
	n.Settings.Mode = conf.ModeTCX
	n.configure()
	if text := n.text("10.conflist"); !strings.Contains(text, `"peers":7`) || !strings.Contains(text, `"tcx"`) {
		t.Error(text)
	}
	if changes := n.unconfigure(); len(changes) != 2 {
		t.Errorf("%+v", changes)
	}
	if n.text("10.conflist") != bridge || n.text("20.conflist") != bridge {
		t.Error(n.text("10.conflist"), n.text("20.conflist"))
	}
}

// TestSingle: a configuration that is no list is made one, and comes back.
func TestSingle(t *testing.T) {
	for _, extension := range []string{".conf", ".json"} {
		n := newNode(t)
		const single = `{"name":"pods","cniVersion":"0.4.0","type":"bridge"}`
		n.write("10-pods"+extension, single)
		n.DryRun = true
		if changes := n.configure(); len(changes) != 2 || n.names() != "10-pods"+extension {
			t.Errorf("%+v, %s", changes, n.names())
		}
		n.DryRun = false
		n.configure()
		if n.names() != "10-pods.conflist" || n.types("10-pods.conflist") != "bridge xdp" {
			t.Error(n.names())
		}
		if changes := n.configure(); changes[0].Result != Unchanged {
			t.Errorf("%+v", changes)
		}
		// its installer comes again
		other := strings.Replace(single, "pods", "more", 1)
		n.write("10-pods"+extension, other)
		if extension == ".conf" { // which goes before the list
			n.configure()
			if n.names() != "10-pods.conflist" || !strings.Contains(n.text("10-pods.conflist"), `"more"`) {
				t.Error(n.names(), n.text("10-pods.conflist"))
			}
		}
		n.unconfigure()
		if n.names() != "10-pods"+extension || n.text("10-pods"+extension) != other {
			t.Error(n.names())
		}

		n.write("10-pods.conflist", bridge)
		n.File = "10-pods" + extension
		if _, err := n.Configure(n.Context()); !errors.Is(err, ErrInUse) || n.text("10-pods.conflist") != bridge {
			t.Error(err)
		}
	}
}

// TestRefusals: a node that cannot have the entry stays as it is.
func TestRefusals(t *testing.T) {
	for _, test := range []struct {
		file, text string
		want       error
	}{
		{"10.conflist", strings.Replace(bridge, `"bridge"`, `"macvlan"`, 1), conflist.ErrUnfit},
		{"10.conf", `{"name":"n","cniVersion":"1.0.0","type":"ipvlan"}`, conflist.ErrUnfit},
		{"10.conf", `{"name":"n","cniVersion":"0.2.0","type":"bridge"}`, conflist.ErrUnfit},
		{"10.conf", bridge, conflist.ErrSyntax},
		{"10.conflist", bridge[:40], conflist.ErrSyntax},
		{"10.conflist", "", conflist.ErrSyntax},
		{"10.txt", bridge, ErrNoConf},
	} {
		n := newNode(t)
		n.write(test.file, test.text)
		if changes, err := n.Configure(t.Context()); !errors.Is(err, test.want) || changes != nil {
			t.Errorf("%s: %v, %+v", test.text, err, changes)
		}
		if _, err := os.Stat(n.statePath("")); n.text(test.file) != test.text || n.names() != test.file || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: left %s, %v", test.text, n.names(), err)
		}
	}
	// a chain that goes on in files of its own
	n := newNode(t)
	n.write("10.conflist", bridge)
	if err := os.Mkdir(filepath.Join(n.ConfDir, "pods"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.configure()
	n.unconfigure()
	n.write("pods/50-tuning.conf", `{"type":"tuning"}`)
	if _, err := n.Configure(t.Context()); !errors.Is(err, conflist.ErrUnfit) {
		t.Error(err)
	}
	n.write("10.conflist", strings.Replace(bridge, `"name"`, `"loadOnlyInlinedPlugins": true, "name"`, 1))
	n.configure()
}

// TestCreate: without any configuration there is a new one, if its plugins are there.
func TestCreate(t *testing.T) {
	n := newNode(t)
	n.Subnet = netip.MustParsePrefix("10.88.7.9/24")
	if _, err := n.Configure(t.Context()); !errors.Is(err, ErrNoConf) || !strings.Contains(err.Error(), "no plugin bridge") {
		t.Error(err)
	}
	for _, name := range needed {
		if err := os.WriteFile(filepath.Join(n.BinDir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.configure()
	if n.names() != createdName || n.types(createdName) != "bridge portmap xdp" || !strings.Contains(n.text(createdName), `"10.88.7.0/24"`) {
		t.Error(n.names())
	}
	n.Settings.Mode = conf.ModeTCX
	n.configure()
	if changes := n.unconfigure(); changes[0].Result != Removed || n.names() != "" {
		t.Errorf("%+v, %s", changes, n.names())
	}
}

// TestSymlink: the link stays one.
func TestSymlink(t *testing.T) {
	n := newNode(t)
	target := filepath.Join(t.TempDir(), "list")
	if err := errors.Join(os.WriteFile(target, []byte(bridge), 0o600), os.Symlink(target, filepath.Join(n.ConfDir, "10.conflist"))); err != nil {
		t.Fatal(err)
	}
	n.configure()
	if n.types("10.conflist") != "bridge portmap xdp" {
		t.Error(n.text("10.conflist"))
	}
	n.unconfigure()
	text, err := os.ReadFile(target)
	if to, _ := os.Readlink(filepath.Join(n.ConfDir, "10.conflist")); err != nil || string(text) != bridge || to != target {
		t.Error(err, to)
	}
}

// TestRace: what another writes at the last moment is not lost, and has the entry.
func TestRace(t *testing.T) {
	n := newNode(t)
	n.write("10.conflist", bridge)
	other := strings.Replace(bridge, "portmap", "tuning", 1)
	races := 0
	n.beforeReplace = func() {
		if races++; races == 1 {
			// as installers do
			n.write("new", other)
			if err := os.Rename(filepath.Join(n.ConfDir, "new"), filepath.Join(n.ConfDir, "10.conflist")); err != nil {
				t.Fatal(err)
			}
		}
	}
	n.configure()
	if have := n.types("10.conflist"); have != "bridge tuning xdp" || races != 2 {
		t.Errorf("%s after %d tries", have, races)
	}
	races = 0
	other = strings.Replace(n.text("10.conflist"), "tuning", "firewall", 1)
	n.unconfigure()
	if have := n.types("10.conflist"); have != "bridge firewall" || races != 2 {
		t.Errorf("%s after %d tries", have, races)
	}
	n.write("10.conflist", bridge)
	n.beforeReplace = func() {
		races++
		n.write("10.conflist", strings.Replace(bridge, "portmap", fmt.Sprintf("p%d", races), 1))
	}
	if _, err := n.Configure(t.Context()); !errors.Is(err, wholefile.ErrChanged) {
		t.Error(err)
	}
	if have := n.types("10.conflist"); have != fmt.Sprintf("bridge p%d", races) {
		t.Error(have)
	}
}

// TestKilled: after each state in which a killed process leaves the node, all is as it should be by the
// next call.
func TestKilled(t *testing.T) {
	n := newNode(t)
	n.write("10.conflist", bridge)
	n.beforeReplace = func() { panic("killed") }
	func() {
		defer func() { _ = recover() }()
		n.configure()
	}()
	n.beforeReplace = nil
	if err := os.WriteFile(n.statePath(temporaryFile), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if changes := n.unconfigure(); len(changes) != 0 || n.text("10.conflist") != bridge {
		t.Errorf("%+v", changes)
	}

	n.beforeReplace = func() { panic("killed") }
	func() {
		defer func() { _ = recover() }()
		n.configure()
	}()
	n.beforeReplace = nil
	n.configure()
	if have := n.types("10.conflist"); have != "bridge portmap xdp" {
		t.Error(have)
	}
	n.unconfigure()

	// of a single plugin, between the two files
	n.write("10.conf", `{"name":"n","cniVersion":"1.0.0","type":"ptp"}`)
	if err := os.Remove(filepath.Join(n.ConfDir, "10.conflist")); err != nil {
		t.Fatal(err)
	}
	n.beforeReplace = func() { panic("killed") }
	func() {
		defer func() { _ = recover() }()
		n.configure()
	}()
	n.beforeReplace = nil
	if n.names() != "10.conf 10.conflist" {
		t.Error(n.names())
	}
	n.configure()
	if n.names() != "10.conflist" {
		t.Error(n.names())
	}
	n.unconfigure()
	if n.names() != "10.conf" {
		t.Error(n.names())
	}
}

func TestBrokenOthers(t *testing.T) {
	n := newNode(t)
	n.write("10.conflist", bridge)
	n.configure()
	n.write("50-broken.conflist", "{")
	n.unconfigure()
	if n.text("10.conflist") != bridge {
		t.Error(n.text("10.conflist"))
	}
	n.write("50-broken.conflist", `{"plugins":[{"type":"xdp"`)
	if _, err := n.Unconfigure(t.Context()); !errors.Is(err, conflist.ErrSyntax) {
		t.Error("a file that may have the entry was passed over:", err)
	}
}

func TestIPAMInUse(t *testing.T) {
	n := newNode(t)
	n.write("10.conflist", bridge)
	if used, err := n.IPAMInUse(); used || err != nil {
		t.Error(used, err)
	}
	n.write("20.conflist", strings.Replace(bridge, "host-local", "xdp-ipam", 1))
	if used, err := n.IPAMInUse(); !used || err != nil {
		t.Error(used, err)
	}
}
