package main

import (
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
whole before a map is touched. A map is an LPM trie (BPF_MAP_TYPE_LPM_TRIE) with keys of 8 bytes, which
takes the prefixes of IPv4, or of 20, which takes those of IPv6. A file that has prefixes of a family for
which no map is named is refused.

Prefixes that a map holds already stay there with their values, and packets find them at any time; new ones
get a value of zeroes. MAP is the name of a map, or PROGRAM/MAP where several programs have one of that name.`

func newProgramsLoadCommand(o *options) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "load POD MAP... -f FILE",
		Short: "Load prefixes from a file into maps of a pod's programs",
		Long:  programsLoadHelp,
		Example: `  xdpctl programs load default/web blocklist_v4 blocklist_v6 -f blocklist.txt
  curl -s https://www.spamhaus.org/drop/drop.txt | xdpctl programs load default/web blocklist_v4 -f -`,
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
		RunE: func(_ *cobra.Command, args []string) error {
			list, err := o.readPrefixes(file)
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
			maps, err := openProgramMaps(programs, args[1:], nil)
			defer closeProgramMaps(maps)
			if err != nil {
				return fmt.Errorf("%s: %w", longLabel(*a), o.goneError(*a, err))
			}
			report := &loadReport{attachment: newAttachment(a.Meta), Maps: []loadedMap{}}
			if err := loadPrefixes(report, maps, list); err != nil {
				return fmt.Errorf("%s: %w", longLabel(*a), err)
			}
			return o.write(report, func(s style) string { return loadTable(report, s) })
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "the `file` with the prefixes, - for standard input")
	_ = cmd.MarkFlagFilename("file", "txt")
	return cmd
}

func (o *options) readPrefixes(name string) ([]netip.Prefix, error) {
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
	return list, nil
}

// programMap is an open map of a pod's program.
type programMap struct {
	program, name string
	*ebpf.Map
}

// errAmbiguousMap: several programs of a pod have a map of that name.
var errAmbiguousMap = errors.New("several programs have a map of that name")

// openProgramMaps opens maps of a pod's programs. The caller closes what is returned, with an error too.
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
	for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
		var found []string
		for _, candidate := range all {
			if candidate == name || filepath.Base(candidate) == name {
				found = append(found, candidate)
			}
		}
		switch {
		case len(all) == 0:
			return opened, errors.New("its programs have no maps of their own, or it has no programs")
		case len(found) == 0:
			return opened, fmt.Errorf("no map of its programs is named %q; there are %s", name, strings.Join(all, ", "))
		case len(found) > 1:
			return opened, fmt.Errorf("map %q is ambiguous: %w: %s", name, errAmbiguousMap, strings.Join(found, " or "))
		}
		m, err := ebpf.LoadPinnedMap(paths[found[0]], opts)
		if err != nil {
			return opened, fmt.Errorf("opening map %s: %w", found[0], err)
		}
		opened = append(opened, programMap{filepath.Dir(found[0]), filepath.Base(found[0]), m})
	}
	return opened, nil
}

func closeProgramMaps(maps []programMap) {
	for _, m := range maps {
		_ = m.Close()
	}
}

// loadPrefixes makes maps hold a list, and reports of each. No map is touched if one of them is no trie of prefixes, or
// if the list has prefixes for none of them.
func loadPrefixes(report *loadReport, maps []programMap, list []netip.Prefix) error {
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
	for _, m := range maps {
		changes, err := prefixset.Sync(m.Map, list)
		if err != nil {
			return fmt.Errorf("map %s: %w", m.name, err)
		}
		bits, _ := prefixset.AddressBits(m.Map) // as above
		report.Maps = append(report.Maps, loadedMap{
			Program: m.program, Map: m.name, Family: families[bits].name,
			Prefixes: changes.Kept + changes.Added, Added: changes.Added, Removed: changes.Removed,
		})
	}
	return nil
}

// families by the bits of an address.
var families = map[int]struct{ name, title string }{32: {"ipv4", "IPv4"}, 128: {"ipv6", "IPv6"}}

func loadTable(report *loadReport, s style) string {
	t := table{columns: append(text("PROGRAM", "MAP", "FAMILY"), number("", "PREFIXES", "ADDED", "REMOVED")...)}
	for _, m := range report.Maps {
		t.add(m.Program, m.Map, m.Family, s.packets(uint64(m.Prefixes)), s.packets(uint64(m.Added)), s.packets(uint64(m.Removed)))
	}
	return t.String()
}
