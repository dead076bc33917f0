package main

import (
	"fmt"
	"net/netip"

	"encoding/json"
	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/filter"
)

// compilePolicy makes the policy of an attachment from a filter.
func compilePolicy(m *datapath.Meta, f *conf.Filter) (datapath.Policy, error) {
	var addresses []netip.Addr
	for _, a := range m.Addresses {
		addresses = append(addresses, a.Addr())
	}
	if mac := m.PodMAC; len(mac) == 6 {
		addresses = append(addresses, netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]}))
	}
	compiled, err := filter.Compile(f, addresses)
	if err != nil {
		return datapath.Policy{}, err
	}
	source, err := json.Marshal(f)
	if err != nil {
		return datapath.Policy{}, fmt.Errorf("encoding the filter: %w", err)
	}
	return datapath.Policy{Compiled: compiled, Source: source}, nil
}
