package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/xdp-cni/xdp-cni/internal/btfdump"
	"github.com/xdp-cni/xdp-cni/plugin/programs"
)

// dumpReport is what programs dump says of a map, before its entries.
type dumpReport struct {
	attachment
	Program    string     `json:"program"`
	Map        string     `json:"map"`
	ID         ebpf.MapID `json:"id"`
	Type       string     `json:"type"`
	KeyType    string     `json:"keyType"`
	ValueType  string     `json:"valueType"`
	MaxEntries uint32     `json:"maxEntries"`
	PerCPU     bool       `json:"perCPU"`
}

// dumpEntry is an entry of a map. It has Value, or of maps with one for each CPU Values.
type dumpEntry struct {
	Key    json.RawMessage `json:"key"`
	Value  json.RawMessage `json:"value,omitempty"`
	Values []cpuValue      `json:"values,omitempty"`
}

type cpuValue struct {
	CPU   int             `json:"cpu"`
	Value json.RawMessage `json:"value"`
}

const programsDumpHelp = `Show what a map of a pod's programs holds, by the types that the kernel has of it (BTF).

Values are written as JSON: structs as objects, arrays, numbers exactly, true and false; as strings the names
of enum values, char arrays that hold text, single chars that BTF marks as such, numbers of 128 bits in
hexadecimal, and what is no number (NaN, +Inf, -Inf); variables of .data, .bss and .rodata by their names. Of
maps whose types are not known, keys and values are bytes in hexadecimal. What is in maps of programs or maps
is their IDs. There is a line for each entry, or for that of each CPU.

MAP is the name of a map as xdpctl programs shows it, or PROGRAM/MAP where several programs have one of that
name. The map is read while programs write it: each entry is as it was at some moment, and entries that come
or go meanwhile may be missing, or be there twice.`

