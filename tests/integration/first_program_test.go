package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests"
)

// block is commands of a document, in a fence of sh, and the lines that a fence of text behind it says they print:
// none, if it is empty.
type block struct {
	commands string
	shown    bool
	prints   []string
}

// blocksOf returns the fenced blocks of a Markdown document.
func blocksOf(t *testing.T, document string) (blocks []block) {
	t.Helper()
	fence := ""
	for line := range strings.Lines(document) {
		text := strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(text, "```") && fence == "":
			if fence = strings.TrimPrefix(text, "```"); fence == "sh" {
				blocks = append(blocks, block{})
			} else if fence != "text" || len(blocks) == 0 {
				t.Fatalf("a fence of %q is neither of commands nor of what they print", fence)
			} else if fence == "text" {
				blocks[len(blocks)-1].shown = true
			}
		case text == "```":
			fence = ""
		case fence == "sh":
			blocks[len(blocks)-1].commands += line
		case fence == "text":
			last := &blocks[len(blocks)-1]
			last.prints = append(last.prints, text)
		}
	}
	return blocks
}

// shows tells whether a line of output is the one that a document shows, word by word; ... stands for anything.
func shows(shown, line string) bool {
	pattern := regexp.QuoteMeta(strings.Join(strings.Fields(shown), " "))
	pattern = strings.ReplaceAll(pattern, ` \.\.\. `, ` (.* )?`)
	pattern = strings.ReplaceAll(pattern, `\.\.\.`, `.*`)
	matches, err := regexp.MatchString("^"+pattern+"$", strings.Join(strings.Fields(line), " "))
	return err == nil && matches
}

// TestFirstProgram runs the commands of docs/first-program.md as they are there, in one shell, on a node whose mounts
// are its own too, and compares what they print with what the document shows.
func TestFirstProgram(t *testing.T) {
	if os.Getenv(tests.BinariesEnv) != "" {
		t.Skip("it builds with Go, and there is none where binaries are prebuilt")
	}
	n := start(t)
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	document, err := os.ReadFile(filepath.Join(root, "docs/first-program.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := blocksOf(t, string(document))
	if len(blocks) < 5 {
		t.Fatalf("the document has %d blocks of commands", len(blocks))
	}
	// what is somebody's own on a node is the test's here
	script := `set -euo pipefail
for dir in /run/netns /var/lib/cni; do mkdir -p $dir; mount -t tmpfs tmpfs $dir; done
mount -t bpf bpf /sys/fs/bpf
`
	const separator = "==== end of a block of commands"
	for _, b := range blocks {
		script += b.commands + "echo '" + separator + "'\n"
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-c", script)
	cmd.Dir = root
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := n.Run(cmd)
	outputs := strings.Split(string(out.Stdout), separator)
	if err != nil {
		t.Fatalf("%v in block %d of commands:\n%s\nstandard error: %s", err, len(outputs), out.Stdout, out.Stderr)
	}
	for i, b := range blocks {
		lines := strings.Split(outputs[i], "\n")
		if b.shown && len(b.prints) == 0 && strings.TrimSpace(outputs[i]) != "" {
			t.Errorf("the document shows that nothing is printed, and there is:\n%s", outputs[i])
		}
		for _, shown := range b.prints {
			found := false
			for j, line := range lines {
				if found = shows(shown, line); found {
					lines = lines[j+1:] // they come in that order
					break
				}
			}
			if !found {
				t.Errorf("the document shows %q, and there is:\n%s", shown, outputs[i])
			}
		}
	}
}
