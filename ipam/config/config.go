// Package config is the configuration of the IPAM plugin: that of host-local as it is, and
// "bpffs". It is pure but for ReadDNS.
//
// host-local's own package (plugins/ipam/host-local/backend/allocator) is not used but compared
// with, in a test: it would add to the start of every process what iptables and netlink initialise,
// more than an ADD takes otherwise, and it takes gateways outside their subnets.
package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/ipam/addrs"
)

// Limits that host-local has not. An attachment can note as many addresses, one from each set.
const (
	MaxSets   = 16
	MaxRanges = 64 // in all sets
)

// Config is the configuration of one network.
type Config struct {
	// Name is that of the network.
	Name       string
	CNIVersion string
	// BPFFS is the directory under which the leases are pinned.
	BPFFS string
	// Sets are where an attachment gets an address from each.
	Sets       []addrs.Set
	Routes     []*types.Route
	ResolvConf string
	// DataDir is host-local's: leases of it can be imported.
	DataDir string
	// Requested are the addresses that the runtime wants the attachment to have.
	Requested []netip.Addr
	// PrevResult is what ADD returned, with CHECK and DEL; nil if not given.
	PrevResult json.RawMessage
	// Valid are the attachments that live, with GC; nil if nothing is known.
	Valid *[]types.GCAttachment
}

