// Package runtimes tests the plugins under those who call them: containerd by its CRI plugin, podman, and cnitool.
// `make test-runtimes` runs it; docs/runtimes.md says what it proves. It is a Go module of its own, so that the clients
// it needs are no dependency of the product.
//
// Each test has a [node] with a runtime on it: a network namespace, a bpffs and all state of the runtime in a directory
// of its own, and a namespace beside it that stands for the network outside. What `go test -short` leaves out are more
// combinations of the same, and other versions.
package runtimes
