// Package image makes the installer's image as docker build would, of install/image/Dockerfile, without
// docker and without a network: it is from scratch, so a tar is all there is to it.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
)

// recipe is what a Dockerfile says, of the few things that are known here.
type recipe struct {
	sources               []string
	destination           string
	entrypoint, arguments []string
}

// Build reads the Dockerfile, copies what it names from the directory context, and writes the image called
// name ("xdp-cni:latest") as docker save would: a tar that docker load and ctr image import take. In from,
// "bin/xdp" may be replaced by another file: paths in the context to paths of files; nil for none.
func Build(w io.Writer, name, dockerfile, context string, from map[string]string) error {
	text, err := os.ReadFile(dockerfile)
	if err != nil {
		return fmt.Errorf("making image %s: %w", name, err)
	}
	r, err := parse(string(text))
	if err != nil {
		return fmt.Errorf("making image %s of %s: %w", name, dockerfile, err)
	}
	layer, err := r.layer(context, from)
	if err != nil {
		return fmt.Errorf("making image %s: %w", name, err)
	}
	if err := r.save(w, name, layer); err != nil {
		return fmt.Errorf("writing image %s: %w", name, err)
	}
	return nil
}

func parse(text string) (*recipe, error) {
	r := &recipe{}
	scratch := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		word, rest, _ := strings.Cut(line, " ")
		rest = strings.TrimSpace(rest)
		var err error
		switch word {
		case "FROM":
			if rest != "scratch" {
				return nil, fmt.Errorf("FROM %s: only scratch needs no network", rest)
			}
			scratch = true
		case "COPY":
			words := strings.Fields(rest)
			if len(words) < 2 || r.destination != "" || !strings.HasPrefix(words[len(words)-1], "/") {
				return nil, fmt.Errorf("COPY %s: want one, of files to an absolute directory", rest)
			}
			r.sources, r.destination = words[:len(words)-1], words[len(words)-1]
		case "ENTRYPOINT":
			err = json.Unmarshal([]byte(rest), &r.entrypoint)
		case "CMD":
			err = json.Unmarshal([]byte(rest), &r.arguments)
		default:
			err = errors.New("not known")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", word, err)
		}
	}
	if !scratch || r.destination == "" {
		return nil, errors.New("no FROM scratch, or no COPY")
	}
	return r, nil
}

// layer is the tar of the image's files: the same bytes for the same files.
func (r *recipe) layer(context string, from map[string]string) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, source := range r.sources {
		file := filepath.Join(context, source)
		if other, ok := from[source]; ok {
			file = other
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		name := strings.TrimPrefix(path.Join(r.destination, path.Base(source)), "/")
		if err := add(w, name, 0o755, text); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

func add(w *tar.Writer, name string, mode int64, text []byte) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(text))}); err != nil {
		return err
	}
	_, err := w.Write(text)
	return err
}

// save writes the image in the form of docker save (Docker Image Specification v1.2, "Combined Image JSON").
func (r *recipe) save(to io.Writer, name string, layer []byte) error {
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": r.entrypoint, "Cmd": r.arguments},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
		"history":      []map[string]any{{"created_by": "COPY"}},
	})
	if err != nil {
		return err
	}
	configName, layerName := digest(config)+".json", digest(layer)+"/layer.tar"
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": []string{name}, "Layers": []string{layerName}}})
	if err != nil {
		return err
	}
	w := tar.NewWriter(to)
	for _, file := range []struct {
		name string
		text []byte
	}{{layerName, layer}, {configName, config}, {"manifest.json", manifest}} {
		if err := add(w, file.name, 0o644, file.text); err != nil {
			return err
		}
	}
	return w.Close()
}

func digest(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
