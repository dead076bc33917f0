// Package pins lays out what the plugins keep under bpffs, and serialises who changes it. It
// knows directories and locks, not what the maps in them mean.
//
//	<root>/                 "bpffs" in the configuration; its lock is the node's lock
//	  v1/                   the version of the layout
//	    node/               programs and maps shared by all attachments
//	    pods/<id>/          an attachment, always whole
//	    staging/<id>/       an attachment on its way in or out
//	    staging/node/       the node's objects on their way in or out
//	    ipam/<network>/     the leases of a network
package pins

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Version names the layout: what is pinned, where, and how its maps look. A release that changes
// any of it so that another would read it wrongly takes a new version.
const Version = "v1"

// nodeName cannot be the ID of an attachment: an ID holds the separator.
const nodeName = "node"

// Root is the directory in a bpffs under which all pins of a node are.
type Root struct {
	path string
}

// NewRoot returns the root at path, which need not exist.
func NewRoot(path string) Root {
	return Root{filepath.Clean(path)}
}

func (r Root) String() string { return r.path }

func (r Root) layout() string { return filepath.Join(r.path, Version) }

// OtherLayouts lists the directories of other versions of the layout, sorted.
func (r Root) OtherLayouts() ([]string, error) {
	names, err := list(r.path)
	var others []string
	for _, name := range names {
		if name != Version && strings.HasPrefix(name, "v") {
			others = append(others, filepath.Join(r.path, name))
		}
	}
	return others, err
}

// Node is the directory of the programs and maps that all attachments share.
func (r Root) Node() string { return filepath.Join(r.layout(), nodeName) }

// StagedNode is where the node's objects are made before they become Node, and go when they end.
func (r Root) StagedNode() string { return filepath.Join(r.layout(), "staging", nodeName) }

// Pod is the directory of a published attachment.
func (r Root) Pod(id string) string { return filepath.Join(r.layout(), "pods", id) }

// Staged is the directory of an attachment that is being made or taken down.
func (r Root) Staged(id string) string { return filepath.Join(r.layout(), "staging", id) }

// Leases is the directory of a network's leases.
func (r Root) Leases(network string) string {
	return filepath.Join(r.layout(), "ipam", NetworkID(network))
}

// LeaseDirs lists the directories of all networks' leases, sorted.
func (r Root) LeaseDirs() ([]string, error) {
	parent := filepath.Join(r.layout(), "ipam")
	names, err := list(parent)
	for i, name := range names {
		names[i] = filepath.Join(parent, name)
	}
	return names, err
}

// Pods lists the IDs of the published attachments, sorted. No root means no attachments.
func (r Root) Pods() ([]string, error) {
	return list(filepath.Join(r.layout(), "pods"))
}

// StagedPods lists the IDs of attachments in staging, sorted.
func (r Root) StagedPods() ([]string, error) {
	names, err := list(filepath.Join(r.layout(), "staging"))
	ids := names[:0]
	for _, name := range names {
		if name != nodeName {
			ids = append(ids, name)
		}
	}
	return ids, err
}

func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", dir, err)
	}
	names := make([]string, 0, len(entries))
	for _, entry := range entries {
		if entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// Prepare makes the directories of the layout. The caller holds the node's lock.
func (r Root) Prepare() error {
	for _, dir := range []string{"pods", "staging"} {
		if err := os.MkdirAll(filepath.Join(r.layout(), dir), 0o700); err != nil {
			return fmt.Errorf("making the layout under %s: %w", r, err)
		}
	}
	return nil
}

// Prune removes the directories of the layout and the root itself, those of them that are empty.
// The caller holds the node's lock.
func (r Root) Prune() {
	// a directory that is in use, or is a mount point, refuses; that is what is wanted
	for _, dir := range []string{
		filepath.Join(r.layout(), "pods"), filepath.Join(r.layout(), "staging"), r.layout(), r.path,
	} {
		_ = os.Remove(dir)
	}
}

// RemoveAll removes a directory of pins and all that is in it, those in last after the others.
// Directories that are not there are no error.
func RemoveAll(dir string, last ...string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing pins: %w", err)
	}
	isLast := make(map[string]bool, len(last))
	for _, name := range last {
		isLast[name] = true
	}
	var errs []error
	for _, entry := range entries {
		if !isLast[entry.Name()] {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, entry.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		// what is last says what the rest is: it stays as long as anything does
		return fmt.Errorf("removing pins: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing pins: %w", err)
	}
	return nil
}
