package integration

import (
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/xdp-cni/xdp-cni/tests"
)

// TestRedirectFull fills the node's endpoints: STATUS says so by code 51, and ADD by 108, which leaves nothing. Pods
// that are there go on, and those without redirect come.
func TestRedirectFull(t *testing.T) {
	n := start(t, tests.WithoutIPv6())
	const codeFull = 108
	redirect := tests.Conf{"redirect": tests.Conf{"maxEndpoints": 2}}
	conf := pluginConf(n, "1.1.0", nil, redirect)
	var pods []*tests.Pod
	add := func(address string, more tests.Conf) (*tests.Pod, string) {
		t.Helper()
		pod, _, prev := vethPod(t, n, "pod"+address, "1.1.0")
		prev["ips"] = []any{map[string]any{"address": address + "/24", "interface": 1}}
		return pod, pluginConf(n, "1.1.0", prev, more)
	}
	for _, address := range []string{"10.0.0.2", "10.0.0.3"} {
		if out, err := n.RunPlugin(t.Context(), "STATUS", nil, conf); err != nil {
			t.Errorf("STATUS with room: %v: %s", err, out.Stdout)
		}
		pod, stdin := add(address, redirect)
		mustRun(t, n, "ADD", pod, stdin)
		defer mustRun(t, n, "DEL", pod, stdin)
		pods = append(pods, pod)
	}
	out, err := n.RunPlugin(t.Context(), "STATUS", nil, conf)
	if err == nil {
		t.Fatal("STATUS of a full node: no error")
	}
	if e := outputError(t, out); e.Code != types.ErrLimitedConnectivity || !strings.Contains(e.Msg, "all 2 places") {
		t.Errorf("STATUS of a full node: %d %s", e.Code, e)
	}
	before := n.Tree()
	pod, stdin := add("10.0.0.4", redirect)
	out, err = n.RunPlugin(t.Context(), "ADD", pod, stdin)
	if err == nil {
		t.Fatal("ADD on a full node: no error")
	}
	if e := outputError(t, out); e.Code != codeFull || !strings.Contains(e.Msg, "maxEndpoints") {
		t.Errorf("ADD on a full node: %d %s", e.Code, e)
	}
	expect(t, "bpffs", n.Tree(), before)
	if out, err := n.RunPlugin(t.Context(), "STATUS", nil, pluginConf(n, "1.1.0", nil)); err != nil {
		t.Errorf("STATUS without redirect: %v: %s", err, out.Stdout)
	}
	plain, stdin := add("10.0.0.5", nil)
	mustRun(t, n, "ADD", plain, stdin)
	mustRun(t, n, "DEL", plain, stdin)
	// one goes, and one comes
	mustRun(t, n, "DEL", pods[0], conf)
	if out, err := n.RunPlugin(t.Context(), "STATUS", nil, conf); err != nil {
		t.Errorf("STATUS with room again: %v: %s", err, out.Stdout)
	}
}
