package conf

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"
)

// MaxPrograms is how many programs of its own a pod can have: MAX_POD_PROGRAMS in bpf/lib/pod.h.
const MaxPrograms = 8

// Order says when a program of the user runs.
type Order string

const (
	// OrderBefore: on all that the pod sends, before our own policy.
	OrderBefore Order = "before"
	// OrderAfter: on what our policy lets pass.
	OrderAfter Order = "after"
)

// Program is a program of the user, for every pod of the network. It runs on what the pod sends; of
// those with one [Order] in the order of the list.
type Program struct {
	// Object is the absolute path of an ELF object file.
	Object string `json:"object"`
	// Program is the name of the function or of the section; empty if the object has only one program.
	Program string `json:"program,omitempty"`
	// Order is [OrderBefore] if not given.
	Order Order `json:"order"`
	// Optional: a pod whose program cannot be loaded goes without it, with a warning.
	Optional bool `json:"optional"`
}

var programObject = object[Program]{
	initial: Program{Order: OrderBefore},
	fields: []field[Program]{
		required(at("object", func(p *Program) *string { return &p.Object }, objectFile)),
		at("program", func(p *Program) *string { return &p.Program }, nonEmptyString),
		at("order", func(p *Program) *Order { return &p.Order }, oneOf(orders)),
		at("optional", func(p *Program) *bool { return &p.Optional }, boolean),
	},
}

var objectFile = text("the absolute path of a file", func(s string) bool {
	return path.IsAbs(s) && !strings.HasSuffix(s, "/") && !strings.ContainsRune(s, 0)
})

var orders = []choice[Order]{{string(OrderBefore), OrderBefore}, {string(OrderAfter), OrderAfter}}

var wantPrograms = fmt.Sprintf("a list of at most %d objects", MaxPrograms)

// programsRule takes a list of limited length, whole or not at all: half of somebody's programs are
// none that he asked for.
var programsRule = rule[[]Program]{wantPrograms, func(ps *problems, path string, raw json.RawMessage) ([]Program, bool) {
	if entries, ok := entriesOf(raw); ok && len(entries) > MaxPrograms {
		ps.add(path, "want %s, got %d", wantPrograms, len(entries))
		return nil, false
	}
	return list(programObject.rule(), wantPrograms).read(ps, path, raw)
}}
