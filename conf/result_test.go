package conf

import (
	"encoding/json"
	"fmt"
	"testing"
)

// prev returns a result of the given version, or of none for "", as bridge
// writes it.
func prev(version string) string {
	v := ""
	if version != "" {
		v = fmt.Sprintf(`"cniVersion": %q, `, version)
	}
	family := ""
	if version < "1" {
		family = `"version": "4", `
	}
	return `{` + v + `"interfaces": [{"name": "cni0"}, {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/ns"}],
		"ips": [{` + family + `"interface": 1, "address": "10.0.0.2/24", "gateway": "10.0.0.1"}],
		"routes": [{"dst": "0.0.0.0/0"}], "dns": {}, "x-unknown": 1}`
}

func TestResult(t *testing.T) {
	for _, test := range []struct{ version, own string }{
		{"0.3.1", "0.3.1"}, {"0.4.0", "0.4.0"}, {"1.0.0", "1.0.0"}, {"1.1.0", "1.1.0"},
		{"0.3.1", ""}, {"0.4.0", ""}, {"1.0.0", ""}, {"1.1.0", ""}, // none of its own: that of the configuration
		{"1.1.0", "0.3.1"}, {"0.3.1", "1.1.0"},
	} {
		t.Run(test.version+" of "+test.own, func(t *testing.T) {
			c := &Config{CNIVersion: test.version, PrevResult: json.RawMessage(prev(test.own))}
			r, err := c.Result()
			if err != nil {
				t.Fatal(err)
			}
			if r.CNIVersion != "1.1.0" {
				t.Errorf("version %s, want 1.1.0", r.CNIVersion)
			}
			if len(r.Interfaces) != 2 || r.Interfaces[1].Name != "eth0" || r.Interfaces[1].Mac != "02:00:00:00:00:01" ||
				r.Interfaces[1].Sandbox != "/ns" {
				t.Errorf("interfaces %v", r.Interfaces)
			}
			if len(r.IPs) != 1 || *r.IPs[0].Interface != 1 || r.IPs[0].Address.String() != "10.0.0.2/24" ||
				r.IPs[0].Gateway.String() != "10.0.0.1" {
				t.Errorf("ips %v", r.IPs)
			}
			if len(r.Routes) != 1 || r.Routes[0].Dst.String() != "0.0.0.0/0" {
				t.Errorf("routes %v", r.Routes)
			}
		})
	}
}

func TestResultWithEmptyVersion(t *testing.T) {
	for _, key := range []string{`"cniversion": ""`, `"cniVersion": ""`, `"cniVersion": null`} {
		c := &Config{CNIVersion: "1.0.0", PrevResult: json.RawMessage(`{` + key + `, "interfaces": [{"name": "a"}]}`)}
		r, err := c.Result()
		if err != nil || len(r.Interfaces) != 1 {
			t.Errorf("%s: %v, %v; want one interface", key, r, err)
		}
	}
}

func TestResultJSON(t *testing.T) {
	const (
		as10 = `"interfaces":[{"name":"cni0"},{"mac":"02:00:00:00:00:01","name":"eth0","sandbox":"/ns"}],` +
			`"ips":[{"address":"10.0.0.2/24","gateway":"10.0.0.1","interface":1}],"routes":[{"dst":"0.0.0.0/0"}]}`
		as04 = `"dns":{},"interfaces":[{"name":"cni0"},{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/ns"}],` +
			`"ips":[{"version":"4","interface":1,"address":"10.0.0.2/24","gateway":"10.0.0.1"}],"routes":[{"dst":"0.0.0.0/0"}]}`
	)
	for _, test := range []struct{ version, own, want string }{
		{"0.3.1", "0.3.1", prev("0.3.1")},
		{"0.4.0", "0.4.0", prev("0.4.0")},
		{"1.0.0", "1.0.0", prev("1.0.0")},
		{"1.1.0", "1.1.0", prev("1.1.0")},
		{"1.1.0", "", prev("")},
		{"0.3.1", "", prev("")},
		{"1.1.0", "0.3.1", `{"cniVersion":"1.1.0",` + as10},
		{"1.0.0", "0.4.0", `{"cniVersion":"1.0.0",` + as10},
		{"1.0.0", "1.1.0", `{"cniVersion":"1.0.0",` + as10},
		{"0.4.0", "1.1.0", `{"cniVersion":"0.4.0",` + as04},
		{"0.3.1", "0.4.0", `{"cniVersion":"0.3.1",` + as04},
	} {
		t.Run(test.own+" as "+test.version, func(t *testing.T) {
			c := &Config{CNIVersion: test.version, PrevResult: json.RawMessage(prev(test.own))}
			got, err := c.ResultJSON()
			if err != nil {
				t.Fatal(err)
			}
			if test.version != test.own && test.own != "" {
				// A conversion is the library's to word: compare the values.
				got, test.want = normal(t, got), string(normal(t, []byte(test.want)))
			}
			if string(got) != test.want {
				t.Errorf("\n got %s\nwant %s", got, test.want)
			}
		})
	}
}

