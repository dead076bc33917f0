package conf

import (
	"bytes"
	"encoding/json"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// FuzzParse holds Parse, ParseLenient, Result, ResultJSON and the schema
// against each other on any input.
func FuzzParse(f *testing.F) {
	for _, in := range valid {
		f.Add([]byte(in))
	}
	for _, test := range broken {
		f.Add([]byte(test.in))
	}
	for _, test := range filters {
		f.Add([]byte(`{"type":"xdp","filter":` + test.in + `}`))
		f.Add([]byte(`{"type":"xdp","runtimeConfig":{"xdpFilter":` + test.in + `}}`))
	}
	for _, test := range brokenFilters {
		f.Add([]byte(`{"type":"xdp","filter":` + test.in + `}`))
	}
	for _, v := range []string{"", "0.3.1", "0.4.0", "1.1.0"} {
		f.Add([]byte(`{"type":"xdp","cniVersion":"1.0.0","prevResult":` + prev(v) + `}`))
	}
	for _, in := range []string{``, `null`, `[]`, `{"type":`, `{} {}`, "{\"\xff\":0,\"\xfe\":0}", `{"type":"xdp","bpffs":"/\ud800"}`} {
		f.Add([]byte(in))
	}
	schema := compileSchema(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := Parse(in)
		lenient, lenientErr := ParseLenient(in)
		if (err == nil) != (lenientErr == nil) || err != nil && err.Error() != lenientErr.Error() {
			t.Fatalf("Parse: %v, ParseLenient: %v", err, lenientErr)
		}
		var object map[string]json.RawMessage
		isObject := json.Unmarshal(in, &object) == nil && object != nil
		if (lenient != nil) != isObject {
			t.Fatalf("ParseLenient: %+v for an input that is an object: %v", lenient, isObject)
		}
		if lenient != nil {
			checkInvariants(t, lenient)
		}
		if doc, jsonErr := jsonschema.UnmarshalJSON(bytes.NewReader(in)); jsonErr == nil && !beyondSchema(err) {
			if schemaErr := schema.Validate(doc); (schemaErr == nil) != (err == nil) {
				t.Fatalf("Parse: %v, schema: %v", err, schemaErr)
			}
		}
		if err != nil {
			return
		}
		if c.Type == "" || !reflect.DeepEqual(c, lenient) {
			t.Fatalf("Parse %+v, ParseLenient %+v", c, lenient)
		}
		again, err := Parse(render(t, c))
		if err != nil {
			t.Fatalf("parsing again: %v", err)
		}
		if c.PrevResult != nil { // rendering compacts it
			again.PrevResult = c.PrevResult
		}
		if !reflect.DeepEqual(again, c) {
			t.Fatalf("parsing again: %+v, want %+v", again, c)
		}
	})
}

