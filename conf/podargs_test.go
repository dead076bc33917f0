package conf

import (
	"strings"
	"testing"
)

func TestParsePodArgs(t *testing.T) {
	for _, test := range []struct {
		in   string
		want PodArgs
	}{
		{"", PodArgs{}},
		{"IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1",
			PodArgs{"ns", "web-0", "u-1"}},
		{"K8S_POD_NAME=a", PodArgs{Name: "a"}},
		{"K8S_POD_NAME=", PodArgs{}},
		{"K8S_POD_NAME=a;K8S_POD_NAME=b", PodArgs{Name: "b"}},
		{"k8s_pod_name=a", PodArgs{}},
		{"LABELS=a=b;K8S_POD_UID=u", PodArgs{UID: "u"}},
		{"IgnoreUnknown=false;FOO=BAR", PodArgs{}},
		{"K8S_POD_NAMESPACE=" + strings.Repeat("a", 63), PodArgs{Namespace: strings.Repeat("a", 63)}},
		{"K8S_POD_NAME=" + strings.Repeat("a", 253), PodArgs{Name: strings.Repeat("a", 253)}},
		{"K8S_POD_UID=" + strings.Repeat("a", 63), PodArgs{UID: strings.Repeat("a", 63)}},
	} {
		got, err := ParsePodArgs(test.in)
		if err != nil || got != test.want {
			t.Errorf("ParsePodArgs(%q) = %+v, %v; want %+v", test.in, got, err, test.want)
		}
	}
}

func TestParsePodArgsErrors(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"K8S_POD_NAME", `pair "K8S_POD_NAME": want KEY=VALUE, with ";" between pairs`},
		{"A=B;", `pair "": want KEY=VALUE, with ";" between pairs`},
		{";A=B", `pair "": want KEY=VALUE, with ";" between pairs`},
		{"A=B;=C;D", `pair "=C": want KEY=VALUE, with ";" between pairs`},
		{"K8S_POD_NAMESPACE=" + strings.Repeat("a", 64),
			`K8S_POD_NAMESPACE: want at most 63 bytes, got 64: "` + strings.Repeat("a", 64) + `"`},
		{"K8S_POD_NAME=" + strings.Repeat("a", 254), `K8S_POD_NAME: want at most 253 bytes, got 254: "` + strings.Repeat("a", 80) + `..."`},
		{"K8S_POD_UID=" + strings.Repeat("a", 64), `K8S_POD_UID: want at most 63 bytes, got 64: "` + strings.Repeat("a", 64) + `"`},
	} {
		got, err := ParsePodArgs("K8S_POD_UID=u;" + test.in)
		wantError(t, err, 4, "invalid CNI_ARGS; "+test.want)
		if got != (PodArgs{}) {
			t.Errorf("ParsePodArgs(%q): %+v beside an error", test.in, got)
		}
	}
}
