package conf

import "encoding/json"

// The capacities that a node has for redirect. Those of filters are apart: [Filter.MaxFlows].
const (
	// DefaultMaxEndpoints is [Redirect.MaxEndpoints] if the key is not given; LeastMaxEndpoints and
	// MostMaxEndpoints are its limits.
	DefaultMaxEndpoints = 8192
	LeastMaxEndpoints   = 2
	MostMaxEndpoints    = 65536
	// DefaultMaxDirectFlows is [Redirect.MaxFlows] if the key is not given; LeastMaxDirectFlows and
	// MostMaxDirectFlows are its limits.
	DefaultMaxDirectFlows = 16384
	LeastMaxDirectFlows   = 1024
	MostMaxDirectFlows    = 1 << 20
)

// Redirect gives the pods of the network a direct way to other pods of the node, for the flows that
// the host's stack would pass on unchanged.
//
// The capacities are those of the node, not of the network: the first pod with redirect chooses
// them.
type Redirect struct {
	// AcrossNetworks makes the pods of all networks that say so reach each other directly. Otherwise
	// only pods of the same network do.
	AcrossNetworks bool `json:"acrossNetworks"`
	// MaxEndpoints is how many addresses of pods the node can hold; a pod of two families has two.
	MaxEndpoints uint32 `json:"maxEndpoints"`
	// MaxFlows is how many flows between pods of the node are known at once; past it the least
	// recently used is forgotten. A flow that is not known goes through the stack.
	MaxFlows uint32 `json:"maxFlows"`
}

// BigTCP says whether the GSO and GRO limits of both ends of the veth are raised, so that TCP
// packets of more than 64 KiB go from pod to pod (BIG TCP: Linux 5.19 for IPv6, 6.3 for IPv4). Only
// with [ModeTCX], or [ModeAuto].
type BigTCP uint8

const (
	// BigTCPOff leaves the limits as they are.
	BigTCPOff BigTCP = iota
	// BigTCPOn raises them to 192 KiB. What leaves by a device with a smaller limit is then segmented
	// in software.
	BigTCPOn
	// BigTCPAuto raises them no further than the device of the default route allows.
	BigTCPAuto
)

// String returns "false", "true" or "auto".
func (b BigTCP) String() string { return wordOf(bigTCPs, b) }

// redirectObject says what redirect may hold, and where it goes. Its initial value is that of true.
var redirectObject = object[Redirect]{
	initial: Redirect{MaxEndpoints: DefaultMaxEndpoints, MaxFlows: DefaultMaxDirectFlows},
	fields: []field[Redirect]{
		at("acrossNetworks", func(r *Redirect) *bool { return &r.AcrossNetworks }, boolean),
		at("maxEndpoints", func(r *Redirect) *uint32 { return &r.MaxEndpoints },
			wholeNumber[uint32](LeastMaxEndpoints, MostMaxEndpoints)),
		at("maxFlows", func(r *Redirect) *uint32 { return &r.MaxFlows },
			wholeNumber[uint32](LeastMaxDirectFlows, MostMaxDirectFlows)),
	},
}

const wantRedirect = "true, false or an object"

// redirectRule takes an object, or true for an empty one; nil stands for false.
var redirectRule = rule[*Redirect]{wantRedirect, func(ps *problems, path string, raw json.RawMessage) (*Redirect, bool) {
	switch {
	case isObject(raw):
		return pointer(redirectObject.rule()).read(ps, path, raw)
	case raw[0] == 't':
		r := redirectObject.initial
		return &r, true
	case raw[0] == 'f':
		return nil, true
	}
	ps.add(path, "want %s, got %s", wantRedirect, shown(raw))
	return nil, false
}}

// bigTCPs has the values of bigTCP: the last is a JSON string, the others are no strings.
var bigTCPs = []choice[BigTCP]{{"false", BigTCPOff}, {"true", BigTCPOn}, {"auto", BigTCPAuto}}

var booleanOrAuto = value(`true, false or "auto"`, func(raw json.RawMessage) (BigTCP, bool) {
	switch raw[0] {
	case 'f':
		return BigTCPOff, true
	case 't':
		return BigTCPOn, true
	}
	s, ok := stringOf(raw)
	return BigTCPAuto, ok && s == BigTCPAuto.String()
})

// checkBigTCP turns BigTCP off where the mode does not have it. That is a problem only if it is the
// first: the mode may be the default because the one given is a problem itself.
func checkBigTCP(ps *problems, c *Config) {
	if c.BigTCP == BigTCPOff || c.Mode == ModeTCX || c.Mode == ModeAuto {
		return
	}
	if len(*ps) == 0 {
		ps.add("bigTCP", "want false, or the mode %s or %s, got %s with mode %s", ModeTCX, ModeAuto, c.BigTCP, c.Mode)
	}
	c.BigTCP = BigTCPOff
}
