package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const dockerfile = "../../install/image/Dockerfile"

func files(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if all[header.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBuild: the image has the three binaries and runs the installer; its digests are right, and the same
// files make the same image.
func TestBuild(t *testing.T) {
	context := t.TempDir()
	if err := os.Mkdir(filepath.Join(context, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"xdp", "xdp-ipam"} {
		if err := os.WriteFile(filepath.Join(context, "bin", name), []byte("of "+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	other := filepath.Join(context, "other")
	if err := os.WriteFile(other, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	var archive, again bytes.Buffer
	if err := Build(&archive, "xdp-cni:test", dockerfile, context, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Error("xdpctl is missing:", err)
	}
	archive.Reset()
	from := map[string]string{"bin/xdpctl": other}
	if err := errors.Join(Build(&archive, "xdp-cni:test", dockerfile, context, from), Build(&again, "xdp-cni:test", dockerfile, context, from)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(archive.Bytes(), again.Bytes()) {
		t.Error("two images of the same files differ")
	}
	parts := files(t, archive.Bytes())
	var manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal(parts["manifest.json"], &manifest); err != nil || !slices.Equal(manifest[0].RepoTags, []string{"xdp-cni:test"}) {
		t.Fatal(err, manifest)
	}
	var config struct {
		Config struct{ Entrypoint, Cmd []string }
		Rootfs struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(parts[manifest[0].Config], &config); err != nil {
		t.Fatal(err)
	}
	layer := parts[manifest[0].Layers[0]]
	if config.Rootfs.DiffIDs[0] != "sha256:"+digest(layer) || strings.Join(append(config.Config.Entrypoint, config.Config.Cmd...), " ") != "/xdpctl install --watch" {
		t.Errorf("%+v", config)
	}
	inside := files(t, layer)
	if len(inside) != 3 || string(inside["xdp"]) != "of xdp" || string(inside["xdp-ipam"]) != "of xdp-ipam" || string(inside["xdpctl"]) != "another" {
		t.Errorf("%q", inside)
	}
}

func TestParse(t *testing.T) {
	for _, text := range []string{"", "FROM debian\nCOPY a /\n", "FROM scratch\n", "FROM scratch\nCOPY a b\n", "FROM scratch\nCOPY a /\nRUN a\n", "FROM scratch\nCOPY a /\nCMD a\n"} {
		if r, err := parse(text); err == nil {
			t.Errorf("%q: %+v", text, r)
		}
	}
}
