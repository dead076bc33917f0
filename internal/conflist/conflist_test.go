package conflist

import (
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/xdp-cni/xdp-cni/conf"
)

const bridge = `{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    {
      "type": "bridge",
      "ipam": { "type": "host-local" }
    },
    { "type": "portmap" }
  ]
}
`

func mustParse(t *testing.T, file, text string) *List {
	t.Helper()
	l, err := Parse(file, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestWith: the entry goes behind the others, as they are written, and all else stays as it was; taken out
// again, every byte is as before.
func TestWith(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"lines", bridge, strings.Replace(bridge, `"portmap" }`, `"portmap" },
    {
      "type": "xdp",
      "mode": "auto"
    }`, 1)},
		{"tabs", "{\"name\":\"n\",\"cniVersion\":\"1.0.0\",\n\t\"plugins\":[\n\t\t{\"type\":\"ptp\"}]}",
			"{\"name\":\"n\",\"cniVersion\":\"1.0.0\",\n\t\"plugins\":[\n\t\t{\"type\":\"ptp\"},\n\t\t{\n\t\t\t\"type\": \"xdp\",\n\t\t\t\"mode\": \"auto\"\n\t\t}]}"},
		{"one line", `{"plugins":[{"type":"ptp"}],"name":"n","cniVersion":"0.3.1"}`,
			`{"plugins":[{"type":"ptp"}, {"type":"xdp","mode":"auto"}],"name":"n","cniVersion":"0.3.1"}`},
		{"decoys", `{"x":{"plugins":["]"]},"name":"n]","cniVersion":"0.3.1","plugins":[{"type":"ptp","plugins":[1,"\"]"]} ] }`,
			`{"x":{"plugins":["]"]},"name":"n]","cniVersion":"0.3.1","plugins":[{"type":"ptp","plugins":[1,"\"]"]}, {"type":"xdp","mode":"auto"} ] }`},
		{"twice", `{"plugins":[{"type":"old"}],"name":"n","cniVersion":"0.3.1","plugins":[{"type":"ptp"}]}`,
			`{"plugins":[{"type":"old"}],"name":"n","cniVersion":"0.3.1","plugins":[{"type":"ptp"}, {"type":"xdp","mode":"auto"}]}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := mustParse(t, "10.conflist", test.text)
			entry, err := Settings{}.Entry(l)
			if err != nil {
				t.Fatal(err)
			}
			have, err := l.With(entry)
			if err != nil || string(have) != test.want {
				t.Fatalf("%v, have\n%s\nwant\n%s", err, have, test.want)
			}
			again := mustParse(t, "10.conflist", string(have))
			same, err := Settings{}.Entry(again)
			if err != nil {
				t.Fatal(err)
			}
			if twice, err := again.With(same); err != nil || string(twice) != string(have) {
				t.Errorf("%v, a second time\n%s", err, twice)
			}
			if rest, err := again.Without(); err != nil || string(rest) != test.text {
				t.Errorf("%v, without it\n%s\nwant\n%s", err, rest, test.text)
			}
		})
	}
}

// TestWithout: all entries go, wherever they stand.
func TestWithout(t *testing.T) {
	const list = `{"name":"n","cniVersion":"1.0.0","plugins":[%]}`
	for entries, want := range map[string]string{
		`{"type":"xdp"},{"type":"ptp"}`:                               `{"type":"ptp"}`,
		`{"type":"ptp"}, {"type":"xdp"} ,{"type":"tuning"}`:           `{"type":"ptp"} ,{"type":"tuning"}`,
		`{"type":"xdp"},{"type":"ptp"},{"type":"xdp"},{"type":"xdp"}`: `{"type":"ptp"}`,
		`{"type":"xdp"}`:                 "",
		`{"type":"xdp"},{"type":"xdp"}`:  "",
		`{"type":"ptp"},{"type":"xdp2"}`: `{"type":"ptp"},{"type":"xdp2"}`,
	} {
		if want != "" {
			want = strings.Replace(list, "%", want, 1)
		}
		have, err := mustParse(t, "1.conflist", strings.Replace(list, "%", entries, 1)).Without()
		if err != nil || string(have) != want {
			t.Errorf("%s: %v, %s", entries, err, have)
		}
	}
}

// TestSingle: one plugin's configuration becomes the list that libcni would make of it.
func TestSingle(t *testing.T) {
	l := mustParse(t, "10-bridge.conf", `{"cniVersion":"0.4.0","name":"pods","type":"bridge","x":"<&>"}`)
	entry, err := Settings{Mode: conf.ModeTCX}.Entry(l)
	if err != nil {
		t.Fatal(err)
	}
	text, err := l.With(entry)
	if err != nil {
		t.Fatal(err)
	}
	want := `{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {
      "cniVersion": "0.4.0",
      "name": "pods",
      "type": "bridge",
      "x": "<&>"
    },
    {
      "type": "xdp",
      "mode": "tcx"
    }
  ]
}
`
	if string(text) != want {
		t.Errorf("have\n%s", text)
	}
	if err := mustParse(t, "10-bridge.conflist", string(text)).Fit(); err != nil {
		t.Error(err)
	}
}

// TestEntry: settings change what they name of an entry that is there, and nothing else.
func TestEntry(t *testing.T) {
	yes, no := true, false
	f, _, err := conf.ParseFilter([]byte(`{"rules":[{"name":"a","direction":"egress","action":"deny","to":["10.0.0.0/8"],"protocol":"tcp","ports":["80"]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, there string
		settings    Settings
		want        string
	}{
		{"new", "", Settings{}, `{"type":"xdp","mode":"auto"}`},
		{"new, all", "", Settings{Mode: conf.ModeNative, Redirect: &yes, BPFFS: "/run/bpf"}, `{"type":"xdp","mode":"native","redirect":true,"bpffs":"/run/bpf"}`},
		{"there", `{ "type": "xdp", "logLevel": "debug" }`, Settings{}, `{ "type": "xdp", "logLevel": "debug" }`},
		{"same", `{ "type": "xdp", "mode": "tcx" }`, Settings{Mode: conf.ModeTCX}, `{ "type": "xdp", "mode": "tcx" }`},
		{"other", `{ "logLevel": "debug", "mode": "tcx", "type": "xdp" }`, Settings{Mode: conf.ModeGeneric},
			`{"logLevel":"debug","mode":"generic","type":"xdp"}`},
		{"redirect object", `{"type":"xdp","redirect":{"maxFlows":1024}}`, Settings{Redirect: &yes}, `{"type":"xdp","redirect":{"maxFlows":1024}}`},
		{"no redirect", `{"type":"xdp","redirect":{"maxFlows":1024}}`, Settings{Redirect: &no}, `{"type":"xdp","redirect":false}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			plugins := `{"type":"ptp"}`
			if test.there != "" {
				plugins += "," + test.there
			}
			l := mustParse(t, "1.conflist", `{"name":"n","cniVersion":"1.0.0","plugins":[`+plugins+`]}`)
			if have, err := test.settings.Entry(l); err != nil || string(have) != test.want {
				t.Errorf("%v: %s", err, have)
			}
		})
	}
	l := mustParse(t, "1.conflist", bridge)
	entry, err := Settings{Filter: f}.Entry(l)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := conf.Parse(entry)
	if err != nil || parsed.Filter == nil || len(parsed.Filter.Rules) != 1 || parsed.Filter.Rules[0].To[0] != f.Rules[0].To[0] {
		t.Errorf("%v: %s", err, entry)
	}
	there := mustParse(t, "1.conflist", `{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"ptp"},{"type":"xdp","bigTCP":true,"mode":"tcx"}]}`)
	if _, err := (Settings{Mode: conf.ModeNative}).Entry(there); err == nil {
		t.Error("an entry that the plugin refuses was made")
	}
}

func TestFit(t *testing.T) {
	for _, test := range []struct{ version, plugin, want string }{
		{"1.0.0", `{"type":"bridge"}`, ""},
		{"1.1.0", `{"type":"calico"}`, ""},
		{"0.3.1", `{"type":"flannel"}`, ""},
		{"1.0.0", `{"type":"flannel","delegate":{"hairpinMode":true}}`, ""},
		{"1.0.0", `{"type":"flannel","delegate":{"type":"macvlan"}}`, "macvlan, to which flannel delegates, makes a macvlan interface"},
		{"1.0.0", `{"type":"macvlan"}`, "makes no veth: macvlan makes a macvlan interface"},
		{"1.0.0", `{"type":"ipvlan"}`, "an ipvlan interface"},
		{"1.0.0", `{"type":"host-device"}`, "moves a device of the host"},
		{"1.0.0", `{"type":"loopback"}`, "nothing but the loopback"},
		{"1.0.0", `{"type":"xdp"}`, "the first plugin of network \"n\" is xdp itself"},
		{"0.2.0", `{"type":"bridge"}`, `cniVersion "0.2.0", and xdp speaks 0.3.1`},
		{"", `{"type":"bridge"}`, `cniVersion ""`},
	} {
		err := mustParse(t, "1.conflist", `{"name":"n","cniVersion":"`+test.version+`","plugins":[`+test.plugin+`]}`).Fit()
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", test.plugin, err)
		case test.want != "" && (!errors.Is(err, ErrUnfit) || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: %v, want %s", test.plugin, err, test.want)
		}
	}
}

func TestSyntax(t *testing.T) {
	for _, test := range []struct{ file, text string }{
		{"a.conflist", ""},
		{"a.conflist", bridge[:len(bridge)-3]}, // half written
		{"a.conflist", `{"cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}`},
		{"a.conflist", `{"name":"n","plugins":[]}`},
		{"a.conflist", `{"name":"n","plugins":[{}]}`},
		{"a.conf", bridge}, // a list where runtimes expect none
		{"a.json", "[]"},
	} {
		if l, err := Parse(test.file, []byte(test.text)); !errors.Is(err, ErrSyntax) {
			t.Errorf("%s: %v, %+v", test.text, err, l)
		}
	}
}

// TestPrefixes: of a list that is being written no part passes for one.
func TestPrefixes(t *testing.T) {
	whole := strings.TrimSpace(bridge)
	for i := range whole {
		if _, err := Parse("a.conflist", []byte(whole[:i])); err == nil {
			t.Errorf("parses: %s", whole[:i])
		}
	}
}

func TestUsesIPAM(t *testing.T) {
	if l := mustParse(t, "a.conflist", bridge); !l.UsesIPAM("host-local") || l.UsesIPAM("xdp-ipam") {
		t.Error("host-local is the one in use")
	}
}

// TestSamples: the samples are lists that the plugin fits, and has its entry in.
func TestSamples(t *testing.T) {
	names, err := fs.Glob(conf.Samples(), "*.conflist")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		text, err := fs.ReadFile(conf.Samples(), name)
		if err != nil {
			t.Fatal(err)
		}
		l := mustParse(t, name, string(text))
		if err := l.Fit(); err != nil || !json.Valid(l.Entry()) {
			t.Errorf("%s: %v, entry %s", name, err, l.Entry())
		}
		rest, err := l.Without()
		if err != nil {
			t.Fatal(err)
		}
		if mustParse(t, name, string(rest)).Entry() != nil {
			t.Errorf("%s still has an entry", name)
		}
	}
}
