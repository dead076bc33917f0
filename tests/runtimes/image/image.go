// Package image makes container images from scratch, without any tool or registry.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
)

// File is a file of an image.
type File struct {
	Name    string // without the leading slash
	Mode    int64
	Content []byte
}

// Write writes an archive of one image, as `docker save` does (docker-archive), with one layer of the given files, that
// runs the given command: what `ctr images import` and `podman load` take.
func Write(w io.Writer, reference string, entrypoint, command []string, files ...File) error {
	var layer bytes.Buffer
	if err := archive(&layer, files); err != nil {
		return err
	}
	const epoch = "1970-01-01T00:00:00Z"
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"created":      epoch,
		"config":       map[string]any{"Entrypoint": entrypoint, "Cmd": command, "Env": []string{"PATH=/"}},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer.Bytes()))}},
		"history":      []any{map[string]any{"created": epoch}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]any{map[string]any{
		"Config": "config.json", "RepoTags": []string{reference}, "Layers": []string{"layer.tar"},
	}})
	if err != nil {
		return err
	}
	return archive(w, []File{
		{Name: "manifest.json", Mode: 0o644, Content: manifest},
		{Name: "config.json", Mode: 0o644, Content: config},
		{Name: "layer.tar", Mode: 0o644, Content: layer.Bytes()},
	})
}

func archive(w io.Writer, files []File) error {
	t := tar.NewWriter(w)
	for _, f := range files {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: f.Name, Mode: f.Mode, Size: int64(len(f.Content))}
		if err := t.WriteHeader(header); err != nil {
			return err
		}
		if _, err := t.Write(f.Content); err != nil {
			return err
		}
	}
	return t.Close()
}
