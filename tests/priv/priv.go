// Package priv says what a test does that needs root and has not got it.
package priv

import (
	"os"
	"testing"
)

// RequireRoot names the environment variable that forbids privileged tests to be skipped.
const RequireRoot = "XDP_CNI_REQUIRE_ROOT"

// Root skips the test if it does not run as root; where privileged tests are required
// (XDP_CNI_REQUIRE_ROOT=1, or CI=true) it fails the test instead.
func Root(t testing.TB) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv(RequireRoot) == "1" || os.Getenv("CI") == "true":
		t.Fatal("needs root, and privileged tests are required here")
	default:
		t.Skip("needs root; set " + RequireRoot + "=1 to fail instead of skipping")
	}
}
