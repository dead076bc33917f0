package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"sigs.k8s.io/yaml"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// sampleDumps are maps with one value for each entry, and with those of each CPU.
func sampleDumps() map[string]func(dumpWriter) error {
	of := newAttachment(sampleAttachments()[2].Meta) // in mode native
	write := func(w dumpWriter, r *dumpReport, entries ...*dumpEntry) error {
		err := w.begin(r)
		for _, e := range entries {
			err = errors.Join(err, w.entry(e))
		}
		return errors.Join(err, w.end())
	}
	raw := func(text string) json.RawMessage { return json.RawMessage(text) }
	return map[string]func(dumpWriter) error{
		"programs-dump": func(w dumpWriter) error {
			return write(w, &dumpReport{
				attachment: of, Program: "xdp_rewrite_ports", Map: "port_rewrites", ID: 412, Type: "Hash", MaxEntries: 1024,
				KeyType: "struct port", ValueType: "struct port_rewrite",
			}, &dumpEntry{Key: raw(`{"port":20480,"protocol":6}`), Value: raw(`{"port":36895,"since":18446744073709551615}`)},
				&dumpEntry{Key: raw(`{"port":13568,"protocol":17}`), Value: raw(`{"port":59924,"since":0}`)})
		},
		"programs-dump-cpus": func(w dumpWriter) error {
			return write(w, &dumpReport{
				attachment: of, Program: "xdp_count", Map: "counts", ID: 413, Type: "PerCPUArray", MaxEntries: 1,
				KeyType: "__u32", ValueType: "__u64", PerCPU: true,
			}, &dumpEntry{Key: raw(`0`), Values: []cpuValue{{0, raw(`9007199254740993`)}, {1, raw(`0`)}}})
		},
		"programs-dump-empty": func(w dumpWriter) error {
			return write(w, &dumpReport{
				attachment: of, Program: "xdp_count", Map: "seen", ID: 414, Type: "LRUHash", MaxEntries: 8,
			})
		},
	}
}

func TestProgramsDumpGolden(t *testing.T) {
	for name, write := range sampleDumps() {
		for as, suffix := range map[format]string{formatTable: ".txt", formatJSON: ".json", formatYAML: ".yaml"} {
			var out bytes.Buffer
			if err := write(newDumpWriter(as, &out)); err != nil {
				t.Fatal(err)
			}
			golden(t, name+suffix, out.String())
		}
		// written piece by piece, both are one value all the same, and the same one
		var asJSON, asYAML bytes.Buffer
		err := errors.Join(write(newDumpWriter(formatJSON, &asJSON)), write(newDumpWriter(formatYAML, &asYAML)))
		converted, convertErr := yaml.JSONToYAML(asJSON.Bytes())
		var have, want any
		err = errors.Join(err, convertErr, yaml.Unmarshal(asYAML.Bytes(), &have), yaml.Unmarshal(converted, &want))
		haveText, _ := json.Marshal(have)
		wantText, _ := json.Marshal(want)
		if err != nil || !bytes.Equal(haveText, wantText) {
			t.Errorf("%s: %v\nYAML %s\nJSON %s", name, err, haveText, wantText)
		}
	}
}

// dumped runs programs dump without looking the pod up.
func dumped(list []datapath.PodProgram, name string, as format) (string, string, error) {
	var out, stderr bytes.Buffer
	o := &options{streams: streams{out: &out, err: &stderr}, format: as}
	opened, err := openProgramMaps(list, []string{name}, &ebpf.LoadPinOptions{ReadOnly: true})
	defer closeProgramMaps(opened)
	if err != nil {
		return "", "", err
	}
	err = o.dump(newAttachment(sampleAttachments()[1].Meta), opened[0])
	return out.String(), stderr.String(), err
}

