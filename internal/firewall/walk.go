package firewall

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// States of connection tracking, as sets of bits: enum ip_conntrack_info and NF_CT_STATE_BIT() in
// include/uapi/linux/netfilter/nf_conntrack_common.h. xt_conntrack has the same.
const (
	ctUnknown     = 0
	ctInvalid     = 1
	ctEstablished = 2
)

// certainty is whether a rule matches.
type certainty int

const (
	no certainty = iota
	maybe
	yes
)

func certain(matches bool) certainty {
	if matches {
		return yes
	}
	return no
}

// maxJumps is NFT_JUMP_STACK_SIZE of include/net/netfilter/nf_tables.h.
const maxJumps = 16

// walk is a packet's way through chains.
type walk struct {
	rules *Ruleset
	pair  *Pair
	state uint32 // ct*

	nats, drops []string
}

// walk walks a pair's packet through the chains at some hooks.
func (r *Ruleset) walk(p *Pair, state uint32, hooks ...*nftables.ChainHook) *walk {
	w := &walk{rules: r, pair: p, state: state}
	for _, c := range r.base(p, hooks...) {
		if !w.chain(c, maxJumps) && drops(c) {
			w.note(&w.drops, fmt.Sprintf("the policy of chain %s", chainName(c.Chain)))
		}
	}
	return w
}

func (w *walk) note(to *[]string, what string) {
	if !slices.Contains(*to, what) {
		*to = append(*to, what)
	}
}

// chain tells whether the way surely ends in a chain, or one that it leads to.
func (w *walk) chain(c *chain, jumps int) (ends bool) {
	if c == nil || jumps == 0 {
		return false
	}
	for _, rule := range c.rules {
		m := &match{walk: w, chain: c, certainty: yes}
		for _, e := range rule.Exprs {
			if m.ask(e); m.certainty == no {
				break
			}
		}
		if m.certainty == no {
			continue
		}
		name := fmt.Sprintf("chain %s, rule with handle %d", chainName(c.Chain), rule.Handle)
		if m.nat {
			w.note(&w.nats, name)
		}
		if m.rejects {
			m.verdicts = append(m.verdicts, &expr.Verdict{Kind: expr.VerdictDrop})
		}
		for _, v := range m.verdicts {
			done, left := w.verdict(c, v, name, jumps)
			sure := m.certainty == yes && len(m.verdicts) == 1
			if sure && done {
				return true
			}
			if sure && left {
				return false
			}
		}
		if m.nat && m.certainty == yes {
			return true
		}
	}
	return false
}

// verdict follows one: done if the way ends with it, left if only the chain does.
func (w *walk) verdict(c *chain, v *expr.Verdict, name string, jumps int) (done, left bool) {
	switch v.Kind {
	case expr.VerdictDrop:
		w.note(&w.drops, name)
		return true, false
	case expr.VerdictAccept:
		return true, false
	case expr.VerdictReturn:
		return false, true
	case expr.VerdictJump, expr.VerdictGoto:
		done = w.chain(w.rules.find(keyOf(c.Table), v.Chain), jumps-1)
		return done, v.Kind == expr.VerdictGoto
	}
	return false, false
}

// match is a rule that is asked about a packet.
type match struct {
	*walk
	chain     *chain
	certainty certainty
	registers registers
	verdicts  []*expr.Verdict // of which one is, if there are several
	nat       bool
	rejects   bool
}

func (m *match) and(c certainty) { m.certainty = min(m.certainty, c) }

