package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// columns are the attributes of TestPaths, with what they are of.
var columns = []struct{ attribute, title string }{
	{"tc", "TC HOOKS"}, {"frags", "XDP FRAGS"}, {"clock", "CLOCK"}, {"native-redirect", "NATIVE REDIRECT TO"},
	{"big-tcp", "BIG TCP"}, {"lru", "LRU MAPS"},
}

// printTable prints what each kernel has and which way the plugin goes on it.
func printTable(out io.Writer, kernels []kernel) {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprint(w, "\nKERNEL")
	for _, c := range columns {
		fmt.Fprint(w, "\t"+c.title)
	}
	fmt.Fprintln(w, "\tPASSED\tFAILED\tSKIPPED")
	for _, k := range kernels {
		fmt.Fprint(w, k.version)
		for _, c := range columns {
			value := k.paths[c.attribute]
			if value == "" {
				value = "?" // TestPaths did not run, or not that far
			}
			fmt.Fprint(w, "\t"+value)
		}
		fmt.Fprintf(w, "\t%d\t%d\t%d\n", k.passed, k.failed, k.skipped)
	}
	_ = w.Flush() // to standard output
}
