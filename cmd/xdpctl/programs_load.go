package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/internal/prefixset"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// loadReport is what programs load did.
type loadReport struct {
	attachment
	Maps []loadedMap `json:"maps"`
}

// loadedMap is a map that now holds the prefixes of a list.
type loadedMap struct {
	Program  string `json:"program"`
	Map      string `json:"map"`
	Family   string `json:"family"` // "ipv4" or "ipv6"
	Prefixes int    `json:"prefixes"`
	Added    int    `json:"added"`
	Removed  int    `json:"removed"`
}

const programsLoadHelp = `Make maps of a pod's programs hold the prefixes in FILE, and no others; - is standard input.

FILE has a prefix or an address a line, of IPv4 or IPv6; what follows # or ; is a comment. It is read as a
whole before a map is touched, and without a prefix in it refused, unless --empty says that the maps are to
be emptied. A map is an LPM trie (BPF_MAP_TYPE_LPM_TRIE) with keys of 8 bytes, which takes the prefixes of
IPv4, or of 20, which takes those of IPv6. A file that has prefixes of a family for which no map is named is
refused.

Prefixes that a map holds already stay there with their values, and packets find them at any time; new ones
get a value of zeroes. Of two that load one map at once, the second waits for the first.

MAP is the name of a map, or PROGRAM/MAP where several programs have one of that name. What xdpctl programs
shows as MAP(node) is one map for all pods of the node whose programs have it: it is loaded for all of them.`

func newProgramsLoadCommand(o *options) *cobra.Command {
	var (
		file  string
		empty bool
	)
	cmd := &cobra.Command{
		Use:   "load POD MAP... -f FILE [--empty]",
		Short: "Load prefixes from a file into maps of a pod's programs",
		Long:  programsLoadHelp,
		Example: `  xdpctl programs load default/web blocklist_v4 blocklist_v6 -f blocklist.txt
  curl -sSf -o drop.txt https://www.spamhaus.org/drop/drop.txt &&
    xdpctl programs load default/web blocklist_v4 -f drop.txt
  xdpctl programs load default/web blocklist_v4 blocklist_v6 -f /dev/null --empty`,
		Args: usageArgs(func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) < 2:
				return errors.New("takes a POD and at least one MAP")
			case file == "":
				return errors.New("-f FILE is missing; -f - is standard input")
			}
			return nil
		}),
		ValidArgsFunction:     o.completePod,
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := o.readPrefixes(file, empty)
			if err != nil {
				return err
			}
			d := o.datapath()
			a, err := attachmentOf(d, args[0])
			if err != nil {
				return err
			}
			programs, err := d.ReadPrograms(*a)
			if err != nil {
				return o.goneError(*a, err)
			}
			ofNode, err := d.NodeMaps(programs)
			if err != nil {
				return o.goneError(*a, err)
			}
			report := &loadReport{attachment: newAttachment(a.Meta), Maps: []loadedMap{}}
			if report.Maps, err = loadMaps(cmd.Context(), programs, ofNode, args[1:], list); err != nil {
				return fmt.Errorf("%s: %w", longLabel(*a), o.goneError(*a, err))
			}
			return o.write(report, func(s style) string { return loadTable(report, s) })
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "the `file` with the prefixes, - for standard input")
	_ = cmd.MarkFlagFilename("file", "txt")
	cmd.Flags().BoolVar(&empty, "empty", false, "take a file without prefixes too: all that the maps hold is removed")
	return cmd
}

// readPrefixes reads a list. One without prefixes is mostly what a download that failed has left.
func (o *options) readPrefixes(name string, empty bool) ([]netip.Prefix, error) {
	in, title := o.in, "standard input"
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		in, title = io.Reader(file), name
	}
	list, err := prefixset.Parse(in)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", title, err)
	}
	if len(list) == 0 && !empty {
		return nil, fmt.Errorf("%s has no prefixes; --empty removes all that the maps hold", title)
	}
	return list, nil
}

// programMap is an open map of a pod's program, with the path of its pin.
type programMap struct {
	program, name, path string
	id                  ebpf.MapID
	*ebpf.Map
}

// errAmbiguousMap: several programs of a pod have a map of that name.
var errAmbiguousMap = errors.New("several programs have a map of that name")

// openProgramMaps opens maps of a pod's programs, each once: several programs may have one map, of the node. The caller
// closes what is returned, with an error too.
func openProgramMaps(
	list []datapath.PodProgram, names []string, opts *ebpf.LoadPinOptions,
) (opened []programMap, err error) {
	var all []string
	paths := map[string]string{}
	for _, p := range list {
		for _, path := range p.Maps {
			name := p.Name + "/" + filepath.Base(path)
			all, paths[name] = append(all, name), path
		}
	}
	slices.Sort(all)
	wanted := make([]string, len(names))
	for i, name := range names {
		wanted[i] = strings.TrimSuffix(name, ofNode) // as xdpctl programs shows it
	}
	for _, name := range slices.Compact(slices.Sorted(slices.Values(wanted))) {
		var found []programMap // different ones
		for _, candidate := range all {
			if candidate != name && filepath.Base(candidate) != name {
				continue
			}
			m, err := openProgramMap(candidate, paths[candidate], opts)
			if err != nil {
				closeProgramMaps(found)
				return opened, err
			}
			if containsMap(found, m) {
				_ = m.Close()
				continue
			}
			found = append(found, m)
		}
		switch {
		case len(all) == 0:
			return opened, errors.New("its programs have no maps of their own, or it has no programs")
		case len(found) == 0:
			return opened, fmt.Errorf("no map of its programs is named %q; there are %s", name, strings.Join(all, ", "))
		case len(found) > 1:
			closeProgramMaps(found)
			var candidates []string
			for _, m := range found {
				candidates = append(candidates, m.program+"/"+m.name)
			}
			return opened, fmt.Errorf("map %q is ambiguous: %w: %s",
				name, errAmbiguousMap, strings.Join(candidates, " or "))
		case containsMap(opened, found[0]):
			closeProgramMaps(found)
			continue
		}
		opened = append(opened, found[0])
	}
	return opened, nil
}

