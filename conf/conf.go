// Package conf is the network configuration of the chained CNI plugin
// `"type": "xdp"`: its types, its parsing and validation, its JSON Schema and
// sample conflists.
//
// Everything here is pure: bytes in, values and errors out, no I/O. What a
// configuration may hold is one table, [configObject]; a new key is a field of
// [Config], a row in that table and a property in schema.json, and the tests
// fail until the three agree.
package conf

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// Mode is how the packets that a pod sends are hooked at the host end of its
// veth. Those that it receives are hooked at tc egress of the host end in
// every mode.
type Mode string

const (
	// ModeGeneric runs the program as XDP on socket buffers
	// (XDP_FLAGS_SKB_MODE): on any interface, leaving its offloads alone.
	ModeGeneric Mode = "generic"
	// ModeNative runs the program as XDP in the veth driver
	// (XDP_FLAGS_DRV_MODE): fastest for pods that send XDP frames themselves,
	// dear for pods with ordinary sockets, whose TSO it turns off.
	ModeNative Mode = "native"
	// ModeTCX runs the same packet path at tc ingress: tcx from kernel 6.6
	// on, a clsact filter below that.
	ModeTCX Mode = "tcx"
	// ModeAuto leaves the choice to the plugin, for pods with ordinary
	// sockets: tcx where the kernel has it, else generic.
	ModeAuto Mode = "auto"
)

const (
	// DefaultBPFFS is the directory under which everything is pinned when
	// the configuration does not name one.
	DefaultBPFFS = "/sys/fs/bpf/xdp-cni"
	// MaxPeers is the largest [Stats.Peers]. The counters are per CPU, so a
	// pod at this limit already holds 65536 x CPUs of them.
	MaxPeers = 65536
)

// LogLevel is the least severity that is logged, given in a configuration as
// "debug", "info", "warn" or "error".
type LogLevel = slog.Level

// Stats says what is counted for each pod beyond the counters that are always
// there.
type Stats struct {
	// Peers is the number of remote addresses, at most [MaxPeers], whose
	// packets and bytes are counted one by one for each pod; past it the
	// least recently seen is forgotten. 0 is no counters by peer.
	Peers uint32 `json:"peers,omitempty"`
}

// Config is one plugin configuration object as the runtime hands it to the
// plugin on stdin (CNI SPEC section 3, "Deriving request configuration from
// plugin configuration").
//
// The json tags name the keys; [Parse] reads them, not encoding/json, which
// knows neither the defaults nor the limits, and ignores case.
type Config struct {
	// CNIVersion is the version of the CNI spec that the runtime speaks, and
	// that the result has to be in. Not checked here: skel compares it with
	// the versions that the plugin supports, and answers with code 1.
	CNIVersion string `json:"cniVersion"`
	// Name is the name of the network. Not checked here: skel does.
	Name string `json:"name"`
	// Type is the file name of the plugin's binary. Never empty after Parse,
	// and not always "xdp": a second release may be installed beside this one.
	Type string `json:"type"`

	// Mode is the hook mode; [ModeGeneric] if not given.
	Mode Mode `json:"mode"`
	// BPFFS is the directory under which everything is pinned: an absolute,
	// clean path other than "/"; [DefaultBPFFS] if not given.
	BPFFS string `json:"bpffs"`
	// Stats chooses the optional counters.
	Stats Stats `json:"stats"`
	// Filter is the packet filter of every pod of the network that has none of
	// its own; nil for none. See [Config.PodFilter].
	Filter *Filter `json:"filter"`
	// Redirect is the direct way to other pods of the node; nil for none.
	Redirect *Redirect `json:"redirect"`
	// BigTCP raises the veth's GSO and GRO limits; [BigTCPOff] if not given. Anything else comes only
	// with [ModeTCX] and [ModeAuto].
	BigTCP BigTCP `json:"bigTCP"`
	// Programs are user programs that run on what the pods send, in order; at most [MaxPrograms].
	Programs []Program `json:"programs"`
	// LogFile is the absolute path of the file to which the log is appended;
	// empty for stderr.
	LogFile string `json:"logFile"`
	// LogLevel is the least severity logged; [slog.LevelInfo] if not given.
	LogLevel LogLevel `json:"logLevel"`

	// PrevResult is the result of the plugin before this one in the chain,
	// byte for byte as it came; nil if absent or null. See [Config.Result]
	// and [Config.ResultJSON].
	PrevResult json.RawMessage `json:"prevResult"`
	// ValidAttachments is the list that comes with GC (CNI SPEC section 2,
	// "GC"). It is nil if the key is absent or null, and points to an empty
	// list if the list is empty: in the first case nothing is known of what
	// is alive, in the second nothing is alive.
	ValidAttachments *[]types.GCAttachment `json:"cni.dev/valid-attachments"`
	// RuntimeConfig is what the runtime has for this pod, of the capabilities
	// that the configuration declares (CNI CONVENTIONS, "Capabilities").
	RuntimeConfig RuntimeConfig `json:"runtimeConfig"`
}

