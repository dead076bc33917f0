package install

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

const bridge = `{
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [
        { "type": "bridge", "ipam": {"type": "host-local"} },
        { "type": "portmap" }
    ]
}
`

// node is a node's directories.
type node struct {
	*testing.T
	Options
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t, Options{ConfDir: filepath.Join(dir, "net.d"), BinDir: filepath.Join(dir, "bin"), From: filepath.Join(dir, "from")}}
	for _, dir := range []string{n.ConfDir, n.BinDir, n.From} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.ours = func(path string) (bool, error) {
		text, err := os.ReadFile(path)
		return strings.HasPrefix(string(text), "ours"), err
	}
	return n
}

func (n *node) write(name, text string) {
	n.Helper()
	if err := os.WriteFile(filepath.Join(n.ConfDir, name), []byte(text), 0o644); err != nil {
		n.Fatal(err)
	}
}

func (n *node) text(name string) string {
	n.Helper()
	text, err := os.ReadFile(filepath.Join(n.ConfDir, name))
	if err != nil {
		n.Fatal(err)
	}
	return string(text)
}

// names are the files in the directory of configurations, but for the state.
func (n *node) names() string {
	n.Helper()
	entries, err := os.ReadDir(n.ConfDir)
	if err != nil {
		n.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != stateDir {
			names = append(names, e.Name())
		}
	}
	return strings.Join(names, " ")
}

func (n *node) configure() []Change {
	n.Helper()
	changes, err := n.Configure(n.Context())
	if err != nil {
		n.Fatal(err)
	}
	return changes
}

// unconfigure leaves nothing but configurations behind.
func (n *node) unconfigure() []Change {
	n.Helper()
	changes, err := n.Unconfigure(n.Context())
	if err != nil {
		n.Fatal(err)
	}
	if _, err := os.Stat(n.statePath("")); !errors.Is(err, fs.ErrNotExist) {
		n.Error("the state is left", err)
	}
	return changes
}

// types are the plugins of a chain, as libcni reads it.
func (n *node) types(name string) string {
	n.Helper()
	list, err := libcni.ConfListFromFile(filepath.Join(n.ConfDir, name))
	if err != nil {
		n.Fatal(err)
	}
	var types []string
	for _, p := range list.Plugins {
		types = append(types, p.Network.Type)
	}
	return strings.Join(types, " ")
}