// TestProgramsDump dumps maps of the kernel.
func TestProgramsDump(t *testing.T) {
	u32 := &btf.Int{Name: "__u32", Size: 4}
	u64 := &btf.Int{Name: "__u64", Size: 8}
	point := &btf.Struct{Name: "point", Size: 8, Members: []btf.Member{
		{Name: "x", Type: u32}, {Name: "name", Type: &btf.Array{
			Index: u32, Type: &btf.Int{Name: "char", Size: 1, Encoding: btf.Signed}, Nelems: 4,
		}, Offset: 32},
	}}
	bss := &btf.Datasec{Name: ".bss", Size: 8, Vars: []btf.VarSecinfo{
		{Type: &btf.Var{Name: "seen", Type: u64, Linkage: btf.GlobalVar}, Size: 8},
	}}
	list := programPins(t, map[string]*ebpf.MapSpec{
		"one/points": {Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 4, Key: u32, Value: point},
		"two/points": {Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 4},
		"two/_bss":   {Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1, Key: &btf.Void{}, Value: bss},
		"two/counts": {Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 4, MaxEntries: 1, Key: u32, Value: u32},
		"two/queue":  {Type: ebpf.Queue, ValueSize: 4, MaxEntries: 1},
	})
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		t.Fatal(err)
	}
	counts := make([]uint32, cpus)
	for i := range counts {
		counts[i] = uint32(100 + i)
	}
	value := append([]byte{0, 0, 0, 0}, "web\x00"...)
	for name, put := range map[string]map[any]any{
		"one/points": {uint32(7): value}, "two/points": {[4]byte{1, 2, 3, 4}: value},
		"two/_bss": {uint32(0): uint64(1<<53 + 1)}, "two/counts": {uint32(0): counts},
	} {
		opened, err := openProgramMaps(list, []string{name}, nil)
		defer closeProgramMaps(opened)
		if err != nil {
			t.Fatal(err)
		}
		for key, value := range put {
			if err := opened[0].Put(key, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, test := range []struct{ name, want string }{
		{"one/points", `key: 7  value: {"x":0,"name":"web"}` + "\n"},
		{"two/points", "key: 01 02 03 04  value: 00 00 00 00 77 65 62 00\n"},
		{"_bss", `key: 0  value: {".bss":[{"seen":9007199254740993}]}` + "\n"},
	} {
		have, stderr, err := dumped(list, test.name, formatTable)
		if err != nil || have != test.want || stderr != "" {
			t.Errorf("%s: %q, %q, %v; want %q", test.name, have, stderr, err, test.want)
		}
	}
	type report struct {
		Program, Map, Type, KeyType, ValueType string
		ID, MaxEntries                         int
		PerCPU                                 bool
		Entries                                []struct {
			Key, Value json.RawMessage
			Values     []cpuValue
		}
	}
	for _, name := range []string{"two/points", "two/counts"} {
		text, _, err := dumped(list, name, formatJSON)
		var have report
		if err := errors.Join(err, json.Unmarshal([]byte(text), &have)); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if have.ID == 0 || filepath.Join(have.Program, have.Map) != name || len(have.Entries) != 1 {
			t.Fatalf("%s: %+v", name, have)
		}
		e := have.Entries[0]
		if !have.PerCPU {
			if string(e.Key) != `"01 02 03 04"` || string(e.Value) != `"00 00 00 00 77 65 62 00"` ||
				have.KeyType+have.ValueType != "" {
				t.Errorf("%s", text)
			}
			continue
		}
		if len(e.Values) != cpus || have.Type != "PerCPUArray" || have.ValueType != "__u32" || have.MaxEntries != 1 {
			t.Errorf("%s", text)
		}
		for i, v := range e.Values {
			if v.CPU != i || string(v.Value) != fmt.Sprint(counts[i]) {
				t.Errorf("CPU %d has %s", v.CPU, v.Value)
			}
		}
	}
	for name, says := range map[string]string{
		"points": "one/points or two/points", "nothing": "there are one/points, two/_bss, two/counts, two/points, two/queue",
		"two/queue": "no entries that can be listed: Queue",
	} {
		if _, _, err := dumped(list, name, formatTable); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", name, err, says)
		}
	}
	// an empty map is no error, and no empty line
	opened, err := openProgramMaps(list, []string{"one/points"}, nil)
	defer closeProgramMaps(opened)
	if err := errors.Join(err, opened[0].Delete(uint32(7))); err != nil {
		t.Fatal(err)
	}
	have, stderr, err := dumped(list, "one/points", formatTable)
	if have != "" || stderr != "Map points of program one is empty.\n" || err != nil {
		t.Errorf("%q, %q, %v", have, stderr, err)
	}
}

// TestProgramsUsage has what is wrong with command lines of programs and below.
func TestProgramsUsage(t *testing.T) {
	wrong := map[string]string{
		"programs": "takes one POD, not 0", "programs dump a": "takes a POD and a MAP, not 1 arguments",
		"programs dump a b c": "not 3 arguments",
	}
	for _, args := range slices.Sorted(maps.Keys(wrong)) {
		status, _, stderr := xdpctl(t.Context(), append(strings.Fields(args), "--bpffs", t.TempDir())...)
		if status != exitUsage || !strings.Contains(stderr, wrong[args]) {
			t.Errorf("%s: status %d, %q", args, status, stderr)
		}
	}
}
