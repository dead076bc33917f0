package conf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/version"
)

// Result returns prevResult in the form of the newest spec, whichever it came
// in: its own cniVersion or, if it has none, that of the configuration
// (results from before 1.0.0 need not have one).
//
// It needs no further checks before use: no interface, address or route in it
// is nil, and the interface that an address names, if it names one, exists.
// Otherwise, and if prevResult is absent or in a version outside of 0.3.1 to
// 1.1.0, the error is a [types.Error] with code 7.
func (c *Config) Result() (*types100.Result, error) {
	r, err := c.result()
	if err != nil {
		return nil, err
	}
	newest, err := types100.NewResultFromResult(r)
	if err != nil {
		return nil, invalidPrevResult("%v", err)
	}
	return newest, nil
}

// ResultJSON returns what ADD prints: prevResult in the version of the
// configuration. If it came in that version, or in none, that is the bytes
// given, with whatever they hold that this plugin does not know; else they are
// converted. Errors are as with [Config.Result].
func (c *Config) ResultJSON() ([]byte, error) {
	own, err := c.prevVersion()
	if err != nil {
		return nil, err
	}
	if own == "" || own == c.CNIVersion {
		return bytes.Clone(c.PrevResult), nil
	}
	if !slices.Contains(versions(), c.CNIVersion) {
		return nil, unknownVersion("cniVersion", strconv.Quote(clip(c.CNIVersion)))
	}
	r, err := c.result()
	if err != nil {
		return nil, err
	}
	r, err = r.GetAsVersion(c.CNIVersion)
	if err != nil {
		return nil, invalidPrevResult("converting it to cniVersion %s: %v", c.CNIVersion, err)
	}
	out, err := json.Marshal(r)
	if err != nil {
		return nil, invalidPrevResult("writing it as cniVersion %s: %v", c.CNIVersion, err)
	}
	return out, nil
}

// prevVersion returns the cniVersion that prevResult itself has, or "".
func (c *Config) prevVersion() (string, error) {
	if prev := bytes.TrimSpace(c.PrevResult); len(prev) == 0 || isNull(prev) {
		return "", types.NewError(types.ErrInvalidNetworkConfig, "prevResult is required",
			"chain this plugin after one that makes an interface, such as bridge or ptp")
	}
	var r struct {
		CNIVersion json.RawMessage `json:"cniVersion"`
	}
	if err := json.Unmarshal(c.PrevResult, &r); err != nil {
		return "", invalidPrevResult("%v", err)
	}
	if r.CNIVersion == nil || isNull(r.CNIVersion) {
		return "", nil
	}
	v, ok := stringOf(r.CNIVersion)
	if !ok {
		return "", unknownVersion("prevResult.cniVersion", shown(r.CNIVersion))
	}
	return v, nil
}

// result returns prevResult in the version that it came in.
func (c *Config) result() (types.Result, error) {
	v, err := c.prevVersion()
	if err != nil {
		return nil, err
	}
	raw := c.PrevResult
	if v == "" {
		// The library takes no result without a version.
		v = c.CNIVersion
		if raw, err = withVersion(raw, v); err != nil {
			return nil, invalidPrevResult("%v", err)
		}
	}
	if !slices.Contains(versions(), v) {
		return nil, unknownVersion("prevResult.cniVersion", strconv.Quote(clip(v)))
	}
	if err := checkShape(raw); err != nil {
		return nil, err
	}
	r, err := create.Create(v, raw)
	if err != nil {
		return nil, invalidPrevResult("%v", err)
	}
	return r, nil
}

// checkShape refuses what the library's types hold but its conversions, and
// whoever uses the result, would panic at. Every version since 0.3.0 has these
// keys (CNI SPEC section 5).
func checkShape(raw json.RawMessage) error {
	var r struct {
		Interfaces []*struct{} `json:"interfaces"`
		IPs        []*struct {
			Interface *int `json:"interface"`
		} `json:"ips"`
		Routes []*struct{} `json:"routes"`
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return invalidPrevResult("%v", err)
	}
	var ps problems
	const wantObject = "want an object, got null"
	for i, iface := range r.Interfaces {
		if iface == nil {
			ps.add(fmt.Sprintf("prevResult.interfaces[%d]", i), wantObject)
		}
	}
	for i, ip := range r.IPs {
		path := fmt.Sprintf("prevResult.ips[%d]", i)
		switch {
		case ip == nil:
			ps.add(path, wantObject)
		case ip.Interface != nil && (*ip.Interface < 0 || *ip.Interface >= len(r.Interfaces)):
			ps.add(path+".interface", "want the index of one of the %d interfaces, got %d",
				len(r.Interfaces), *ip.Interface)
		}
	}
	for i, route := range r.Routes {
		if route == nil {
			ps.add(fmt.Sprintf("prevResult.routes[%d]", i), wantObject)
		}
	}
	return ps.err()
}

// withVersion returns the result with its cniVersion set. The library finds
// the key in any case, so an empty one in another case has to go.
func withVersion(raw json.RawMessage, v string) (json.RawMessage, error) {
	var r map[string]json.RawMessage
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, err
	}
	maps.DeleteFunc(r, func(key string, _ json.RawMessage) bool { return strings.EqualFold(key, "cniVersion") })
	quotedVersion, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	r["cniVersion"] = quotedVersion
	return json.Marshal(r)
}

// versions returns the spec versions whose results this plugin understands:
// those since there are chains.
func versions() []string {
	return version.VersionsStartingFrom("0.3.1").SupportedVersions()
}

func unknownVersion(path, got string) error {
	var ps problems
	ps.add(path, "want one of %s, got %s", quoted(versions()), got)
	return ps.err()
}

func invalidPrevResult(format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, "invalid prevResult", fmt.Sprintf(format, args...))
}
