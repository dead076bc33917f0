package conf

import (
	"log/slog"
	"reflect"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func TestParseLenientTakesWhatIsValid(t *testing.T) {
	in := `{"cniVersion":"1.1.0","name":"n","mode":"warp","bpffs":"/run/bpf","stats":{"peers":"many","later":1},
		"redirect":{"acrossNetworks":true,"maxEndpoints":0,"later":1},"bigTCP":true,"logFile":"/l","logLevel":7,"later":{},"filter":{"rules":[{"name":"r"}]},"runtimeConfig":{"xdpFilter":{"rules":0}},"prevResult":{"cniVersion":"1.1.0"},
		"cni.dev/valid-attachments":[{"containerID":"c","ifname":"e"}]}`
	got, err := ParseLenient([]byte(in))
	if err == nil {
		t.Error("no error for a broken configuration")
	}
	want := &Config{
		CNIVersion: "1.1.0", Name: "n", Mode: ModeGeneric, BPFFS: "/run/bpf", LogFile: "/l", LogLevel: slog.LevelInfo,
		Redirect:         &Redirect{AcrossNetworks: true, MaxEndpoints: 8192, MaxFlows: 16384},
		PrevResult:       []byte(`{"cniVersion":"1.1.0"}`),
		ValidAttachments: &[]types.GCAttachment{{ContainerID: "c", IfName: "e"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("ParseLenient\n got %+v\nwant %+v", got, want)
	}
}

// GC removes what is not in the list, so a list that is not understood in full
// must not be used at all.
func TestParseLenientTakesNoPartOfAttachments(t *testing.T) {
	const good = `{"containerID":"c","ifname":"e"}`
	for _, list := range []string{
		`{}`, `"c"`, `[` + good + `,{"containerID":"d"}]`, `[` + good + `,{"containerID":"d","ifname":0}]`,
		`[` + good + `,null]`, `[{"containerID":"c","ifname":"e","ifname":"f"},` + good + `]`,
		`[` + good + `],"cni.dev/valid-attachments":[]`,
	} {
		c, err := ParseLenient([]byte(`{"type":"xdp","cni.dev/valid-attachments":` + list + `}`))
		if err == nil {
			t.Errorf("%s: no error", list)
		}
		if c.ValidAttachments != nil {
			t.Errorf("%s: got %+v, want nil", list, *c.ValidAttachments)
		}
	}
}

func TestNearest(t *testing.T) {
	keys := []string{"mode", "bpffs", "stats", "logFile", "logLevel", "dns", "prevResult"}
	for given, want := range map[string]string{
		"MODE": "mode", "modes": "mode", "mdoe": "mode", "bpfs": "bpffs", "bpff": "bpffs", "stat": "stats",
		"logfiel": "logFile", "log_level": "logLevel", "prevresults": "prevResult", "prevReslut1": "prevResult", "logName": "",
		"PrevResult": "prevResult",
		"dn":         "", "x": "", "": "", "filter": "", "model_x": "", "peers": "", "logFileNames": "",
	} {
		got, ok := nearest(given, keys)
		if got != want || ok != (want != "") {
			t.Errorf("nearest(%q) = %q, %v; want %q", given, got, ok, want)
		}
	}
}