// checkInvariants fails the test unless c is what Config promises to be.
func checkInvariants(t *testing.T, c *Config) {
	t.Helper()
	if !slices.Contains([]Mode{ModeGeneric, ModeNative, ModeTCX, ModeAuto}, c.Mode) {
		t.Errorf("mode %q", c.Mode)
	}
	if !path.IsAbs(c.BPFFS) || path.Clean(c.BPFFS) != c.BPFFS || c.BPFFS == "/" || strings.Contains(c.BPFFS, "\x00") {
		t.Errorf("bpffs %q", c.BPFFS)
	}
	if c.Stats.Peers > MaxPeers {
		t.Errorf("stats.peers %d", c.Stats.Peers)
	}
	if r := c.Redirect; r != nil && (r.MaxEndpoints < LeastMaxEndpoints || r.MaxEndpoints > MostMaxEndpoints ||
		r.MaxFlows < LeastMaxDirectFlows || r.MaxFlows > MostMaxDirectFlows) {
		t.Errorf("redirect past a limit: %+v", r)
	}
	if c.BigTCP != BigTCPOff && c.Mode != ModeTCX && c.Mode != ModeAuto {
		t.Errorf("bigTCP %s in mode %s", c.BigTCP, c.Mode)
	}
	for _, filter := range []*Filter{c.Filter, c.RuntimeConfig.XDPFilter} {
		if filter == nil {
			continue
		}
		if len(filter.Rules) > MaxRules || filter.MaxFlows < LeastMaxFlows || filter.MaxFlows > MostMaxFlows {
			t.Errorf("filter past a limit: %+v", filter)
		}
		filter.Warnings() // must not panic
	}
	if c.LogFile != "" && !path.IsAbs(c.LogFile) {
		t.Errorf("logFile %q", c.LogFile)
	}
	if c.PrevResult != nil && !json.Valid(c.PrevResult) {
		t.Errorf("prevResult %s", c.PrevResult)
	}
	if c.ValidAttachments != nil {
		for _, a := range *c.ValidAttachments {
			if a.ContainerID == "" || a.IfName == "" {
				t.Errorf("attachment %+v", a)
			}
		}
	}
	if r, err := c.Result(); err == nil {
		for _, ip := range r.IPs {
			if ip.Interface != nil && r.Interfaces[*ip.Interface] == nil {
				t.Error("nil interface")
			}
		}
		if out, err := c.ResultJSON(); err == nil && !json.Valid(out) {
			t.Errorf("ResultJSON: %s", out)
		}
	} else if c.PrevResult == nil {
		if _, err := c.ResultJSON(); err == nil {
			t.Error("ResultJSON without prevResult")
		}
	} else {
		_, _ = c.ResultJSON() // must not panic
	}
}

// render writes c as a configuration.
func render(t *testing.T, c *Config) []byte {
	t.Helper()
	m := map[string]any{
		"cniVersion": c.CNIVersion, "name": c.Name, "type": c.Type, "mode": c.Mode, "bpffs": c.BPFFS, "stats": c.Stats,
		"logFile": c.LogFile, "logLevel": strings.ToLower(c.LogLevel.String()), "prevResult": c.PrevResult,
		"cni.dev/valid-attachments": c.ValidAttachments,
		"bigTCP":                    map[BigTCP]any{BigTCPOff: false, BigTCPOn: true, BigTCPAuto: "auto"}[c.BigTCP],
	}
	if c.Redirect != nil {
		m["redirect"] = c.Redirect
	}
	if c.Programs != nil {
		programs := []map[string]any{}
		for _, p := range c.Programs {
			program := map[string]any{"object": p.Object, "order": p.Order.String(), "optional": p.Optional}
			if p.Program != "" {
				program["program"] = p.Program
			}
			if p.Name != "" {
				program["name"] = p.Name
			}
			programs = append(programs, program)
		}
		m["programs"] = programs
	}
	if c.Filter != nil {
		m["filter"] = c.Filter
	}
	if c.RuntimeConfig.XDPFilter != nil {
		m["runtimeConfig"] = c.RuntimeConfig
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func FuzzParsePodArgs(f *testing.F) {
	for _, in := range []string{"", "A=B", "K8S_POD_NAME", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=c", "A=B;",
		"=;=", "K8S_POD_NAME=a=b", "K8S_POD_UID=" + strings.Repeat("x", 64), "K8S_POD_NAME=a;K8S_POD_NAME=\x00"} {
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in string) {
		a, err := ParsePodArgs(in)
		if err != nil {
			if a != (PodArgs{}) {
				t.Fatalf("%+v beside %v", a, err)
			}
			return
		}
		if len(a.Namespace) > 63 || len(a.Name) > 253 || len(a.UID) > 63 {
			t.Fatalf("too long: %+v", a)
		}
		out := "K8S_POD_NAMESPACE=" + a.Namespace + ";K8S_POD_NAME=" + a.Name + ";K8S_POD_UID=" + a.UID
		again, err := ParsePodArgs(out)
		if err != nil || again != a {
			t.Fatalf("parsing again: %+v, %v; want %+v", again, err, a)
		}
	})
}
