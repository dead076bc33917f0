package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

func golden(t *testing.T, name, have string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(have), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; go test -update makes it", err)
	}
	if have != string(want) {
		t.Errorf("%s is not as it was; see the difference with go test -update and git diff. Now:\n%s", name, have)
	}
}

// TestGolden renders a result of each command in each format.
func TestGolden(t *testing.T) {
	list := sampleAttachments()
	later := &sample{at: made.Add(2 * time.Second), readings: sampleReadings()}
	earlier := &sample{at: made, readings: []reading{{later.readings[0].Attachment, &datapath.Stats{}}}}
	plain, watched := later.reports(nil), later.reports(earlier)
	pods := []podReport{}
	for i, a := range list {
		policies := []*datapath.PolicyState{nil, samplePolicy(), nil, {Rules: make([]datapath.RuleStats, 1)}}
		programs := [][]datapath.PodProgram{nil, sampleTCPrograms(), nil, samplePrograms()[2:]}
		pods = append(pods, newPodReport(a.Meta, policies[i], programs[i]))
	}
	peers := newPeersReport(list[0].Meta, samplePeers(), 0)
	collected := newGCReport(true, list[:1])
	imported := sampleImport()
	networks := sampleNetworks()
	none := newFilterReport(list[3].Meta, nil, &datapath.Stats{})
	shown := newFilterReport(list[1].Meta, sampleInForce(t), sampleReadings()[0].stats)
	drops := []dropsReport{newDropsReport(list[1].Meta, sampleInForce(t), sampleReadings()[0].stats), newDropsReport(list[0].Meta, nil, &datapath.Stats{})}
	tested := sampleTest(t)
	endpoints := newEndpointsReport(sampleEndpoints(), nil, false)
	applied := sampleApply(t)
	loaded := &loadReport{newAttachment(list[2].Meta), []loadedMap{
		{Program: "xdp_blocklist", Map: "blocklist_v4", Family: "ipv4", Prefixes: 98_304, Added: 98_304},
		{Program: "xdp_blocklist", Map: "blocklist_v6", Family: "ipv6", Prefixes: 1_200, Added: 7, Removed: 3},
	}}
	generic, tcx := *list[1].Meta, *list[1].Meta
	generic.Mode = datapath.ModeGeneric
	programs := newProgramsReport(&generic, samplePrograms(), sampleKernel(samplePrograms()), sampleNodeMaps())
	byKernel := newProgramsReport(&tcx, sampleTCPrograms(), sampleKernel(sampleTCPrograms()), sampleNodeMaps())
	version, behind := sampleVersion("v0.1.0", "v0.1.0"), sampleVersion("v0.2.0", "v0.1.0")
	for _, result := range []struct {
		name   string
		result any
		render func(style) string
		more   []format // beside table and JSON
	}{
		{"pods", pods, func(s style) string { return podsTable(pods, s, now) }, []format{formatWide}},
		{"stats", plain, func(s style) string { return statsTable(plain, s) }, []format{formatWide, formatYAML}},
		{"stats-watch", watched, func(s style) string { return statsTable(watched, s) }, nil},
		{"peers", peers, func(s style) string { return peersTable(&peers, s) }, nil},
		{"gc", collected, func(s style) string { return gcTable(&collected, s) }, nil},
		{"ipam-list", imported.Imported, func(s style) string { return leasesTable(imported.Imported, s, now) }, []format{formatWide}},
		{"ipam-show", networks, func(style) string { return networksTable(networks) }, nil},
		{"ipam-import", imported, func(s style) string { return importTable(imported, s, now) }, nil},
		{"filter-show", shown, func(s style) string { return filterTable(&shown, s, now) }, []format{formatWide}},
		{"filter-show-none", none, func(s style) string { return filterTable(&none, s, now) }, nil},
		{"filter-test", tested, func(style) string { return tryText(tested) }, nil},
		{"filter-apply", applied, func(style) string { return applyText(applied) }, nil},
		{"programs", programs, func(s style) string { return programsTable(&programs, s) }, []format{formatWide}},
		{"programs-kernel", byKernel, func(s style) string { return programsTable(&byKernel, s) }, []format{formatWide}},
		{"programs-load", loaded, func(s style) string { return loadTable(loaded, s) }, nil},
		{"endpoints", endpoints, func(s style) string { return endpointsText(endpoints, s) }, []format{formatWide}},
		{"drops", drops, func(s style) string { return dropsText(drops, s, now) }, nil},
		{"version", version, func(style) string { return versionText(version, true, now) }, nil},
		{"version-behind", behind, func(style) string { return versionText(behind, true, now) }, nil},
		{"upgrade", sampleUpgrade(false), func(style) string { return upgradeText(sampleUpgrade(false)) }, nil},
		{"upgrade-dry-run", sampleUpgrade(true), func(style) string { return upgradeText(sampleUpgrade(true)) }, nil},
		{"install", sampleInstall(), func(style) string { return installText(sampleInstall()) }, nil},
		{"uninstall", sampleUninstall(), func(style) string { return installText(sampleUninstall()) }, nil},
		{"attach", sampleAttach(), func(style) string { return attachText(sampleAttach()) }, nil},
		{"doctor", newDoctorReport(goodFacts()), func(style) string { return doctorText(newDoctorReport(goodFacts())) }, nil},
		{"doctor-redirect", newDoctorReport(redirectingFacts()), func(style) string { return doctorText(newDoctorReport(redirectingFacts())) }, nil},
		{"doctor-programs", newDoctorReport(programmedFacts()), func(style) string {
			return doctorText(newDoctorReport(programmedFacts()))
		}, nil},
		{"doctor-bad", newDoctorReport(badFacts()), func(style) string { return doctorText(newDoctorReport(badFacts())) }, nil},
	} {
		for _, as := range append([]format{formatTable, formatJSON}, result.more...) {
			t.Run(result.name+"/"+string(as), func(t *testing.T) {
				var out bytes.Buffer
				o := &options{streams: streams{out: &out}, format: as}
				if err := o.write(result.result, result.render); err != nil {
					t.Fatal(err)
				}
				suffix := map[format]string{formatTable: ".txt", formatWide: "-wide.txt", formatJSON: ".json", formatYAML: ".yaml"}
				golden(t, result.name+suffix[as], out.String())
			})
		}
	}
}