// ask asks one expression of a rule.
func (m *match) ask(e expr.Any) {
	r := &m.registers
	switch e := e.(type) {
	case *expr.Meta:
		if !e.SourceRegister {
			r.load(e.Register, m.meta(e.Key))
		}
	case *expr.Payload:
		if e.OperationType == expr.PayloadLoad {
			r.load(e.DestRegister, m.payload(e))
		}
	case *expr.Ct:
		if e.SourceRegister {
			return
		}
		if e.Key == expr.CtKeySTATE && m.state != ctUnknown {
			r.load(e.Register, binary.NativeEndian.AppendUint32(nil, m.state))
		} else {
			r.load(e.Register, nil)
		}
	case *expr.Fib:
		// neither of two pods is the node itself
		if e.ResultADDRTYPE && (e.FlagSADDR || e.FlagDADDR) {
			r.load(e.Register, binary.NativeEndian.AppendUint32(nil, unix.RTN_UNICAST))
		} else {
			r.load(e.Register, nil)
		}
	case *expr.Immediate:
		r.load(e.Register, e.Data)
	case *expr.Bitwise:
		r.bitwise(e)
	case *expr.Cmp:
		m.and(r.compare(e))
	case *expr.Range:
		m.and(r.within(e))
	case *expr.Lookup:
		m.lookup(e)
	case *expr.Match:
		m.and(m.extension(e))
	case *expr.Target:
		m.nat = m.nat || e.Name == "MASQUERADE" || e.Name == "SNAT" || e.Name == "NETMAP"
		m.rejects = m.rejects || e.Name == "REJECT"
	case *expr.Masq:
		m.nat = true
	case *expr.NAT:
		m.nat = m.nat || e.Type == expr.NATTypeSourceNAT
	case *expr.Reject:
		m.rejects = true
	case *expr.Verdict:
		m.verdicts = append(m.verdicts, e)
	case *expr.Counter, *expr.Log, *expr.Notrack, *expr.Objref, *expr.Quota:
		// of a quota it may be over, which is as if it were not there
	case *expr.Byteorder:
		r.load(e.DestRegister, nil)
	case *expr.Exthdr:
		r.load(e.DestRegister, nil)
	case *expr.Rt:
		r.load(e.Register, nil)
	case *expr.Socket:
		r.load(e.Register, nil)
	case *expr.Numgen:
		r.load(e.Register, nil)
	case *expr.Hash:
		r.load(e.DestRegister, nil)
	default:
		m.and(maybe)
	}
}

// meta returns what is known of a packet beside its headers, nil for nothing. Packets from pod to pod are not marked.
func (m *match) meta(key expr.MetaKey) []byte {
	name := func(name string) []byte {
		return append([]byte(name), make([]byte, max(0, unix.IFNAMSIZ-len(name)))...)
	}
	index := func(index int) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(index)) }
	v6 := m.pair.Source.Is6()
	switch key {
	case expr.MetaKeyIIFNAME:
		return name(m.pair.In.Name)
	case expr.MetaKeyOIFNAME:
		return name(m.pair.Out.Name)
	case expr.MetaKeyIIF:
		return index(m.pair.In.Index)
	case expr.MetaKeyOIF:
		return index(m.pair.Out.Index)
	case expr.MetaKeyMARK:
		return index(0)
	case expr.MetaKeyNFPROTO:
		if v6 {
			return []byte{unix.NFPROTO_IPV6}
		}
		return []byte{unix.NFPROTO_IPV4}
	case expr.MetaKeyPROTOCOL:
		if v6 {
			return binary.BigEndian.AppendUint16(nil, unix.ETH_P_IPV6)
		}
		return binary.BigEndian.AppendUint16(nil, unix.ETH_P_IP)
	}
	return nil
}

// payload returns part of the packet: nil unless all of it are addresses.
func (m *match) payload(e *expr.Payload) []byte {
	first := 12 // RFC 791, 3.1
	if m.pair.Source.Is6() {
		first = 8 // RFC 8200, 3
	}
	addresses := append(m.pair.Source.AsSlice(), m.pair.Destination.AsSlice()...)
	from, to := int(e.Offset)-first, int(e.Offset)-first+int(e.Len)
	if e.Base != expr.PayloadBaseNetworkHeader || from < 0 || to > len(addresses) {
		return nil
	}
	return addresses[from:to]
}

// lookup asks a set, or a verdict map.
func (m *match) lookup(e *expr.Lookup) {
	s := m.rules.sets[keyOf(m.chain.Table)][e.SetName]
	if s == nil {
		m.and(maybe)
		return
	}
	if !e.IsDestRegSet {
		found, _ := m.registers.find(s, e.SourceRegister)
		if e.Invert {
			found = yes - found
		}
		m.and(found)
		return
	}
	found, verdict := m.registers.find(s, e.SourceRegister)
	switch {
	case found == yes && verdict != nil:
		m.verdicts = append(m.verdicts, verdict)
	case found == maybe:
		m.verdicts = append(m.verdicts, m.rules.verdicts(m.chain, e)...)
	}
	if e.DestRegister != unix.NFT_REG_VERDICT {
		m.registers.load(e.DestRegister, nil) // a map's value, which is not looked at
	}
	m.and(found)
}

