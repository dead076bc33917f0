package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/tests"
)

// namedRule is a filter of one rule, which drops UDP to a port, by the name of that rule.
func namedRule(name string, port uint16) string {
	return fmt.Sprintf(`{"rules":[{"name":%q,"direction":"egress","action":"deny","protocol":"udp","ports":["%d"]}]}`, name, port)
}

// inForce is the names of the rules in force for a pod.
func inForce(t *testing.T, n *tests.Node, pod *tests.Pod) (names []string) {
	t.Helper()
	r := &filterRig{Node: n, t: t, pod: pod, datapath: newDatapath(n)}
	err := n.Do(func() error {
		a, err := r.attachment()
		if err != nil {
			return err
		}
		f, _, err := r.inForce(a)
		if err != nil {
			return err
		}
		for _, rule := range f.Rules {
			names = append(names, rule.Name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestFilterConfiguration: a network's filter is for its pods, but for those that bring their own; each verb knows.
func TestFilterConfiguration(t *testing.T) {
	eachChain(t, mixedChains, `{}`, func(r *filterRig) {
		echo := tests.MustEcho(r.t, r.peer, r.peer.IPv4())
		var filter map[string]any
		unmarshal(r.t, namedRule("network", echo.UDP.Port()), &filter)
		main := r.Bridge(tests.IPv4)
		if r.shape == "ptp" {
			main = r.PTP(tests.IPv4)
		}
		w := tests.MustNetwork(r.t, r.Node, tests.Conflist("net", "1.1.0", main,
			r.XDP(tests.Conf{"mode": r.mode, "filter": filter, "capabilities": tests.Conf{"xdpFilter": true}})))
		plain, own := tests.MustPod(r.t, r.Node, "plain"), tests.MustPod(r.t, r.Node, "own")
		ownFilter := xdpFilter(namedRule("own", echo.UDP.Port()+1))
		tests.MustAdd(r.t, w, plain)
		tests.MustAdd(r.t, w, own, ownFilter)
		expect(r.t, "the network's filter", inForce(r.t, r.Node, plain), "[network]")
		expect(r.t, "a pod's own filter", inForce(r.t, r.Node, own), "[own]")
		r.comesBack(own, echo.UDP)
		r.lost(plain, echo.UDP)
		(&filterRig{Node: r.Node, t: r.t, pod: plain, datapath: r.datapath, want: decisions{}}).expect("the network's filter", decisions{
			"egress rule": times(datagrams, frameLen(r.peer.IPv4(), probeSize)), "rule network": times(datagrams, frameLen(r.peer.IPv4(), probeSize)),
		})
		for pod, options := range map[*tests.Pod][]tests.CallOption{plain: nil, own: {ownFilter}} {
			if err := w.Check(r.t.Context(), pod, options...); err != nil {
				r.t.Errorf("CHECK of %s: %v", pod.Name, err)
			}
		}
		// again, with another filter: in its place, as runtimes do that lost the result
		again := pluginAgain(r, own, namedRule("again", echo.UDP.Port()))
		mustRun(r.t, r.Node, "ADD", own, again)
		expect(r.t, "ADD again", inForce(r.t, r.Node, own), "[again]")
		mustRun(r.t, r.Node, "CHECK", own, again)
		r.lost(own, echo.UDP)

		if err := w.GC(r.t.Context(), r.pod, r.peer, plain); err != nil {
			r.t.Errorf("GC: %v", err)
		}
		if err := w.Del(r.t.Context(), plain); err != nil {
			r.t.Errorf("DEL: %v", err)
		}
		for _, path := range r.Tree() {
			for _, pod := range []*tests.Pod{plain, own} {
				if strings.Contains(path, pod.ContainerID) {
					r.t.Errorf("left in bpffs: %s", path)
				}
			}
		}
	})
}

// pluginAgain is the standard input of another ADD of a pod, with the result of its first and a filter of its own.
func pluginAgain(r *filterRig, pod *tests.Pod, filter string) string {
	r.t.Helper()
	var f, prev map[string]any
	unmarshal(r.t, filter, &f)
	unmarshal(r.t, marshal(r.t, pod.Result), &prev)
	return pluginConf(r.Node, "1.1.0", prev, tests.Conf{"mode": r.mode, "filter": f})
}

// TestFilterCheck damages what a filter is made of: CHECK says so each time.
func TestFilterCheck(t *testing.T) {
	n := start(t, tests.WithoutIPv6())
	resident, _, prev := vethPod(t, n, "resident", "1.1.0") // so that the node's programs stay
	mustRun(t, n, "ADD", resident, pluginConf(n, "1.1.0", prev))
	before := n.Tree()
	pod, _, prev := vethPod(t, n, "pod", "1.1.0")
	stdin := pluginConf(n, "1.1.0", prev, tests.Conf{"filter": map[string]any{"default": map[string]any{"ingress": "deny"}}})
	remove := func(name string) func(dir string) error {
		return func(dir string) error { return os.RemoveAll(filepath.Join(dir, name)) }
	}
	nodeMap := func(name string, change func(m *ebpf.Map) error) func(string) error {
		return func(string) error {
			m, err := ebpf.LoadPinnedMap(filepath.Join(n.BPFFS, "v1", "node", name), nil)
			if err != nil {
				return err
			}
			defer m.Close()
			return change(m)
		}
	}
	// eachEntry empties a map of maps, of which a slot in use may have an entry for each place. To read or delete one takes
	// a grace period on older kernels, whether it is there or not.
	eachEntry := func(m *ebpf.Map) error {
		return eachSlot(n, func(number, slots uint32) error {
			places := m.MaxEntries() / slots
			for i := number * places; i < (number+1)*places; i++ {
				if err := m.Delete(i); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
					return err
				}
			}
			return nil
		})
	}
	for name, damage := range map[string]func(dir string) error{
		"flows":               remove("flows"),
		"drop counters":       remove("drop_stats_map"),
		"policy":              remove("policy_0"),
		"words":               remove("policy_0/words"),
		"prefixes":            remove("policy_0/prefixes"),
		"rule counters":       remove("policy_0/rule_counters"),
		"source":              remove("policy_0/source"),
		"entry of flows":      nodeMap("pod_flows", eachEntry),
		"entry of words":      nodeMap("pod_policy_words", eachEntry),
		"entry of prefixes":   nodeMap("pod_policy_prefixes", eachEntry),
		"entry of counters":   nodeMap("pod_rule_counters", eachEntry),
		"the programs ask no": nodeMap("slots", func(m *ebpf.Map) error { return changeSlots(m, bpf.DatapathSlotFlagSLOT_FILTER) }),
		"the other place":     nodeMap("slots", func(m *ebpf.Map) error { return changeSlots(m, bpf.DatapathSlotFlagSLOT_POLICY) }),
	} {
		t.Run(name, func(t *testing.T) {
			mustRun(t, n, "ADD", pod, stdin)
			mustRun(t, n, "CHECK", pod, stdin)
			dirs, err := filepath.Glob(filepath.Join(n.BPFFS, "v1", "pods", pod.ContainerID+"*"))
			if err != nil || len(dirs) != 1 {
				t.Fatalf("attachments: %v, %v", dirs, err)
			}
			if err := damage(dirs[0]); err != nil {
				t.Fatal(err)
			}
			out, err := n.RunPlugin(t.Context(), "CHECK", pod, stdin)
			if err == nil {
				t.Error("CHECK finds nothing wrong")
			} else if e := outputError(t, out); e.Code != 106 {
				t.Errorf("CHECK: %d %s, want code 106", e.Code, e)
			}
			mustRun(t, n, "DEL", pod, stdin)
			expect(t, "bpffs", n.Tree(), before)
		})
	}
	mustRun(t, n, "DEL", resident, pluginConf(n, "1.1.0", nil))
}

// eachSlot runs f with the number of each slot in use, and how many there are in all.
func eachSlot(n *tests.Node, f func(number, slots uint32) error) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(n.BPFFS, "v1", "node", "slots"), nil)
	if err != nil {
		return err
	}
	defer m.Close()
	return eachUsed(m, func(number uint32, _ bpf.DatapathSlot) error { return f(number, m.MaxEntries()) })
}

// changeSlots turns a flag of all slots in use.
func changeSlots(m *ebpf.Map, flag bpf.DatapathSlotFlag) error {
	return eachUsed(m, func(number uint32, slot bpf.DatapathSlot) error {
		slot.Flags ^= uint32(flag)
		return m.Put(number, slot)
	})
}

// eachUsed runs f with each slot in use of a map of slots.
func eachUsed(m *ebpf.Map, f func(number uint32, slot bpf.DatapathSlot) error) error {
	var (
		key  uint32
		slot bpf.DatapathSlot
	)
	entries := m.Iterate()
	for entries.Next(&key, &slot) {
		if slot.Ifindex == 0 {
			continue
		}
		if err := f(key, slot); err != nil {
			return err
		}
	}
	return entries.Err()
}

// TestFilterRefused: a filter that cannot be is an error that names the rule and the limit, of the network's and of a
// pod's own alike, and nothing was touched then.
func TestFilterRefused(t *testing.T) {
	n := start(t, tests.WithoutIPv6())
	pod, veth, prev := vethPod(t, n, "pod", "1.1.0")
	for _, test := range []struct {
		rule string
		want []string
	}{
		{`{"name":"wide","direction":"egress","action":"deny","to":["10.0.0.0/33"]}`, []string{"wide", "10.0.0.0/33", "CIDR"}},
		{`{"name":"ping","direction":"egress","action":"deny","protocol":"icmp","ports":["7"]}`, []string{"ping", "ports", "tcp, udp, sctp"}},
		{`{"name":"high","direction":"egress","action":"deny","protocol":"tcp","ports":["65536"]}`, []string{"high", "65536"}},
		{strings.TrimSuffix(strings.Repeat(`{"name":"many","direction":"egress","action":"deny"},`, conf.MaxRules+1), ","), []string{"4096"}},
		{`{"name":"lists","direction":"egress","action":"deny","to":[` + strings.TrimSuffix(strings.Repeat(`"10.0.0.1",`, conf.MaxPrefixes+1), ",") + `]}`,
			[]string{"lists", "16384"}},
	} {
		var filter map[string]any
		unmarshal(t, `{"rules":[`+test.rule+`]}`, &filter)
		for _, key := range []tests.Conf{{"filter": filter}, {"runtimeConfig": map[string]any{"xdpFilter": filter}}} {
			out, err := n.RunPlugin(t.Context(), "ADD", pod, pluginConf(n, "1.1.0", prev, key))
			if err == nil {
				t.Fatalf("ADD succeeded with %.100s", test.rule)
			}
			e := outputError(t, out)
			for _, want := range test.want {
				if e.Code != types.ErrInvalidNetworkConfig || !strings.Contains(e.Error(), want) {
					t.Errorf("error %d %.300q does not say %q", e.Code, e, want)
				}
			}
			if tree := n.Tree(); len(tree) > 0 || hostLinkXDP(n, veth.HostName) {
				t.Errorf("left: %v", tree)
			}
		}
	}
}