// TestFollowGolden has a line of each kind of drop.
func TestFollowGolden(t *testing.T) {
	for _, as := range []format{formatTable, formatJSON} {
		n := newFakeNode(t)
		n.follow = func(_ context.Context, with func(datapath.DropEvent) error) error {
			for _, e := range sampleEvents() {
				if err := with(e); err != nil {
					return err
				}
			}
			return errors.New("that was all")
		}
		status, stdout, stderr := n.xdpctl(t.Context(), "drops", "--follow", "-o", string(as))
		if want := "xdpctl: that was all\n"; status != exitFailure || stderr != want {
			t.Errorf("status %d, %q; want %q", status, stderr, want)
		}
		golden(t, map[format]string{formatTable: "drops-follow.txt", formatJSON: "drops-follow.jsonl"}[as], stdout)
	}
}

// TestHelpGolden has the help of the commands about filters and programs, of those that show them, and of installing.
func TestHelpGolden(t *testing.T) {
	for _, command := range []string{"", "stats", "pods", "drops", "endpoints", "trace", "programs", "programs dump",
		"programs load", "doctor", "filter", "filter show", "filter apply", "filter test", "install", "upgrade", "uninstall",
		"attach", "detach", "version"} {
		status, stdout, stderr := xdpctl(t.Context(), append(strings.Fields(command), "--help")...)
		if status != 0 || stderr != "" {
			t.Errorf("%s: status %d, %q", command, status, stderr)
		}
		golden(t, strings.Join(append([]string{"help"}, strings.Fields(command)...), "-")+".txt", stdout)
	}
}

// TestEmptyIsNoNull: what is empty is [] in JSON.
func TestEmptyIsNoNull(t *testing.T) {
	none := &datapath.Meta{}
	for _, result := range []any{
		(&sample{}).reports(nil), newStatsReport(none, &datapath.Stats{}), newPodReport(none, nil, nil),
		newPeersReport(none, nil, 0), newGCReport(false, nil), newNodeReport(&datapath.NodeInfo{}),
		newDropsReport(none, nil, &datapath.Stats{}), newFilterReport(none, &inForce{Filter: &conf.Filter{}}, &datapath.Stats{}),
		applyReport{Warnings: []conf.Warning{}, Pods: []appliedTo{{attachment: newAttachment(none), Changes: diffFilters(&conf.Filter{}, &conf.Filter{})}}},
		newDoctorReport(&facts{privileges: os.ErrPermission}), newEndpointsReport(&datapath.Endpoints{}, nil, false),
		newEndpointReport(&datapath.Endpoint{}), newProgramsReport(none, nil, nil, nil),
	} {
		text, err := json.Marshal(result)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "null") {
			t.Errorf("%T has a null: %s", result, text)
		}
	}
}

