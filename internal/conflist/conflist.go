// Package conflist reads and edits the network configurations of CNI as text: what is not changed keeps
// its bytes. It knows which chains the xdp plugin can be part of. It touches no files.
package conflist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

// Type is the "type" of the plugin's entry: the file name of its binary.
const Type = "xdp"

// Extensions of the files in which runtimes look for network configurations. libcni tells a list from a
// single plugin by them alone.
var Extensions = []string{".conf", ".conflist", ".json"}

// ErrSyntax: the text is no network configuration, or not yet all of one.
var ErrSyntax = errors.New("no valid network configuration")

// List is a network configuration.
type List struct {
	// Name of the network, and CNIVersion in force, as libcni chooses it.
	Name, CNIVersion string
	// Plugins of the chain, in their order.
	Plugins []Plugin
	// Single: the text is one plugin's configuration, not a list.
	Single bool
	// Inlined: the chain is what is in the text, and not what is in a directory of the network's name too.
	Inlined bool

	text []byte
}

// Plugin is an entry of a chain.
type Plugin struct {
	Type string
	// Raw is the entry as it is written.
	Raw json.RawMessage

	start, end int // in the text
}

// Parse reads what a file of that name holds, as libcni does. Its error is ErrSyntax.
func Parse(file string, text []byte) (*List, error) {
	l := &List{text: text}
	if filepath.Ext(file) != ".conflist" {
		conf, err := libcni.NetworkPluginConfFromBytes(text)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSyntax, err)
		}
		l.Name, l.CNIVersion, l.Single, l.Inlined = conf.Network.Name, conf.Network.CNIVersion, true, true
		l.Plugins = []Plugin{{Type: conf.Network.Type, Raw: bytes.TrimSpace(text), end: len(text)}}
		return l, nil
	}
	list, err := libcni.NetworkConfFromBytes(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	l.Name, l.CNIVersion, l.Inlined = list.Name, list.CNIVersion, list.LoadOnlyInlinedPlugins
	if l.Plugins, err = scan(text); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	for i, p := range list.Plugins {
		l.Plugins[i].Type = p.Network.Type
	}
	return l, nil
}

// scan finds the elements of "plugins", in a text that is one JSON object. Of a key that is there twice
// the last counts, as in encoding/json.
func scan(text []byte) ([]Plugin, error) {
	var plugins []Plugin
	decoder := json.NewDecoder(bytes.NewReader(text))
	if _, err := decoder.Token(); err != nil { // {
		return nil, err
	}
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		var raw json.RawMessage
		if key != "plugins" {
			if err := decoder.Decode(&raw); err != nil {
				return nil, err
			}
			continue
		}
		plugins = nil
		if _, err := decoder.Token(); err != nil { // [
			return nil, err
		}
		for decoder.More() {
			if err := decoder.Decode(&raw); err != nil {
				return nil, err
			}
			end := int(decoder.InputOffset())
			plugins = append(plugins, Plugin{Raw: bytes.Clone(raw), start: end - len(raw), end: end})
		}
		if _, err := decoder.Token(); err != nil { // ]
			return nil, err
		}
	}
	return plugins, nil
}

// Entry returns the plugin's entry; nil if there is none.
func (l *List) Entry() json.RawMessage {
	for _, p := range l.Plugins {
		if p.Type == Type {
			return p.Raw
		}
	}
	return nil
}

// With returns the text of the list with the entry in it: in the place of the one that is there, else
// behind the others. A single plugin is made a list.
func (l *List) With(entry json.RawMessage) ([]byte, error) {
	if l.Single {
		return l.wrapped(entry)
	}
	for _, p := range l.Plugins {
		if p.Type == Type {
			if bytes.Equal(p.Raw, entry) {
				return l.text, nil
			}
			indent, own := l.indentOf(p)
			return l.spliced(p.start, p.end, l.written(entry, indent, own)), nil
		}
	}
	if len(l.Plugins) == 0 {
		return nil, fmt.Errorf("%w: the list has no plugins", ErrSyntax)
	}
	last := l.Plugins[len(l.Plugins)-1]
	indent, own := l.indentOf(last)
	separator := ", "
	if own {
		separator = ",\n" + indent
	}
	return l.spliced(last.end, last.end, append([]byte(separator), l.written(entry, indent, own)...)), nil
}

// Without returns the text without the plugin's entries: that which With was given, if With put one
// there. nil: there would be nothing left of the list.
func (l *List) Without() ([]byte, error) {
	for i, p := range l.Plugins {
		if p.Type != Type {
			continue
		}
		var text []byte
		switch {
		case l.Single, len(l.Plugins) == 1:
			return nil, nil
		case i > 0:
			text = l.spliced(l.Plugins[i-1].end, p.end, nil)
		default:
			text = l.spliced(p.start, l.Plugins[1].start, nil)
		}
		rest, err := Parse("rest.conflist", text)
		if err != nil {
			return nil, err
		}
		return rest.Without() // there may be another
	}
	return l.text, nil
}

func (l *List) spliced(from, to int, with []byte) []byte {
	text := append([]byte{}, l.text[:from]...)
	return append(append(text, with...), l.text[to:]...)
}

// indentOf returns what stands in front of an element on its line, and whether it begins its line.
func (l *List) indentOf(p Plugin) (indent string, own bool) {
	line := l.text[bytes.LastIndexByte(l.text[:p.start], '\n')+1 : p.start]
	if len(bytes.TrimLeft(line, " \t")) > 0 || p.start == len(line) {
		return "", false
	}
	return string(line), true
}

// unit is what one level of indentation adds.
const unit = "  "

// written formats an entry as an element: over several lines if it begins its line.
func (l *List) written(entry json.RawMessage, indent string, own bool) []byte {
	var b bytes.Buffer
	if own {
		step := unit
		if strings.HasPrefix(indent, "\t") {
			step = "\t"
		}
		_ = json.Indent(&b, entry, indent, step) // it is valid: NewEntry made it
	} else {
		_ = json.Compact(&b, entry)
	}
	return b.Bytes()
}

// wrapped returns a list of the single plugin and the entry, as libcni.ConfListFromConf would make it.
func (l *List) wrapped(entry json.RawMessage) ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", unit)
	err := encoder.Encode(struct {
		CNIVersion string            `json:"cniVersion"`
		Name       string            `json:"name"`
		Plugins    []json.RawMessage `json:"plugins"`
	}{l.CNIVersion, l.Name, []json.RawMessage{l.Plugins[0].Raw, entry}})
	if err != nil {
		return nil, fmt.Errorf("making a list of a single plugin: %w", err)
	}
	return text.Bytes(), nil
}
