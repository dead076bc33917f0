package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// nodeSpecs are the specs of the maps that every node has, by their pins.
func nodeSpecs(spec *ebpf.CollectionSpec) map[string]*ebpf.MapSpec {
	specs := map[string]*ebpf.MapSpec{pinIdleTable: spec.Maps[bpf.DatapathMapXdpStatsMap]}
	for _, name := range sharedMaps {
		specs[name] = spec.Maps[name]
	}
	return specs
}

// optionalPins are those that a node has all of once it had a pod that asked for them, by the name of the map in the
// object.
func optionalPins() []map[string][]string {
	return []map[string][]string{redirectPins, programPins}
}

// pinSpecs are the specs of optional pins.
func pinSpecs(spec *ebpf.CollectionSpec, optional map[string][]string) map[string]*ebpf.MapSpec {
	specs := map[string]*ebpf.MapSpec{}
	for name, pins := range optional {
		for _, pin := range pins {
			specs[pin] = spec.Maps[name]
		}
	}
	return specs
}

// podSpecs are the specs of what an attachment has pinned, by its pins; a policy's are in its directories.
func podSpecs(spec *ebpf.CollectionSpec) map[string]*ebpf.MapSpec {
	specs := map[string]*ebpf.MapSpec{
		pinMeta: spec.Maps[bpf.DatapathMapMeta], pinPeers: spec.Maps[bpf.DatapathMapPeers], pinFlows: spec.Maps[bpf.DatapathMapFlows],
		pinProgramsMeta: spec.Maps[bpf.DatapathMapProgramsMeta], pinProgramCounters: spec.Maps[bpf.DatapathMapProgramCountersMap],
	}
	for _, t := range tables {
		specs[t.pin] = spec.Maps[bpf.DatapathMapXdpStatsMap]
	}
	for place := range uint32(policyPlaces) {
		for pin, name := range map[string]string{
			pinWords: bpf.DatapathMapPolicyWords, pinPrefixes: bpf.DatapathMapPolicyPrefixes, pinRuleCounters: bpf.DatapathMapRuleCounters,
		} {
			specs[filepath.Join(policyDir("", place), pin)] = spec.Maps[name]
		}
	}
	return specs
}

// fits tells whether a node of another release takes attachments of this one, and returns the specs of the maps that
// only this release has, by their pins. Errors: ErrLayout if the releases read maps in different ways, ErrDamaged.
func (d *Datapath) fits(n *node, meta *bpf.DatapathNodeMeta) (missing map[string]*ebpf.MapSpec, err error) {
	release := cString(meta.PluginVersion[:])
	if release == d.Version {
		return nil, nil
	}
	spec, err := d.spec()
	if err != nil {
		return nil, err
	}
	if missing, err = n.compareMaps(spec, release); err == nil {
		attachments, _ := d.List() // one that cannot be read is in nobody's way
		err = comparePods(spec, attachments, false)
	}
	if err != nil {
		return nil, fmt.Errorf("the pods that run are of release %s, this is %s: go back to it, or take the pods off the node: %w",
			release, d.Version, err)
	}
	return missing, nil
}

// makeFit makes a node of another release fit for an attachment of this one, with the errors of fits. The programs
// that are loaded go on for all, until Upgrade. The caller holds the node's lock.
func (d *Datapath) makeFit(n *node, meta *bpf.DatapathNodeMeta) error {
	missing, err := d.fits(n, meta)
	if err != nil {
		return err
	}
	for _, pin := range slices.Sorted(maps.Keys(missing)) {
		if err := n.ensureMap(missing[pin], pin); err != nil {
			return err
		}
	}
	return nil
}

