// Package firewall reads the nftables rules of the network namespace, those of iptables-nft among them, and says what
// they do with packets from pod to pod. What it cannot judge it takes for what may be. It changes nothing.
package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Pair is two pods between which packets go.
type Pair struct {
	Source, Destination netip.Addr
	// In and Out are the interfaces that the stack sees a packet come in by and go out by.
	In, Out Interface
	// Bridged: both are ports of one bridge, else the node routes.
	Bridged bool
}

// Interface of the node.
type Interface struct {
	Name  string
	Index int
}

// Ruleset is the rules of a network namespace as they were when they were read.
type Ruleset struct {
	chains []*chain
	sets   map[tableKey]map[string]*set
	// bridgeCalls are the families whose rules see bridged packets too (br_netfilter).
	bridgeCalls map[nftables.TableFamily]bool
	legacy      []Legacy
}

// tableKey is what a table is known by.
type tableKey struct {
	family nftables.TableFamily
	name   string
}

type chain struct {
	*nftables.Chain
	rules []*nftables.Rule
}

type set struct {
	*nftables.Set
	elements []nftables.SetElement
}

// Read reads the rules of the calling thread's network namespace. A kernel without nftables has none.
func Read() (*Ruleset, error) {
	r := &Ruleset{sets: map[tableKey]map[string]*set{}, bridgeCalls: readBridgeCalls()}
	var err error
	if r.legacy, err = readLegacy(); err != nil {
		return nil, err
	}
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("reading nftables: %w", err)
	}
	chains, err := conn.ListChains()
	// nothing answers: the kernel has no nf_tables (nfnetlink_rcv_msg() in net/netfilter/nfnetlink.c), or no netfilter
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the chains of nftables: %w", err)
	}
	for _, c := range chains {
		rules, err := conn.GetRules(c.Table, c)
		if errors.Is(err, unix.ENOENT) {
			continue // it went
		}
		if err != nil {
			return nil, fmt.Errorf("reading the rules of chain %s: %w", chainName(c), err)
		}
		r.chains = append(r.chains, &chain{c, rules})
	}
	return r, r.readSets(conn)
}

// readSets reads the sets that rules refer to. One that goes meanwhile is not known.
func (r *Ruleset) readSets(conn *nftables.Conn) error {
	for _, c := range r.chains {
		key := keyOf(c.Table)
		for _, rule := range c.rules {
			for _, e := range rule.Exprs {
				lookup, ok := e.(*expr.Lookup)
				if !ok || r.sets[key][lookup.SetName] != nil {
					continue
				}
				found, err := conn.GetSetByName(c.Table, lookup.SetName)
				if err != nil || found == nil {
					continue
				}
				// a set of a kind that cannot be decoded is one that may have anything in it
				elements, err := conn.GetSetElements(found)
				if err != nil {
					continue
				}
				for i := range elements {
					if lookup.IsDestRegSet && lookup.DestRegister == unix.NFT_REG_VERDICT {
						elements[i].VerdictData = parseVerdict(elements[i].Val)
					}
				}
				if r.sets[key] == nil {
					r.sets[key] = map[string]*set{}
				}
				r.sets[key][lookup.SetName] = &set{found, elements}
			}
		}
	}
	return nil
}

// parseVerdict reads a verdict out of a verdict map, which the library leaves as it is; nil for none.
func parseVerdict(raw []byte) *expr.Verdict {
	attributes, err := nl.ParseRouteAttr(raw)
	if err != nil {
		return nil
	}
	v, found := &expr.Verdict{}, false
	for _, a := range attributes {
		switch a.Attr.Type &^ unix.NLA_F_NESTED {
		case unix.NFTA_VERDICT_CODE:
			if len(a.Value) == 4 {
				v.Kind, found = expr.VerdictKind(int32(binary.BigEndian.Uint32(a.Value))), true
			}
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = unix.ByteSliceToString(a.Value)
		}
	}
	if !found {
		return nil
	}
	return v
}

func keyOf(t *nftables.Table) tableKey { return tableKey{t.Family, t.Name} }

// families are the words for families of tables.
var families = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
	nftables.TableFamilyBridge: "bridge", nftables.TableFamilyNetdev: "netdev", nftables.TableFamilyARP: "arp",
}

// chainName names a chain as "ip filter FORWARD".
func chainName(c *nftables.Chain) string {
	return fmt.Sprintf("%s %s %s", families[c.Table.Family], c.Table.Name, c.Name)
}

// find returns a chain of a table.
func (r *Ruleset) find(key tableKey, name string) *chain {
	i := slices.IndexFunc(r.chains, func(c *chain) bool { return keyOf(c.Table) == key && c.Name == name })
	if i < 0 {
		return nil
	}
	return r.chains[i]
}

