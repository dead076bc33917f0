package conf

import (
	"errors"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// wantError fails the test unless err is a *types.Error of the code whose text
// is exactly want.
func wantError(t *testing.T, err error, code uint, want string) {
	t.Helper()
	cniErr, ok := errors.AsType[*types.Error](err)
	if !ok {
		t.Fatalf("error is %T (%v), want *types.Error", err, err)
	}
	if cniErr.Code != code {
		t.Errorf("code %d, want %d", cniErr.Code, code)
	}
	if got := err.Error(); got != want {
		t.Errorf("error\n got %s\nwant %s", got, want)
	}
}

func TestParse(t *testing.T) {
	defaults := func(change func(*Config)) *Config {
		c := &Config{Type: "xdp", Mode: "generic", BPFFS: "/sys/fs/bpf/xdp-cni", LogLevel: slog.LevelInfo}
		if change != nil {
			change(c)
		}
		return c
	}
	for _, test := range []struct {
		name, in string
		want     *Config
	}{
		{"defaults", `{"type":"xdp"}`, defaults(nil)},
		{"everything", `{
			"cniVersion": "1.1.0", "name": "n", "type": "xdp-2", "mode": "native", "bpffs": "/run/bpf",
			"stats": {"peers": 1024}, "logFile": "/var/log/xdp", "logLevel": "debug",
			"prevResult": {"cniVersion": "1.1.0"},
			"cni.dev/valid-attachments": [{"containerID": "c", "ifname": "eth0"}]}`,
			&Config{
				CNIVersion: "1.1.0", Name: "n", Type: "xdp-2", Mode: ModeNative, BPFFS: "/run/bpf",
				Stats: Stats{Peers: 1024}, LogFile: "/var/log/xdp", LogLevel: slog.LevelDebug,
				PrevResult:       []byte(`{"cniVersion": "1.1.0"}`),
				ValidAttachments: &[]types.GCAttachment{{ContainerID: "c", IfName: "eth0"}},
			}},
		{"mode tcx", `{"type":"xdp","mode":"tcx"}`, defaults(func(c *Config) { c.Mode = ModeTCX })},
		{"mode auto", `{"type":"xdp","mode":"auto"}`, defaults(func(c *Config) { c.Mode = ModeAuto })},
		{"mode generic", `{"type":"xdp","mode":"generic"}`, defaults(func(c *Config) { c.Mode = ModeGeneric })},
		{"level info", `{"type":"xdp","logLevel":"info"}`, defaults(nil)},
		{"level warn", `{"type":"xdp","logLevel":"warn"}`, defaults(func(c *Config) { c.LogLevel = slog.LevelWarn })},
		{"level error", `{"type":"xdp","logLevel":"error"}`, defaults(func(c *Config) { c.LogLevel = slog.LevelError })},
		{"no peers", `{"type":"xdp","stats":{}}`, defaults(nil)},
		{"least peers", `{"type":"xdp","stats":{"peers":0}}`, defaults(nil)},
		{"most peers", `{"type":"xdp","stats":{"peers":65536}}`, defaults(func(c *Config) { c.Stats.Peers = 65536 })},
		{"peers as a decimal", `{"type":"xdp","stats":{"peers":1024.0}}`, defaults(func(c *Config) { c.Stats.Peers = 1024 })},
		{"peers with an exponent", `{"type":"xdp","stats":{"peers":1E3}}`, defaults(func(c *Config) { c.Stats.Peers = 1000 })},
		{"no redirect", `{"type":"xdp","redirect":false,"bigTCP":false}`, defaults(nil)},
		{"redirect", `{"type":"xdp","redirect":true}`, defaults(func(c *Config) {
			c.Redirect = &Redirect{AcrossNetworks: false, MaxEndpoints: 8192, MaxFlows: 16384}
		})},
		{"programs", `{"type":"xdp","programs":[{"object":"/o"},{"object":"/p","program":"f","name":"n","order":"after","optional":true}]}`,
			defaults(func(c *Config) {
				c.Programs = []Program{{Object: "/o"}, {Object: "/p", Program: "f", Name: "n", Order: OrderAfter, Optional: true}}
			})},
		{"redirect, empty", `{"type":"xdp","redirect":{}}`, defaults(func(c *Config) {
			c.Redirect = &Redirect{AcrossNetworks: false, MaxEndpoints: 8192, MaxFlows: 16384}
		})},
		{"least redirect", `{"type":"xdp","redirect":{"acrossNetworks":true,"maxEndpoints":2,"maxFlows":1024}}`,
			defaults(func(c *Config) { c.Redirect = &Redirect{AcrossNetworks: true, MaxEndpoints: 2, MaxFlows: 1024} })},
		{"most redirect", `{"type":"xdp","redirect":{"maxEndpoints":65536,"maxFlows":1048576}}`,
			defaults(func(c *Config) { c.Redirect = &Redirect{MaxEndpoints: 65536, MaxFlows: 1048576} })},
		{"big TCP", `{"type":"xdp","mode":"tcx","bigTCP":true}`,
			defaults(func(c *Config) { c.Mode, c.BigTCP = ModeTCX, BigTCPOn })},
		{"big TCP, the mode behind it", `{"type":"xdp","bigTCP":true,"mode":"auto"}`,
			defaults(func(c *Config) { c.Mode, c.BigTCP = ModeAuto, BigTCPOn })},
		{"big TCP auto", `{"type":"xdp","mode":"tcx","bigTCP":"auto"}`,
			defaults(func(c *Config) { c.Mode, c.BigTCP = ModeTCX, BigTCPAuto })},
		{"no big TCP in mode native", `{"type":"xdp","mode":"native","bigTCP":false}`,
			defaults(func(c *Config) { c.Mode = ModeNative })},
		{"log to stderr", `{"type":"xdp","logFile":""}`, defaults(nil)},
		{"dots in bpffs", `{"type":"xdp","bpffs":"/a/..b/.c/d."}`, defaults(func(c *Config) { c.BPFFS = "/a/..b/.c/d." })},
		{"null prevResult", `{"type":"xdp","prevResult":null}`, defaults(nil)},
		{"null attachments", `{"type":"xdp","cni.dev/valid-attachments":null}`, defaults(nil)},
		{"empty attachments", `{"type":"xdp","cni.dev/valid-attachments":[]}`,
			defaults(func(c *Config) { c.ValidAttachments = &[]types.GCAttachment{} })},
		{"newer attachments", `{"type":"xdp","cni.dev/valid-attachments":[{"containerID":"c","ifname":"e","later":1}]}`,
			defaults(func(c *Config) { c.ValidAttachments = &[]types.GCAttachment{{ContainerID: "c", IfName: "e"}} })},
		{"prevResult byte for byte", `{"type":"xdp","prevResult":  {"b" :1, "a":[ 2,3 ] ,"b":1.50e1,"<":"\u003c"}  }`,
			defaults(func(c *Config) { c.PrevResult = []byte(`{"b" :1, "a":[ 2,3 ] ,"b":1.50e1,"<":"\u003c"}`) })},
		{"keys of CNI", `{"type":"xdp","args":{"cni":{}},"args":0,"capabilities":{"mac":true},"cni.dev/attachments":[],
			"cni.dev/x":0,"cniVersions":[],"disableCheck":true,"disableGC":false,"dns":{},"ipMasq":true,"ipam":{},
			"loadOnlyInlinedPlugins":true,"runtimeConfig":null}`, defaults(nil)},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Parse([]byte(test.in))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("Parse\n got %+v\nwant %+v", got, test.want)
			}
			lenient, err := ParseLenient([]byte(test.in))
			if err != nil || !reflect.DeepEqual(lenient, got) {
				t.Errorf("ParseLenient: %+v, %v; want what Parse returns", lenient, err)
			}
		})
	}
}

