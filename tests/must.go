package tests

import (
	"context"
	"net/netip"
	"testing"
	"time"
)

// MustBuild builds everything; see [Build].
func MustBuild(t testing.TB) Binaries {
	t.Helper()
	b, err := Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// MustBuildNext is BuildNext.
func MustBuildNext(t testing.TB) Binaries {
	t.Helper()
	b, err := BuildNext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// MustBuildReference builds the reference plugins; see [BuildReference].
func MustBuildReference(t testing.TB) Binaries {
	t.Helper()
	b, err := BuildReference(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// MustNode makes a node and closes it when the test ends; pins left then are an error of the test.
func MustNode(t testing.TB, options ...NodeOption) *Node {
	t.Helper()
	n, err := NewNode(options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close the node: %v", err)
		}
	})
	return n
}

// MustPod makes a pod of the node, which the node's end closes.
func MustPod(t testing.TB, n *Node, name string) *Pod {
	t.Helper()
	p, err := n.NewPod(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// MustNetwork makes a network of a conflist. What plugins write to stderr goes to the test's log.
func MustNetwork(t testing.TB, n *Node, conflist string) *Network {
	t.Helper()
	w, err := n.NetworkStderr(conflist, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// MustAdd adds the pod to the network, and deletes it when the test ends. A Del by the test does no harm: DEL may be
// repeated.
func MustAdd(t testing.TB, w *Network, p *Pod, options ...CallOption) {
	t.Helper()
	// Registered first: an ADD that fails is followed by a DEL too, as runtimes do.
	t.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		if err := w.Del(ctx, p, options...); err != nil {
			t.Errorf("DEL of pod %s: %v", p.Name, err)
		}
	})
	if _, err := w.Add(t.Context(), p, options...); err != nil {
		t.Fatalf("ADD of pod %s: %v", p.Name, err)
	}
}

// MustEcho starts echo servers and closes them when the test ends; see [ServeEcho].
func MustEcho(t testing.TB, at Place, address netip.Addr) *Echo {
	t.Helper()
	e, err := ServeEcho(t.Context(), at, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close echo servers: %v", err)
		}
	})
	return e
}

// MustObjects takes a snapshot of the kernel's BPF objects, and checks when the test ends, after all cleanups that it
// registers later, that there are no new ones.
func MustObjects(t testing.TB) Snapshot {
	t.Helper()
	before, err := Objects()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := WaitNoNew(context.Background(), before, Patience(5*time.Second)); err != nil {
			t.Error(err)
		}
	})
	return before
}

// cleanupContext bounds a cleanup: the test's own context is over by then.
func cleanupContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), Patience(30*time.Second))
}
