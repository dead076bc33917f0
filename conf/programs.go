package conf

import (
	"encoding/json"
	"path"
	"strings"
)

// MaxPrograms is how many user programs a pod can have.
const MaxPrograms = 8

// Order is when a program runs on what a pod sends.
type Order uint8

const (
	// OrderBefore: before the filter and redirect.
	OrderBefore Order = iota
	// OrderAfter: on what the filter lets pass.
	OrderAfter
)

// String returns "before" or "after".
func (o Order) String() string { return wordOf(orders, o) }

var orders = []choice[Order]{{"before", OrderBefore}, {"after", OrderAfter}}

// Program is a program that runs on what the pods send: an XDP program with [ModeGeneric] and [ModeNative], a tc
// program with [ModeTCX]; [ModeAuto] is generic with programs.
type Program struct {
	// Object is the absolute path of an ELF object file, as clang makes it.
	Object string `json:"object"`
	// Program is the name of a function in it, or of a section that has one program; empty if the
	// object has only one.
	Program string `json:"program"`
	// Name is by what the program is known: it names the directory of its maps. Empty for the
	// function's name.
	Name string `json:"name"`
	// Order is when it runs. Those of one order run as the list has them.
	Order Order `json:"order"`
	// Optional: a pod whose program cannot be loaded is attached without it, with a warning.
	Optional bool `json:"optional"`
}

var programObject = object[Program]{
	fields: []field[Program]{
		required(at("object", func(p *Program) *string { return &p.Object }, file)),
		at("program", func(p *Program) *string { return &p.Program }, programName),
		at("name", func(p *Program) *string { return &p.Name }, directoryName),
		at("order", func(p *Program) *Order { return &p.Order }, oneOf(orders)),
		at("optional", func(p *Program) *bool { return &p.Optional }, boolean),
	},
}

// Limits of names, in bytes.
const (
	maxProgramObject = 511
	maxProgramName   = 127
	maxDirectoryName = 63
)

var (
	file = text("the absolute path of a file, of at most 511 bytes", func(s string) bool {
		return path.IsAbs(s) && !strings.HasSuffix(s, "/") && !strings.ContainsRune(s, 0) &&
			len(s) <= maxProgramObject
	})
	programName = text("the name of a function or section, of 1 to 127 bytes", func(s string) bool {
		return s != "" && len(s) <= maxProgramName && !strings.ContainsRune(s, 0)
	})
	// as bpffs takes them, which has no dots in names (bpf_lookup() in kernel/bpf/inode.c)
	directoryName = text("a name of 1 to 63 letters, digits, _ and -", func(s string) bool {
		return s != "" && len(s) <= maxDirectoryName && strings.Trim(s, wordCharacters) == ""
	})
)

const wordCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"

const wantPrograms = "a list of at most 8 programs"

var programsRule = rule[[]Program]{wantPrograms, func(
	ps *problems, path string, raw json.RawMessage,
) ([]Program, bool) {
	programs, ok := list(programObject.rule(), wantPrograms).read(ps, path, raw)
	if ok && len(programs) > MaxPrograms {
		ps.add(path, "want %s, got %d", wantPrograms, len(programs))
		return nil, false
	}
	return programs, ok
}}
