package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/policy"
	"github.com/xdp-cni/xdp-cni/tests"
)

// filterRig is a node with two pods of one network. The pod has a filter, which it got by runtimeConfig, and the peer
// has none.
type filterRig struct {
	*tests.Node
	chain
	t         *testing.T
	network   *tests.Network
	pod, peer *tests.Pod
	datapath  *datapath.Datapath
	want      decisions // in all
}

// decisions is what a filter did, by words as "ingress default" for drops and "rule NAME" for rules.
type decisions map[string]counter

// chain is a mode in a shape of chain.
type chain struct{ mode, shape string }

// Each of these has all modes.
var (
	mixedChains  = []chain{{"generic", "bridge"}, {"native", "bridge"}, {"tcx", "ptp"}}
	bridgeChains = []chain{{"generic", "bridge"}, {"native", "bridge"}, {"tcx", "bridge"}}
	mostChains   = append(bridgeChains[:3:3], chain{"tcx", "ptp"})
)

// eachChain runs a test in each of some chains, on a pod with a filter.
func eachChain(t *testing.T, chains []chain, filter string, test func(r *filterRig)) {
	for _, c := range chains {
		t.Run(c.mode+" "+c.shape, func(t *testing.T) { test(newFilterRig(t, c, filter)) })
	}
}

// sub runs a part of a test with a filter in force.
func (r *filterRig) sub(name, filter string, test func(r *filterRig)) {
	r.t.Run(name, func(t *testing.T) {
		part := *r
		part.t = t
		part.apply(filter)
		test(&part)
	})
}

// newFilterRig makes a node with both pods. Overrides are of our plugin's configuration.
func newFilterRig(t *testing.T, c chain, filter string, overrides ...tests.Conf) *filterRig {
	t.Helper()
	n := start(t)
	main := n.Bridge(tests.DualStack)
	if c.shape == "ptp" {
		main = n.PTP(tests.DualStack)
	}
	overrides = append([]tests.Conf{{"mode": c.mode, "capabilities": tests.Conf{"xdpFilter": true}}}, overrides...)
	r := &filterRig{
		Node: n, chain: c, t: t, want: decisions{},
		network: tests.MustNetwork(t, n, tests.Conflist("net", "1.1.0", main, n.XDP(overrides...))),
		pod:     tests.MustPod(t, n, "pod"), peer: tests.MustPod(t, n, "peer"),
		datapath: newDatapath(n),
	}
	tests.MustAdd(t, r.network, r.pod, xdpFilter(filter))
	tests.MustAdd(t, r.network, r.peer)
	return r
}

func newDatapath(n *tests.Node) *datapath.Datapath {
	return datapath.New(datapath.Options{Root: pins.NewRoot(n.BPFFS)})
}

// xdpFilter gives a pod a filter of its own.
func xdpFilter(text string) tests.CallOption {
	return tests.Capability("xdpFilter", json.RawMessage(text))
}

// families are the addresses of a pod.
func families(pod *tests.Pod) []netip.Addr { return []netip.Addr{pod.IPv4(), pod.IPv6()} }

// attachment finds that of the filtered pod. Call it in the node's namespace.
func (r *filterRig) attachment() (datapath.Attachment, error) {
	list, err := r.datapath.List()
	for _, a := range list {
		if a.Meta.ContainerID == r.pod.ContainerID {
			return a, err
		}
	}
	return datapath.Attachment{}, errors.Join(err, errors.New("the pod has no attachment"))
}