// extension asks a match of iptables.
func (m *match) extension(e *expr.Match) certainty {
	state := func(mask, flags, invert uint16) certainty {
		if flags&uint16(xt.ConntrackState) == 0 || m.state == ctUnknown {
			return maybe
		}
		is := certain(uint32(mask)&m.state != 0 != (invert&uint16(xt.ConntrackState) != 0))
		if flags&^uint16(xt.ConntrackState|xt.ConntrackStateAlias) != 0 {
			is = min(is, maybe) // there is more to it
		}
		return is
	}
	switch info := e.Info.(type) {
	case *xt.Comment:
		return yes
	case *xt.ConntrackMtinfo1:
		return state(uint16(info.StateMask), info.MatchFlags, info.InvertFlags)
	case *xt.ConntrackMtinfo2:
		return state(info.StateMask, info.MatchFlags, info.InvertFlags)
	case *xt.ConntrackMtinfo3:
		return state(info.StateMask, info.MatchFlags, info.InvertFlags)
	case *xt.Unknown:
		raw := []byte(*info)
		switch {
		case e.Name == "comment":
			return yes
		case e.Name == "mark" && len(raw) >= 9: // struct xt_mark_mtinfo1: mark, mask, invert; there is no mark
			return certain(binary.NativeEndian.Uint32(raw) == 0 != (raw[8] != 0))
		case e.Name == "state" && len(raw) >= 4: // struct xt_state_info
			return state(uint16(binary.NativeEndian.Uint32(raw)), uint16(xt.ConntrackState), 0)
		}
	}
	return maybe
}

// registers are those of nft_do_chain() (struct nft_regs), and which of their bytes are known.
type registers struct {
	bytes [80]byte
	known [80]bool
}

// place is where a register begins, as nft_parse_register() has it (net/netfilter/nf_tables_api.c).
func place(register uint32) int {
	if register >= unix.NFT_REG32_00 {
		return int(register-4) * 4
	}
	return int(register) * 16
}

// load puts a value into a register, nil for one that is not known.
func (r *registers) load(register uint32, value []byte) {
	at := place(register)
	if at >= len(r.bytes) {
		return
	}
	if value == nil {
		clear(r.known[at:min(at+16, len(r.known))])
		return
	}
	// what is behind it up to 4 bytes is zero (nft_reg_store8())
	for i := range (len(value) + 3) / 4 * 4 {
		if at+i >= len(r.bytes) {
			return
		}
		r.bytes[at+i], r.known[at+i] = 0, true
		if i < len(value) {
			r.bytes[at+i] = value[i]
		}
	}
}

// value returns so many bytes of a register: false if not all are known.
func (r *registers) value(register uint32, size int) ([]byte, bool) {
	at := place(register)
	if at+size > len(r.bytes) || slices.Contains(r.known[at:at+size], false) {
		return nil, false
	}
	return r.bytes[at : at+size], true
}

func (r *registers) bitwise(e *expr.Bitwise) {
	value, known := r.value(e.SourceRegister, int(e.Len))
	if !known || len(e.Mask) != int(e.Len) || len(e.Xor) != int(e.Len) {
		r.load(e.DestRegister, nil)
		return
	}
	result := make([]byte, e.Len)
	for i := range result {
		result[i] = value[i]&e.Mask[i] ^ e.Xor[i]
	}
	r.load(e.DestRegister, result)
}

func (r *registers) compare(e *expr.Cmp) certainty {
	value, known := r.value(e.Register, len(e.Data))
	if !known {
		return maybe
	}
	order := bytes.Compare(value, e.Data)
	return certain(map[expr.CmpOp]bool{
		expr.CmpOpEq: order == 0, expr.CmpOpNeq: order != 0, expr.CmpOpLt: order < 0,
		expr.CmpOpLte: order <= 0, expr.CmpOpGt: order > 0, expr.CmpOpGte: order >= 0,
	}[e.Op])
}

func (r *registers) within(e *expr.Range) certainty {
	value, known := r.value(e.Register, len(e.FromData))
	if !known {
		return maybe
	}
	inside := bytes.Compare(value, e.FromData) >= 0 && bytes.Compare(value, e.ToData) <= 0
	return certain(inside == (e.Op == expr.CmpOpEq))
}

// find looks a register up in a set, and returns the verdict there, if it is a map of those.
func (r *registers) find(s *set, register uint32) (certainty, *expr.Verdict) {
	if len(s.elements) == 0 {
		return no, nil
	}
	value, known := r.value(register, len(s.elements[0].Key))
	if !known || s.Concatenation && s.Interval {
		return maybe, nil
	}
	if !s.Interval {
		for _, e := range s.elements {
			if bytes.Equal(e.Key, value) {
				return yes, e.VerdictData
			}
		}
		return no, nil
	}
	// the greatest that is not greater is where an interval begins, or where one has ended
	var last *nftables.SetElement
	for i := range s.elements {
		e := &s.elements[i]
		order := -1
		if last != nil {
			order = bytes.Compare(last.Key, e.Key)
		}
		// where one begins where another ends, it begins
		if bytes.Compare(e.Key, value) <= 0 && (order < 0 || order == 0 && !e.IntervalEnd) {
			last = e
		}
	}
	if last == nil || last.IntervalEnd {
		return no, nil
	}
	return yes, last.VerdictData
}
