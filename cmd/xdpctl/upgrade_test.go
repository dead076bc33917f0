package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

// samplePlan is an upgrade of the sample node, of whose programs one is the release's already.
func samplePlan(from, to string) *datapath.Upgrade {
	u := &datapath.Upgrade{From: from, To: to, Programs: []datapath.ProgramUpgrade{
		{Name: "xdp_egress", Release: from, Old: 41, New: 41, Current: true},
		{Name: "tc_ingress", Release: from, Old: 142, New: 142, Current: true},
	}}
	for _, a := range sampleAttachments() {
		u.Attachments = append(u.Attachments, datapath.AttachmentUpgrade{Attachment: a, Result: datapath.UpgradeNone})
	}
	if from == to {
		return u
	}
	u.Programs[1].New, u.Programs[1].Current = 0, false
	u.Programs = append(u.Programs, datapath.ProgramUpgrade{Name: "tc_ingress_redirect"})
	u.Maps = []string{"endpoints"}
	for i := range u.Attachments[:3] {
		u.Attachments[i].Result = datapath.UpgradeDone
	}
	return u
}

func sampleUpgrade(dryRun bool) *upgradeReport {
	u := samplePlan("v0.1.0", "v0.2.0")
	if !dryRun {
		u.Programs[1].New, u.Programs[2].New = 201, 202
		u.Attachments[1].Result, u.Attachments[1].Err = datapath.UpgradeFailed, errors.New("it went wrong")
		u.Attachments[2].Result = datapath.UpgradeStale
	}
	return newUpgradeReport(u, dryRun)
}

// sampleVersion is what xdpctl of a release says of a node that runs another, or that one.
func sampleVersion(release, loaded string) *versionReport {
	r := &versionReport{
		Release: release, Layout: pins.Version, BPFFS: "/sys/fs/bpf/xdp-cni", Node: newNodeReport(sampleNode()),
		Installed: []binaryReport{{"/opt/cni/bin/xdp", loaded}, {"/opt/cni/bin/xdpctl", release}},
	}
	r.Node.compare(samplePlan(loaded, release), nil)
	r.Hints = r.hints()
	return r
}

// TestVersionRefused: a node that this release cannot upgrade.
func TestVersionRefused(t *testing.T) {
	node := newNodeReport(sampleNode())
	node.compare(nil, fmt.Errorf("comparing: %w", datapath.ErrLayout))
	report := versionReport{Release: "v0.2.0", Node: node}
	if hints := report.hints(); node.Upgrade != upgradeRefused || len(hints) != 1 || !strings.Contains(hints[0], "cannot be upgraded to v0.2.0") {
		t.Errorf("upgrade %s, hints %q", node.Upgrade, hints)
	}
	node = newNodeReport(sampleNode())
	node.compare(nil, context.DeadlineExceeded)
	if node.Upgrade != upgradeUnknown {
		t.Errorf("upgrade %s after another error", node.Upgrade)
	}
}

// TestUpgradeNothing: where nothing is loaded there is nothing to do, and nothing is made.
func TestUpgradeNothing(t *testing.T) {
	priv.Root(t)
	root := filepath.Join(t.TempDir(), "pins")
	for _, args := range [][]string{{"upgrade"}, {"upgrade", "--dry-run"}} {
		status, stdout, stderr := xdpctl(t.Context(), append(args, "--bpffs", root)...)
		if status != 0 || stderr != "" || !strings.Contains(stdout, "nothing is loaded") {
			t.Errorf("%v: status %d, %q, %q", args, status, stdout, stderr)
		}
	}
	if _, err := os.Stat(root); err == nil {
		t.Errorf("%s was made", root)
	}
	if err := os.MkdirAll(filepath.Join(root, "v0"), 0o700); err != nil {
		t.Fatal(err)
	}
	if status, _, stderr := xdpctl(t.Context(), "upgrade", "--bpffs", root); status != exitFailure || !strings.Contains(stderr, filepath.Join(root, "v0")) {
		t.Errorf("another layout: status %d, %q", status, stderr)
	}
	for _, args := range [][]string{{"upgrade", "pod"}, {"install", "--upgrade", "--watch"}, {"install", "--upgrade", "--from", "."}} {
		if status, _, stderr := xdpctl(t.Context(), args...); status != exitUsage || stderr == "" {
			t.Errorf("%v: status %d, %q", args, status, stderr)
		}
	}
}