// ourKeys is how errors list the keys that an author may write.
const ourKeys = `"mode", "bpffs", "stats", "filter", "redirect", "bigTCP", "programs", "logFile", "logLevel"`

// broken has, for each way in which a configuration can be wrong, the details
// of its error.
var broken = []struct{ name, in, details string }{
	{"mode: unknown", `{"type":"xdp","mode":"fast"}`, `"mode": want one of "generic", "native", "tcx", "auto", got "fast"`},
	{"mode: case", `{"type":"xdp","mode":"Native"}`, `"mode": want one of "generic", "native", "tcx", "auto", got "Native"`},
	{"mode: empty", `{"type":"xdp","mode":""}`, `"mode": want one of "generic", "native", "tcx", "auto", got ""`},
	{"mode: number", `{"type":"xdp","mode":1}`, `"mode": want one of "generic", "native", "tcx", "auto", got 1`},
	{"mode: null", `{"type":"xdp","mode":null}`, `"mode": want one of "generic", "native", "tcx", "auto", got null`},
	{"bpffs: relative", `{"type":"xdp","bpffs":"bpf"}`, `"bpffs": want an absolute, clean path other than "/", got "bpf"`},
	{"bpffs: root", `{"type":"xdp","bpffs":"/"}`, `"bpffs": want an absolute, clean path other than "/", got "/"`},
	{"bpffs: empty", `{"type":"xdp","bpffs":""}`, `"bpffs": want an absolute, clean path other than "/", got ""`},
	{"bpffs: dots", `{"type":"xdp","bpffs":"/a/../b"}`, `"bpffs": want an absolute, clean path other than "/", got "/a/../b"`},
	{"bpffs: dot", `{"type":"xdp","bpffs":"/a/."}`, `"bpffs": want an absolute, clean path other than "/", got "/a/."`},
	{"bpffs: slash at the end", `{"type":"xdp","bpffs":"/a/"}`, `"bpffs": want an absolute, clean path other than "/", got "/a/"`},
	{"bpffs: two slashes", `{"type":"xdp","bpffs":"//a"}`, `"bpffs": want an absolute, clean path other than "/", got "//a"`},
	{"bpffs: NUL", `{"type":"xdp","bpffs":"/a\u0000"}`, `"bpffs": want an absolute, clean path other than "/", got "/a\u0000"`},
	{"bpffs: list", `{"type":"xdp","bpffs":["/a"]}`, `"bpffs": want an absolute, clean path other than "/", got ["/a"]`},
	{"stats: number", `{"type":"xdp","stats":1024}`, `"stats": want an object, got 1024`},
	{"stats: null", `{"type":"xdp","stats":null}`, `"stats": want an object, got null`},
	{"stats: unknown key", `{"type":"xdp","stats":{"peer":1}}`, `"stats.peer": unknown key with value 1, want one of "peers", did you mean "stats.peers"?`},
	{"stats: a key of CNI", `{"type":"xdp","stats":{"args":{ }}}`, `"stats.args": unknown key with value {}, want one of "peers"`},
	{"stats: peers twice", `{"type":"xdp","stats":{"peers":1,"peers":2}}`, `"stats.peers": given 2 times, as 1 and 2, want it once`},
	{"peers: string", `{"type":"xdp","stats":{"peers":"x"}}`, `"stats.peers": want a whole number from 0 to 65536, got "x"`},
	{"peers: null", `{"type":"xdp","stats":{"peers":null}}`, `"stats.peers": want a whole number from 0 to 65536, got null`},
	{"peers: too many", `{"type":"xdp","stats":{"peers":65537}}`, `"stats.peers": want a whole number from 0 to 65536, got 65537`},
	{"peers: negative", `{"type":"xdp","stats":{"peers":-1}}`, `"stats.peers": want a whole number from 0 to 65536, got -1`},
	{"peers: fraction", `{"type":"xdp","stats":{"peers":1.5}}`, `"stats.peers": want a whole number from 0 to 65536, got 1.5`},
	{"peers: tiny fraction", `{"type":"xdp","stats":{"peers":1.00000000000000000001}}`,
		`"stats.peers": want a whole number from 0 to 65536, got 1.00000000000000000001`},
	{"peers: beyond 64 bits", `{"type":"xdp","stats":{"peers":18446744073709551617}}`,
		`"stats.peers": want a whole number from 0 to 65536, got 18446744073709551617`},
	{"peers: beyond memory", `{"type":"xdp","stats":{"peers":1e999999999999}}`,
		`"stats.peers": want a whole number from 0 to 65536, got 1e999999999999`},
	{"redirect: string", `{"type":"xdp","redirect":"auto"}`, `"redirect": want true, false or an object, got "auto"`},
	{"redirect: null", `{"type":"xdp","redirect":null}`, `"redirect": want true, false or an object, got null`},
	{"redirect: number", `{"type":"xdp","redirect":1}`, `"redirect": want true, false or an object, got 1`},
	{"redirect: unknown key", `{"type":"xdp","redirect":{"maxflows":4096}}`, `"redirect.maxflows": unknown key with value 4096, ` +
		`want one of "acrossNetworks", "maxEndpoints", "maxFlows", did you mean "redirect.maxFlows"?`},
	{"redirect: twice", `{"type":"xdp","redirect":true,"redirect":{}}`, `"redirect": given 2 times, as true and {}, want it once`},
	{"programs: no object", `{"type":"xdp","programs":[{"program":"p"}]}`,
		`"programs[0].object": missing, want the absolute path of a file, of at most 511 bytes`},
	{"programs: order", `{"type":"xdp","programs":[{"object":"/o","order":"first"}]}`,
		`"programs[0].order": want one of "before", "after", got "first"`},
	{"programs: dot in a name", `{"type":"xdp","programs":[{"object":"/o","name":"a.b"}]}`,
		`"programs[0].name": want a name of 1 to 63 letters, digits, _ and -, got "a.b"`},
	{"acrossNetworks: null", `{"type":"xdp","redirect":{"acrossNetworks":null}}`,
		`"redirect.acrossNetworks": want true or false, got null`},
	{"maxEndpoints: one", `{"type":"xdp","redirect":{"maxEndpoints":1}}`,
		`"redirect.maxEndpoints": want a whole number from 2 to 65536, got 1`},
	{"maxEndpoints: too many", `{"type":"xdp","redirect":{"maxEndpoints":65537}}`,
		`"redirect.maxEndpoints": want a whole number from 2 to 65536, got 65537`},
	{"maxEndpoints: null", `{"type":"xdp","redirect":{"maxEndpoints":null}}`,
		`"redirect.maxEndpoints": want a whole number from 2 to 65536, got null`},
	{"maxFlows: too few", `{"type":"xdp","redirect":{"maxFlows":1023}}`,
		`"redirect.maxFlows": want a whole number from 1024 to 1048576, got 1023`},
	{"maxFlows: too many", `{"type":"xdp","redirect":{"maxFlows":1048577}}`,
		`"redirect.maxFlows": want a whole number from 1024 to 1048576, got 1048577`},
	{"bigTCP: word", `{"type":"xdp","mode":"tcx","bigTCP":"true"}`, `"bigTCP": want true, false or "auto", got "true"`},
	{"bigTCP: case", `{"type":"xdp","mode":"tcx","bigTCP":"Auto"}`, `"bigTCP": want true, false or "auto", got "Auto"`},
	{"bigTCP: null", `{"type":"xdp","mode":"tcx","bigTCP":null}`, `"bigTCP": want true, false or "auto", got null`},
	{"bigTCP: bytes", `{"type":"xdp","mode":"tcx","bigTCP":196608}`, `"bigTCP": want true, false or "auto", got 196608`},
	{"bigTCP: key in another case", `{"type":"xdp","mode":"tcx","bigTcp":true}`,
		`"bigTcp": unknown key with value true, want one of ` + ourKeys + `, did you mean "bigTCP"?`},
	{"bigTCP: generic", `{"type":"xdp","mode":"generic","bigTCP":"auto"}`,
		`"bigTCP": want false, or the mode tcx or auto, got auto with mode generic`},
	{"bigTCP: generic by default", `{"type":"xdp","bigTCP":true}`,
		`"bigTCP": want false, or the mode tcx or auto, got true with mode generic`},
	{"bigTCP: native", `{"type":"xdp","mode":"native","bigTCP":true}`,
		`"bigTCP": want false, or the mode tcx or auto, got true with mode native`},
	{"bigTCP: a mode that is none", `{"type":"xdp","mode":"warp","bigTCP":true}`,
		`"mode": want one of "generic", "native", "tcx", "auto", got "warp"`},
	{"logFile: relative", `{"type":"xdp","logFile":"log"}`, `"logFile": want the absolute path of a file, or an empty string, got "log"`},
	{"logFile: directory", `{"type":"xdp","logFile":"/var/log/"}`, `"logFile": want the absolute path of a file, or an empty string, got "/var/log/"`},
	{"logFile: NUL", `{"type":"xdp","logFile":"/a\u0000b"}`, `"logFile": want the absolute path of a file, or an empty string, got "/a\u0000b"`},
	{"logFile: bool", `{"type":"xdp","logFile":true}`, `"logFile": want the absolute path of a file, or an empty string, got true`},
	{"logFile: null", `{"type":"xdp","logFile":null}`, `"logFile": want the absolute path of a file, or an empty string, got null`},
	{"logLevel: unknown", `{"type":"xdp","logLevel":"trace"}`, `"logLevel": want one of "debug", "info", "warn", "error", got "trace"`},
	{"logLevel: case", `{"type":"xdp","logLevel":"INFO"}`, `"logLevel": want one of "debug", "info", "warn", "error", got "INFO"`},
	{"cniVersion: number", `{"type":"xdp","cniVersion":1.1}`, `"cniVersion": want a string, got 1.1`},
	{"cniVersion: null", `{"type":"xdp","cniVersion":null}`, `"cniVersion": want a string, got null`},
	{"name: number", `{"type":"xdp","name":1}`, `"name": want a string, got 1`},
	{"type: absent", `{}`, `"type": missing, want a non-empty string`},
	{"type: empty", `{"type":""}`, `"type": want a non-empty string, got ""`},
	{"type: null", `{"type":null}`, `"type": want a non-empty string, got null`},
	{"prevResult: list", `{"type":"xdp","prevResult":[]}`, `"prevResult": want an object, got []`},
	{"attachments: object", `{"type":"xdp","cni.dev/valid-attachments":{}}`,
		`"cni.dev/valid-attachments": want a list of {"containerID": ..., "ifname": ...}, got {}`},
	{"attachments: string in it", `{"type":"xdp","cni.dev/valid-attachments":[{"containerID":"c","ifname":"e"},"c"]}`,
		`"cni.dev/valid-attachments[1]": want an object, got "c"`},
	{"attachments: null in it", `{"type":"xdp","cni.dev/valid-attachments":[null]}`,
		`"cni.dev/valid-attachments[0]": want an object, got null`},
	{"attachments: no ifname", `{"type":"xdp","cni.dev/valid-attachments":[{"containerID":"c"}]}`,
		`"cni.dev/valid-attachments[0].ifname": missing, want a non-empty string`},
	{"attachments: case", `{"type":"xdp","cni.dev/valid-attachments":[{"containerid":"c","ifname":"e"}]}`,
		`"cni.dev/valid-attachments[0].containerID": missing, want a non-empty string`},
	{"attachments: empty containerID", `{"type":"xdp","cni.dev/valid-attachments":[{"containerID":"","ifname":"e"}]}`,
		`"cni.dev/valid-attachments[0].containerID": want a non-empty string, got ""`},
	{"attachments: twice", `{"type":"xdp","cni.dev/valid-attachments":[],"cni.dev/valid-attachments":[]}`,
		`"cni.dev/valid-attachments": given 2 times, as [] and [], want it once`},
	{"key: another case", `{"type":"xdp","Mode":"native"}`,
		`"Mode": unknown key with value "native", want one of ` + ourKeys + `, did you mean "mode"?`},
	{"key: of CNI in another case", `{"type":"xdp","prevresult":{}}`,
		`"prevresult": unknown key with value {}, want one of ` + ourKeys + `, did you mean "prevResult"?`},
	{"key: misspelt", `{"type":"xdp","bpfs":"/a"}`,
		`"bpfs": unknown key with value "/a", want one of ` + ourKeys + `, did you mean "bpffs"?`},
	{"key: ignored, misspelt", `{"type":"xdp","capabilites":{}}`,
		`"capabilites": unknown key with value {}, want one of ` + ourKeys + `, did you mean "capabilities"?`},
	{"key: far from any", `{"type":"xdp","bandwidth":{"rate":1}}`,
		`"bandwidth": unknown key with value {"rate":1}, want one of ` + ourKeys},
	{"key: a conflist", `{"type":"xdp","plugins":[]}`, `"plugins": unknown key with value [], want one of ` + ourKeys},
	{"key: empty", `{"type":"xdp","":0}`, `"": unknown key with value 0, want one of ` + ourKeys},
	{"key: unprintable", "{\"type\":\"xdp\",\"\\u0007\":0}", `"\a": unknown key with value 0, want one of ` + ourKeys},
	{"key: twice", `{"type":"xdp","mode":"native","mode":"tcx","mode":"tcx"}`, `"mode": given 3 times, as "native" and "tcx", want it once`},
	{"key: twice, by escape", `{"type":"xdp","mode":"tcx","mod\u0065":"tcx"}`, `"mode": given 2 times, as "tcx" and "tcx", want it once`},
	{"value: long, cut between runes", `{"type":"xdp","mode":"` + strings.Repeat("ä", 100) + `"}`,
		`"mode": want one of "generic", "native", "tcx", "auto", got "` + strings.Repeat("ä", 39) + `...`},
	{"several", `{"mode":"x","stats":{"peers":-1,"a":1},"logfile":0}`,
		`"mode": want one of "generic", "native", "tcx", "auto", got "x"; ` +
			`"stats.peers": want a whole number from 0 to 65536, got -1; ` +
			`"stats.a": unknown key with value 1, want one of "peers"; ` +
			`"logfile": unknown key with value 0, want one of ` + ourKeys + `, did you mean "logFile"?; ` +
			`"type": missing, want a non-empty string`},
}