// compareMaps compares the node's maps with those that this release would make, and returns the specs of those that
// are not there, since the release that made the node did not have them; optional ones only if the node has any of
// their kind. Errors: ErrLayout with all differences, ErrDamaged for a map that a program uses.
func (n *node) compareMaps(spec *ebpf.CollectionSpec, release string) (missing map[string]*ebpf.MapSpec, errs error) {
	specs := nodeSpecs(spec)
	for _, optional := range optionalPins() {
		kind := pinSpecs(spec, optional)
		if slices.ContainsFunc(slices.Collect(maps.Keys(kind)), n.hasPin) {
			maps.Copy(specs, kind)
		}
	}
	missing = map[string]*ebpf.MapSpec{}
	for _, pin := range slices.Sorted(maps.Keys(specs)) {
		if slices.Contains(scratchMaps, pin) && n.hasPin(pin) {
			continue
		}
		err := compareMap(filepath.Join(n.dir, pin), specs[pin], release, true)
		if errors.Is(err, fs.ErrNotExist) {
			missing[pin] = specs[pin]
			continue
		}
		errs = errors.Join(errs, err)
	}
	if errs != nil || len(missing) == 0 {
		return missing, errs
	}
	used, err := n.mapNames()
	if err != nil {
		return nil, err
	}
	for pin, spec := range missing {
		if used[spec.Name[:min(len(spec.Name), maxObjectName)]] {
			errs = errors.Join(errs, fmt.Errorf("%w: %s in %s, which programs use", ErrDamaged, pin, n.dir))
		}
	}
	return missing, errs
}

func (n *node) hasPin(pin string) bool {
	_, err := os.Stat(filepath.Join(n.dir, pin))
	return err == nil
}

// maxObjectName is how much of the name of a map or program the kernel keeps (BPF_OBJ_NAME_LEN, less the NUL).
const maxObjectName = 15

// mapNames returns the names of the maps that the node's programs use.
func (n *node) mapNames() (map[string]bool, error) {
	names := map[string]bool{}
	for _, c := range compositions() {
		prog, err := ebpf.LoadPinnedProgram(filepath.Join(n.dir, c.pin()), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("opening program %s: %w", c.pin(), err)
		}
		err = addMapNames(names, prog)
		_ = prog.Close()
		if err != nil {
			return nil, fmt.Errorf("reading the maps of program %s: %w", c.pin(), err)
		}
	}
	return names, nil
}

func addMapNames(names map[string]bool, prog *ebpf.Program) error {
	info, err := prog.Info()
	if err != nil {
		return err
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return err
		}
		info, err := m.Info()
		_ = m.Close()
		if err != nil {
			return err
		}
		names[info.Name] = true
	}
	return nil
}

// compareMap returns ErrLayout if a pinned map, made by a release, is not as this one would make it; types asks for
// its structures to be compared too. fs.ErrNotExist if there is none.
func compareMap(pin string, spec *ebpf.MapSpec, release string, types bool) error {
	m, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: spec.Type != ebpf.RingBuf})
	if err != nil {
		return fmt.Errorf("opening map %s: %w", pin, err)
	}
	defer m.Close()
	found := differences(spec, m)
	if len(found) == 0 && types {
		if found, err = typeDifferences(spec, m); err != nil {
			return err
		}
	}
	return layoutError(pin, release, found)
}

// comparePods returns ErrLayout if this release does not read an attachment's maps as the one that made them. One
// release makes all of a kind alike, so one of each is looked at. If it is to be thorough, sizes are of all, and it is
// ErrLayout too if an attachment has what this release does not know.
func comparePods(spec *ebpf.CollectionSpec, attachments []Attachment, thorough bool) error {
	known, err := flagsOf(spec, "pod_flag")
	if err != nil {
		return err
	}
	specs := podSpecs(spec)
	names := slices.Sorted(maps.Keys(specs))
	var errs error
	compared := map[[2]string]bool{}
	for _, a := range attachments {
		if unknown := uint32(a.Meta.flags) &^ known; unknown != 0 && thorough {
			errs = errors.Join(errs, fmt.Errorf("%w: container %s, interface %s has what this release does not know (flags %#x)",
				ErrLayout, a.Meta.ContainerID, a.Meta.IfName, unknown))
		}
		for _, name := range names {
			kind := [2]string{a.Meta.PluginVersion, name}
			if compared[kind] && !thorough {
				continue
			}
			err := compareMap(filepath.Join(a.dir, name), specs[name], a.Meta.PluginVersion, !compared[kind])
			if errors.Is(err, fs.ErrNotExist) {
				continue // not every attachment has it, or it goes
			}
			compared[kind] = true
			errs = errors.Join(errs, err)
		}
	}
	return errs
}

// flagsOf returns all bits that an enum of flags names.
func flagsOf(spec *ebpf.CollectionSpec, name string) (uint32, error) {
	var enum *btf.Enum
	if err := spec.Types.TypeByName(name, &enum); err != nil {
		return 0, fmt.Errorf("reading enum %s: %w", name, err)
	}
	bits := uint32(0)
	for _, value := range enum.Values {
		bits |= uint32(value.Value)
	}
	return bits, nil
}
