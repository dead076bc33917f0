package conf

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// schemaNode is the part of JSON Schema that schema.json uses.
type schemaNode struct {
	Description          string                 `json:"description"`
	Type                 any                    `json:"type"`
	Enum                 []any                  `json:"enum"`
	Default              any                    `json:"default"`
	Minimum              *float64               `json:"minimum"`
	Maximum              *float64               `json:"maximum"`
	Required             []string               `json:"required"`
	Properties           map[string]*schemaNode `json:"properties"`
	PatternProperties    map[string]*schemaNode `json:"patternProperties"`
	AdditionalProperties *bool                  `json:"additionalProperties"`
	Items                *schemaNode            `json:"items"`
	MaxItems             int                    `json:"maxItems"`
	Pattern              string                 `json:"pattern"`
	Ref                  string                 `json:"$ref"`
	Defs                 map[string]*schemaNode `json:"$defs"`
}

func compileSchema(tb testing.TB) *jsonschema.Schema {
	tb.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		tb.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema.json", doc); err != nil {
		tb.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// TestSchemaMatchesTypes walks the Go types beside the schema: the same keys,
// types, words, limits, defaults and required keys, and a description of each.
func TestSchemaMatchesTypes(t *testing.T) {
	var root schemaNode
	if err := json.Unmarshal(Schema(), &root); err != nil {
		t.Fatal(err)
	}
	matchObject(t, "", &root, reflect.ValueOf(configObject.initial), configObject.keys(false), ignoredKeys)
	matchRequired(t, "", &root, configObject)
	matchObject(t, "stats", root.Properties["stats"], reflect.ValueOf(statsObject.initial), statsObject.keys(false), nil)
	matchRequired(t, "stats", root.Properties["stats"], statsObject)
	attachment := root.Properties[validAttachmentsKey].Items
	matchObject(t, "attachment", attachment, reflect.ValueOf(attachmentObject.initial), attachmentObject.keys(false), nil)
	matchRequired(t, "attachment", attachment, attachmentObject)

	runtime := root.Properties["runtimeConfig"]
	matchObject(t, "runtimeConfig", runtime, reflect.ValueOf(runtimeObject.initial), runtimeObject.keys(false), nil)
	redirect := root.Properties["redirect"]
	matchObject(t, "redirect", redirect, reflect.ValueOf(redirectObject.initial), redirectObject.keys(false), nil)
	matchRequired(t, "redirect", redirect, redirectObject)
	program := root.Properties["programs"].Items
	matchObject(t, "program", program, reflect.ValueOf(programObject.initial), programObject.keys(false), nil)
	matchRequired(t, "program", program, programObject)
	if root.Properties["programs"].MaxItems != MaxPrograms {
		t.Error("programs: not at most MaxPrograms")
	}
	filter, rule := root.Defs["filter"], root.Defs["rule"]
	matchObject(t, "filter", filter, reflect.ValueOf(filterObject.initial), filterObject.keys(false), nil)
	matchRequired(t, "filter", filter, filterObject)
	defaults := filter.Properties["default"]
	matchObject(t, "filter.default", defaults, reflect.ValueOf(defaultObject.initial), defaultObject.keys(false), nil)
	matchRequired(t, "filter.default", defaults, defaultObject)
	matchObject(t, "rule", rule, reflect.ValueOf(ruleObject.initial), ruleObject.keys(false), nil)
	matchRequired(t, "rule", rule, ruleObject)
	icmp := rule.Properties["icmp"]
	matchObject(t, "icmp", icmp, reflect.ValueOf(icmpObject.initial), icmpObject.keys(false), nil)
	matchRequired(t, "icmp", icmp, icmpObject)
	if filter.Properties["rules"].MaxItems != MaxRules || filter.Properties["rules"].Items.Ref != "#/$defs/rule" {
		t.Error("filter.rules: not at most MaxRules rules")
	}
	if got := rule.Properties["name"].Pattern; got != ruleNamePattern.String() {
		t.Errorf("rule.name: pattern %s, want %s", got, ruleNamePattern)
	}

	for path, n := range map[string]*schemaNode{"": &root, "stats": root.Properties["stats"], "redirect": redirect, "program": program,
		"filter": filter, "filter.default": defaults, "rule": rule, "icmp": icmp} {
		if n.AdditionalProperties == nil || *n.AdditionalProperties {
			t.Errorf("%q: other keys are allowed", path)
		}
	}
	if attachment.AdditionalProperties != nil {
		t.Error("attachment: other keys are not CNI's to add")
	}
	if got := slices.Collect(maps.Keys(root.PatternProperties)); !slices.Equal(got, []string{`^cni\.dev/`}) {
		t.Errorf("patternProperties %q", got)
	}
	matchLimits(t, root.Properties["stats"], "peers", 0, MaxPeers)
	matchLimits(t, redirect, "maxEndpoints", LeastMaxEndpoints, MostMaxEndpoints)
	matchLimits(t, redirect, "maxFlows", LeastMaxDirectFlows, MostMaxDirectFlows)
	matchLimits(t, filter, "maxFlows", LeastMaxFlows, MostMaxFlows)
	matchLimits(t, icmp, "type", 0, 255)
	matchLimits(t, icmp, "code", 0, 255)
}

func matchLimits(t *testing.T, n *schemaNode, key string, least, most float64) {
	t.Helper()
	p := n.Properties[key]
	if p.Minimum == nil || *p.Minimum != least || p.Maximum == nil || *p.Maximum != most {
		t.Errorf("%s: limits other than %v and %v", key, least, most)
	}
}

// matchObject compares a schema with a struct that holds the defaults, and
// with the keys of its table and those it ignores.
func matchObject(t *testing.T, path string, n *schemaNode, defaults reflect.Value, table, ignored []string) {
	t.Helper()
	if n == nil {
		t.Fatalf("%q: not in the schema", path)
	}
	keys := slices.Clone(ignored)
	for i := range defaults.NumField() {
		key, _, _ := strings.Cut(defaults.Type().Field(i).Tag.Get("json"), ",")
		keys = append(keys, key)
		p, ok := n.Properties[key]
		if !ok {
			t.Errorf("%q: not in the schema", join(path, key))
			continue
		}
		matchValue(t, join(path, key), p, defaults.Field(i))
	}
	slices.Sort(keys)
	if got := slices.Sorted(maps.Keys(n.Properties)); !slices.Equal(got, keys) {
		t.Errorf("%q: schema has %q, Go has %q", path, got, keys)
	}
	if got := slices.Sorted(slices.Values(table)); !slices.Equal(got, keys) {
		t.Errorf("%q: table has %q, Go has %q", path, got, keys)
	}
	for key, p := range n.Properties {
		if p.Description == "" {
			t.Errorf("%q: no description", join(path, key))
		}
	}
}

func matchValue(t *testing.T, path string, n *schemaNode, def reflect.Value) {
	t.Helper()
	var wantType, wantDefault any
	var words []any
	var wantRef string
	switch v := def.Interface().(type) {
	case Mode:
		wantType, wantDefault = "string", string(v)
		words = wordsOf(modes)
	case slog.Level:
		wantType = "string"
		for _, c := range logLevels {
			words = append(words, c.word)
			if c.value == v {
				wantDefault = c.word
			}
		}
	case string:
		wantType = "string"
		// The others are the runtime's to give.
		if path == "bpffs" || path == "logFile" {
			wantDefault = v
		}
	case uint32:
		wantType, wantDefault = "integer", float64(v)
	case uint8, *uint8:
		wantType = "integer"
	case bool:
		wantType, wantDefault = "boolean", v
	case Action:
		wantType, words = "string", wordsOf(actions)
		if path != "rule.action" {
			wantDefault, words = v.String(), wordsOf(defaultActions)
		}
	case Direction:
		wantType, words = "string", wordsOf(directions)
	case Protocol:
		// A word or a number, as the cases that agree with Parse show.
		wantDefault = v.String()
	case Stats, Default, *ICMP:
		wantType = "object"
	case *Redirect:
		wantType, wantDefault = []any{"boolean", "object"}, v != nil
	case BigTCP:
		words, wantDefault = []any{false, true, BigTCPAuto.String()}, v != BigTCPOff
	case *Filter:
		wantRef = "#/$defs/filter"
	case []netip.Prefix:
		wantRef = "#/$defs/prefixes"
	case Order:
		wantType, wantDefault, words = "string", v.String(), wordsOf(orders)
	case []Program:
		wantType, wantDefault = "array", []any{}
	case []Rule, []PortRange:
		wantType = "array"
	case json.RawMessage, RuntimeConfig:
		wantType = []any{"object", "null"}
	default:
		if def.Kind() != reflect.Pointer || def.Type().Elem().Kind() != reflect.Slice {
			t.Fatalf("%q: no rule in this test for %T", path, v)
		}
		wantType = []any{"array", "null"}
	}
	if !reflect.DeepEqual(n.Type, wantType) {
		t.Errorf("%q: type %v, want %v", path, n.Type, wantType)
	}
	if !reflect.DeepEqual(n.Default, wantDefault) {
		t.Errorf("%q: default %v, want %v", path, n.Default, wantDefault)
	}
	if n.Ref != wantRef {
		t.Errorf("%q: $ref %q, want %q", path, n.Ref, wantRef)
	}
	if !slices.Equal(n.Enum, words) {
		t.Errorf("%q: enum %v, want %v", path, n.Enum, words)
	}
}

func wordsOf[V any](choices []choice[V]) []any {
	var words []any
	for _, c := range choices {
		words = append(words, c.word)
	}
	return words
}

func matchRequired[T any](t *testing.T, path string, n *schemaNode, o object[T]) {
	t.Helper()
	var want []string
	for _, f := range o.fields {
		if f.required {
			want = append(want, f.key)
		}
	}
	if !slices.Equal(n.Required, want) {
		t.Errorf("%q: required %q, want %q", path, n.Required, want)
	}
}

// valid holds configurations that Parse and the schema accept.
var valid = []string{
	`{"type":"xdp"}`,
	`{"type":"x","cniVersion":"","name":""}`,
	`{"type":"xdp","mode":"native","bpffs":"/run/bpf","stats":{"peers":65536},"logFile":"/l","logLevel":"warn"}`,
	`{"type":"xdp","mode":"auto","stats":{}}`,
	`{"type":"xdp","stats":{"peers":1024.0},"logFile":""}`,
	`{"type":"xdp","stats":{"peers":6.5536e4}}`,
	`{"type":"xdp","stats":{"peers":-0}}`,
	`{"type":"xdp","redirect":true,"bigTCP":false}`,
	`{"type":"xdp","redirect":false,"mode":"native","bigTCP":false}`,
	`{"type":"xdp","redirect":{},"mode":"tcx","bigTCP":true}`,
	`{"type":"xdp","redirect":{"acrossNetworks":true,"maxEndpoints":2,"maxFlows":1024},"mode":"auto","bigTCP":"auto"}`,
	`{"type":"xdp","redirect":{"acrossNetworks":false,"maxEndpoints":65536,"maxFlows":1048576}}`,
	`{"type":"xdp","mode":"tcx","bigTCP":"\u0061uto"}`,
	`{"type":"xdp","bpffs":"/a/..."}`,
	`{"type":"xdp","bpffs":"/.a/b\n"}`,
	`{"type":"xdp","logFile":"//a/../b"}`,
	`{"type":"xdp","prevResult":null,"cni.dev/valid-attachments":null}`,
	`{"type":"xdp","prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}],"ips":[{"interface":0,"address":"10.0.0.2/24"}]}}`,
	`{"type":"xdp","prevResult":{"cniVersion":"0.4.0","interfaces":[null]},"cniVersion":"1.1.0"}`,
	`{"type":"xdp","cni.dev/valid-attachments":[]}`,
	`{"type":"xdp","cni.dev/valid-attachments":[{"containerID":"c","ifname":"e","later":null}],"cni.dev/":0}`,
	`{"type":"xdp","args":1,"capabilities":1,"cniVersions":1,"disableCheck":1,"disableGC":1,"dns":1,"ipMasq":1,` +
		`"ipam":1,"loadOnlyInlinedPlugins":1,"runtimeConfig":null}`,
	`{"type":"xdp","runtimeConfig":{"mac":"x","portMappings":[1],"xdpFilter":{}}}`,
}

// beyondSchema tells whether Parse refuses in for what JSON Schema cannot see: a
// key given twice, entries that have to do with each other, and the syntax of
// addresses and port ranges, which it sees in part.
func beyondSchema(err error) bool {
	for _, phrase := range []string{"times, as ", "want a CIDR", "want a port as", "that no other rule has",
		"want a prefix within", "prefixes in to, from and except"} {
		if err != nil && strings.Contains(err.Error(), phrase) {
			return true
		}
	}
	return false
}

func TestSchemaAgreesWithParse(t *testing.T) {
	s := compileSchema(t)
	check := func(in string, want bool) {
		t.Helper()
		_, err := Parse([]byte(in))
		if (err == nil) != want {
			t.Errorf("Parse(%s): %v, want accept %v", in, err, want)
		}
		doc, jsonErr := jsonschema.UnmarshalJSON(strings.NewReader(in))
		if jsonErr != nil {
			t.Fatalf("%s: %v", in, jsonErr)
		}
		if schemaErr := s.Validate(doc); (schemaErr == nil) != want && !beyondSchema(err) {
			t.Errorf("schema on %s: %v, want accept %v", in, schemaErr, want)
		}
	}
	for _, in := range valid {
		check(in, true)
	}
	for _, test := range broken {
		check(test.in, false)
	}
	for _, test := range filters {
		check(`{"type":"xdp","filter":`+test.in+`}`, true)
		check(`{"type":"xdp","runtimeConfig":{"xdpFilter":`+test.in+`}}`, true)
	}
	for _, test := range brokenFilters {
		check(`{"type":"xdp","filter":`+test.in+`}`, false)
	}
	for _, in := range []string{`[]`, `null`, `"x"`} {
		check(in, false)
	}
}

func TestSchemaReturnsACopy(t *testing.T) {
	Schema()[0] = 'x'
	if Schema()[0] != '{' {
		t.Error("a caller changed the schema")
	}
}