// RuntimeConfig is what a runtime gives for one pod by capabilities.
type RuntimeConfig struct {
	// XDPFilter is the pod's own filter, by the capability "xdpFilter"; nil if
	// not given.
	XDPFilter *Filter `json:"xdpFilter,omitzero"`
}

// filterCapability is the capability by which a runtime gives a pod's filter.
const filterCapability = "xdpFilter"

// PodFilter returns the filter of the pod: its own, else that of the network;
// nil if there is neither. The two are not merged: the order of rules is their
// meaning, and no order would be right for all.
func (c *Config) PodFilter() *Filter {
	if c.RuntimeConfig.XDPFilter != nil {
		return c.RuntimeConfig.XDPFilter
	}
	return c.Filter
}

// configObject says what a configuration may hold, and where it goes.
var configObject = object[Config]{
	initial: Config{Mode: ModeGeneric, BPFFS: DefaultBPFFS, LogLevel: slog.LevelInfo},
	fields: []field[Config]{
		at("mode", func(c *Config) *Mode { return &c.Mode }, oneOf(modes)),
		at("bpffs", func(c *Config) *string { return &c.BPFFS }, directory),
		at("stats", func(c *Config) *Stats { return &c.Stats }, statsObject.rule()),
		at("filter", func(c *Config) **Filter { return &c.Filter }, filterRule),
		at("redirect", func(c *Config) **Redirect { return &c.Redirect }, redirectRule),
		at("bigTCP", func(c *Config) *BigTCP { return &c.BigTCP }, booleanOrAuto),
		at("programs", func(c *Config) *[]Program { return &c.Programs }, programsRule),
		at("logFile", func(c *Config) *string { return &c.LogFile }, fileOrEmpty),
		at("logLevel", func(c *Config) *LogLevel { return &c.LogLevel }, oneOf(logLevels)),

		protocol(at("cniVersion", func(c *Config) *string { return &c.CNIVersion }, anyString)),
		protocol(at("name", func(c *Config) *string { return &c.Name }, anyString)),
		required(protocol(at("type", func(c *Config) *string { return &c.Type }, nonEmptyString))),
		protocol(at("prevResult", func(c *Config) *json.RawMessage { return &c.PrevResult }, anyObjectOrNull)),
		protocol(at(validAttachmentsKey, func(c *Config) **[]types.GCAttachment { return &c.ValidAttachments },
			orNull(pointer(list(attachmentObject.rule(), `a list of {"containerID": ..., "ifname": ...}`))))),
		protocol(at("runtimeConfig", func(c *Config) *RuntimeConfig { return &c.RuntimeConfig }, orNull(runtimeObject.rule()))),
	},
	ignoredKeys: ignoredKeys,
	ignore:      func(key string) bool { return strings.HasPrefix(key, reservedPrefix) },
}

var statsObject = object[Stats]{
	fields: []field[Stats]{
		at("peers", func(s *Stats) *uint32 { return &s.Peers }, wholeNumber[uint32](0, MaxPeers)),
	},
}

var attachmentObject = object[types.GCAttachment]{
	fields: []field[types.GCAttachment]{
		required(at("containerID", func(a *types.GCAttachment) *string { return &a.ContainerID }, nonEmptyString)),
		required(at("ifname", func(a *types.GCAttachment) *string { return &a.IfName }, nonEmptyString)),
	},
	// The object is CNI's, so a later spec may add to it.
	ignore: func(string) bool { return true },
}

var modes = []choice[Mode]{
	{string(ModeGeneric), ModeGeneric},
	{string(ModeNative), ModeNative},
	{string(ModeTCX), ModeTCX},
	{string(ModeAuto), ModeAuto},
}

