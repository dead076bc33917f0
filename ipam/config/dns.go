package config

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// ReadDNS reads a resolv.conf(5), as host-local does.
func ReadDNS(file string) (*types.DNS, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading resolvConf: %w", err)
	}
	defer f.Close()
	var dns types.DNS
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0][0] == '#' || fields[0][0] == ';' {
			continue
		}
		switch fields[0] {
		case "nameserver":
			dns.Nameservers = append(dns.Nameservers, fields[1])
		case "domain":
			dns.Domain = fields[1]
		case "search":
			dns.Search = append(dns.Search, fields[1:]...)
		case "options":
			dns.Options = append(dns.Options, fields[1:]...)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading resolvConf: %w", err)
	}
	return &dns, nil
}
