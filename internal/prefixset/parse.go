// Package prefixset reads lists of IP prefixes from text, and makes BPF tries hold what a list says.
package prefixset

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
)

// Parse reads a list of prefixes, one a line: 192.0.2.0/24, 2001:db8::/32, or an address, which stands for itself. What
// follows # or ; is a comment, as in the lists that are published. Bits behind the prefix length do not count, and a
// prefix that is there twice is one. The result is sorted. Errors name the line.
func Parse(r io.Reader) ([]netip.Prefix, error) {
	var list []netip.Prefix
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		text := lines.Text()
		if i := strings.IndexAny(text, "#;"); i >= 0 {
			text = text[:i]
		}
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		prefix, err := parsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		list = append(list, prefix)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list), nil
}

func parsePrefix(text string) (netip.Prefix, error) {
	if !strings.Contains(text, "/") {
		address, err := netip.ParseAddr(text)
		if err != nil {
			return netip.Prefix{}, err
		}
		if address.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%s: an address on a list has no zone", text)
		}
		return unmap(netip.PrefixFrom(address, address.BitLen()))
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	return unmap(prefix)
}

// unmap makes an IPv4 prefix of one in ::ffff:0:0/96, which no packet's address is in, and clears the bits behind the length.
func unmap(p netip.Prefix) (netip.Prefix, error) {
	if !p.Addr().Is4In6() {
		return p.Masked(), nil
	}
	if p.Bits() < 96 {
		return p, fmt.Errorf("%s is neither of IPv4 nor of IPv6", p)
	}
	return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96).Masked(), nil
}
