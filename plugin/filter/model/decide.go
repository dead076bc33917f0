package model

import (
	"time"

	"github.com/xdp-cni/xdp-cni/conf"
)

// Decide judges a packet that goes in direction d at now, a time since any fixed moment that never
// goes back, and remembers what later packets are judged by.
func (m *Model) Decide(p Packet, d conf.Direction, now time.Duration) Verdict {
	fragmented := p.Fragment.First || p.Fragment.Later
	switch {
	case p.Broken || p.isND() && (fragmented || p.HopLimit != 255): // RFC 6980, 5; RFC 4861, 6.1 and 7.1
		return drop(ReasonMalformed, StepParse)
	case d == conf.Egress && m.filter.AntiSpoof && m.spoofed(&p):
		return drop(ReasonSpoof, StepSpoof)
	case p.EtherType == EtherTypeARP:
		return pass(StepNotIP)
	case !p.isIP():
		return m.byDefault(d, StepNotIP)
	}
	v := m.decideIP(&p, d, now)
	if p.Fragment.First {
		if v.Pass {
			m.fragments[p.fragmentKey(d)] = fragment{v, m.generation, now + TimeoutFragments}
		} else {
			delete(m.fragments, p.fragmentKey(d))
		}
	}
	return v
}

// decideIP is steps 4 to 9.
func (m *Model) decideIP(p *Packet, d conf.Direction, now time.Duration) Verdict {
	if p.isND() || p.isMLD() {
		return pass(StepNeighbour)
	}
	key, ofFlow := p.key(d)
	ofFlow = ofFlow && m.filter.Stateful
	var known *flow
	if ofFlow && !p.beginsTCP() {
		known = m.live(key, now)
	}
	if d == conf.Ingress && m.filter.AllowHost && p.FromHost {
		if ofFlow {
			m.note(key, known, p, d, now)
			if f := m.flows[key]; f != nil && known == nil {
				f.byHost = true
			}
		}
		return pass(StepHost)
	}
	if p.Fragment.Later {
		return m.decideLater(p, d, now)
	}
	if m.filter.Stateful && m.related(p, d, now) {
		return pass(StepRelated)
	}
	v := pass(StepFlow)
	switch {
	case known == nil:
		v = m.judge(d, p.subject(d), StepRules)
	case known.generation != m.generation:
		if !known.byHost || !m.filter.AllowHost {
			v = m.judge(known.initiator, known.subject, StepFlow)
		}
		known.generation = m.generation
		if !v.Pass {
			delete(m.flows, key)
		}
	}
	if v.Pass && ofFlow {
		m.note(key, known, p, d, now)
	}
	return v
}

// beginsTCP says whether p asks for a new connection.
func (p *Packet) beginsTCP() bool {
	return p.Protocol == protocolTCP && p.TCPFlags&SYN != 0 && p.TCPFlags&ACK == 0
}

// decideLater is step 6.
func (m *Model) decideLater(p *Packet, d conf.Direction, now time.Duration) Verdict {
	first, ok := m.fragments[p.fragmentKey(d)]
	if ok && now < first.expires {
		v := first.verdict
		v.Step = StepFragment
		if first.generation != m.generation {
			v.Rule, v.WouldDeny = -1, false
		}
		return v
	}
	rule, needsPort := MatchFragment(m.filter, d, p.subject(d))
	if needsPort {
		v := drop(ReasonFragment, StepFragment)
		v.Rule = rule
		return v
	}
	return m.byRule(rule, d, StepFragment)
}

// judge asks the rules of a direction.
func (m *Model) judge(d conf.Direction, s Subject, step Step) Verdict {
	return m.byRule(Match(m.filter, d, s), d, step)
}

// byRule returns the verdict of a rule, or of the default for -1.
func (m *Model) byRule(rule int, d conf.Direction, step Step) Verdict {
	if rule < 0 {
		return m.byDefault(d, step)
	}
	v := pass(step)
	switch m.filter.Rules[rule].Action {
	case conf.Deny:
		v = drop(ReasonRule, step)
	case conf.Audit:
		v.WouldDeny = true
	}
	v.Rule = rule
	return v
}

func (m *Model) byDefault(d conf.Direction, step Step) Verdict {
	if m.filter.Default.Of(d) == conf.Deny {
		return drop(ReasonDefault, step)
	}
	return pass(step)
}

func pass(s Step) Verdict { return Verdict{Pass: true, Rule: -1, Step: s} }

func drop(r Reason, s Step) Verdict { return Verdict{Reason: r, Rule: -1, Step: s} }