func TestParseErrors(t *testing.T) {
	const msg = "invalid network configuration for the xdp plugin; "
	for _, test := range broken {
		t.Run(test.name, func(t *testing.T) {
			c, err := Parse([]byte(test.in))
			wantError(t, err, 7, msg+test.details)
			if c != nil {
				t.Errorf("Config beside an error: %+v", c)
			}
			c, err = ParseLenient([]byte(test.in))
			wantError(t, err, 7, msg+test.details)
			if c == nil {
				t.Error("ParseLenient: no Config for a JSON object")
			}
		})
	}
}

func TestParseNotAnObject(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{
		// What follows "not JSON; " is encoding/json's to word.
		{"empty", ``, "network configuration is not JSON; "},
		{"cut short", `{"type":"xdp"`, "network configuration is not JSON; "},
		{"comment", `{"type":"xdp" // x`, "network configuration is not JSON; "},
		{"two objects", `{} {}`, "network configuration is not JSON; "},
		{"list", ` [1, 2]`, "network configuration is not a JSON object; got [1,2]"},
		{"null", `null`, "network configuration is not a JSON object; got null"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for name, parse := range map[string]func([]byte) (*Config, error){"Parse": Parse, "ParseLenient": ParseLenient} {
				c, err := parse([]byte(test.in))
				if c != nil {
					t.Errorf("%s: Config from what is no object: %+v", name, c)
				}
				if prefix, ok := strings.CutSuffix(test.want, "JSON; "); ok && err != nil {
					_, details, _ := strings.Cut(err.Error(), "; ")
					if !strings.Contains(details, ", at byte ") {
						t.Errorf("%s: no place in %v", name, err)
					}
					wantError(t, err, 6, prefix+"JSON; "+details)
					continue
				}
				wantError(t, err, 6, test.want)
			}
		})
	}
}