// openProgramMap opens a map by its pin; name is PROGRAM/MAP.
func openProgramMap(name, path string, opts *ebpf.LoadPinOptions) (programMap, error) {
	m, err := ebpf.LoadPinnedMap(path, opts)
	if err != nil {
		return programMap{}, fmt.Errorf("opening map %s: %w", name, err)
	}
	info, err := m.Info()
	if err != nil {
		_ = m.Close()
		return programMap{}, fmt.Errorf("reading what map %s is: %w", name, err)
	}
	id, _ := info.ID() // all kernels that there are programs on say it
	return programMap{filepath.Dir(name), filepath.Base(name), path, id, m}, nil
}

func containsMap(list []programMap, m programMap) bool {
	return slices.ContainsFunc(list, func(other programMap) bool { return other.id == m.id })
}

func closeProgramMaps(maps []programMap) {
	for _, m := range maps {
		_ = m.Close()
	}
}

// loadMaps makes maps of a pod's programs hold a list, and says what it did to each. ofNode are those that are the
// node's, as datapath.NodeMaps has them.
func loadMaps(
	ctx context.Context, programs []datapath.PodProgram, ofNode map[string]string, names []string, list []netip.Prefix,
) ([]loadedMap, error) {
	maps, err := openProgramMaps(programs, names, nil)
	defer closeProgramMaps(maps)
	if err != nil {
		return nil, err
	}
	if err := checkTries(maps, list); err != nil {
		return nil, err
	}
	unlock, err := lockMaps(ctx, maps, ofNode)
	if err != nil {
		return nil, err
	}
	defer unlock()
	loaded := []loadedMap{} // never null
	for _, m := range maps {
		changes, err := prefixset.Sync(m.Map, list)
		if err != nil {
			return nil, fmt.Errorf("map %s: %w", m.name, err)
		}
		bits, _ := prefixset.AddressBits(m.Map) // as checkTries has seen
		loaded = append(loaded, loadedMap{
			Program: m.program, Map: m.name, Family: families[bits].name,
			Prefixes: changes.Kept + changes.Added, Added: changes.Added, Removed: changes.Removed,
		})
	}
	return loaded, nil
}

// checkTries refuses maps that are no tries of prefixes, and a list with prefixes for none of them.
func checkTries(maps []programMap, list []netip.Prefix) error {
	count := map[int]int{}
	for _, p := range list {
		count[p.Addr().BitLen()]++
	}
	served := map[int]bool{}
	for _, m := range maps {
		bits, err := prefixset.AddressBits(m.Map)
		if err != nil {
			return fmt.Errorf("map %s: %w", m.name, err)
		}
		served[bits] = true
	}
	for bits, family := range families {
		if count[bits] > 0 && !served[bits] {
			return fmt.Errorf("the list has %d prefixes of %s, and none of the maps takes such: name one that does",
				count[bits], family.title)
		}
	}
	return nil
}

// lockMaps keeps others from loading the maps. What it locks are the directories of their pins, of the node's maps the
// node's: nothing else takes these locks, so ADD and DEL do not wait for what may be half a second. All take them in
// one order.
func lockMaps(ctx context.Context, maps []programMap, ofNode map[string]string) (unlock func(), err error) {
	var dirs []string
	for _, m := range maps {
		path := m.path
		if pin, ok := ofNode[path]; ok {
			path = pin
		}
		dirs = append(dirs, filepath.Dir(path))
	}
	ctx, cancel := context.WithTimeout(ctx, datapath.DefaultLockTimeout)
	defer cancel()
	var held []*pins.Lock
	unlock = func() {
		for _, lock := range slices.Backward(held) {
			lock.Unlock()
		}
	}
	for _, dir := range slices.Compact(slices.Sorted(slices.Values(dirs))) {
		lock, err := pins.LockDir(ctx, dir)
		if err != nil {
			unlock()
			return nil, err
		}
		held = append(held, lock)
	}
	return unlock, nil
}

// families by the bits of an address.
var families = map[int]struct{ name, title string }{32: {"ipv4", "IPv4"}, 128: {"ipv6", "IPv6"}}

func loadTable(report *loadReport, s style) string {
	t := table{columns: append(text("PROGRAM", "MAP", "FAMILY"), number("", "PREFIXES", "ADDED", "REMOVED")...)}
	for _, m := range report.Maps {
		t.add(m.Program, m.Map, m.Family,
			s.packets(uint64(m.Prefixes)), s.packets(uint64(m.Added)), s.packets(uint64(m.Removed)))
	}
	return t.String()
}
