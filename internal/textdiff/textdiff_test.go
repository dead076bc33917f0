package textdiff

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestUnified(t *testing.T) {
	numbers := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintln(&b, i)
		}
		return b.String()
	}
	for _, test := range []struct{ name, from, to, want string }{
		{"none", "a\n", "a\n", ""},
		{"empty", "", "", ""},
		{"new", "", "a\nb\n", "@@ -0,0 +1,2 @@\n+a\n+b\n"},
		{"gone", "a\n", "", "@@ -1 +0,0 @@\n-a\n"},
		{"no line end", "a\nb", "a\nb\n", "@@ -1,2 +1,2 @@\n a\n-b\n\\ No newline at end of file\n+b\n"},
		{"middle", numbers(20), strings.Replace(numbers(20), "10\n", "ten\n", 1),
			"@@ -8,7 +8,7 @@\n 7\n 8\n 9\n-10\n+ten\n 11\n 12\n 13\n"},
		{"contexts touch", numbers(12), strings.NewReplacer("2\n", "two\n", "9\n", "nine\n").Replace(numbers(12)),
			"@@ -1,12 +1,12 @@\n 0\n 1\n-2\n+two\n 3\n 4\n 5\n 6\n 7\n 8\n-9\n+nine\n 10\n 11\n"},
		{"contexts do not", numbers(10), strings.NewReplacer("1\n", "one\n", "9\n", "nine\n").Replace(numbers(10)),
			"@@ -1,5 +1,5 @@\n 0\n-1\n+one\n 2\n 3\n 4\n@@ -7,4 +7,4 @@\n 6\n 7\n 8\n-9\n+nine\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			want := test.want
			if want != "" {
				want = "--- a\n+++ b\n" + want
			}
			have := Unified("a", "b", test.from, test.to)
			if have != want {
				t.Errorf("have\n%s\nwant\n%s", have, want)
			}
		})
	}
}

// TestPatch: applied as patch(1) does, by the numbers of its lines, a difference makes of the one text the
// other.
func TestPatch(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	text := func() string {
		var b strings.Builder
		for range random.IntN(40) {
			fmt.Fprintf(&b, "line %d\n", random.IntN(6))
		}
		if random.IntN(4) == 0 {
			b.WriteString("end")
		}
		return b.String()
	}
	for range 500 {
		from, to := text(), text()
		if random.IntN(2) == 0 { // a small change
			to = strings.Replace(from, "line 3\n", "new\n", 1)
		}
		diff := Unified("a", "b", from, to)
		if have := patched(t, from, diff); have != to {
			t.Fatalf("from\n%s\nby\n%s\nhave\n%s\nwant\n%s", from, diff, have, to)
		}
	}
}

func patched(t *testing.T, from, diff string) string {
	t.Helper()
	var to []string
	old, at := split(from), 0
	diff = strings.ReplaceAll(diff, "\n\\ No newline at end of file\n", "\x00")
	for i, l := range strings.FieldsFunc(strings.ReplaceAll(diff, "\x00", "\x00\n"), func(r rune) bool { return r == '\n' }) {
		l, unended := strings.CutSuffix(l, "\x00")
		if !unended {
			l += "\n"
		}
		switch {
		case i < 2: // the names
		case l[0] == '@':
			var first int
			if _, err := fmt.Sscanf(l, "@@ -%d", &first); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(strings.Fields(l)[1], ",0") {
				first++ // behind the line before
			}
			to = append(to, old[at:first-1]...)
			at = first - 1
		case l[0] == '+':
			to = append(to, l[1:])
		default:
			if at >= len(old) || old[at] != l[1:] {
				t.Fatalf("line %d is not %q in\n%s\nby\n%s", at+1, l, from, diff)
			}
			if l[0] == ' ' {
				to = append(to, old[at])
			}
			at++
		}
	}
	return strings.Join(append(to, old[at:]...), "")
}
