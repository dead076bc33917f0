package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// composition is one way to load a program; all attachments that want the same share it.
type composition struct {
	function string // in the object
	frags    bool   // for XDP: takes multi-buffer packets
	redirect bool   // packets may go directly
}

// The compositions that hooks ask for. XDP is multi-buffer in the driver only. A multi-buffer
// program on socket buffers makes the kernel copy them without skb->mac_len (skb_pp_cow_data() in
// net/core/skbuff.c, seen on 6.18): what comes behind at tc ingress, such as the redirect of the
// bandwidth plugin to its ifb, then takes the Ethernet header for the IP header. A program for
// linear buffers does not have that, sees all bytes too, and costs TCP as much.
var (
	xdpFrags  = composition{function: bpf.DatapathProgXdpEgress, frags: true}
	xdpLinear = composition{function: bpf.DatapathProgXdpEgress}
	tcEgress  = composition{function: bpf.DatapathProgTcEgress}
	tcIngress = composition{function: bpf.DatapathProgTcIngress}
)

// compositions are all that there are.
func compositions() []composition {
	var all []composition
	for _, c := range []composition{xdpFrags, xdpLinear, tcEgress, tcIngress} {
		all = append(all, c, c.withRedirect(true))
		if c.function != bpf.DatapathProgXdpEgress {
			continue
		}
		for _, function := range []string{bpf.DatapathProgXdpEgressPrograms, bpf.DatapathProgXdpJudge} {
			c.function = function
			all = append(all, c, c.withRedirect(true))
		}
	}
	return all
}

func (c composition) withRedirect(on bool) composition {
	c.redirect = on
	return c
}

// pin is the composition's name among the node's pins.
func (c composition) pin() string {
	name := c.function
	if c.frags {
		name += "_frags"
	}
	if c.redirect {
		name += "_redirect"
	}
	return name
}

// composition is what runs at the hook for an attachment of the node.
func (h hook) composition(node *bpf.DatapathNodeMeta, m *Meta) composition {
	c := h.bare(node.XdpFrags != 0).withRedirect(m.has(bpf.DatapathPodFlagPOD_REDIRECT))
	if h.isXDP() && m.has(bpf.DatapathPodFlagPOD_PROGRAMS) {
		c.function = bpf.DatapathProgXdpEgressPrograms
	}
	return c
}

// bare is the hook's composition without redirect; frags tells whether the kernel has multi-buffer XDP.
func (h hook) bare(frags bool) composition {
	switch {
	case !h.isEgress():
		return tcIngress
	case h.mode == ModeTCX:
		return tcEgress
	case h.mode == ModeNative && frags:
		return xdpFrags
	default:
		return xdpLinear
	}
}

// programs opens the node's programs of these compositions, or loads them from the spec and pins them,
// both at once: verifying is most of the time that the first pod's ADD takes. The caller holds the
// node's lock.
func (d *Datapath) programs(n *node, spec *ebpf.CollectionSpec, compositions []composition) ([]*ebpf.Program, error) {
	var (
		wait     sync.WaitGroup
		programs = make([]*ebpf.Program, len(compositions))
		errs     = make([]error, len(compositions))
	)
	for i, c := range compositions {
		prog, err := ebpf.LoadPinnedProgram(filepath.Join(n.dir, c.pin()), nil)
		if errors.Is(err, fs.ErrNotExist) {
			// each changes what it loads
			spec := spec.Copy()
			wait.Go(func() { programs[i], errs[i] = d.loadProgram(n, spec, c) })
			continue
		}
		programs[i], errs[i] = prog, err
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		for _, prog := range programs {
			_ = prog.Close()
		}
		return nil, err
	}
	return programs, nil
}

// loadProgram loads a composition with the node's maps, and pins it.
func (d *Datapath) loadProgram(n *node, spec *ebpf.CollectionSpec, c composition) (*ebpf.Program, error) {
	prog, err := d.load(spec, c, n.open)
	if err != nil {
		return nil, err
	}
	if err := prog.Pin(filepath.Join(n.dir, c.pin())); err != nil {
		_ = prog.Close()
		return nil, fmt.Errorf("pinning program %s: %w", c.pin(), err)
	}
	return prog, nil
}

// load loads a composition from the spec, which it changes. Its shared maps are those that open returns by
// their pins, which it closes.
func (d *Datapath) load(spec *ebpf.CollectionSpec, c composition, open func(pin string) (*ebpf.Map, error)) (*ebpf.Program, error) {
	if err := c.reduce(spec, d.hasCoarseClock()); err != nil {
		return nil, err
	}
	if err := note(spec, d.Version, digest(spec)); err != nil {
		return nil, fmt.Errorf("configuring program %s: %w", c.function, err)
	}
	shared := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		pin, ok := c.sharedPin(name)
		if !ok {
			continue
		}
		m, err := open(pin)
		if err != nil {
			return nil, err
		}
		defer m.Close()
		if slices.Contains(scratchMaps, name) && differences(spec.Maps[name], m) != nil {
			continue // another release's: this one has its own
		}
		shared[name] = m
		// some are made as large as the configuration says
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		return nil, fmt.Errorf("loading program %s: %w", c.function, err)
	}
	defer collection.Close()
	return collection.DetachProgram(c.function), nil
}

// sharedPin returns the pin of the node's map that the object's map of a name is to be; false if the
// program has a map of its own, which it does not use.
func (c composition) sharedPin(name string) (string, bool) {
	if slices.Contains(sharedMaps, name) {
		return name, true
	}
	if name == bpf.DatapathMapPodPrograms {
		return c.podProgramsPin(), true
	}
	if programPins[name] != nil {
		return name, true
	}
	if !c.redirect || redirectPins[name] == nil {
		return "", false
	}
	if name == bpf.DatapathMapTxPorts && c.frags {
		return pinTxPortsFrags, true
	}
	return redirectPins[name][0], true
}

// reduce leaves the composition's program in the spec, with what it refers to, and configures it.
func (c composition) reduce(spec *ebpf.CollectionSpec, coarseClock bool) error {
	prog := spec.Programs[c.function]
	if prog == nil {
		return fmt.Errorf("the object holds no program %s", c.function)
	}
	spec.Programs = map[string]*ebpf.ProgramSpec{c.function: prog}
	if prog.Type == ebpf.XDP && !c.frags {
		prog.Flags &^= unix.BPF_F_XDP_HAS_FRAGS
		if err := spec.Variables[bpf.DatapathVarConfigXdpFrags].Set(uint8(0)); err != nil {
			return fmt.Errorf("configuring program %s: %w", c.function, err)
		}
	}
	if !coarseClock {
		if err := spec.Variables[bpf.DatapathVarConfigCoarseClock].Set(uint8(0)); err != nil {
			return fmt.Errorf("configuring program %s: %w", c.function, err)
		}
	}
	if c.redirect {
		if err := spec.Variables[bpf.DatapathVarConfigRedirect].Set(uint8(1)); err != nil {
			return fmt.Errorf("configuring program %s: %w", c.function, err)
		}
	} else {
		for name := range redirectPins {
			spec.Maps[name].MaxEntries = 1 // which nothing uses
		}
	}
	used := map[string]bool{}
	for i := range prog.Instructions {
		if ref := prog.Instructions[i].Reference(); ref != "" {
			used[ref] = true
		}
	}
	for name := range spec.Maps {
		if !used[name] {
			delete(spec.Maps, name)
		}
	}
	for name, variable := range spec.Variables {
		if !used[variable.SectionName] {
			delete(spec.Variables, name)
		}
	}
	return nil
}
