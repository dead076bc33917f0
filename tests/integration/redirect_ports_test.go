package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestRedirectPortsReused has clients come from one port to a backend directly and by its service, in turns: to the
// backend, both are of one address and port. A client never hears from the backend where it spoke to the service, nor
// the other way round; also not once the node has forgotten the connections that it tracked, as it does when it sees
// nothing of them for a while.
func TestRedirectPortsReused(t *testing.T) {
	r := newRedirectRig(t)
	ports := uint16(20000) // below those that the kernel chooses
	r.eachFirewall(t, func(t *testing.T, tool firewall) {
		r.mustApply(t, tool, r.kubeProxy(onlyItself))
		r.eachPair(t, func(t *testing.T, p pair) {
			for _, c := range p.calls() {
				for _, reuse := range reuses[c.transport.name] {
					for _, forget := range []bool{false, true} {
						ports++
						if err := r.reusePort(t, c, reuse, ports, forget); err != nil {
							t.Fatalf("%s, %s from port %d, forgotten between: %t: %v", c, reuse.name, ports, forget, err)
						}
					}
				}
			}
		})
	})
}

// portReuse is how a port is used again.
type portReuse struct {
	name string
	// turns are conversations: whether by the service.
	turns []bool
	// open makes the sockets, each by the time of its turn.
	open func(t *testing.T, c call, local netip.AddrPort) (socket func(to netip.AddrPort) (speaker, error), err error)
}

const direct, byService = false, true

// reuses are by protocol. A connection that ends in order keeps its addresses and ports for a while.
var reuses = map[string][]portReuse{
	"tcp": {
		{"closed, the service second", []bool{direct, byService}, newStreams},
		{"closed, the service first", []bool{byService, direct}, newStreams},
		{"reset, the service second", []bool{direct, byService, direct, direct, byService}, newResetStreams},
		{"reset, the service first", []bool{byService, direct, byService, byService, direct}, newResetStreams},
	},
	"udp": {
		{"closed, the service second", []bool{direct, byService, direct, direct, byService}, newSockets},
		{"closed, the service first", []bool{byService, direct, byService, byService, direct}, newSockets},
		{"one socket, the service second", []bool{direct, byService, direct, direct, byService}, oneSocket},
		{"one socket, the service first", []bool{byService, direct, byService, byService, direct}, oneSocket},
	},
}

// reusePort has all turns of a port.
func (r *redirectRig) reusePort(t *testing.T, c call, reuse portReuse, port uint16, forget bool) error {
	socket, err := reuse.open(t, c, c.clientAddress(port))
	if err != nil {
		return err
	}
	for i, service := range reuse.turns {
		to := c.backend()
		if service {
			to = c.service()
		}
		if err := converseOnce(socket, to); err != nil {
			return fmt.Errorf("turn %d of %d: %w", i+1, len(reuse.turns), err)
		}
		if from := c.heard(c.server.echo).Addr(); from != c.clientAddress(0).Addr() {
			return fmt.Errorf("turn %d of %d: the server heard from %s", i+1, len(reuse.turns), from)
		}
		if forget {
			if err := r.forgetConnections(); err != nil {
				return err
			}
		}
	}
	return nil
}

func converseOnce(socket func(to netip.AddrPort) (speaker, error), to netip.AddrPort) error {
	s, err := socket(to)
	if err != nil {
		return err
	}
	return errors.Join(chat(s), s.Close())
}

// forgetConnections has the node forget all that it tracks.
func (r *redirectRig) forgetConnections() error {
	return r.Do(func() error {
		// the family is not asked: all go
		if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
			return fmt.Errorf("flush the table of connections: %w", err)
		}
		return nil
	})
}

// newStreams are connections that are closed in order.
func newStreams(t *testing.T, c call, local netip.AddrPort) (func(netip.AddrPort) (speaker, error), error) {
	return func(to netip.AddrPort) (speaker, error) { return c.open(t, c.client, local, to) }, nil
}

// newSockets are UDP sockets that are connected.
func newSockets(t *testing.T, c call, local netip.AddrPort) (func(netip.AddrPort) (speaker, error), error) {
	return newStreams(t, c, local)
}

// newResetStreams are connections that end with RST, so that the same addresses and ports may be used at once.
func newResetStreams(t *testing.T, c call, local netip.AddrPort) (func(netip.AddrPort) (speaker, error), error) {
	return func(to netip.AddrPort) (speaker, error) {
		s, err := c.open(t, c.client, local, to)
		if err != nil {
			return nil, err
		}
		return s, s.(stream).SetLinger(0)
	}, nil
}

// oneSocket is a UDP socket that is not connected, for all turns.
func oneSocket(t *testing.T, c call, local netip.AddrPort) (func(netip.AddrPort) (speaker, error), error) {
	conn, err := bindDatagrams(c.client, local)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = conn.Close() })
	return func(to netip.AddrPort) (speaker, error) {
		return keptOpen{datagramSocket{UDPConn: conn, to: to}}, nil
	}, nil
}

// keptOpen is a socket that outlives its turns.
type keptOpen struct{ datagramSocket }

func (keptOpen) Close() error { return nil }