// TestStatsFieldOrder: the fields come in the order that was promised for people who read it.
func TestStatsFieldOrder(t *testing.T) {
	text, err := json.Marshal((&sample{readings: sampleReadings()}).reports(&sample{at: made.Add(-time.Second)})[0])
	if err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	var order []string
	_, _ = decoder.Token() // {
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			t.Fatal(err)
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			t.Fatal(err)
		}
		order = append(order, key.(string))
	}
	want := "containerID ifname netns pod network hostInterface mode addresses egress ingress protocols kinds drops rates"
	if have := strings.Join(order, " "); have != want {
		t.Errorf("fields\n%s, want\n%s", have, want)
	}
}

// TestDocs: docs/json.md has a row for each field there is, and no other rows.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)`").FindAllStringSubmatch(string(text), -1) {
		documented[row[1]] = true
	}
	files, err := filepath.Glob("testdata/*.json*")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden JSON", err)
	}
	there := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for decoder := json.NewDecoder(bytes.NewReader(text)); decoder.More(); { // of .jsonl, line after line
			var value any
			if err := decoder.Decode(&value); err != nil {
				t.Fatal(err)
			}
			fieldPaths(value, "", there)
		}
	}
	for path := range there {
		if !documented[path] {
			t.Errorf("docs/json.md has no row for `%s`", path)
		}
	}
	for path := range documented {
		if !there[path] {
			t.Errorf("docs/json.md has a row for `%s`, which no command writes", path)
		}
	}
}

// TestFilterDocs: the filter that docs/filter.md begins with is one, and there is nothing odd about it.
func TestFilterDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/filter.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(text), "    \"filter\": ")
	example, _, _ = strings.Cut(example, "\n\n")
	f, warnings, err := parseFilter([]byte(example))
	if err != nil || len(warnings) > 0 || len(f.Rules) != 3 {
		t.Errorf("%v, %v: %s", err, warnings, example)
	}
}

// foreign is what the fields of are not ours: a filter is a network configuration's, and what is in maps the programs'.
var foreign = []string{"filter", "entries[].key", "entries[].value", "entries[].values[].value"}

// fieldPaths adds the path of each field in value, as "checks[].name". Counters are one thing; so
// are the fields of an attachment, wherever it stands.
func fieldPaths(value any, path string, to map[string]bool) {
	switch value := value.(type) {
	case []any:
		for _, element := range value {
			if path == "" || path == "removed" || path == "endpoints" || path == "pods" || path == "imported" || path == "skipped" {
				fieldPaths(element, "", to) // one of several attachments or leases
			} else {
				fieldPaths(element, path+"[]", to)
			}
		}
	case map[string]any:
		for name, field := range value {
			below := strings.TrimPrefix(path+"."+name, ".")
			if (name == "packets" || name == "bytes") && len(value) == 2 {
				below = name
			}
			to[below] = true
			if !slices.Contains(foreign, below) {
				fieldPaths(field, below, to)
			}
		}
	}
}

func TestFieldPaths(t *testing.T) {
	var value any
	if err := json.Unmarshal([]byte(`[{"a":{"b":1},"c":[{"d":{"packets":1,"bytes":2}}]}]`), &value); err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	fieldPaths(value, "", have)
	for _, want := range []string{"a", "a.b", "c", "c[].d", "packets", "bytes"} {
		if !have[want] {
			t.Errorf("no %s", want)
		}
	}
	if len(have) != 6 {
		t.Errorf("fields %v, want 6", have)
	}
}

// TestYAMLIsExact: the way through JSON does not make floats of large counters.
func TestYAMLIsExact(t *testing.T) {
	o := &options{format: formatYAML}
	text, err := o.encode(counter{Packets: math.MaxUint64, Bytes: 1<<53 + 1}, nil)
	if want := "bytes: 9007199254740993\npackets: 18446744073709551615\n"; err != nil || string(text) != want {
		t.Errorf("%q, %v; want %q", text, err, want)
	}
}
