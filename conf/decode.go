package conf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// problems is what is wrong with a configuration, in the order found. Reading
// goes on past each, so that an author sees them all at once.
type problems []string

func (ps *problems) add(path, format string, args ...any) {
	*ps = append(*ps, fmt.Sprintf("%q: ", clip(path))+fmt.Sprintf(format, args...))
}

// rule says what a value may be and turns its JSON into a V.
type rule[V any] struct {
	// want completes "want ..." in an error.
	want string
	// read returns the value and true, or adds to ps and returns false. path
	// is the key, with those that it is nested in.
	read func(ps *problems, path string, raw json.RawMessage) (V, bool)
}

// field is a key of an object that ends up in a T.
type field[T any] struct {
	key string
	// required makes the absence of the key a problem.
	required bool
	// protocol marks a key that runtimes write rather than authors.
	protocol bool
	want     string
	read     func(ps *problems, path string, raw json.RawMessage, into *T)
}

// at returns the field for a key whose value, if r takes it, goes where says.
func at[T, V any](key string, where func(*T) *V, r rule[V]) field[T] {
	return field[T]{key: key, want: r.want,
		read: func(ps *problems, path string, raw json.RawMessage, into *T) {
			if v, ok := r.read(ps, path, raw); ok {
				*where(into) = v
			}
		}}
}

func required[T any](f field[T]) field[T] {
	f.required = true
	return f
}

func protocol[T any](f field[T]) field[T] {
	f.protocol = true
	return f
}

// object describes a JSON object that is read into a T.
type object[T any] struct {
	// initial holds the defaults.
	initial T
	fields  []field[T]
	// ignoredKeys and ignore are the keys that are known, and not ours.
	ignoredKeys []string
	ignore      func(key string) bool
}

// rule reads any object, leaving at its default each key that has a problem.
func (o object[T]) rule() rule[T] {
	const want = "an object"
	return rule[T]{want, func(ps *problems, path string, raw json.RawMessage) (T, bool) {
		if !isObject(raw) {
			ps.add(path, "want %s, got %s", want, shown(raw))
			return o.initial, false
		}
		v := o.initial
		given := members(raw)
		for _, m := range given {
			o.readMember(ps, path, m, &v)
		}
		for _, f := range o.fields {
			if f.required && !slices.ContainsFunc(given, func(m member) bool { return m.key == f.key }) {
				ps.add(join(path, f.key), "missing, want %s", f.want)
			}
		}
		return v, true
	}}
}

func (o object[T]) readMember(ps *problems, path string, m member, into *T) {
	full := join(path, m.key)
	i := slices.IndexFunc(o.fields, func(f field[T]) bool { return f.key == m.key })
	switch {
	case i < 0 && (slices.Contains(o.ignoredKeys, m.key) || o.ignore != nil && o.ignore(m.key)):
		// Not ours, so neither is what it holds, or how often.
	case i < 0:
		hint := ""
		if key, ok := nearest(m.key, o.keys(false)); ok {
			hint = fmt.Sprintf(", did you mean %q?", join(path, key))
		}
		ps.add(full, "unknown key with value %s, want one of %s%s",
			shown(m.values[0]), quoted(o.keys(true)), hint)
	case len(m.values) > 1:
		// Which one was meant nobody knows, and JSON readers differ.
		ps.add(full, "given %d times, as %s and %s, want it once",
			len(m.values), shown(m.values[0]), shown(m.values[1]))
	default:
		o.fields[i].read(ps, full, m.values[0], into)
	}
}

// member is a key of a JSON object with each value given for it.
type member struct {
	key    string
	values []json.RawMessage
}

// members returns the members of a valid JSON object in the order of their
// first appearance. Decoding to a map or struct would not do: the one drops
// repeated keys, the other matches keys in any case.
func members(raw json.RawMessage) []member {
	var ms []member
	index := make(map[string]int)
	dec := json.NewDecoder(bytes.NewReader(raw))
	_, _ = dec.Token() // the opening brace; raw is valid, so nothing here can fail
	for dec.More() {
		t, _ := dec.Token()
		key, _ := t.(string)
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			panic(fmt.Sprintf("conf: members of invalid JSON: %v", err))
		}
		i, ok := index[key]
		if !ok {
			i = len(ms)
			index[key] = i
			ms = append(ms, member{key: key})
		}
		ms[i].values = append(ms[i].values, value)
	}
	return ms
}

// join returns the path of a key in the object at path.
func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// isObject and isNull tell the type of a valid JSON value by its first byte.
func isObject(raw json.RawMessage) bool { return raw[0] == '{' }
func isNull(raw json.RawMessage) bool   { return raw[0] == 'n' }

// maxShown is how many bytes of a key or value an error repeats.
const maxShown = 80

// shown returns a valid JSON value as errors print it: on one line, and short.
func shown(raw json.RawMessage) string {
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return clip(string(raw))
	}
	return clip(b.String())
}

// clip cuts s to maxShown bytes, between runes.
func clip(s string) string {
	if len(s) <= maxShown {
		return s
	}
	end := maxShown
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "..."
}

// quoted lists words for an error: "a", "b", "c".
func quoted(words []string) string {
	qs := make([]string, len(words))
	for i, w := range words {
		qs[i] = fmt.Sprintf("%q", w)
	}
	return strings.Join(qs, ", ")
}
