package conflist

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/xdp-cni/xdp-cni/conf"
)

// Settings are what an entry is to say. What is not set stays as it is in an entry that is there.
type Settings struct {
	Mode     conf.Mode    // "": not set; a new entry gets conf.ModeAuto
	Filter   *conf.Filter // nil: not set
	Redirect *bool        // nil: not set
	BPFFS    string       // "": not set
}

// member is a key of a JSON object and its value.
type member struct {
	key   string
	value json.RawMessage
}

// Entry returns the entry for a list: the one that is there with the settings, or a new one. Its error
// says what of it the plugin would not take.
func (s Settings) Entry(l *List) (json.RawMessage, error) {
	there := l.Entry()
	if there == nil {
		there = json.RawMessage(`{"type":"` + Type + `"}`)
		if s.Mode == "" {
			s.Mode = conf.ModeAuto
		}
	}
	members, err := membersOf(there)
	if err != nil {
		return nil, fmt.Errorf("reading the entry of %s: %w", Type, err)
	}
	changed := false
	for _, key := range []struct {
		name  string
		set   bool
		value any
	}{
		{"mode", s.Mode != "", s.Mode},
		{"filter", s.Filter != nil, s.Filter},
		{"redirect", s.Redirect != nil && !(*s.Redirect && isObject(members, "redirect")), s.Redirect},
		{"bpffs", s.BPFFS != "", s.BPFFS},
	} {
		if !key.set {
			continue
		}
		value, err := json.Marshal(key.value)
		if err != nil {
			return nil, fmt.Errorf("writing %q: %w", key.name, err)
		}
		set, did := setMember(members, key.name, value)
		members, changed = set, changed || did
	}
	entry := there
	if changed || l.Entry() == nil {
		entry = textOf(members)
	}
	// the keys that the runtime would add, but for prevResult, which no configuration is refused for
	if _, err := conf.Parse(entry); err != nil {
		return nil, fmt.Errorf("the entry would be refused by the plugin: %w", err)
	}
	return entry, nil
}

func membersOf(object json.RawMessage) ([]member, error) {
	decoder := json.NewDecoder(bytes.NewReader(object))
	if _, err := decoder.Token(); err != nil { // {
		return nil, err
	}
	var members []member
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		name, _ := key.(string) // a JSON object's keys are strings
		m := member{key: name}
		if err := decoder.Decode(&m.value); err != nil {
			return nil, err
		}
		members = append(members, m)
	}
	return members, nil
}

// isObject tells whether a key's value is an object: of redirect, one that says more than true.
func isObject(members []member, key string) bool {
	for _, m := range members {
		if m.key == key {
			return bytes.HasPrefix(m.value, []byte("{"))
		}
	}
	return false
}

// setMember sets a key, and tells whether that changed its value.
func setMember(members []member, key string, value json.RawMessage) ([]member, bool) {
	for i, m := range members {
		if m.key != key {
			continue
		}
		var was bytes.Buffer
		if json.Compact(&was, m.value) == nil && bytes.Equal(was.Bytes(), value) {
			return members, false
		}
		members[i].value = value
		return members, true
	}
	return append(members, member{key, value}), true
}

func textOf(members []member) json.RawMessage {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range members {
		if i > 0 {
			b.WriteByte(',')
		}
		key, _ := json.Marshal(m.key) // a string always can be
		b.Write(key)
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	return b.Bytes()
}
