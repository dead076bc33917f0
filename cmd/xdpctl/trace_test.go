package main

import (
	"encoding/json"
	"io/fs"
	"net/netip"
	"strings"
	"testing"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// toServer is a way from demo/client to demo/server.
func toServer(way bpf.DatapathWay, change ...func(*datapath.Way)) *datapath.Way {
	server := sampleEndpoints().List[1]
	w := &datapath.Way{Sender: datapath.EndpointInForce, Way: way, Target: &server}
	for _, c := range change {
		c(w)
	}
	return w
}

func stranger() *datapath.Way {
	return &datapath.Way{Sender: datapath.EndpointInForce, Way: bpf.DatapathWayWAY_STRANGER}
}

// TestTrace has a packet for each way, by what is said of it.
func TestTrace(t *testing.T) {
	flow := func(state datapath.FlowState) func(*datapath.Way) {
		return func(w *datapath.Way) {
			flow := sampleFlows()[0]
			flow.State = state
			w.Flow = &flow
		}
	}
	named := "--port 9100 --from-port 40000"
	for _, test := range []struct {
		name, pod, to, flags string
		way                  *datapath.Way
		result, why, detail  string
	}{
		{"no redirect", "veth22222222", "10.88.0.2", "", &datapath.Way{Sender: datapath.EndpointNone}, "stack", "off", "demo/server has no redirect"},
		{"off", "veth33333333", "10.88.0.2", "--from 10.88.0.10", &datapath.Way{Sender: datapath.EndpointOff}, "stack", "off", "not in force for 77bb00000000: redirect is turned off for the pod: GRO is off; it has no XDP program"},
		{"lost", "veth11111111", "10.88.0.3", "", &datapath.Way{Sender: datapath.EndpointStale}, "stack", "off", "lost its slot"},
		{"nobody", "veth11111111", "10.88.0.99", "", stranger(), "stack", "stranger", "no pod of this node has 10.88.0.99"},
		{"the node", "veth11111111", "10.88.0.1", "", stranger(), "stack", "stranger", "it is the node's own"},
		{"itself", "veth11111111", "10.88.0.2", "", stranger(), "stack", "stranger", "is demo/client itself"},
		{"of another network", "veth11111111", "192.0.2.2", "", stranger(), "stack", "stranger", `is demo/client of network "storage", not of "pods"`},
		{"not in force", "veth11111111", "10.88.0.3", "", toServer(bpf.DatapathWayWAY_STRANGER, func(w *datapath.Way) { w.Target.State = datapath.EndpointOff }), "stack", "stranger", "demo/server, for which redirect is not in force: redirect is turned off"},
		{"modes", "veth11111111", "10.88.0.3", "--protocol icmp --from-port 7", toServer(bpf.DatapathWayWAY_MODES, func(w *datapath.Way) { w.Target.Mode = datapath.ModeNative }), "stack", "modes", "demo/client is in mode tcx and the other in native"},
		{"modes, TCP", "veth11111111", "10.88.0.3", named, toServer(bpf.DatapathWayWAY_MODES), "stack", "modes", "TCP goes by the stack where one is generic"},
		{"link", "veth11111111", "10.88.0.3", named, toServer(bpf.DatapathWayWAY_LINK), "stack", "link", "neither for the MAC of demo/server"},
		{"denied at ingress", "veth11111111", "10.88.0.3", "--port 22 --from-port 40000", toServer(bpf.DatapathWayWAY_UNKNOWN), "dropped", "ingress", "the filter of demo/server denies it at ingress, by the default of ingress"},
		{"nothing is known", "veth11111111", "10.88.0.3", "--protocol icmp --from-port 7", toServer(bpf.DatapathWayWAY_UNKNOWN), "stack", "unknown", "it has not begun"},
		{"translated", "veth11111111", "10.88.0.3", named, toServer(bpf.DatapathWayWAY_UNKNOWN, flow(datapath.FlowOneEnd)), "stack", "unknown", "seen at one end only"},
		{"unanswered", "veth11111111", "10.88.0.3", named, toServer(bpf.DatapathWayWAY_UNKNOWN, flow(datapath.FlowUnanswered)), "stack", "unknown", "no answer"},
		{"mixed", "veth11111111", "10.88.0.3", named, toServer(bpf.DatapathWayWAY_UNKNOWN, flow(datapath.FlowMixed)), "stack", "unknown", "mixed with packets"},
		{"no ports", "veth11111111", "10.88.0.3", "", toServer(bpf.DatapathWayWAY_UNKNOWN), "stack", "flow", "once the flow is known to be untranslated"},
		{"bridged", "veth11111111", "10.88.0.3", named, toServer(bpf.DatapathWayWAY_DIRECT, flow(datapath.FlowKnown)), "direct", "bridged", "to demo/server on veth22222222: bridged, unchanged"},
		{"routed", "veth11111111", "10.88.0.3", named, toServer(bpf.DatapathWayWAY_DIRECT, flow(datapath.FlowKnown), func(w *datapath.Way) { w.Routed = true }), "direct", "routed", "MACs rewritten and one hop less"},
		{"programs", "veth11111111", "10.88.0.3", named, toServer(bpf.DatapathWayWAY_PROGRAMS, flow(datapath.FlowKnown)), "stack", "programs", "may have changed it: count"},
		{"denied at egress", "veth11111111", "10.88.0.99", "--port 80", stranger(), "dropped", "egress", `the filter of demo/client denies it at egress, by rule "no-http"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newFakeNode(t)
			n.policies[n.at("veth22222222").ID] = samplePolicy()
			n.ways[test.to] = test.way
			n.programs[n.at("veth11111111").ID] = samplePrograms()
			args := append([]string{"trace", test.pod, "--to", test.to, "-o", "json"}, strings.Fields(test.flags)...)
			status, stdout, stderr := n.xdpctl(t.Context(), args...)
			var have traceReport
			if err := json.Unmarshal([]byte(stdout), &have); status != 0 || err != nil {
				t.Fatalf("status %d, %v: %s%s", status, err, stdout, stderr)
			}
			if have.Result != test.result || have.Why != test.why || !strings.Contains(have.Detail, test.detail) {
				t.Errorf("%s, %s: %q; want %s, %s: %q", have.Result, have.Why, have.Detail, test.result, test.why, test.detail)
			}
		})
	}
}

// TestTracePacket: what is asked about is what the pod's stack would send.
func TestTracePacket(t *testing.T) {
	for _, test := range []struct {
		pod, flags, source, destination, mac string
		protocol                             uint8
	}{
		{"veth11111111", "--to 10.88.0.3 --port 80 --from-port 7", "10.88.0.2:7", "10.88.0.3:80", "02:00:00:00:00:02", 6},         // on the bridge, and near
		{"veth11111111", "--to 10.89.0.3 --protocol udp --port 53", "10.88.0.2:0", "10.89.0.3:53", "02:00:00:00:01:01", 17},       // far
		{"veth11111111", "--to fd00::3 --protocol icmp --from-port 9", "[fd00::2]:9", "[fd00::3]:0", "02:00:00:00:01:01", 58},     // unknown there
		{"veth11111112", "--to 192.0.2.9 --from 192.0.2.3 --protocol icmp", "192.0.2.3:0", "192.0.2.9:0", "02:00:00:00:01:01", 1}, // routed
	} {
		n := newFakeNode(t)
		if status, _, stderr := n.xdpctl(t.Context(), append([]string{"trace", test.pod}, strings.Fields(test.flags)...)...); status != 0 || len(n.asked) != 1 {
			t.Fatalf("%s: status %d: %s", test.flags, status, stderr)
		}
		have := n.asked[0]
		if have.Source != netip.MustParseAddrPort(test.source) || have.Destination != netip.MustParseAddrPort(test.destination) ||
			have.Protocol != test.protocol || have.Hops != 64 || have.SYN || have.Special || have.DestinationMAC.String() != test.mac {
			t.Errorf("%s: %+v, MAC %s", test.flags, have, have.DestinationMAC)
		}
	}
}

// TestTraceUsage has mistakes in the command line, and what is said of them.
func TestTraceUsage(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"veth11111111", "--to with the destination's address is needed"},
		{"--to 10.0.0.1", "takes one POD, not 0"},
		{"veth11111111 --to web", `"web" is no address`},
		{"veth11111111 --to 10.0.0.1 --from fd00::1", "not of one family"},
		{"veth11111111 --to 10.0.0.1 --protocol sctp", "want tcp, udp or icmp"},
		{"veth11111111 --to 10.0.0.1 --protocol icmp --port 7", "icmp has no ports"},
	} {
		status, _, stderr := newFakeNode(t).xdpctl(t.Context(), append([]string{"trace"}, strings.Fields(test.args)...)...)
		if status != exitUsage || !strings.Contains(stderr, test.want) {
			t.Errorf("%s: status %d, %q; want %q", test.args, status, stderr, test.want)
		}
	}
	status, _, stderr := newFakeNode(t).xdpctl(t.Context(), "trace", "veth33333333", "--to", "10.0.0.1")
	if status != exitFailure || !strings.Contains(stderr, "has no address of the family") {
		t.Errorf("status %d, %q", status, stderr)
	}
}

// TestTraceGolden has a flow that is named and goes directly, and what is known of others.
func TestTraceGolden(t *testing.T) {
	for name, test := range map[string]struct {
		way  *datapath.Way
		args string
	}{
		"trace":          {toServer(bpf.DatapathWayWAY_DIRECT, func(w *datapath.Way) { w.Flow = &sampleFlows()[0] }), "--port 9100 --from-port 40000"},
		"trace-programs": {toServer(bpf.DatapathWayWAY_PROGRAMS), "--port 9100"},
		"trace-flows":    {toServer(bpf.DatapathWayWAY_UNKNOWN), "--protocol tcp"},
	} {
		for _, as := range []format{formatTable, formatJSON} {
			n := newFakeNode(t)
			n.ways["10.88.0.3"] = test.way
			if name == "trace-programs" {
				n.programs[n.at("veth11111111").ID] = samplePrograms()
			}
			args := append([]string{"trace", "veth11111111", "--to", "10.88.0.3", "-o", string(as)}, strings.Fields(test.args)...)
			status, stdout, stderr := n.xdpctl(t.Context(), args...)
			if status != 0 || stderr != "" {
				t.Errorf("status %d, %q", status, stderr)
			}
			golden(t, name+map[format]string{formatTable: ".txt", formatJSON: ".json"}[as], stdout)
		}
	}
}

// TestEndpointsCommand: of a pod, its own; of none, a word on stderr.
func TestEndpointsCommand(t *testing.T) {
	n := newFakeNode(t)
	status, stdout, stderr := n.xdpctl(t.Context(), "endpoints", "veth11111111")
	if status != 0 || stderr != "" || !strings.Contains(stdout, "10.88.0.2 ") || !strings.Contains(stdout, "fd00::2") ||
		strings.Contains(stdout, "10.88.0.3") || !strings.Contains(stdout, "6 of 8192 addresses, 2 of 16384 flows") {
		t.Errorf("status %d, %s%s", status, stdout, stderr)
	}
	n.endpoints = &datapath.Endpoints{}
	for _, args := range []string{"endpoints", "endpoints veth11111111"} {
		status, stdout, stderr = n.xdpctl(t.Context(), strings.Fields(args)...)
		if status != 0 || stdout != "" || !strings.Contains(stderr, `{"redirect": true}`) {
			t.Errorf("%s: status %d, %s%s", args, status, stdout, stderr)
		}
	}
}

// TestTracePrograms: user programs are told of, whatever the way is, and those of the receiver are not: they run
// on what that sends.
func TestTracePrograms(t *testing.T) {
	n := newFakeNode(t)
	n.ways["10.88.0.3"] = toServer(bpf.DatapathWayWAY_UNKNOWN)
	n.programs[n.at("veth22222222").ID] = samplePrograms()
	args := []string{"trace", "veth11111111", "--to", "10.88.0.3"}
	if status, stdout, stderr := n.xdpctl(t.Context(), args...); status != 0 || strings.Contains(stdout, "programs") {
		t.Errorf("status %d, %s%s", status, stdout, stderr)
	}
	n.programs[n.at("veth11111111").ID] = samplePrograms()[:2]
	status, stdout, stderr := n.xdpctl(t.Context(), args...)
	words := strings.Join(strings.Fields(stdout), " ")
	if status != 0 || !strings.Contains(words, "user programs run on it: block, then xdp_pass;") ||
		strings.Contains(words, "if the filter") {
		t.Errorf("status %d, %s%s", status, stdout, stderr)
	}
	n.fail["programs veth11111111"] = fs.ErrInvalid
	status, _, stderr = n.xdpctl(t.Context(), args...)
	if status != exitFailure || !strings.Contains(stderr, fs.ErrInvalid.Error()) {
		t.Errorf("status %d, %s", status, stderr)
	}
}

// TestPodsPrograms: programs that cannot be read are an error, and the pod is told of.
func TestPodsPrograms(t *testing.T) {
	n := newFakeNode(t)
	n.programs[n.at("veth11111111").ID] = samplePrograms()
	n.fail["programs veth22222222"] = fs.ErrInvalid
	status, stdout, stderr := n.xdpctl(t.Context(), "pods", "-o", "wide")
	if status != exitFailure || !strings.Contains(stderr, fs.ErrInvalid.Error()) {
		t.Errorf("status %d, %s", status, stderr)
	}
	for host, want := range map[string]string{
		"veth11111111": " block,xdp_pass,count", "veth22222222": " ?", "veth33333333": " -",
	} {
		for line := range strings.Lines(stdout) {
			if strings.Contains(line, host) && !strings.HasSuffix(line, want+"\n") {
				t.Errorf("%q, want %q at its end", line, want)
			}
		}
	}
}
