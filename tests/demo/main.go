// Command demo runs the chain bridge -> xdp on two pods, on a node made of a network namespace and a bpffs of its own,
// shows what xdpctl says of their traffic, and checks that nothing is left when they are deleted. It needs root and Go;
// `make demo` runs it.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/xdp-cni/xdp-cni/tests"
	"golang.org/x/sys/unix"
)

const (
	pings     = 10
	datagrams = 100
	datagram  = 1000    // bytes
	stream    = 4 << 20 // bytes
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	err := demo(ctx)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it makes network namespaces and loads BPF programs")
	}
	heading("Build")
	binaries, err := tests.Build(ctx)
	if err != nil {
		return err
	}
	fmt.Println("binaries in", binaries.Dir)

	before, err := tests.Objects()
	if err != nil {
		return err
	}
	if err := onNode(ctx); err != nil {
		return err
	}
	// The pins are known to be gone while the bpffs was still there; now for the rest.
	if err := tests.WaitNoNew(ctx, before, 10*time.Second); err != nil {
		return err
	}
	fmt.Println("no BPF program, map or link that was not there before")
	fmt.Println("\nThe demo has passed.")
	return nil
}

// onNode makes a node and runs the demo on it. The node goes away whatever happens, and takes along whatever is in it.
func onNode(ctx context.Context) (err error) {
	node, err := tests.NewNode()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	client, err := node.NewPod("client")
	if err != nil {
		return err
	}
	server, err := node.NewPod("server")
	if err != nil {
		return err
	}
	network, err := node.Network(tests.Conflist("demo", "1.1.0", node.Bridge(tests.DualStack), node.XDP()))
	if err != nil {
		return err
	}

	heading("ADD: bridge -> xdp")
	if err := add(ctx, network, client, server); err != nil {
		// What was added is deleted, so that the error is about the ADD alone.
		return errors.Join(err, del(network, client, server))
	}
	if err := use(ctx, node, client, server); err != nil {
		return errors.Join(err, del(network, client, server))
	}

	heading("DEL")
	if err := del(network, client, server); err != nil {
		return err
	}
	fmt.Println("demo/client and demo/server are deleted")

	heading("What is left")
	if pins := node.Pins(); len(pins) > 0 {
		return fmt.Errorf("pins are left:\n  %s", strings.Join(pins, "\n  "))
	}
	fmt.Println("no pin in the bpffs")
	return nil
}

func add(ctx context.Context, network *tests.Network, pods ...*tests.Pod) error {
	for _, pod := range pods {
		start := time.Now()
		if _, err := network.Add(ctx, pod, tests.KubernetesArgs("demo", pod.Name, "")); err != nil {
			return fmt.Errorf("ADD of demo/%s: %w", pod.Name, err)
		}
		host, err := pod.HostInterface()
		if err != nil {
			return err
		}
		fmt.Printf("demo/%s  %-12s  %-18s  host end %-12s  %d ms\n",
			pod.Name, pod.IPv4(), pod.IPv6(), host.Attrs().Name, time.Since(start).Milliseconds())
	}
	return nil
}

// del deletes pods, all of them, also when the demo is interrupted: it has a context of its own.
func del(network *tests.Network, pods ...*tests.Pod) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var errs []error
	for _, pod := range pods {
		if err := network.Del(ctx, pod, tests.KubernetesArgs("demo", pod.Name, "")); err != nil {
			errs = append(errs, fmt.Errorf("DEL of demo/%s: %w", pod.Name, err))
		}
	}
	return errors.Join(errs...)
}

// use sends traffic from the client to the server and to the node, and shows what was counted.
func use(ctx context.Context, node *tests.Node, client, server *tests.Pod) error {
	heading("Traffic")
	targets := []struct {
		name    string
		at      tests.Place
		address netip.Addr
	}{
		{"demo/server", server, server.IPv4()},
		{"demo/server", server, server.IPv6()},
		{"the node", node, client.GatewayIPv4()},
		{"the node", node, client.GatewayIPv6()},
	}
	for _, target := range targets {
		if err := send(ctx, client, target.at, target.address); err != nil {
			return fmt.Errorf("demo/client to %s: %w", target.name, err)
		}
		fmt.Printf("demo/client <-> %-11s  %-18s  %d pings, %d datagrams of %d bytes, %d MiB by TCP\n",
			target.name, target.address, pings, datagrams, datagram, stream>>20)
	}

	heading("xdpctl stats")
	output, err := node.RunXdpctl(ctx, "stats")
	fmt.Print(string(output.Stdout))
	if err != nil {
		return fmt.Errorf("xdpctl stats: %w\n%s", err, output.Stderr)
	}
	return nil
}

func send(ctx context.Context, from, at tests.Place, address netip.Addr) error {
	if err := tests.WaitAddress(ctx, at, address); err != nil {
		return err
	}
	echo, err := tests.ServeEcho(ctx, at, address)
	if err != nil {
		return err
	}
	if err := tests.Ping(ctx, from, address, pings); err != nil {
		return errors.Join(err, echo.Close())
	}
	if err := tests.EchoUDP(ctx, from, echo.UDP, datagrams, datagram); err != nil {
		return errors.Join(err, echo.Close())
	}
	return errors.Join(tests.EchoTCP(ctx, from, echo.TCP, stream), echo.Close())
}

func heading(text string) { fmt.Printf("\n== %s\n", text) }
