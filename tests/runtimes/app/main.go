// Command app is all there is in the image of these tests: pause, server and client in one static binary.
//
//	app pause
//	app serve PORT NAME
//	app who SERVER
//	app fill SERVER DURATION
//	app echo SERVER COUNT SIZE
//	app flood SERVER COUNT SIZE      sends at once, whatever becomes of it, and then pauses
//	app interfaces
//	app stream FILE SERVER...        until there is the file: see talk.Stream
//	app touch FILE
package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/xdp-cni/xdp-cni/tests/runtimes/talk"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "app: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		args = []string{"pause"}
	}
	command, args := args[0], append(args[1:], "", "", "")
	if command == "pause" || command == "interfaces" {
		if command == "interfaces" {
			return interfaces()
		}
		pause()
		return nil
	}
	switch command {
	case "touch":
		return os.WriteFile(args[0], nil, 0o600)
	case "stream":
		return stream(args[0], args[1:])
	case "serve":
		args[0] = "[::]:" + args[0]
	}
	server, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return err
	}
	count, _ := strconv.Atoi(args[1])
	size, _ := strconv.Atoi(args[2])
	switch command {
	case "serve":
		s, err := talk.Listen(args[1], server)
		if err != nil {
			return err
		}
		go s.Serve()
		pause()
		return nil
	case "who":
		name, seen, err := talk.Who(server)
		if err == nil {
			fmt.Println(name, seen)
		}
		return err
	case "fill":
		sending, err := time.ParseDuration(args[1])
		if err != nil {
			return err
		}
		received, took, err := talk.Fill(server, sending)
		fmt.Println(received, took.Milliseconds())
		return err
	case "echo":
		return talk.Echo(server, count, size)
	case "flood":
		if err := talk.Send(server, count, size); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		pause()
		return nil
	}
	return errors.New("no such command: " + command)
}

// stream prints how many datagrams went to servers and back.
func stream(stop string, texts []string) error {
	var servers []netip.AddrPort
	for _, text := range texts {
		if text == "" {
			continue
		}
		server, err := netip.ParseAddrPort(text)
		if err != nil {
			return err
		}
		servers = append(servers, server)
	}
	n, err := talk.Stream(servers, func() bool { _, err := os.Stat(stop); return err == nil })
	fmt.Println(n)
	return err
}

// interfaces prints the name, MTU and addresses of each interface, one to a line.
func interfaces() error {
	list, err := net.Interfaces()
	for _, i := range list {
		addresses, err := i.Addrs()
		if err != nil {
			return err
		}
		fields := []string{i.Name, strconv.Itoa(i.MTU)}
		for _, a := range addresses {
			fields = append(fields, a.String())
		}
		fmt.Println(strings.Join(fields, " "))
	}
	return err
}

// pause waits to be told to end, and reaps, as the first process of a PID namespace has to.
func pause() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, _ := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 {
				break
			}
		}
	}
}