func newProgramsDumpCommand(o *options) *cobra.Command {
	var program string
	cmd := &cobra.Command{
		Use:   "dump POD MAP [--program NAME]",
		Short: "Show what a map of a pod's programs holds",
		Long:  programsDumpHelp,
		Example: `  xdpctl programs dump default/web sources
  xdpctl programs dump default/web blocklist_v4 --program xdp_blocklist
  xdpctl programs dump default/web sources -o json | jq '.entries[] | {key, packets: [.values[].value.packets] | add}'`,
		Args: usageArgs(func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("takes a POD and a MAP, not %d arguments", len(args))
			}
			return nil
		}),
		ValidArgsFunction:     o.completePod,
		DisableFlagsInUseLine: true,
		RunE: func(_ *cobra.Command, args []string) error {
			d := o.datapath()
			a, err := attachmentOf(d, args[0])
			if err != nil {
				return err
			}
			name := programs.PinName(args[1]) // no name of C has a dot in it
			if program != "" {
				name = program + "/" + name
			}
			list, err := d.ReadPrograms(*a)
			if err != nil {
				return o.goneError(*a, err)
			}
			maps, err := openProgramMaps(list, []string{name}, &ebpf.LoadPinOptions{ReadOnly: true})
			defer closeProgramMaps(maps)
			if errors.Is(err, errAmbiguousMap) {
				err = fmt.Errorf("%w: say which by --program", err)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", longLabel(*a), o.goneError(*a, err))
			}
			if err := o.dump(newAttachment(a.Meta), maps[0]); err != nil {
				return fmt.Errorf("%s: map %s: %w", longLabel(*a), maps[0].name, err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&program, "program", "", "`name` of the program whose map it is")
	_ = cmd.RegisterFlagCompletionFunc("program", cobra.NoFileCompletions)
	return cmd
}

// dump writes a map, of which it holds one entry at a time.
func (o *options) dump(of attachment, m programMap) error {
	types, err := btfdump.TypesOf(m.Map)
	if err != nil {
		return err
	}
	info, err := m.Info()
	if err != nil {
		return fmt.Errorf("reading what kind it is of: %w", err)
	}
	id, _ := info.ID()
	report := dumpReport{
		attachment: of, Program: m.program, Map: m.name, ID: id, Type: m.Type().String(), MaxEntries: m.MaxEntries(),
		KeyType: btfdump.Name(types.Key), ValueType: btfdump.Name(types.Value), PerCPU: btfdump.PerCPU(m.Map),
	}
	out := bufio.NewWriter(o.out)
	w := newDumpWriter(o.format, out)
	if err := w.begin(&report); err != nil {
		return err
	}
	entries := 0
	err = btfdump.Each(m.Map, func(e btfdump.Entry) error {
		entries++
		entry, err := newDumpEntry(types, e, report.PerCPU, o.format.isTable())
		if err != nil {
			return err
		}
		return w.entry(entry)
	})
	if entries == 0 && err == nil && o.format.isTable() {
		fmt.Fprintf(o.err, "Map %s of program %s is empty.\n", m.name, m.program)
	}
	// what was read is written, and is whole
	return errors.Join(err, w.end(), out.Flush())
}

// newDumpEntry decodes an entry; bare has bytes as they are, not as JSON's strings.
func newDumpEntry(types btfdump.Types, e btfdump.Entry, perCPU, bare bool) (*dumpEntry, error) {
	decode := func(of btf.Type, data []byte) ([]byte, error) {
		switch {
		case of != nil:
			return btfdump.Append(nil, of, data)
		case bare:
			return fmt.Appendf(nil, "% x", data), nil
		}
		return fmt.Appendf(nil, `"% x"`, data), nil
	}
	key, err := decode(types.Key, e.Key)
	if err != nil {
		return nil, fmt.Errorf("decoding a key: %w", err)
	}
	entry := &dumpEntry{Key: key}
	for cpu, data := range e.Values {
		value, err := decode(types.Value, data)
		if err != nil {
			return nil, fmt.Errorf("decoding a value: %w", err)
		}
		if perCPU {
			entry.Values = append(entry.Values, cpuValue{cpu, value})
		} else {
			entry.Value = value
		}
	}
	return entry, nil
}

// dumpWriter writes a map in a format, entry after entry.
type dumpWriter interface {
	begin(*dumpReport) error
	entry(*dumpEntry) error
	end() error
}

func newDumpWriter(f format, out io.Writer) dumpWriter {
	switch f {
	case formatJSON:
		return &dumpJSON{out: out}
	case formatYAML:
		return &dumpYAML{out: out}
	}
	return dumpText{out}
}

// dumpText writes a line for each entry, or for that of each CPU, in the words of `bpftool map dump`.
type dumpText struct{ io.Writer }

func (dumpText) begin(*dumpReport) error { return nil }

func (w dumpText) entry(e *dumpEntry) error {
	if e.Value != nil {
		_, err := fmt.Fprintf(w, "key: %s  value: %s\n", printable(string(e.Key)), printable(string(e.Value)))
		return err
	}
	for _, v := range e.Values {
		if _, err := fmt.Fprintf(w, "key: %s  value (CPU %02d): %s\n",
			printable(string(e.Key)), v.CPU, printable(string(v.Value))); err != nil {
			return err
		}
	}
	return nil
}

func (dumpText) end() error { return nil }

// dumpJSON writes one object, with the entries as the last field: each on a line of its own.
type dumpJSON struct {
	out     io.Writer
	entries int
}

func (w *dumpJSON) begin(r *dumpReport) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w.out, "%s,\n  \"entries\": [", bytes.TrimSuffix(text, []byte("\n}")))
	return err
}

func (w *dumpJSON) entry(e *dumpEntry) error {
	separator := ","
	if w.entries++; w.entries == 1 {
		separator = ""
	}
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w.out, "%s\n    %s", separator, text)
	return err
}

func (w *dumpJSON) end() error {
	text := "\n  ]\n}\n"
	if w.entries == 0 {
		text = "]\n}\n"
	}
	_, err := io.WriteString(w.out, text)
	return err
}

// dumpYAML writes the same fields as YAML.
type dumpYAML struct {
	out     io.Writer
	entries int
}

func (w *dumpYAML) begin(r *dumpReport) error {
	text, err := yaml.Marshal(r)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w.out, "%sentries:", text)
	return err
}

func (w *dumpYAML) entry(e *dumpEntry) error {
	text, err := yaml.Marshal([]*dumpEntry{e})
	if err != nil {
		return err
	}
	if w.entries++; w.entries == 1 {
		text = append([]byte("\n"), text...)
	}
	_, err = w.out.Write(text)
	return err
}

func (w *dumpYAML) end() error {
	if w.entries > 0 {
		return nil
	}
	_, err := io.WriteString(w.out, " []\n")
	return err
}