var logLevels = []choice[LogLevel]{
	{"debug", slog.LevelDebug},
	{"info", slog.LevelInfo},
	{"warn", slog.LevelWarn},
	{"error", slog.LevelError},
}

const (
	// reservedPrefix marks the keys that a runtime generates (CNI SPEC
	// section 1, "Reserved keys").
	reservedPrefix      = "cni.dev/"
	validAttachmentsKey = reservedPrefix + "valid-attachments"
)

// ignoredKeys are the keys that CNI defines or runtimes insert and that this
// plugin has no use for (CNI SPEC section 1). The last four belong to the
// network; a configuration that is no list has them beside those of its one
// plugin.
var ignoredKeys = []string{
	"args", "capabilities", "dns", "ipMasq", "ipam",
	"cniVersions", "disableCheck", "disableGC", "loadOnlyInlinedPlugins",
}

// Parse reads the configuration of one ADD, CHECK or STATUS from stdin and
// validates it.
//
// Its errors are [types.Error]: code 6 if stdin is not one JSON object, else
// code 7 with every problem found, each naming the key, the value given and
// what is allowed. A key that neither this plugin nor CNI knows is a problem,
// and so is a key given twice or in another case.
func Parse(stdin []byte) (*Config, error) {
	c, err := parse(stdin)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// ParseLenient reads the configuration of one DEL or GC from stdin. A
// configuration that was broken, or was written for a newer release, must not
// keep what is there from being removed. So it takes what is valid, leaves the
// rest at its default, and returns a Config whenever stdin is a JSON object,
// together with the error that [Parse] would have returned: log that and go on.
//
// A cni.dev/valid-attachments with anything wrong in it counts as absent: an
// entry left out would be a live attachment removed.
func ParseLenient(stdin []byte) (*Config, error) {
	return parse(stdin)
}

// ParseFilter reads a filter on its own, the same text as "filter" in a
// configuration, and says what in it is most likely not what its author meant
// ([Filter.Warnings]). Its errors are those of [Parse].
func ParseFilter(text []byte) (*Filter, []Warning, error) {
	raw, err := objectIn(text, "filter")
	if err != nil {
		return nil, nil, err
	}
	var ps problems
	f, ok := filterRule.read(&ps, "", raw)
	if !ok {
		return nil, nil, ps.errAs("invalid filter")
	}
	return f, f.Warnings(), nil
}

// parse returns a Config whenever stdin is a JSON object, and an error
// whenever there is anything wrong with it.
func parse(stdin []byte) (*Config, error) {
	raw, err := objectIn(stdin, "network configuration")
	if err != nil {
		return nil, err
	}
	var ps problems
	c, _ := configObject.rule().read(&ps, "", raw)
	checkBigTCP(&ps, &c)
	return &c, ps.err()
}

// objectIn returns the JSON object that text is; errors call it what.
func objectIn(text []byte, what string) (json.RawMessage, error) {
	var raw json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		details := err.Error()
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			details = fmt.Sprintf("%v, at byte %d", err, syntax.Offset)
		}
		return nil, types.NewError(types.ErrDecodingFailure, what+" is not JSON", details)
	}
	if !isObject(raw) {
		return nil, types.NewError(types.ErrDecodingFailure, what+" is not a JSON object", "got "+shown(raw))
	}
	return raw, nil
}

// maxProblems is how many problems an error repeats.
const maxProblems = 32

// err returns the problems as one error about the network configuration, or nil
// if there are none.
func (ps problems) err() error { return ps.errAs("invalid network configuration for the xdp plugin") }

func (ps problems) errAs(msg string) error {
	if len(ps) == 0 {
		return nil
	}
	details := strings.Join(ps[:min(len(ps), maxProblems)], "; ")
	if more := len(ps) - maxProblems; more > 0 {
		details += fmt.Sprintf("; and %d more", more)
	}
	return types.NewError(types.ErrInvalidNetworkConfig, msg, details)
}

// keys returns the keys that o knows; with own, only those an author writes.
func (o object[T]) keys(own bool) []string {
	var keys []string
	for _, f := range o.fields {
		if !own || !f.protocol {
			keys = append(keys, f.key)
		}
	}
	if own {
		return keys
	}
	return slices.Concat(keys, o.ignoredKeys)
}
