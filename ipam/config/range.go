package config

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/xdp-cni/xdp-cni/ipam/addrs"
)

// jsonRange is a range as it is written. All but the subnet may be left out, or "".
type jsonRange struct {
	Subnet     subnet  `json:"subnet"`
	RangeStart address `json:"rangeStart"`
	RangeEnd   address `json:"rangeEnd"`
	Gateway    address `json:"gateway"`
}

// address is an IP address or "".
type address struct{ netip.Addr }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *address) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	parsed, err := parseAddr(string(text))
	a.Addr = parsed
	return err
}

// subnet is an address and a prefix length, or "".
type subnet struct{ netip.Prefix }

func (s subnet) given() bool { return s.IsValid() }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *subnet) UnmarshalText(text []byte) error {
	p, err := netip.ParsePrefix(string(text))
	if err != nil {
		return fmt.Errorf("invalid CIDR address: %s", text)
	}
	s.Prefix = p
	return nil
}

// cidrOrIP is an address, whose prefix length, if it has one, is the range's business.
type cidrOrIP struct{ netip.Addr }

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *cidrOrIP) UnmarshalText(text []byte) error {
	if p, err := netip.ParsePrefix(string(text)); err == nil {
		c.Addr = p.Addr().Unmap()
		return nil
	}
	a, err := parseAddr(string(text))
	c.Addr = a
	return err
}

func parseAddr(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("invalid IP address: %q", text)
	}
	return a.Unmap(), nil
}

// canonical fills in what host-local does where nothing is given (gateway and first address the
// subnet's first, last address its last, without the IPv4 broadcast address), and checks.
func (r jsonRange) canonical() (addrs.Range, error) {
	p := r.Subnet.Prefix
	switch {
	case !r.Subnet.given():
		return addrs.Range{}, errors.New("a range without subnet")
	case p.Addr().Is4In6():
		return addrs.Range{}, fmt.Errorf("subnet %s is an IPv4 one written as IPv6", p)
	case p.Bits() > p.Addr().BitLen()-2:
		return addrs.Range{}, fmt.Errorf("network %s too small to allocate from", p)
	case p != p.Masked():
		return addrs.Range{}, fmt.Errorf("network %s has host bits set. For a subnet mask of length %d the network address is %s", p, p.Bits(), p.Masked().Addr())
	}
	c := addrs.Range{Subnet: p, First: p.Addr().Next(), Last: addrs.LastOf(p), Gateway: p.Addr().Next()}
	if p.Addr().Is4() {
		c.Last = c.Last.Prev()
	}
	for _, end := range []struct {
		name  string
		given netip.Addr
		to    *netip.Addr
	}{{"RangeStart", r.RangeStart.Addr, &c.First}, {"RangeEnd", r.RangeEnd.Addr, &c.Last}} {
		if !end.given.IsValid() {
			continue
		}
		if !p.Contains(end.given) {
			return addrs.Range{}, fmt.Errorf("%s %s not in network %s", end.name, end.given, p)
		}
		*end.to = end.given
	}
	if c.Last.Less(c.First) {
		return addrs.Range{}, fmt.Errorf("empty range: RangeEnd %s is before RangeStart %s in network %s", c.Last, c.First, p)
	}
	if g := r.Gateway.Addr; g.IsValid() {
		// a link-local address is on every link: routers have them in IPv6, and some CNIs make
		// the host answer for one in IPv4
		if !p.Contains(g) && !(g.IsLinkLocalUnicast() && g.BitLen() == p.Addr().BitLen()) {
			return addrs.Range{}, fmt.Errorf("gateway %s not in network %s", g, p)
		}
		c.Gateway = g
	}
	return c, nil
}
