package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/plugin/filter"
)

// Policy is a filter for a pod: as the programs decide by it, and as people read it.
type Policy struct {
	Compiled *filter.Policy
	// Source is the filter as JSON, which conf.ParseFilter reads. It is kept with the attachment.
	Source []byte
}

// ErrNoPolicy: the attachment has no filter.
var ErrNoPolicy = errors.New("no filter is in force")

// PolicyState is the policy in force for an attachment, and what it did.
type PolicyState struct {
	// Generation differs from that of the policy before, of the same attachment.
	Generation uint32
	Source     []byte
	// Rules are by the rule's number in the filter.
	Rules []RuleStats
	// Addresses are the pod's own, by which antiSpoof goes; it may have none without that.
	Addresses []netip.Addr
}

// RuleStats is what a rule decided since its policy came in force: the first packets of flows, not
// those that passed with their flow.
type RuleStats struct {
	Counter
	// Last is when it last decided, to the length of a clock tick; zero for never.
	Last time.Time
}

// inForce is which policy the programs ask for an attachment.
type inForce struct {
	slot, place uint32
	filtered    bool // else there is none, and place is 0
	policy      bpf.DatapathPolicy
}

// inForce reads what is in force for an attachment; found is false if it has no slot.
func (n *node) inForce(m *Meta) (f inForce, found bool, err error) {
	number, slot, found, err := n.slotOf(m.HostIndex)
	if err != nil || !found || slot.Owner != m.owner {
		return inForce{}, false, err
	}
	f.slot = number
	if slot.Flags&uint32(bpf.DatapathSlotFlagSLOT_FILTER) == 0 {
		return f, true, nil
	}
	f.filtered = true
	if slot.Flags&uint32(bpf.DatapathSlotFlagSLOT_POLICY) != 0 {
		f.place = 1
	}
	if err := n.policies.Lookup(policyIndex(f.slot, f.place), &f.policy); err != nil {
		return f, true, fmt.Errorf("reading the policy of slot %d: %w", f.slot, err)
	}
	return f, true, nil
}

// dirInForce returns the directory of the policy at a place that is in force: fs.ErrNotExist if there is
// none.
func dirInForce(dir string, place uint32) (string, error) {
	// in this order: a rename from one name to the other between the two is not missed
	for _, name := range []string{nextDir(dir, place), policyDir(dir, place)} {
		_, err := os.Stat(name)
		if !errors.Is(err, fs.ErrNotExist) {
			return name, err
		}
	}
	return "", fmt.Errorf("%s: %w", policyDir(dir, place), fs.ErrNotExist)
}

// replacements is how many of them a reader puts up with: what it began to read is gone then.
const replacements = 8

// whileInForce runs fn with what is in force, again if that was replaced meanwhile.
func (n *node) whileInForce(m *Meta, fn func(f inForce, found bool) error) error {
	var err error
	for range replacements {
		before, found, readErr := n.inForce(m)
		if readErr != nil {
			return readErr
		}
		err = fn(before, found)
		if after, still, readErr := n.inForce(m); readErr != nil || after == before && still == found {
			return errors.Join(err, readErr)
		}
	}
	return err
}

// ReadPolicy reads the policy in force: ErrNoPolicy if there is none, fs.ErrNotExist if the
// attachment is gone, ErrDamaged if pins of it are. It takes no lock.
func (d *Datapath) ReadPolicy(a Attachment) (*PolicyState, error) {
	state, err := d.readPolicy(a)
	if err != nil {
		if _, gone := os.Stat(a.dir); gone != nil {
			err = gone
		} else if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %v", ErrDamaged, err) // and not gone
		}
		return nil, fmt.Errorf("reading the policy of container %s, interface %s: %w", a.Meta.ContainerID, a.Meta.IfName, err)
	}
	return state, nil
}

func (d *Datapath) readPolicy(a Attachment) (*PolicyState, error) {
	n, err := openNode(d.Root.Node())
	if err != nil {
		return nil, err
	}
	defer n.close()
	var state *PolicyState
	err = n.whileInForce(a.Meta, func(f inForce, found bool) error {
		switch {
		case !found:
			return fmt.Errorf("%w: the programs do not know interface %s", ErrDamaged, a.Meta.HostName)
		case !f.filtered:
			return ErrNoPolicy
		}
		dir, err := dirInForce(a.dir, f.place)
		if err != nil {
			return err
		}
		state = &PolicyState{Generation: f.policy.Generation}
		if state.Source, err = readText(filepath.Join(dir, pinSource)); err != nil {
			return err
		}
		if state.Addresses, err = readAddresses(&f.policy, filepath.Join(dir, pinWords)); err != nil {
			return err
		}
		state.Rules, err = readRules(&f.policy, filepath.Join(dir, pinRuleCounters))
		return err
	})
	if err != nil {
		return nil, err
	}
	return state, nil
}

