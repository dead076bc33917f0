package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
)

// Size of the churn.
const (
	churnCycles  = 500
	churnWorkers = 8
)

// TestChurn adds and deletes attachments, several at a time and in all modes, while GC runs again
// and again; one ADD in four and one DEL in eight is killed at a random moment, and what it left is
// taken over by the next. A pod stays throughout, so that what the others share is never made anew
// and would show a leak.
func TestChurn(t *testing.T) {
	n := start(t, tests.WithoutIPv6())
	resident, _, prev := vethPod(t, n, "resident", "1.1.0")
	mustRun(t, n, "ADD", resident, pluginConf(n, "1.1.0", prev))
	for _, mode := range []string{"native", "tcx"} { // loads the programs of all modes
		pod, _, prev := vethPod(t, n, mode, "1.1.0")
		stdin := pluginConf(n, "1.1.0", prev, tests.Conf{"mode": mode})
		mustRun(t, n, "ADD", pod, stdin)
		mustRun(t, n, "DEL", pod, stdin)
	}
	before := tests.MustObjects(t)
	slots := takenSlots(t, n)
	began := time.Now()
	mustRun(t, n, "CHECK", resident, pluginConf(n, "1.1.0", prev))
	killWithin := 3 * time.Since(began) // an ADD takes a little longer than a CHECK

	random := rand.New(rand.NewPCG(1, 2))
	seeds := make([]uint64, churnWorkers)
	for i := range seeds {
		seeds[i] = random.Uint64()
	}
	var (
		workers sync.WaitGroup
		mu      sync.Mutex
		killed  int
		errs    []error
	)
	for i := range churnWorkers {
		pod, _, prev := vethPod(t, n, fmt.Sprintf("churn%d", i), "1.1.0")
		workers.Go(func() {
			random := rand.New(rand.NewPCG(seeds[i], 0))
			kills, err := churn(t, n, pod, prev, random, churnCycles/churnWorkers+1, killWithin)
			mu.Lock()
			defer mu.Unlock()
			killed += kills
			errs = append(errs, err)
		})
	}
	stop := make(chan struct{})
	var collector sync.WaitGroup
	collector.Go(func() {
		for {
			select {
			case <-stop:
				return
			default: // without a list: nothing alive may go
				out, err := n.RunPlugin(t.Context(), "GC", nil, pluginConf(n, "1.1.0", nil))
				if err != nil && outputError(t, out).Code != types.ErrTryAgainLater {
					t.Errorf("GC: %v: %s", err, out.Stdout)
				}
			}
		}
	})
	workers.Wait()
	close(stop)
	collector.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	if killed == 0 {
		t.Error("no process was killed before it was done")
	}
	if now := takenSlots(t, n); now != slots {
		t.Errorf("%d slots are taken after the churn, %d were before", now, slots)
	}
	t.Logf("%d of %d cycles, %d processes killed", churnWorkers*(churnCycles/churnWorkers+1), churnCycles, killed)
	if out, err := n.RunPlugin(t.Context(), "CHECK", resident, pluginConf(n, "1.1.0", prev)); err != nil {
		t.Errorf("CHECK of the pod that stayed: %v: %s", err, out.Stdout)
	}
	if err := tests.WaitNoNew(t.Context(), before, tests.Patience(15*time.Second)); err != nil {
		t.Errorf("after the churn: %v", err)
	}
	mustRun(t, n, "DEL", resident, pluginConf(n, "1.1.0", nil))
	if tree := n.Tree(); len(tree) > 0 {
		t.Errorf("left in bpffs: %v", tree)
	}
}

