package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// lruFacts are what doctor judges the sizes of LRU maps by.
type lruFacts struct {
	fills bool // else each CPU keeps entries for itself
	cpus  int  // that are online
	err   error
}

func probeLRU() (f lruFacts) {
	if f.fills, f.err = datapath.ProbeLRUFills(); f.err != nil || f.fills {
		return f
	}
	list, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err == nil {
		f.cpus, err = countCPUs(string(list))
	}
	f.err = err
	return f
}

// countCPUs counts a list of the kernel's such as "0-3,8".
func countCPUs(list string) (n int, err error) {
	for part := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err := strconv.Atoi(from)
		if err != nil {
			return 0, fmt.Errorf("counting CPUs in %q: %w", list, err)
		}
		last, err := strconv.Atoi(to)
		if err != nil {
			return 0, fmt.Errorf("counting CPUs in %q: %w", list, err)
		}
		n += last - first + 1
	}
	return n, nil
}

// checkLRU: where each CPU keeps entries for itself, small maps forget what is in use.
func (f *facts) checkLRU() check {
	const name = "LRU maps"
	least := datapath.LRUEntriesPerCPU * f.lru.cpus
	enough := fmt.Sprintf("%d, %d for each of %d CPUs", least, datapath.LRUEntriesPerCPU, f.lru.cpus)
	switch {
	case f.lru.err != nil:
		return warn(name, "cannot tell: "+f.lru.err.Error(), "")
	case f.lru.fills:
		return ok(name, "filled before anything in use is forgotten")
	}
	settings := []struct {
		name string
		of   []string // pods, as the setting's value goes before
	}{{name: "maxFlows of filter"}, {name: "stats.peers"}, {name: "maxFlows of redirect"}}
	small := func(setting int, have uint32, whose string) {
		if have > 0 && int(have) < least {
			settings[setting].of = append(settings[setting].of, fmt.Sprintf("%d of %s", have, whose))
		}
	}
	for _, a := range f.attachments {
		small(0, a.capacities.Flows, labelOf(a.Attachment))
		small(1, a.capacities.Peers, labelOf(a.Attachment))
	}
	if f.redirect.endpoints != nil {
		small(2, uint32(f.redirect.endpoints.MaxFlows), "the node")
	}
	var lines []string
	for _, s := range settings {
		if len(s.of) == 0 {
			continue
		}
		line := s.name + ": " + strings.Join(s.of[:min(len(s.of), mostOdd)], ", ")
		if more := len(s.of) - mostOdd; more > 0 {
			line += fmt.Sprintf(" and %d more", more)
		}
		lines = append(lines, line)
	}
	if len(lines) == 0 {
		return ok(name, "not filled (kernel 6.17): none has room for less than "+enough)
	}
	const why = "not filled (kernel 6.17): each CPU keeps up to 128 entries, and what is in use may be forgotten early"
	return warn(name, why+"\n"+strings.Join(lines, "\n"), "set them to "+enough+", or more")
}