// readAddresses reads the pod's own addresses from a policy's words.
func readAddresses(policy *bpf.DatapathPolicy, pin string) ([]netip.Addr, error) {
	m, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("opening map %s: %w", pin, err)
	}
	defer m.Close()
	addresses := make([]netip.Addr, policy.AddressesLen)
	for i := range addresses {
		var raw [16]byte // two words, as they are in memory
		for half := range 2 {
			word, err := m.LookupBytes(policy.Addresses + uint32(2*i+half))
			if err != nil {
				return nil, fmt.Errorf("reading map %s: %w", pin, err)
			}
			copy(raw[8*half:], word)
		}
		addresses[i] = netip.AddrFrom16(raw).Unmap()
	}
	return addresses, nil
}

// readRules reads what the rules of a policy decided.
func readRules(policy *bpf.DatapathPolicy, pin string) ([]RuleStats, error) {
	rules := make([]RuleStats, policy.RulesLen)
	if len(rules) == 0 {
		return rules, nil
	}
	m, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("opening map %s: %w", pin, err)
	}
	defer m.Close()
	var (
		cursor   ebpf.MapBatchCursor
		keys     = make([]uint32, m.MaxEntries())
		counters = make([]bpf.DatapathRuleCounter, m.MaxEntries())
		last     = make([]uint64, len(rules))
	)
	count, err := m.BatchLookup(&cursor, keys, counters, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // which says that this was all
		return nil, fmt.Errorf("reading map %s: %w", pin, err)
	}
	for i, counter := range counters[:count] {
		rule := int(keys[i]) % len(rules)
		rules[rule].Packets += counter.Packets
		rules[rule].Bytes += counter.Bytes
		last[rule] = max(last[rule], counter.Last)
	}
	clock, err := readClock()
	if err != nil {
		return nil, err
	}
	for i := range rules {
		if last[i] != 0 {
			rules[i].Last = clock.wall(last[i])
		}
	}
	return rules, nil
}

// checkFilter checks that what the programs ask for an attachment is what is pinned. Leftovers of a
// replacement whose process died do no harm.
func (n *node) checkFilter(dir string, m *Meta, wanted bool) error {
	return n.whileInForce(m, func(f inForce, found bool) error {
		switch {
		case !found:
			return fmt.Errorf("%w: the programs do not know interface %s", ErrCheck, m.HostName)
		case !f.filtered && wanted:
			return fmt.Errorf("%w: it should have a filter, but the programs ask none", ErrCheck)
		case !f.filtered:
			return checkUnfiltered(dir)
		}
		policy, err := dirInForce(dir, f.place)
		if err != nil {
			return fmt.Errorf("%w: the policy in force is not pinned: %w", ErrCheck, err)
		}
		for _, t := range tables {
			if !t.ofFilter() {
				continue
			}
			if err := checkEntry(n.tables, n.tableIndex(t, f.slot), dir, t.pin); err != nil {
				return err
			}
		}
		index := policyIndex(f.slot, f.place)
		for _, e := range []struct {
			outer    *ebpf.Map
			index    uint32
			dir, pin string
		}{
			{n.flows, f.slot, dir, pinFlows},
			{n.words, index, policy, pinWords},
			{n.prefixes, index, policy, pinPrefixes},
			{n.ruleCounters, index, policy, pinRuleCounters},
		} {
			if err := checkEntry(e.outer, e.index, e.dir, e.pin); err != nil {
				return err
			}
		}
		if _, err := os.Stat(filepath.Join(policy, pinSource)); err != nil {
			return fmt.Errorf("%w: pin %s: %w", ErrCheck, pinSource, err)
		}
		return nil
	})
}

// checkUnfiltered returns ErrCheck if a policy was in force.
func checkUnfiltered(dir string) error {
	for place := range uint32(policyPlaces) {
		_, err := os.Stat(policyDir(dir, place))
		if err == nil {
			return fmt.Errorf("%w: its policy is pinned, but the programs ask none", ErrCheck)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("looking for a policy: %w", err)
		}
	}
	return nil
}
