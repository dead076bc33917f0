package runtimes

import (
	"testing"
	"time"
)

// patience is how long a test waits for what comes by itself.
const patience = 10 * time.Second

// TestContainerd runs the basics under each containerd with chains of all kinds; under the first one, and not with
// -short, with all chains there are.
func TestContainerd(t *testing.T) {
	for i, version := range []string{"1.6", "1.7", "2.1"} {
		list := chains(i == 0 && !testing.Short())
		if i > 0 && testing.Short() {
			list = list[i : i+1]
		}
		for _, c := range list {
			t.Run(version+" "+c.String(), func(t *testing.T) {
				n := newNode(t)
				r := startContainerd(t, n, version, c)
				basics(t, n, r, c)
			})
		}
	}
}
