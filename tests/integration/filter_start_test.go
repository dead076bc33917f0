package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// denyAll drops everything, by the defaults.
const denyAll = `{"antiSpoof":false,"allowHost":false,"default":{"egress":"deny","ingress":"deny"}}`

// flood sends numbered frames to all, as fast as the test can follow, from before there is an interface to send from.
type flood struct {
	last  atomic.Uint64 // number of the last frame that was sent
	size  uint64
	ended chan error
}

// mark is what frames of a flood end with.
var mark = []byte("a frame that no filter lets through")

func (f *flood) run(ctx context.Context, from *tests.Pod) {
	frame := packets.Frame(packets.Ethernet{Dst: packets.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
		packets.IPv4{}, packets.UDP{SrcPort: 1, DstPort: 2}, packets.Payload(append(make([]byte, 8), mark...)))
	f.size = uint64(len(frame))
	f.ended = make(chan error, 1)
	go func() {
		var sender *tests.Sender
		for ctx.Err() == nil {
			if sender == nil {
				sender, _ = tests.NewSender(from, from.IfName) // until there is one
				continue
			}
			binary.BigEndian.PutUint64(frame[len(frame)-len(mark)-8:], f.last.Load()+1)
			if sender.Send(frame) == nil { // else it is not up
				f.last.Add(1)
			}
			time.Sleep(50 * time.Microsecond)
		}
		if sender != nil {
			_ = sender.Close()
		}
		f.ended <- nil
	}()
}

// numbers are those of the frames that arrive at a pod until ctx is done.
func (f *flood) numbers(ctx context.Context, at *tests.Pod) (<-chan []uint64, error) {
	capture, err := tests.NewCapture(at, "", func(frame []byte) bool { return bytes.HasSuffix(frame, mark) })
	if err != nil {
		return nil, err
	}
	result := make(chan []uint64, 1)
	go func() {
		defer capture.Close()
		var numbers []uint64
		for {
			frame, err := capture.Next(context.Background(), silence)
			if err == nil {
				numbers = append(numbers, binary.BigEndian.Uint64(frame[len(frame)-len(mark)-8:]))
			} else if ctx.Err() != nil {
				result <- numbers
				return
			}
		}
	}()
	return result, nil
}

// TestFilterFromFirstPacket has somebody send all the while that a pod is added: there is one moment from which nothing
// passes that the filter denies, and that is before ADD returns. All that is sent from then on is counted.
func TestFilterFromFirstPacket(t *testing.T) {
	for _, mode := range []string{"generic", "native", "tcx"} {
		for _, direction := range []string{"egress", "ingress"} {
			t.Run(mode+" "+direction, func(t *testing.T) { firstPackets(t, mode, direction) })
		}
	}
}

func firstPackets(t *testing.T, mode, direction string) {
	n := start(t, tests.WithoutIPv6())
	r := &filterRig{Node: n, t: t, pod: tests.MustPod(t, n, "pod"), peer: tests.MustPod(t, n, "peer"), datapath: newDatapath(n)}
	r.network = tests.MustNetwork(t, n, tests.Conflist("net", "1.1.0", n.Bridge(tests.IPv4),
		n.XDP(tests.Conf{"mode": mode, "capabilities": tests.Conf{"xdpFilter": true}})))
	tests.MustAdd(t, r.network, r.peer)
	from, at := r.pod, r.peer
	if direction == "ingress" {
		from, at = r.peer, r.pod
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var f flood
	arrived, err := f.numbers(ctx, at)
	if err != nil {
		t.Fatal(err)
	}
	f.run(ctx, from)
	tests.MustAdd(t, r.network, r.pod, xdpFilter(denyAll))
	added := f.last.Load()
	for deadline := time.Now().Add(patience); f.last.Load() < added+100 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	stop()
	<-f.ended
	numbers := <-arrived
	sent := f.last.Load()
	if sent < added+100 {
		t.Fatalf("%d frames were sent after ADD", sent-added)
	}
	if len(numbers) == 0 {
		t.Log("nothing was sent before the filter was in force")
		numbers = []uint64{0}
	}
	slices.Sort(numbers)
	first, last := numbers[0], numbers[len(numbers)-1]
	gaps := 0
	for i := range numbers[1:] {
		if numbers[i+1] != numbers[i]+1 {
			gaps++
		}
	}
	// to add a clsact qdisc the kernel lets nothing out of the interface for a moment: dev_deactivate() in qdisc_graft()
	if gaps > 1 || gaps > 0 && (direction == "egress" || haveTCX(t)) {
		t.Errorf("%d frames passed, from number %d to %d: some were dropped before", len(numbers), first, last)
	}
	if last > added {
		t.Errorf("frame %d passed, and ADD had returned after frame %d", last, added)
	}
	eventually(t, func() error {
		have, err := r.decided()
		dropped := have[direction+" default"]
		if err == nil && dropped != times(sent-last, f.size) {
			err = fmt.Errorf("the filter dropped %v, want all of %d frames behind the first %d", have, sent, last)
		}
		return err
	})
	t.Logf("%d frames passed before the filter was in force, and %d of %d were sent before ADD returned", len(numbers), added, sent)
}

// TestFilterFailsClosed runs ADD of a pod with a filter with fewer open files than that takes, so that it fails at one
// map after the other: the pod is not added then, and nothing is left but, where that takes an open file too, what was
// prepared, of which the next ADD disposes.
func TestFilterFailsClosed(t *testing.T) {
	const first, most = 20, 200 // with fewer not even the runtime of Go starts
	n := start(t, tests.WithoutIPv6())
	filter := tests.Conf{"filter": map[string]any{"default": map[string]any{"ingress": "deny"}}}
	resident, _, prev := vethPod(t, n, "resident", "1.1.0") // so that what the node has is there
	mustRun(t, n, "ADD", resident, pluginConf(n, "1.1.0", prev, filter))
	pod, veth, prev := vethPod(t, n, "pod", "1.1.0")
	published := func() []string {
		return slices.DeleteFunc(n.Tree(), func(path string) bool { return strings.Contains(path, "/staging/") })
	}
	stdin, before := pluginConf(n, "1.1.0", prev, filter), published()
	failures := map[string]bool{}
	limit := first
	for ; limit < most; limit++ {
		cmd := n.PluginCommand(t.Context(), "ADD", pod, stdin)
		cmd.Args = []string{"sh", "-c", `ulimit -n "$0" && exec "$1"`, strconv.Itoa(limit), cmd.Path}
		cmd.Path = "/bin/sh"
		out, err := n.Run(cmd)
		if err == nil {
			break
		}
		failures[outputError(t, out).Msg] = true
		expect(t, "bpffs", published(), before)
		if hostLinkXDP(n, veth.HostName) {
			t.Errorf("%d open files: the interface runs an XDP program", limit)
		}
	}
	t.Logf("ADD succeeded with %d open files; with fewer: %v", limit, failures)
	for _, name := range []string{"flows", "words", "prefixes", "rule_counters"} {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(failures)), func(message string) bool {
			return strings.Contains(message, "making map "+name+":")
		}) {
			t.Errorf("no ADD failed at %s: this tests little", name)
		}
	}
	mustRun(t, n, "CHECK", pod, stdin)
	for _, p := range []*tests.Pod{pod, resident} {
		mustRun(t, n, "DEL", p, pluginConf(n, "1.1.0", nil))
	}
}