// normal returns the JSON with its keys sorted and an empty dns left out,
// which one version of the library writes and another does not.
func normal(t *testing.T, raw []byte) []byte {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	if dns, ok := m["dns"].(map[string]any); ok && len(dns) == 0 {
		delete(m, "dns")
	}
	out, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestResultJSONIsACopy(t *testing.T) {
	c := &Config{CNIVersion: "1.1.0", PrevResult: json.RawMessage(`{"cniVersion":"1.1.0"}`)}
	out, err := c.ResultJSON()
	if err != nil {
		t.Fatal(err)
	}
	out[0] = 'x'
	if c.PrevResult[0] != '{' {
		t.Error("ResultJSON shares memory with PrevResult")
	}
}

func TestResultErrors(t *testing.T) {
	const (
		invalid  = "invalid prevResult; "
		config   = "invalid network configuration for the xdp plugin; "
		required = "prevResult is required; chain this plugin after one that makes an interface, such as bridge or ptp"
		versions = `want one of "0.3.1", "0.4.0", "1.0.0", "1.1.0", got `
	)
	for _, test := range []struct{ name, version, prev, want, wantJSON string }{
		{"absent", "1.1.0", "", required, required},
		{"null", "1.1.0", " null", required, required},
		{"old", "1.1.0", `{"cniVersion":"0.2.0"}`,
			config + `"prevResult.cniVersion": ` + versions + `"0.2.0"`, config + `"prevResult.cniVersion": ` + versions + `"0.2.0"`},
		{"newer", "1.1.0", `{"cniVersion":"2.0.0"}`,
			config + `"prevResult.cniVersion": ` + versions + `"2.0.0"`, config + `"prevResult.cniVersion": ` + versions + `"2.0.0"`},
		{"no version at all", "", `{}`, config + `"prevResult.cniVersion": ` + versions + `""`, ""},
		{"configuration without version", "", `{"cniVersion":"1.1.0"}`, "", config + `"cniVersion": ` + versions + `""`},
		{"version is no string", "1.1.0", `{"cniVersion":1}`,
			config + `"prevResult.cniVersion": ` + versions + `1`, config + `"prevResult.cniVersion": ` + versions + `1`},
		{"null interface", "1.1.0", `{"cniVersion":"0.4.0","interfaces":[{},null]}`,
			config + `"prevResult.interfaces[1]": want an object, got null`, config + `"prevResult.interfaces[1]": want an object, got null`},
		{"null address", "0.4.0", `{"cniVersion":"1.1.0","ips":[null]}`,
			config + `"prevResult.ips[0]": want an object, got null`, config + `"prevResult.ips[0]": want an object, got null`},
		{"null route", "1.1.0", `{"cniVersion":"1.1.0","routes":[null]}`, config + `"prevResult.routes[0]": want an object, got null`, ""},
		{"interface that is not there", "1.1.0", `{"cniVersion":"1.1.0","interfaces":[{}],"ips":[{"interface":1,"address":"10.0.0.2/24"}]}`,
			config + `"prevResult.ips[0].interface": want the index of one of the 1 interfaces, got 1`, ""},
		{"negative interface", "1.1.0", `{"cniVersion":"1.1.0","interfaces":[{}],"ips":[{"interface":-1,"address":"10.0.0.2/24"}]}`,
			config + `"prevResult.ips[0].interface": want the index of one of the 1 interfaces, got -1`, ""},
		{"no address", "1.0.0", `{"cniVersion":"1.1.0","ips":[{"address":"x"}]}`,
			invalid + "invalid CIDR address: x", invalid + "invalid CIDR address: x"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := &Config{CNIVersion: test.version}
			if test.prev != "" {
				c.PrevResult = json.RawMessage(test.prev)
			}
			_, err := c.Result()
			wantErrorOrNil(t, err, test.want)
			_, err = c.ResultJSON()
			wantErrorOrNil(t, err, test.wantJSON)
		})
	}
}

// wantErrorOrNil is wantError with code 7, and wants no error for "".
func wantErrorOrNil(t *testing.T, err error, want string) {
	t.Helper()
	if want != "" {
		wantError(t, err, 7, want)
	} else if err != nil {
		t.Errorf("unexpected error: %v", err)
	}
}
