package main

import (
	"encoding/json"
	"math"
	"slices"
	"testing"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// UnmarshalJSON reads what MarshalJSON wrote, sorted by name.
func (t *tally) UnmarshalJSON(text []byte) error {
	counters := map[string]counter{}
	if err := json.Unmarshal(text, &counters); err != nil {
		return err
	}
	*t = nil
	for name, c := range counters {
		*t = append(*t, tallied{name, c})
	}
	return nil
}

func TestTallyJSON(t *testing.T) {
	text, err := json.Marshal(tally{{"b", counter{math.MaxUint64, 2}}, {"a", counter{3, 4}}})
	if want := `{"b":{"packets":18446744073709551615,"bytes":2},"a":{"packets":3,"bytes":4}}`; err != nil || string(text) != want {
		t.Errorf("%s, %v; want %s", text, err, want)
	}
	if text, err := json.Marshal(tally{}); err != nil || string(text) != "{}" {
		t.Errorf("%s, %v", text, err)
	}
}

func TestTallySums(t *testing.T) {
	counts := tally{{"a", counter{1, 10}}, {"b", counter{2, 20}}, {"c", counter{4, 40}}}
	for _, test := range []struct {
		have, want counter
	}{
		{counts.total(), counter{7, 70}},
		{counts.of("a", "c"), counter{5, 50}},
		{counts.of("d"), counter{}},
	} {
		if test.have != test.want {
			t.Errorf("%+v, want %+v", test.have, test.want)
		}
	}
}

// TestWords: every key of the packet path's tables has a name of its own.
func TestWords(t *testing.T) {
	checkWords(t, verdictWords, bpf.DatapathVerdictVERDICTS)
	checkWords(t, protocolWords, bpf.DatapathProtocolPROTOCOLS)
	checkWords(t, kindWords, bpf.DatapathKindKINDS)
	checkWords(t, reasonWords, bpf.DatapathDropReasonDROP_REASONS-1)
}

func checkWords[K ~uint32](t *testing.T, words []word[K], keys K) {
	t.Helper()
	var names []string
	for key := range keys {
		i := slices.IndexFunc(words, func(w word[K]) bool { return w.key == key })
		if i < 0 {
			t.Errorf("key %d of %v has no name", key, words)
			continue
		}
		if slices.Contains(names, words[i].name) {
			t.Errorf("%v has %s twice", words, words[i].name)
		}
		names = append(names, words[i].name)
	}
	if len(words) != int(keys) {
		t.Errorf("%v names %d keys of %d", words, len(words), keys)
	}
}