// sees tells whether a base chain sees a pair's packets, were they to go by the stack.
func (r *Ruleset) sees(c *chain, p *Pair) bool {
	family, own := c.Table.Family, nftables.TableFamilyIPv4
	if p.Source.Is6() {
		own = nftables.TableFamilyIPv6
	}
	switch family {
	case nftables.TableFamilyNetdev:
		return c.Device == p.In.Name || c.Device == p.Out.Name
	case nftables.TableFamilyBridge:
		return p.Bridged
	case nftables.TableFamilyINet, own:
		return !p.Bridged || r.bridgeCalls[own]
	}
	return false
}

// base returns the base chains at one of some hooks that see a pair's packets.
func (r *Ruleset) base(p *Pair, hooks ...*nftables.ChainHook) []*chain {
	var base []*chain
	for _, c := range r.chains {
		at := func(h *nftables.ChainHook) bool { return *h == *c.Hooknum }
		if c.Hooknum != nil && c.Table.Family != nftables.TableFamilyNetdev && slices.ContainsFunc(hooks, at) && r.sees(c, p) {
			base = append(base, c)
		}
	}
	return base
}

// Forward names the chains that forwarded packets of some pairs pass by the stack, and in which they may meet
// something else than to be let through, with what there is.
func (r *Ruleset) Forward(pairs []Pair) []string {
	var found []string
	for _, c := range r.chains {
		forward := c.Hooknum != nil && (*c.Hooknum == *nftables.ChainHookForward || c.Table.Family == nftables.TableFamilyNetdev)
		if !forward || !slices.ContainsFunc(pairs, func(p Pair) bool { return r.sees(c, &p) }) {
			continue
		}
		var what []string
		if drops(c) {
			what = append(what, "policy drop")
		}
		switch n := r.effects(c, map[string]bool{}); n {
		case 0:
		case 1:
			what = append(what, "1 rule")
		default:
			what = append(what, fmt.Sprintf("%d rules", n))
		}
		if len(what) > 0 {
			found = append(found, fmt.Sprintf("chain %s: %s", chainName(c.Chain), strings.Join(what, ", ")))
		}
	}
	return found
}

func drops(c *chain) bool { return c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop }

// effects counts the rules of a chain, and of those that it leads to, that do more than let packets through.
func (r *Ruleset) effects(c *chain, seen map[string]bool) int {
	if c == nil || seen[c.Name] {
		return 0
	}
	seen[c.Name] = true
	count := 0
	for _, rule := range c.rules {
		affects := false
		for _, e := range rule.Exprs {
			switch e := e.(type) {
			case *expr.Verdict:
				switch e.Kind {
				case expr.VerdictJump, expr.VerdictGoto:
					count += r.effects(r.find(keyOf(c.Table), e.Chain), seen)
				case expr.VerdictDrop, expr.VerdictQueue:
					affects = true
				}
			case *expr.Lookup:
				for _, v := range r.verdicts(c, e) {
					if v.Chain != "" {
						count += r.effects(r.find(keyOf(c.Table), v.Chain), seen)
					}
					affects = affects || v.Kind == expr.VerdictDrop || v.Kind == expr.VerdictQueue
				}
			case *expr.Meta:
				affects = affects || e.SourceRegister // it marks
			case *expr.Ct:
				affects = affects || e.SourceRegister
			case *expr.Cmp, *expr.Payload, *expr.Bitwise, *expr.Range, *expr.Counter, *expr.Match, *expr.Immediate,
				*expr.Fib, *expr.Rt, *expr.Socket, *expr.Byteorder, *expr.Exthdr, *expr.Numgen, *expr.Hash, *expr.Connlimit:
				// they ask, or count
			default:
				affects = true
			}
		}
		if affects {
			count++
		}
	}
	return count
}

// verdicts returns those of a verdict map.
func (r *Ruleset) verdicts(c *chain, e *expr.Lookup) []*expr.Verdict {
	s := r.sets[keyOf(c.Table)][e.SetName]
	if s == nil {
		return nil
	}
	var all []*expr.Verdict
	for _, element := range s.elements {
		if element.VerdictData != nil {
			all = append(all, element.VerdictData)
		}
	}
	return all
}

// Masquerades names the rules that change, or may change, the source of a pair's packets.
func (r *Ruleset) Masquerades(p Pair) []string {
	w := r.walk(&p, ctUnknown, nftables.ChainHookPostrouting)
	return w.nats
}

// DropsInvalid names the rules, and the policies of chains, that drop, or may drop, a pair's packets where
// connection tracking takes them for INVALID, and do not where it knows their connection.
func (r *Ruleset) DropsInvalid(p Pair) []string {
	hooks := []*nftables.ChainHook{nftables.ChainHookPrerouting, nftables.ChainHookForward, nftables.ChainHookPostrouting}
	known := r.walk(&p, ctEstablished, hooks...)
	invalid := r.walk(&p, ctInvalid, hooks...)
	return slices.DeleteFunc(invalid.drops, func(rule string) bool { return slices.Contains(known.drops, rule) })
}

// Legacy returns the tables of iptables-legacy, whose rules cannot be read here.
func (r *Ruleset) Legacy() []Legacy { return r.legacy }