// makePolicy makes the policy that a filter is for the pod, as ADD does.
func (r *filterRig) makePolicy(text string) (a datapath.Attachment, p *datapath.Policy) {
	r.t.Helper()
	f, _, err := conf.ParseFilter([]byte(text))
	if err != nil {
		r.t.Fatalf("%v: %s", err, text)
	}
	err = r.Do(func() error {
		if a, err = r.attachment(); err != nil {
			return err
		}
		p, err = policy.Make(f, policy.Pod{
			Addresses: a.Meta.Addresses, MAC: a.Meta.PodMAC, Netns: a.Meta.Netns, IfName: a.Meta.IfName,
		})
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return a, p
}

// apply puts a filter in force in the place of the one there, once all that was expected of that is counted.
func (r *filterRig) apply(text string) {
	r.t.Helper()
	r.expect("before another filter", nil)
	r.replaceAnyway(text)
	for _, name := range r.want.rules() {
		delete(r.want, name)
	}
}

func (d decisions) rules() (names []string) {
	for name := range d {
		if len(name) > 5 && name[:5] == "rule " {
			names = append(names, name)
		}
	}
	return names
}

// expect waits until what the filter did is what it was expected to before, and more, to the byte.
func (r *filterRig) expect(what string, more decisions) {
	r.t.Helper()
	for name, c := range more {
		r.want[name] = counter{r.want[name].Packets + c.Packets, r.want[name].Bytes + c.Bytes}
		if r.want[name] == (counter{}) {
			delete(r.want, name)
		}
	}
	var have decisions
	eventually(r.t, func() (err error) {
		have, err = r.decided()
		if err == nil && fmt.Sprint(have) != fmt.Sprint(r.want) {
			err = fmt.Errorf("%s: the filter counted %v, want %v", what, have, r.want)
		}
		return err
	})
	clear(r.want) // one difference is told of once
	maps.Copy(r.want, have)
}

// decided reads what the filter did.
func (r *filterRig) decided() (decisions, error) {
	d := decisions{}
	err := r.Do(func() error {
		a, err := r.attachment()
		if err != nil {
			return err
		}
		stats, err := r.datapath.ReadStats(a)
		if err != nil {
			return err
		}
		d.drops("egress", stats.Egress.Drops[:])
		d.drops("ingress", stats.Ingress.Drops[:])
		f, rules, err := r.inForce(a)
		for i, rule := range rules {
			d.note("rule "+f.Rules[i].Name, rule.Counter)
		}
		return err
	})
	return d, err
}

// inForce reads the filter of an attachment, and what its rules decided. Call it in the node's namespace.
func (r *filterRig) inForce(a datapath.Attachment) (*conf.Filter, []datapath.RuleStats, error) {
	state, err := r.datapath.ReadPolicy(a)
	if err != nil {
		return nil, nil, err
	}
	f, _, err := conf.ParseFilter(state.Source)
	if err != nil {
		return nil, nil, err
	}
	return f, state.Rules, nil
}

func (d decisions) drops(direction string, reasons []datapath.Counter) {
	for key, c := range reasons {
		reason := bpf.DatapathDropReason(key + 1)
		words := map[bpf.DatapathDropReason]string{
			bpf.DatapathDropReasonDROP_SPOOF: "spoof", bpf.DatapathDropReasonDROP_RULE: "rule",
			bpf.DatapathDropReasonDROP_DEFAULT: "default", bpf.DatapathDropReasonDROP_MALFORMED: "malformed",
			bpf.DatapathDropReasonDROP_FRAGMENT: "fragment",
		}
		d.note(direction+" "+words[reason], c)
	}
}

func (d decisions) note(name string, c datapath.Counter) {
	if c != (datapath.Counter{}) {
		d[name] = counter(c)
	}
}

func unmarshal(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// times is what n frames of a size count.
func times(n, size uint64) counter { return counter{n, n * size} }

// frameLen is the length of a frame with a UDP datagram or an ICMP echo message of size bytes: their headers are of
// one length.
func frameLen(address netip.Addr, size uint64) uint64 {
	if address.Is6() {
		return ethernetLen + ipv6Len + udpLen + size
	}
	return ethernetLen + ipv4Len + udpLen + size
}

// synLen is the length of a frame with the SYN of a socket: 20 bytes of options.
func synLen(address netip.Addr) uint64 { return frameLen(address, 20+20-udpLen) }

// refusedAfter is how long a connection that the filter drops is tried. Nothing depends on it: the filter has to have
// counted as many packets as were sent.
const refusedAfter = 50 * time.Millisecond

// refused tries to connect, which must not succeed, and returns what of that the filter has to drop.
func (r *filterRig) refused(from tests.Place, to netip.AddrPort) counter {
	r.t.Helper()
	before, err := tests.TCPOpenings(from)
	if err != nil {
		r.t.Fatal(err)
	}
	conn, err := tests.DialTCP(r.t.Context(), from, netip.AddrPort{}, to, refusedAfter)
	if err == nil {
		_ = conn.Close()
		r.t.Errorf("connected to %s", to)
		return counter{}
	}
	var timeout interface{ Timeout() bool }
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		r.t.Errorf("connecting to %s: %v, want a timeout", to, err)
	}
	after, err := tests.TCPOpenings(from)
	if err != nil {
		r.t.Fatal(err)
	}
	return times(after-before, synLen(to.Addr()))
}
