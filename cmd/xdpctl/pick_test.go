package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

func TestPick(t *testing.T) {
	for _, test := range []struct {
		name string
		want string // host interfaces
	}{
		{"demo/client", "veth11111111 veth11111112"},
		{"demo/server", "veth22222222"},
		{clientID, "veth11111111 veth11111112"},
		{"0", "veth11111111 veth11111112"},
		{"77aa", "veth22222222"},
		{"77bb", "veth33333333"},
		{"veth11111112", "veth11111112"},
		{"10.88.0.2", "veth11111111"},
		{"10.88.0.2/16", "veth11111111"},
		{"::ffff:10.88.0.2", "veth11111111"},
		{"fd00::2", "veth11111111"},
		{"fd00:0::2/64", "veth11111111"},
	} {
		picked, err := pick(sampleAttachments(), test.name)
		var have []string
		for _, a := range picked {
			have = append(have, a.Meta.HostName)
		}
		if err != nil || strings.Join(have, " ") != test.want {
			t.Errorf("pick %s: %v, %v; want %s", test.name, have, err, test.want)
		}
	}
}

// TestPickUnderPodman: a container that has a name and no namespace is known by its name, and not as "/name".
func TestPickUnderPodman(t *testing.T) {
	named := datapath.Attachment{Meta: &datapath.Meta{ContainerID: podmanID, PodName: "web", HostName: "veth44444444"}}
	all := append(sampleAttachments(), named)
	picked, err := pick(all, "web")
	if err != nil || len(picked) != 1 || picked[0].Meta != named.Meta {
		t.Errorf("pick web: %d attachments, %v", len(picked), err)
	}
	if _, err := pick(all, "/web"); err == nil {
		t.Error("pick /web: no error")
	}
	if label := labelOf(named); label != "web" {
		t.Errorf("the label is %q, want web", label)
	}
}

func TestPickErrors(t *testing.T) {
	for _, test := range []struct {
		name  string
		one   bool
		wants []string
		not   string
	}{
		{name: "demo/serve", wants: []string{`no pod is known as "demo/serve"`, "demo/client", "demo/server", "veth33333333", "10.88.0.2/16, fd00::2/64"}},
		{name: "10.88.0.2/24", wants: []string{"no pod is known"}},
		{name: "veth1", wants: []string{"no pod is known"}},
		{name: "", wants: []string{"no pod is known"}},
		{name: "/", wants: []string{"no pod is known"}},
		{name: "77", wants: []string{`"77" is ambiguous`, "demo/server", "container 77bb00000000"}, not: "demo/client"},
		{name: "demo/client", one: true, wants: []string{"2 interfaces", "host interface", "veth11111111", "veth11111112"}, not: "demo/server"},
	} {
		_, err := pick(sampleAttachments(), test.name)
		if test.one {
			_, err = pickOne(sampleAttachments(), test.name)
		}
		if err == nil {
			t.Errorf("pick %q: no error", test.name)
			continue
		}
		for _, want := range test.wants {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("pick %q: %v\nlacks %q", test.name, err, want)
			}
		}
		if test.not != "" && strings.Contains(err.Error(), test.not) {
			t.Errorf("pick %q: %v\nnames %q", test.name, err, test.not)
		}
	}
}

// TestPickExact: a name in full is not ambiguous because a container ID begins so.
func TestPickExact(t *testing.T) {
	all := []datapath.Attachment{
		{ID: "1", Meta: &datapath.Meta{ContainerID: "abc", HostName: "veth1"}},
		{ID: "2", Meta: &datapath.Meta{ContainerID: "abcd", HostName: "veth2"}},
	}
	picked, err := pick(all, "abc")
	if err != nil || len(picked) != 1 || picked[0].ID != "1" {
		t.Errorf("picked %v, %v", picked, err)
	}
}

func TestChoicesAreBounded(t *testing.T) {
	var all []datapath.Attachment
	for i := range 100 {
		all = append(all, datapath.Attachment{Meta: &datapath.Meta{ContainerID: fmt.Sprint(i)}})
	}
	list := choices(all)
	if !strings.Contains(list, "and 80 more") || strings.Count(list, "\n") != mostChoices {
		t.Errorf("choices:\n%s", list)
	}
}

func TestPodCompletions(t *testing.T) {
	for _, test := range []struct{ typed, want string }{
		{"", "demo/client demo/server 77bb00000000"},
		{"demo/c", "demo/client"},
		{"77bb", "77bb00000000"},
		{"77a", serverID},
		{"veth1", "veth11111111 veth11111112"},
		{"10.88.", "10.88.0.2 10.88.0.3"},
		{"x", ""},
	} {
		var have []string
		for _, completion := range podCompletions(sampleAttachments(), test.typed) {
			name, _, _ := strings.Cut(completion, "\t")
			have = append(have, name)
		}
		for _, want := range strings.Fields(test.want) {
			if !strings.Contains(strings.Join(have, " "), want) {
				t.Errorf("completions of %q: %v, lacks %s", test.typed, have, want)
			}
		}
		if len(have) != len(strings.Fields(test.want)) {
			t.Errorf("completions of %q: %v, want %s", test.typed, have, test.want)
		}
	}
}
