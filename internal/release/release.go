// Package release knows which release this is, and which one a file is of.
package release

import (
	"debug/buildinfo"
	"fmt"
	"os"
	"regexp"
	"runtime/debug"
	"strings"
)

// stamp is set by the linker: -X github.com/xdp-cni/xdp-cni/internal/release.stamp=xdp-cni-release:v1.2.3:
// It is found in a binary by what stands around the release: build information does not tell (with -trimpath
// the Go command leaves the linker's flags out of it).
var stamp string

// stamped matches the stamp, and not itself.
var stamped = regexp.MustCompile(`xdp-cni-release:([0-9A-Za-z.+_/-]{1,63}):`)

// Version returns the release, or for a build that set none the commit it is of.
func Version() string {
	if _, release, ok := strings.Cut(stamp, ":"); ok {
		return strings.TrimSuffix(release, ":")
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return unknown
	}
	return commit(info)
}

const unknown = "unknown"

// Of returns the release that a binary of this project is of, as its Version would; the binary is not run.
func Of(path string) (string, error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the build information of %s: %w", path, err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the release: %w", err)
	}
	if found := stamped.FindSubmatch(text); found != nil {
		return string(found[1]), nil
	}
	return commit(info), nil
}

func commit(info *debug.BuildInfo) string {
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" && len(setting.Value) >= 12 {
			return "devel-" + setting.Value[:12]
		}
	}
	return "devel"
}