// network is what a main plugin gives to its IPAM plugin: its own configuration, whole. Names are
// matched in any case and unknown ones passed over, as host-local does.
type network struct {
	Name          string          `json:"name"`
	CNIVersion    string          `json:"cniVersion"`
	IPAM          json.RawMessage `json:"ipam"`
	RuntimeConfig struct {
		IPRanges [][]jsonRange `json:"ipRanges"`
		IPs      []cidrOrIP    `json:"ips"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			IPs []cidrOrIP `json:"ips"`
		} `json:"cni"`
	} `json:"args"`
	PrevResult json.RawMessage `json:"prevResult"`
}

type ipam struct {
	jsonRange
	Routes     []*types.Route `json:"routes"`
	DataDir    string         `json:"dataDir"`
	ResolvConf string         `json:"resolvConf"`
	Ranges     [][]jsonRange  `json:"ranges"`
	BPFFS      *string        `json:"bpffs"`
}

type envArgs struct {
	types.CommonArgs
	IP cidrOrIP
}

// Parse reads the configuration from stdin, and the address in CNI_ARGS. Errors are [types.Error]:
// code 6 if stdin is not such JSON, 4 for CNI_ARGS, else 7 with what is wrong, and with what.
func Parse(stdin []byte, cniArgs string) (*Config, error) {
	var n network
	if err := json.Unmarshal(stdin, &n); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "reading the network configuration", err.Error())
	}
	if len(n.IPAM) == 0 || string(n.IPAM) == "null" {
		return nil, invalid(errors.New("IPAM config missing 'ipam' key"))
	}
	var own ipam
	if err := json.Unmarshal(n.IPAM, &own); err != nil {
		return nil, invalid(fmt.Errorf("ipam: %w", err))
	}
	c := &Config{
		Name: n.Name, CNIVersion: n.CNIVersion, BPFFS: conf.DefaultBPFFS, Routes: own.Routes,
		ResolvConf: own.ResolvConf, DataDir: own.DataDir, PrevResult: n.PrevResult,
	}
	if own.BPFFS != nil {
		if c.BPFFS = *own.BPFFS; !validDir(c.BPFFS) {
			return nil, invalid(fmt.Errorf(`"ipam.bpffs": want an absolute, clean path other than "/", got %q`, c.BPFFS))
		}
	}
	var err error
	if c.Sets, err = sets(&n, &own); err != nil {
		return nil, invalid(err)
	}
	if err := checkFamilies(n.CNIVersion, c.Sets); err != nil {
		return nil, invalid(err)
	}
	if c.Requested, err = requested(&n, cniArgs); err != nil {
		return nil, err
	}
	return c, nil
}

// ParseLenient reads as much as DEL and GC need: what else is wrong with a configuration, or was
// written for another release, must not keep leases from being freed.
func ParseLenient(stdin []byte) (*Config, error) {
	var n struct {
		Name       string          `json:"name"`
		CNIVersion string          `json:"cniVersion"`
		IPAM       json.RawMessage `json:"ipam"`
		PrevResult json.RawMessage `json:"prevResult"`
		Valid      json.RawMessage `json:"cni.dev/valid-attachments"`
		ValidOld   json.RawMessage `json:"cni.dev/attachments"` // libcni writes both
	}
	if err := json.Unmarshal(stdin, &n); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "reading the network configuration", err.Error())
	}
	c := &Config{Name: n.Name, CNIVersion: n.CNIVersion, BPFFS: conf.DefaultBPFFS, PrevResult: n.PrevResult}
	var own struct {
		BPFFS json.RawMessage `json:"bpffs"`
	}
	var dir string
	if json.Unmarshal(n.IPAM, &own) == nil && json.Unmarshal(own.BPFFS, &dir) == nil && validDir(dir) {
		c.BPFFS = dir
	}
	for _, list := range []json.RawMessage{n.ValidOld, n.Valid} {
		// an entry left out would be a live attachment's addresses freed
		var valid *[]types.GCAttachment
		if len(list) == 0 || json.Unmarshal(list, &valid) != nil || valid == nil {
			continue
		}
		if !slices.ContainsFunc(*valid, func(a types.GCAttachment) bool { return a.ContainerID == "" || a.IfName == "" }) {
			c.Valid = valid
		}
	}
	return c, nil
}

func invalid(err error) error {
	return types.NewError(types.ErrInvalidNetworkConfig, "invalid configuration for xdp-ipam", err.Error())
}

func validDir(dir string) bool {
	return path.IsAbs(dir) && dir != "/" && path.Clean(dir) == dir && !strings.ContainsRune(dir, 0)
}

// sets puts together the range sets in host-local's order: those of the runtime, the legacy
// single range, the list.
func sets(n *network, own *ipam) ([]addrs.Set, error) {
	given := slices.Clone(n.RuntimeConfig.IPRanges)
	if own.Subnet.given() {
		given = append(given, []jsonRange{own.jsonRange})
	}
	given = append(given, own.Ranges...)
	if len(given) == 0 {
		return nil, errors.New("no IP ranges specified")
	}
	if len(given) > MaxSets {
		return nil, fmt.Errorf("%d range sets, want %d at most", len(given), MaxSets)
	}
	var (
		list   []addrs.Set
		ranges int
	)
	for i, set := range given {
		var s addrs.Set
		for _, r := range set {
			canonical, err := r.canonical()
			if err != nil {
				return nil, fmt.Errorf("invalid range set %d: %w", i, err)
			}
			s = append(s, canonical)
		}
		if err := addrs.CheckSet(s); err != nil {
			return nil, fmt.Errorf("invalid range set %d: %w", i, err)
		}
		if s.Usable() == 0 {
			return nil, fmt.Errorf("invalid range set %d: %s holds nothing but network, broadcast and gateway addresses", i, s)
		}
		for j, other := range list {
			if a, b, overlap := other.Overlap(s); overlap {
				return nil, fmt.Errorf("range set %d overlaps with %d: %s and %s", j, i, a, b)
			}
		}
		list = append(list, s)
		ranges += len(s)
	}
	if ranges > MaxRanges {
		return nil, fmt.Errorf("%d ranges in all sets, want %d at most", ranges, MaxRanges)
	}
	return list, nil
}

// checkFamilies returns an error where results cannot hold an address of each set: up to 0.2.0 they
// have one of each family (CNI SPEC 0.2.0, section "Result").
func checkFamilies(cniVersion string, list []addrs.Set) error {
	four := 0
	for _, set := range list {
		if set[0].First.Is4() {
			four++
		}
	}
	if four <= 1 && len(list)-four <= 1 {
		return nil
	}
	if many, err := version.GreaterThanOrEqualTo(cniVersion, "0.3.0"); err != nil || !many {
		return fmt.Errorf("CNI version %s does not support more than 1 address per family", cniVersion)
	}
	return nil
}

// requested lists the addresses asked for by CNI_ARGS, "args" and "runtimeConfig", each once.
func requested(n *network, cniArgs string) ([]netip.Addr, error) {
	var list []netip.Addr
	if cniArgs != "" {
		var env envArgs
		if err := types.LoadArgs(cniArgs, &env); err != nil {
			return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "reading CNI_ARGS", err.Error())
		}
		if env.IP.Addr.IsValid() {
			list = append(list, env.IP.Addr)
		}
	}
	for _, given := range slices.Concat(n.Args.CNI.IPs, n.RuntimeConfig.IPs) {
		if !given.Addr.IsValid() {
			return nil, invalid(errors.New("cannot understand ip: an empty one is asked for"))
		}
		if !slices.Contains(list, given.Addr) {
			list = append(list, given.Addr)
		}
	}
	return list, nil
}