func takenSlots(t *testing.T, n *tests.Node) (taken int) {
	t.Helper()
	err := n.Do(func() error {
		info, err := datapath.New(datapath.Options{Root: pins.NewRoot(n.BPFFS)}).NodeInfo()
		if err == nil {
			taken = info.Taken
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return taken
}

func mustRun(t *testing.T, n *tests.Node, command string, pod *tests.Pod, stdin string) {
	t.Helper()
	if out, err := n.RunPlugin(t.Context(), command, pod, stdin); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out.Stdout)
	}
}

// churn runs cycles of ADD, CHECK and DEL on one pod and returns how many processes it killed, each
// within that time of its start.
func churn(t *testing.T, n *tests.Node, pod *tests.Pod, prev any, random *rand.Rand, cycles int, within time.Duration) (killed int, err error) {
	modes := []string{"generic", "native", "tcx"}
	for range cycles {
		stdin := pluginConf(n, "1.1.0", prev, tests.Conf{"mode": modes[random.IntN(len(modes))], "stats": tests.Conf{"peers": 16}})
		kill := random.IntN(4) == 0
		wasKilled, err := runMaybeKilled(n, n.PluginCommand(t.Context(), "ADD", pod, stdin), kill, random, within)
		if err != nil {
			return killed, fmt.Errorf("ADD: %w", err)
		}
		if wasKilled {
			killed++
			if random.IntN(2) == 0 {
				// as a runtime that tries again, with no DEL between
				if _, err := runMaybeKilled(n, n.PluginCommand(t.Context(), "ADD", pod, stdin), false, random, within); err != nil {
					return killed, fmt.Errorf("ADD after a killed ADD: %w", err)
				}
				wasKilled = false
			}
		}
		if !wasKilled {
			if _, err := runMaybeKilled(n, n.PluginCommand(t.Context(), "CHECK", pod, stdin), false, random, within); err != nil {
				return killed, fmt.Errorf("CHECK: %w", err)
			}
		}
		wasKilled, err = runMaybeKilled(n, n.PluginCommand(t.Context(), "DEL", pod, stdin), random.IntN(8) == 0, random, within)
		if err != nil {
			return killed, fmt.Errorf("DEL: %w", err)
		}
		if wasKilled {
			killed++
			if _, err := runMaybeKilled(n, n.PluginCommand(t.Context(), "DEL", pod, stdin), false, random, within); err != nil {
				return killed, fmt.Errorf("DEL after a killed DEL: %w", err)
			}
		}
	}
	return killed, nil
}

// runMaybeKilled runs the plugin and tells whether it was killed before it was done.
func runMaybeKilled(n *tests.Node, cmd *exec.Cmd, kill bool, random *rand.Rand, within time.Duration) (bool, error) {
	if !kill {
		out, err := n.Run(cmd)
		if err != nil {
			return false, fmt.Errorf("%w: %s", err, out.Stdout)
		}
		return false, nil
	}
	if err := n.Start(cmd); err != nil {
		return false, err
	}
	time.Sleep(time.Duration(random.Int64N(int64(within))))
	_ = cmd.Process.Kill()
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true, nil
	}
	return false, err
}

// TestParallelAdds runs 16 ADDs at once on a fresh node, as a kubelet that starts: all succeed.
func TestParallelAdds(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := start(t, tests.WithoutIPv6())
			// with a MAC of its own: one that has none takes that of a port to come, and the bridge plugin's CHECK
			// compares it with what it was at ADD
			if err := n.Do(func() error {
				return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{
					Name: "cni0", HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
				}})
			}); err != nil {
				t.Fatal(err)
			}
			w := tests.MustNetwork(t, n, tests.Conflist("net", "1.1.0", n.Bridge(tests.IPv4), n.XDP(tests.Conf{"mode": mode})))
			var (
				wait sync.WaitGroup
				pods []*tests.Pod
				errs = make([]error, 16)
			)
			for i := range errs {
				pods = append(pods, tests.MustPod(t, n, fmt.Sprintf("p%d", i)))
			}
			for i, pod := range pods {
				wait.Go(func() { _, errs[i] = w.Add(t.Context(), pod) })
			}
			wait.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			for i, pod := range pods {
				if err := w.Check(t.Context(), pod); err != nil {
					t.Errorf("CHECK: %v", err)
				}
				if i > 0 {
					if err := tests.Ping(t.Context(), pod, pods[0].IPv4(), 2); err != nil {
						t.Error(err)
					}
				}
			}
			for i, pod := range pods {
				wait.Go(func() { errs[i] = w.Del(t.Context(), pod) })
			}
			wait.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSameAttachmentAtOnce: ADDs and DELs of one attachment at the same time end in one of the
// states that an order of them could end in, and at worst say "try again later".
func TestSameAttachmentAtOnce(t *testing.T) {
	n := start(t, tests.WithoutIPv6())
	pod, _, prev := vethPod(t, n, "pod", "1.1.0")
	stdin := pluginConf(n, "1.1.0", prev, tests.Conf{"mode": "tcx"})
	for range 10 {
		var wait sync.WaitGroup
		for _, command := range []string{"ADD", "DEL", "ADD", "DEL"} {
			wait.Go(func() {
				out, err := n.RunPlugin(t.Context(), command, pod, stdin)
				if err != nil && outputError(t, out).Code != types.ErrTryAgainLater {
					t.Errorf("%s: %s", command, out.Stdout)
				}
			})
		}
		wait.Wait()
		mustRun(t, n, "ADD", pod, stdin)
		mustRun(t, n, "CHECK", pod, stdin)
		mustRun(t, n, "DEL", pod, stdin)
		if tree := n.Tree(); len(tree) > 0 {
			t.Fatalf("left in bpffs: %v", tree)
		}
	}
}
