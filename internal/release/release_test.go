package release

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const main = `package main

import "github.com/xdp-cni/xdp-cni/internal/release"

func main() { println(release.Version()) }
`

// TestOf builds a program as releases are built, and as developers do, and compares what its file says with what it
// says itself.
func TestOf(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("there is no go command to build with")
	}
	// inside the module, as the package is internal
	dir, err := os.MkdirTemp(".", "_main")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte(main), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, stamp, want string }{
		{"release", "xdp-cni-release:v1.2.3-4-gabcdef-dirty:", "v1.2.3-4-gabcdef-dirty"},
		{"none", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			binary := filepath.Join(t.TempDir(), "program")
			build := exec.Command("go", "build", "-trimpath", "-o", binary,
				"-ldflags", "-s -w -X github.com/xdp-cni/xdp-cni/internal/release.stamp="+test.stamp, source)
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			said, err := exec.Command(binary).CombinedOutput()
			if err != nil {
				t.Fatal(err)
			}
			got, err := Of(binary)
			if err != nil || got != strings.TrimSpace(string(said)) || test.want != "" && got != test.want {
				t.Errorf("the file is of %q, %v, the program says %q, want %q", got, err, said, test.want)
			}
		})
	}
	if _, err := Of("/dev/null"); err == nil {
		t.Error("an empty file has a release")
	}
}
