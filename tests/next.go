package tests

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
)

// NextRelease is what the binaries of BuildNext say they are of.
const NextRelease = "next"

var (
	buildNextOnce sync.Once
	buildNextErr  error
)

// Next is where the binaries of another release are: see BuildNext.
func (b Binaries) Next() Binaries { return Binaries{Dir: filepath.Join(b.Dir, NextRelease)} }

// BuildNext builds, once per process, our binaries of another release into Binaries.Next(): each of its BPF
// programs has an instruction more.
func BuildNext(ctx context.Context) (Binaries, error) {
	b, prebuilt, err := binaries()
	if err != nil || prebuilt {
		return b.Next(), err
	}
	buildNextOnce.Do(func() { buildNextErr = buildNext(ctx, b) })
	return b.Next(), buildNextErr
}

func buildNext(ctx context.Context, b Binaries) error {
	root, err := repoRoot()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "xdp-cni-next-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	overlay, err := nextOverlay(root, dir)
	if err != nil {
		return fmt.Errorf("make another release: %w", err)
	}
	next := b.Next()
	flags := []string{"-overlay", overlay, "-ldflags", "-X " + module + "/internal/release.stamp=xdp-cni-release:" + NextRelease + ":"}
	if err := errors.Join(
		goBuildFlags(ctx, flags, next.Plugin(), "./plugin"),
		goBuildFlags(ctx, flags, next.IPAM(), "./ipam"),
		goBuildFlags(ctx, flags, next.Xdpctl(), "./cmd/xdpctl"),
	); err != nil {
		return err
	}
	// the plugins that it is chained with are the same
	if err := os.Symlink(filepath.Join("..", "cni"), filepath.Join(next.Dir, "cni")); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// nextOverlay makes, in dir, the file that replaces what loads the BPF programs, and one that tells the Go command so.
func nextOverlay(root, dir string) (string, error) {
	generated := filepath.Join(root, "bpf", map[bool]string{true: "datapath_bpfeb.go", false: "datapath_bpfel.go"}[runtime.GOARCH == "s390x"])
	text, err := os.ReadFile(generated)
	if err != nil {
		return "", err
	}
	for old, new := range map[string]string{
		"\"github.com/cilium/ebpf\"\n": "\"github.com/cilium/ebpf\"\n\t\"github.com/cilium/ebpf/asm\"\n",
		"\treturn spec, err\n": `
	for _, prog := range spec.Programs {
		// what is known of the function stands at its first instruction
		more := asm.Mov.Imm(asm.R0, 1).WithMetadata(prog.Instructions[0].Metadata)
		prog.Instructions[0] = prog.Instructions[0].WithMetadata(asm.Metadata{})
		prog.Instructions = append(asm.Instructions{more}, prog.Instructions...)
	}
	return spec, nil
`,
	} {
		if bytes.Count(text, []byte(old)) != 1 {
			return "", fmt.Errorf("%s does not have %q once", generated, old)
		}
		text = bytes.Replace(text, []byte(old), []byte(new), 1)
	}
	changed := filepath.Join(dir, filepath.Base(generated))
	if err := os.WriteFile(changed, text, 0o600); err != nil {
		return "", err
	}
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {generated: changed}})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, replace, 0o600)
}
