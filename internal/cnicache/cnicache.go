// Package cnicache reads what libcni notes of the attachments that runtimes made through it, and which
// runtimes such as CRI-O and podman take the chain of a DEL from (libcni/api.go, type cachedInfo).
package cnicache

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/internal/conflist"
	"github.com/xdp-cni/xdp-cni/internal/wholefile"
)

// DefaultDir is where runtimes have libcni's notes.
const DefaultDir = "/var/lib/cni" // libcni.CacheDir, a variable

// Attachment is what is noted of one.
type Attachment struct {
	ContainerID, IfName, Network string
	// Netns is the path of the pod's network namespace; "" if it is not known.
	Netns string
	// Args is CNI_ARGS.
	Args string

	file         string
	config       []byte
	capabilities map[string]json.RawMessage
	result       json.RawMessage
}

// Read returns the attachments noted in dir, in no particular order. None is no error. It passes over
// files that are not of a format it knows, or are being written.
func Read(dir string) ([]Attachment, error) {
	results := filepath.Join(dir, "results")
	entries, err := os.ReadDir(results)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading libcni's cache: %w", err)
	}
	var list []Attachment
	for _, entry := range entries {
		file := filepath.Join(results, entry.Name())
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || entry.IsDir() {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading libcni's cache: %w", err)
		}
		var noted struct {
			Kind           string                     `json:"kind"`
			ContainerID    string                     `json:"containerId"`
			Config         []byte                     `json:"config"`
			IfName         string                     `json:"ifName"`
			NetworkName    string                     `json:"networkName"`
			Netns          string                     `json:"netns"`
			Args           [][2]string                `json:"cniArgs"`
			CapabilityArgs map[string]json.RawMessage `json:"capabilityArgs"`
			Result         json.RawMessage            `json:"result"`
		}
		if json.Unmarshal(text, &noted) != nil || noted.Kind != libcni.CNICacheV1 {
			continue
		}
		var args []string
		for _, arg := range noted.Args {
			args = append(args, arg[0]+"="+arg[1])
		}
		list = append(list, Attachment{
			ContainerID: noted.ContainerID, IfName: noted.IfName, Network: noted.NetworkName,
			Netns: cmp.Or(noted.Netns, sandbox(noted.Result, noted.IfName)),
			Args:  strings.Join(args, ";"), file: file, config: noted.Config, capabilities: noted.CapabilityArgs, result: noted.Result,
		})
	}
	return list, nil
}

// sandbox returns the network namespace of the interface by what the chain said. libcni notes namespaces since 1.2 only;
// containerd 1.6 and 1.7 and podman 4.3 have earlier ones.
func sandbox(result json.RawMessage, ifname string) string {
	var said struct {
		Interfaces []struct {
			Name    string `json:"name"`
			Sandbox string `json:"sandbox"`
		} `json:"interfaces"`
	}
	if json.Unmarshal(result, &said) != nil {
		return ""
	}
	for _, i := range said.Interfaces {
		if i.Name == ifname && i.Sandbox != "" {
			return i.Sandbox
		}
	}
	return ""
}

// Alive tells whether the pod's network namespace is there.
func (a Attachment) Alive() bool {
	var st unix.Statfs_t
	// what a namespace was mounted on may be left, as an empty file
	return a.Netns != "" && unix.Statfs(a.Netns, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// Stdin returns what the runtime would give the plugin for ADD, had the list had the entry when the pod
// came: what the chain ended with is its prevResult.
func (a Attachment) Stdin(list *conflist.List) ([]byte, error) {
	keys := map[string]json.RawMessage{}
	if err := json.Unmarshal(list.Entry(), &keys); err != nil {
		return nil, fmt.Errorf("reading the entry of network %s: %w", list.Name, err)
	}
	var capabilities struct {
		Capabilities map[string]bool `json:"capabilities"`
	}
	if err := json.Unmarshal(list.Entry(), &capabilities); err != nil {
		return nil, fmt.Errorf("reading the capabilities of network %s: %w", list.Name, err)
	}
	wanted := maps.Clone(a.capabilities)
	maps.DeleteFunc(wanted, func(name string, _ json.RawMessage) bool { return !capabilities.Capabilities[name] })
	more := map[string]any{"name": list.Name, "cniVersion": list.CNIVersion, "prevResult": a.result}
	if len(wanted) > 0 {
		more["runtimeConfig"] = wanted
	}
	for key, value := range more {
		raw, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("making the configuration of network %s: %w", list.Name, err)
		}
		keys[key] = raw
	}
	return json.Marshal(keys)
}

// SetEntry puts the entry into the chain that is noted, so that the pod's DEL comes to the plugin; nil
// takes it out, so that the DEL does without. An attachment that is gone is no error.
func (a Attachment) SetEntry(entry json.RawMessage) error {
	list, err := conflist.Parse("cached.conflist", a.config)
	if err != nil {
		return fmt.Errorf("reading the chain in %s: %w", a.file, err)
	}
	var chain []byte
	if entry == nil {
		chain, err = list.Without()
	} else {
		chain, err = list.With(entry)
	}
	if err != nil {
		return fmt.Errorf("changing the chain in %s: %w", a.file, err)
	}
	if chain == nil || slices.Equal(chain, a.config) {
		return nil
	}
	if err := a.write(chain); err != nil && !errors.Is(err, wholefile.ErrChanged) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("changing the chain in libcni's cache: %w", err)
	}
	return nil
}

// HasEntry tells whether the plugin is in the chain that is noted.
func (a Attachment) HasEntry() bool {
	list, err := conflist.Parse("cached.conflist", a.config)
	return err == nil && list.Entry() != nil
}

// write notes another chain, and leaves all else as it is.
func (a Attachment) write(chain []byte) error {
	was, err := os.ReadFile(a.file)
	if err != nil {
		return err
	}
	info, err := os.Stat(a.file)
	if err != nil {
		return err
	}
	var noted map[string]json.RawMessage
	if err := json.Unmarshal(was, &noted); err != nil {
		return err
	}
	if noted["config"], err = json.Marshal(chain); err != nil {
		return err
	}
	text, err := json.Marshal(noted)
	if err != nil {
		return err
	}
	// in the directory above: libcni takes each file in this one for an attachment
	temporary := filepath.Join(filepath.Dir(filepath.Dir(a.file)), ".xdp-cni."+filepath.Base(a.file))
	return wholefile.Replace(a.file, temporary, was, text, wholefile.Of(info))
}
