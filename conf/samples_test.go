package conf

import (
	"encoding/json"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// sample is what the tests look at in a sample conflist.
type sample struct {
	types []string // of its plugins, in order
	xdp   *Config
	raw   string
}

func readSamples(t *testing.T) map[string]sample {
	t.Helper()
	files, err := fs.Glob(Samples(), "*.conflist")
	if err != nil {
		t.Fatal(err)
	}
	schema := compileSchema(t)
	samples := make(map[string]sample)
	for _, file := range files {
		raw, err := fs.ReadFile(Samples(), file)
		if err != nil {
			t.Fatal(err)
		}
		list, err := libcni.NetworkConfFromBytes(raw)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if old, err := libcni.ConfListFromBytes(raw); err != nil || old.Name != list.Name {
			t.Errorf("%s: ConfListFromBytes: %v", file, err)
		}
		if list.CNIVersion != "1.1.0" {
			t.Errorf("%s: cniVersion %q", file, list.CNIVersion)
		}
		if want := "xdp-" + strings.TrimSuffix(file, ".conflist"); list.Name != want {
			t.Errorf("%s: network %q, want %q", file, list.Name, want)
		}
		s := sample{raw: string(raw)}
		for _, p := range list.Plugins {
			s.types = append(s.types, p.Network.Type)
			if p.Network.Type != "xdp" {
				continue
			}
			if s.xdp, err = Parse(p.Bytes); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(p.Bytes)))
			if err != nil {
				t.Fatal(err)
			}
			if err := schema.Validate(doc); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
		if s.xdp == nil || s.types[len(s.types)-1] != "xdp" {
			t.Fatalf("%s: plugins %v, want xdp the last", file, s.types)
		}
		samples[file] = s
	}
	return samples
}

func TestSamples(t *testing.T) {
	got := readSamples(t)
	want := map[string]struct {
		types []string
		mode  Mode
		peers uint32
		rules int
		// redirect says whether the pods have it, with its defaults.
		redirect bool
	}{
		"bridge.conflist":     {[]string{"bridge", "xdp"}, ModeGeneric, 0, 0, false},
		"ptp.conflist":        {[]string{"ptp", "xdp"}, ModeGeneric, 0, 0, false},
		"full.conflist":       {[]string{"bridge", "portmap", "bandwidth", "xdp"}, ModeGeneric, 256, 0, false},
		"dual-stack.conflist": {[]string{"bridge", "xdp"}, ModeAuto, 1024, 0, false},
		"native.conflist":     {[]string{"bridge", "xdp"}, ModeNative, 0, 0, false},
		"filter.conflist":     {[]string{"bridge", "xdp"}, ModeAuto, 0, 5, false},
		"redirect.conflist":   {[]string{"bridge", "xdp"}, ModeTCX, 0, 0, true},
		"programs.conflist":   {[]string{"bridge", "xdp"}, ModeGeneric, 0, 0, false},
	}
	if len(got) != len(want) {
		t.Errorf("%d samples, want %d", len(got), len(want))
	}
	for file, w := range want {
		g, ok := got[file]
		if !ok {
			t.Errorf("%s: missing", file)
			continue
		}
		rules := 0
		if f := g.xdp.Filter; f != nil {
			rules = len(f.Rules)
			if warnings := f.Warnings(); len(warnings) > 0 {
				t.Errorf("%s: %v", file, warnings)
			}
		}
		if r := g.xdp.Redirect; (r != nil) != w.redirect || r != nil && *r != redirectObject.initial {
			t.Errorf("%s: redirect %+v, want any: %v", file, r, w.redirect)
		}
		if rules != w.rules {
			t.Errorf("%s: %d rules, want %d", file, rules, w.rules)
		}
		if !slices.Equal(g.types, w.types) || g.xdp.Mode != w.mode || g.xdp.Stats.Peers != w.peers {
			t.Errorf("%s: %v, mode %s, %d peers; want %v", file, g.types, g.xdp.Mode, g.xdp.Stats.Peers, w)
		}
	}
	for _, capability := range []string{`"portMappings": true`, `"bandwidth": true`} {
		if !strings.Contains(got["full.conflist"].raw, capability) {
			t.Errorf("full.conflist: no capability %s", capability)
		}
	}
}

// All samples can be in use on one node only if no two share a bridge or a
// subnet.
func TestSamplesDoNotOverlap(t *testing.T) {
	bridges := make(map[string]string)
	subnets := make(map[netip.Prefix]string)
	for file, s := range readSamples(t) {
		var list struct {
			Plugins []struct {
				Bridge string
				IPAM   struct {
					Ranges [][]struct{ Subnet netip.Prefix }
				}
			}
		}
		if err := json.Unmarshal([]byte(s.raw), &list); err != nil {
			t.Fatal(err)
		}
		first := list.Plugins[0]
		if other, ok := bridges[first.Bridge]; ok && first.Bridge != "" {
			t.Errorf("%s and %s share bridge %s", file, other, first.Bridge)
		}
		bridges[first.Bridge] = file
		families := make(map[bool]bool)
		for _, r := range slices.Concat(first.IPAM.Ranges...) {
			for p, other := range subnets {
				if p.Overlaps(r.Subnet) {
					t.Errorf("%s and %s share %s", file, other, r.Subnet)
				}
			}
			subnets[r.Subnet] = file
			families[r.Subnet.Addr().Is4()] = true
		}
		if want := file == "dual-stack.conflist" || file == "filter.conflist"; !families[true] || families[false] != want {
			t.Errorf("%s: IPv4 %v, IPv6 %v; want true, %v", file, families[true], families[false], want)
		}
	}
}
