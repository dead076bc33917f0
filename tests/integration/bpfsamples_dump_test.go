package integration

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// dumpedSources is what scripts read of a dump of the map of sources.c.
type dumpedSources struct {
	Program, Map, KeyType, ValueType string
	PerCPU                           bool
	Entries                          []struct {
		Key    struct{ Address [16]uint8 }
		Values []struct {
			CPU   int
			Value struct{ Packets, Bytes uint64 }
		}
	}
}

// shownPrograms is what scripts read of `xdpctl programs -o json`.
type shownPrograms struct {
	Programs []struct {
		Name, Type, Order string
		Shared            bool
		Runs              uint64
		Verdicts          struct{ Pass, Drop uint64 }
		Kernel            json.RawMessage
		Maps              []string
	}
}

// TestSampleDump sends frames from addresses of both families, and finds these, and no other numbers of packets and
// bytes, in the program's map; while the kernel's statistics are on, which count no program that is called by a tail
// call.
func TestSampleDump(t *testing.T) {
	counting, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		t.Fatal(err)
	}
	defer counting.Close()
	inXDPModes(t, func(t *testing.T, mode string) {
		shared := sampleProgram(t, "verdicts", "xdp_pass")
		shared["order"] = "after"
		sources := sampleProgram(t, "sources", "xdp_count_sources")
		object, err := os.ReadFile(sources["object"].(string))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "sources.o")
		if err := os.WriteFile(path, object, 0o600); err != nil {
			t.Fatal(err)
		}
		sources["object"] = path
		r := newSampleRig(t, mode, (*tests.Node).Bridge, sources, shared)
		p := r.add(t, "pod")
		quiet(t, p.Pod)
		var before, after shownPrograms
		xdpctlJSON(t, r.Node, &before, "programs", p.ContainerID)
		want := map[[16]uint8][2]uint64{}
		total := uint64(0)
		for i, source := range []string{"203.0.113.9", "203.0.113.10", "2001:db8::9"} {
			address := netip.MustParseAddr(source)
			var ip packets.Layer = packets.IPv4{Src: address}
			if address.Is6() {
				ip = packets.IPv6{Src: address}
			}
			frame := p.of(ip, packets.UDP{}, packets.Data(20*i))
			for range i + 2 {
				p.send(t, frame)
				arrives(t, p.passed, frame)
				total++
			}
			want[address.As16()] = [2]uint64{uint64(i + 2), uint64((i + 2) * len(frame))}
		}
		var dump dumpedSources
		xdpctlJSON(t, r.Node, &dump, "programs", "dump", p.ContainerID, "sources")
		xdpctlJSON(t, r.Node, &after, "programs", p.ContainerID)

		cpus := ebpf.MustPossibleCPU()
		if dump.Program != "xdp_count_sources" || dump.Map != "sources" || dump.KeyType != "struct source" ||
			dump.ValueType != "struct source_count" || !dump.PerCPU {
			t.Errorf("%+v", dump)
		}
		for _, e := range dump.Entries {
			have := [2]uint64{}
			if len(e.Values) != cpus {
				t.Errorf("values of %d CPUs, want %d", len(e.Values), cpus)
			}
			for cpu, v := range e.Values {
				if v.CPU != cpu {
					t.Errorf("value of CPU %d at place %d", v.CPU, cpu)
				}
				have[0], have[1] = have[0]+v.Value.Packets, have[1]+v.Value.Bytes
			}
			// the pod's own addresses are there too
			if of, ours := want[e.Key.Address]; ours && have != of {
				t.Errorf("%v: %d packets and bytes, want %d", netip.AddrFrom16(e.Key.Address), have, of)
			}
			delete(want, e.Key.Address)
		}
		if len(want) > 0 {
			t.Errorf("not in the dump: %v", want)
		}

		for i, order := range []string{"before", "after"} {
			have, earlier := after.Programs[i], before.Programs[i]
			if have.Order != order || have.Type != "XDP" || have.Shared != (i == 1) || string(have.Kernel) != "null" ||
				have.Runs-earlier.Runs != total || have.Verdicts.Pass-earlier.Verdicts.Pass != total || have.Verdicts.Drop != 0 {
				t.Errorf("%d packets, and before that %+v, now %+v", total, earlier, have)
			}
		}

		text := dumpText(t, r, p, "sources", "--program", "xdp_count_sources")
		shown := `key: {"address":[0,0,0,0,0,0,0,0,0,0,255,255,203,0,113,9]}  value (CPU 00): {"packets":`
		if !strings.Contains(text, shown) || strings.Count(text, "\n") != cpus*len(dump.Entries) {
			t.Errorf("no %q in, or not %d lines for each of %d entries:\n%s", shown, cpus, len(dump.Entries), text)
		}
		out, err := r.RunXdpctl(t.Context(), "programs", "dump", p.ContainerID, "source")
		if want := `no map of its programs is named "source"; there are xdp_count_sources/sources`; err == nil ||
			!strings.Contains(string(out.Stderr), want) {
			t.Errorf("%v: %s, want %q", err, out.Stderr, want)
		}

		programsCheck(t, r, "ok", "2 user programs, on 1 of 1 attachments")
		if err := os.WriteFile(path, append(object, 0), 0o600); err != nil {
			t.Fatal(err)
		}
		programsCheck(t, r, "warn", path+" has changed since xdp_count_sources was loaded")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		programsCheck(t, r, "warn", path+", which xdp_count_sources was loaded from, is not there any more")
	})
}

// programsCheck compares what doctor says of the pods' programs.
func programsCheck(t *testing.T, r *sampleRig, status, detail string) {
	t.Helper()
	out, _ := r.RunXdpctl(t.Context(), "doctor", "-o", "json") // it may find something else here
	var report struct {
		Checks []struct{ Name, Status, Detail string }
	}
	if err := json.Unmarshal(out.Stdout, &report); err != nil {
		t.Fatalf("%v: %s%s", err, out.Stdout, out.Stderr)
	}
	found := map[string]string{}
	for _, c := range report.Checks {
		found[c.Name] = c.Status + " " + c.Detail
	}
	if !strings.HasPrefix(found["programs"], status) || !strings.Contains(found["programs"], detail) {
		t.Errorf("doctor says %q, want %s %q", found["programs"], status, detail)
	}
	if !strings.HasPrefix(found["tail calls"], "ok") {
		t.Errorf("doctor says %q of tail calls", found["tail calls"])
	}
}

func dumpText(t *testing.T, r *sampleRig, p *samplePod, args ...string) string {
	t.Helper()
	out, err := r.RunXdpctl(t.Context(), append([]string{"programs", "dump", p.ContainerID}, args...)...)
	if err != nil {
		t.Fatalf("%v: %s", err, out.Stderr)
	}
	return string(out.Stdout)
}
