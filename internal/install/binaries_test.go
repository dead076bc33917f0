package install

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests"
)

func TestBinaries(t *testing.T) {
	n := newNode(t)
	if _, err := n.CopyBinaries(); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	for _, name := range Binaries {
		if err := os.WriteFile(filepath.Join(n.From, name), []byte("ours "+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	results := func(changes []Change, err error) string {
		t.Helper()
		var words []string
		for _, c := range changes {
			words = append(words, filepath.Base(c.Path)+" "+string(c.Result))
		}
		if err != nil {
			words = append(words, err.Error())
		}
		return strings.Join(words, ", ")
	}
	n.DryRun = true
	if have := results(n.CopyBinaries()); have != "xdp created, xdp-ipam created, xdpctl created" {
		t.Error(have)
	}
	n.DryRun = false
	if entries, err := os.ReadDir(n.BinDir); err != nil || len(entries) != 0 {
		t.Error(entries, err)
	}
	if have := results(n.CopyBinaries()); have != "xdp created, xdp-ipam created, xdpctl created" {
		t.Error(have)
	}
	for _, name := range Binaries {
		info, err := os.Stat(filepath.Join(n.BinDir, name))
		text, _ := os.ReadFile(filepath.Join(n.BinDir, name))
		if err != nil || info.Mode() != binaryMode || string(text) != "ours "+name {
			t.Error(name, err, info, string(text))
		}
	}
	// one that is open, as one that runs is, stays for who has it
	running, err := os.Open(filepath.Join(n.BinDir, "xdp"))
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	if err := os.WriteFile(filepath.Join(n.From, "xdp"), []byte("ours, of another release"), 0o600); err != nil {
		t.Fatal(err)
	}
	if have := results(n.CopyBinaries()); have != "xdp changed, xdp-ipam unchanged, xdpctl unchanged" {
		t.Error(have)
	}
	var old bytes.Buffer
	if _, err := old.ReadFrom(running); err != nil || old.String() != "ours xdp" {
		t.Error(err, old.String())
	}
	if entries, err := os.ReadDir(n.BinDir); err != nil || len(entries) != len(Binaries) {
		t.Error(entries, err)
	}
	if have := results(n.RemoveBinaries("xdp-ipam")); have != "xdp removed, xdp-ipam kept, xdpctl removed" {
		t.Error(have)
	}
	if err := os.WriteFile(filepath.Join(n.BinDir, "xdp"), []byte("another's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := n.CopyBinaries(); !errors.Is(err, ErrInUse) {
		t.Error(err)
	}
	if have := results(n.RemoveBinaries()); have != "xdp-ipam removed" {
		t.Error(have)
	}
	if text, err := os.ReadFile(filepath.Join(n.BinDir, "xdp")); err != nil || string(text) != "another's" {
		t.Error(err, string(text))
	}
}

// TestOurs: binaries of this project are known by what Go notes in them.
func TestOurs(t *testing.T) {
	b, err := tests.BuildOurs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{b.Plugin(): true, b.IPAM(): true, b.Xdpctl(): true, "/bin/sh": false, "install.go": false} {
		if have, err := builtOfOurs(path); have != want || err != nil {
			t.Errorf("%s: %v, %v", path, have, err)
		}
	}
	if _, err := builtOfOurs("nothing"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
