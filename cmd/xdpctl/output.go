package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// format is how a command writes its result; a flag's value.
type format string

const (
	formatTable format = "table"
	formatWide  format = "wide"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
)

func formatNames() []string {
	return []string{string(formatTable), string(formatWide), string(formatJSON), string(formatYAML)}
}

// Set implements pflag.Value.
func (f *format) Set(s string) error {
	if !slices.Contains(formatNames(), s) {
		return fmt.Errorf("must be one of %s", strings.Join(formatNames(), ", "))
	}
	*f = format(s)
	return nil
}

// String and Type implement pflag.Value.
func (f *format) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *format) Type() string { return "format" }

func (f format) isTable() bool { return f == formatTable || f == formatWide }

// style is how tables look.
type style struct {
	numbers
	wide bool
}

func (o *options) style() style {
	return style{numbers{o.exact}, o.format == formatWide}
}

// write writes a result in the format asked for. Its table is made by render if there is need.
func (o *options) write(result any, render func(style) string) error {
	text, err := o.encode(result, render)
	if err != nil {
		return err
	}
	_, err = o.out.Write(text)
	return err
}

func (o *options) encode(result any, render func(style) string) ([]byte, error) {
	switch o.format {
	case formatJSON:
		text, err := json.MarshalIndent(result, "", "  ")
		return append(text, '\n'), err
	case formatYAML:
		return yaml.Marshal(result)
	default:
		return []byte(render(o.style())), nil
	}
}

// writeNext writes one of a series of results: a line of JSON, a document of YAML, or a table,
// which on a terminal takes the place of the one before.
func (o *options) writeNext(result any, first, terminal bool, render func(style) string) error {
	var (
		text []byte
		err  error
	)
	if o.format == formatJSON {
		text, err = json.Marshal(result)
		text = append(text, '\n')
	} else {
		text, err = o.encode(result, render)
	}
	if err != nil {
		return err
	}
	prefix := ""
	switch {
	case o.format == formatYAML:
		prefix = "---\n"
	case o.format.isTable() && terminal:
		prefix = "\x1b[H\x1b[2J" // cursor home, clear all
	case o.format.isTable() && !first:
		prefix = "\n"
	}
	_, err = io.WriteString(o.out, prefix+string(text))
	return err
}
