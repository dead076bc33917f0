package conf

import (
	"encoding/json"
	"fmt"
	"math/big"
	"path"
	"strings"
)

// The rules for single values. Each has its counterpart in schema.json; a
// differential test and a fuzz test hold the two together.
var (
	anyString      = text("a string", func(string) bool { return true })
	nonEmptyString = text("a non-empty string", func(s string) bool { return s != "" })
	directory      = text(`an absolute, clean path other than "/"`, func(s string) bool {
		return path.IsAbs(s) && s != "/" && path.Clean(s) == s && !strings.ContainsRune(s, 0)
	})
	fileOrEmpty = text("the absolute path of a file, or an empty string", func(s string) bool {
		return s == "" || path.IsAbs(s) && !strings.HasSuffix(s, "/") && !strings.ContainsRune(s, 0)
	})
	anyObjectOrNull = value("an object", func(raw json.RawMessage) (json.RawMessage, bool) {
		if isNull(raw) {
			return nil, true
		}
		return raw, isObject(raw)
	})
)

// value returns the rule for a JSON value that parse takes or refuses whole.
func value[V any](want string, parse func(json.RawMessage) (V, bool)) rule[V] {
	return rule[V]{want, func(ps *problems, path string, raw json.RawMessage) (V, bool) {
		v, ok := parse(raw)
		if !ok {
			ps.add(path, "want %s, got %s", want, shown(raw))
		}
		return v, ok
	}}
}

// text returns the rule for a JSON string that allowed accepts.
func text(want string, allowed func(string) bool) rule[string] {
	return value(want, func(raw json.RawMessage) (string, bool) {
		s, ok := stringOf(raw)
		return s, ok && allowed(s)
	})
}

// stringOf returns the string that raw is. The first byte decides, because
// Unmarshal takes null for any type.
func stringOf(raw json.RawMessage) (string, bool) {
	var s string
	if raw[0] != '"' || json.Unmarshal(raw, &s) != nil {
		return "", false
	}
	return s, true
}

// choice is one of the words that a key may be, and what it stands for.
type choice[V any] struct {
	word  string
	value V
}

// oneOf returns the rule for a JSON string that is one of a few words.
func oneOf[V any](choices []choice[V]) rule[V] {
	words := make([]string, len(choices))
	for i, c := range choices {
		words[i] = c.word
	}
	return value("one of "+quoted(words), func(raw json.RawMessage) (v V, ok bool) {
		s, ok := stringOf(raw)
		if !ok {
			return v, false
		}
		for _, c := range choices {
			if c.word == s {
				return c.value, true
			}
		}
		return v, false
	})
}

// wholeNumber returns the rule for a JSON number without a fraction in
// [least, most]. As in JSON Schema, 1024.0 and 1e3 are whole numbers, as some
// tools that generate JSON write them.
func wholeNumber[N uint8 | uint32](least, most N) rule[N] {
	return value(fmt.Sprintf("a whole number from %d to %d", least, most),
		func(raw json.RawMessage) (N, bool) { return wholeNumberOf(raw, least, most) })
}

// wholeNumberOf returns the number in [least, most] that raw is.
func wholeNumberOf[N uint8 | uint32](raw json.RawMessage, least, most N) (N, bool) {
	if raw[0] != '-' && (raw[0] < '0' || raw[0] > '9') {
		return 0, false
	}
	// Exact, where a float64 would round; SetString refuses the
	// exponents that would not fit in memory.
	n, ok := new(big.Rat).SetString(string(raw))
	if !ok || !n.IsInt() || !n.Num().IsInt64() {
		return 0, false
	}
	i := n.Num().Int64()
	if i < int64(least) || i > int64(most) {
		return 0, false
	}
	return N(i), true
}

// boolean is the rule for true and false.
var boolean = value("true or false", func(raw json.RawMessage) (bool, bool) {
	return raw[0] == 't', raw[0] == 't' || raw[0] == 'f'
})

// pointer returns the rule for what r takes, as a pointer that is nil if it
// was not given.
func pointer[V any](r rule[V]) rule[*V] {
	return rule[*V]{r.want, func(ps *problems, path string, raw json.RawMessage) (*V, bool) {
		v, ok := r.read(ps, path, raw)
		if !ok {
			return nil, false
		}
		return &v, true
	}}
}

// whole returns the rule for what r takes without any problem in it.
func whole[V any](r rule[V]) rule[V] {
	return rule[V]{r.want, func(ps *problems, path string, raw json.RawMessage) (V, bool) {
		before := len(*ps)
		v, ok := r.read(ps, path, raw)
		return v, ok && len(*ps) == before
	}}
}

// orNull returns the rule for what r takes or null, which is as if the key
// were not given.
func orNull[V any](r rule[V]) rule[V] {
	return rule[V]{r.want, func(ps *problems, path string, raw json.RawMessage) (V, bool) {
		if isNull(raw) {
			var none V
			return none, false
		}
		return r.read(ps, path, raw)
	}}
}

// list returns the rule for a JSON array, each entry by the rule entry. One
// problem in an entry and there is no list: a list with entries left out would
// say something else than the one given.
func list[V any](entry rule[V], want string) rule[[]V] {
	return whole(rule[[]V]{want, func(ps *problems, path string, raw json.RawMessage) ([]V, bool) {
		raws, ok := entriesOf(raw)
		if !ok {
			ps.add(path, "want %s, got %s", want, shown(raw))
			return nil, false
		}
		list := make([]V, 0, len(raws))
		for i, r := range raws {
			v, _ := entry.read(ps, fmt.Sprintf("%s[%d]", path, i), r)
			list = append(list, v)
		}
		return list, true
	}})
}

// entriesOf returns the entries of raw if it is a JSON array.
func entriesOf(raw json.RawMessage) ([]json.RawMessage, bool) {
	var entries []json.RawMessage
	return entries, raw[0] == '[' && json.Unmarshal(raw, &entries) == nil
}
