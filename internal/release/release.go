// Package release knows which release this is.
package release

import "runtime/debug"

// version is set by the linker: -X github.com/xdp-cni/xdp-cni/internal/release.version=v1.2.3
var version string

// Version returns the release, or for a build that set none the commit it is of.
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" && len(setting.Value) >= 12 {
			return "devel-" + setting.Value[:12]
		}
	}
	return "devel"
}
