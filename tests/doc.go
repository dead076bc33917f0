// Package tests holds what the integration tests and the demo stand on: hosts and pods made of network namespaces,
// CNI chains run on them through libcni, traffic with exact counts, and a watch on the kernel's BPF objects.
//
// A [Node] stands in for a host. It has its own network namespace, its own bpffs and its own CNI state, so tests never
// touch the machine's interfaces, its /sys/fs/bpf or its /var/lib/cni. A [Pod] is a namespace of a node.
//
// The core returns errors, so that programs can use it too. Functions that begin with Must take a [testing.TB]: they
// fail the test and register the cleanup.
//
// Callbacks of [Place.Do] run on a goroutine of their own, on a thread that is in the namespace. Two things follow:
// they must not call FailNow or Fatal, so they return errors; and goroutines they start are not in the namespace,
// though sockets they have opened stay there, whoever uses them.
package tests
