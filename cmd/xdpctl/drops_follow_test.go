package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// play makes FollowDrops tell of events, with what happens between them, and then end.
func (n *fakeNode) play(steps ...any) {
	n.follow = func(_ context.Context, with func(datapath.DropEvent) error) error {
		for _, step := range steps {
			switch step := step.(type) {
			case func():
				step()
			case datapath.DropEvent:
				if err := with(step); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// ruleDrop is a drop at a host end by a rule of a generation, so long after made.
func ruleDrop(index, rule int, generation uint32, after time.Duration) datapath.DropEvent {
	return datapath.DropEvent{Time: made.Add(after), HostIndex: index, Reason: bpf.DatapathDropReasonDROP_RULE, Rule: rule, Generation: generation}
}

// followed runs drops --follow, and returns the pod and rule of each line.
func (n *fakeNode) followed(args ...string) string {
	n.Helper()
	status, stdout, stderr := n.xdpctl(n.Context(), append([]string{"drops", "--follow", "-o", "json"}, args...)...)
	if status != 0 || stderr != "" {
		n.Errorf("status %d: %s", status, stderr)
	}
	var told []string
	for line := range strings.Lines(stdout) {
		var r dropReport
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			n.Fatal(err)
		}
		told = append(told, fmt.Sprintf("%s/%d:%s", r.Pod.Name, r.HostInterface.Index, r.RuleName))
	}
	return strings.Join(told, " ")
}

// TestFollowPods: those asked for alone, by any of their names.
func TestFollowPods(t *testing.T) {
	for args, want := range map[string]string{
		"":                       "client/10:no-http server/12:no-http /13: /99:",
		"demo/server":            "server/12:no-http",
		"veth11111111 10.88.0.3": "client/10:no-http server/12:no-http",
		"77bb":                   "/13:",
	} {
		n := newFakeNode(t)
		n.play(ruleDrop(10, 2, 7, 0), ruleDrop(12, 2, 7, 0), ruleDrop(13, 2, 7, 0), ruleDrop(99, 2, 7, 0))
		if have := n.followed(strings.Fields(args)...); have != want {
			t.Errorf("%s: %s, want %s", args, have, want)
		}
	}
}

// TestFollowComesAndGoes: pods that are made while it runs are known, and those that take their name.
func TestFollowComesAndGoes(t *testing.T) {
	n := newFakeNode(t)
	server := n.at("veth22222222")
	again := *server.Meta
	again.ContainerID, again.HostName, again.HostIndex = "77cc0000", "veth44444444", 14
	n.play(
		ruleDrop(14, 2, 7, 0), // not there yet
		func() {
			n.remove(server)
			n.add(datapath.Attachment{ID: "again", Meta: &again})
			n.policies["again"] = samplePolicy()
		},
		ruleDrop(14, 2, 7, 2*lookAgain),
		ruleDrop(12, 2, 7, 2*lookAgain), // its last packets, told of late
		ruleDrop(10, 2, 7, 2*lookAgain),
	)
	if have, want := n.followed("demo/server"), "server/14:no-http"; have != want {
		t.Errorf("%s, want %s", have, want)
	}
}

// TestFollowMadeAnew: an attachment that was made anew with the same host end begins its generations again.
func TestFollowMadeAnew(t *testing.T) {
	n := newFakeNode(t)
	n.play(
		ruleDrop(10, 0, 7, 0),
		func() {
			client := n.at("veth11111111")
			again := *client.Meta
			again.Created = made.Add(time.Second)
			n.remove(client)
			n.add(datapath.Attachment{ID: client.ID, Meta: &again})
			n.policies[client.ID] = &datapath.PolicyState{Generation: 7, Rules: make([]datapath.RuleStats, 1),
				Source: []byte(`{"rules":[{"name":"new","direction":"egress","action":"deny"}]}`)}
		},
		ruleDrop(10, 0, 7, forgetAfter),
	)
	if have, want := n.followed(), "client/10:dns client/10:new"; have != want {
		t.Errorf("%s, want %s", have, want)
	}
}

// TestFollowUnknownIsCheap: for a flood of packets of what is not there, the node is not read each time.
func TestFollowUnknownIsCheap(t *testing.T) {
	for name, event := range map[string]datapath.DropEvent{
		"a filter long gone": ruleDrop(10, 2, 3, 0),
		"a pod long gone":    ruleDrop(99, 2, 7, 0),
	} {
		n := newFakeNode(t)
		var steps []any
		for i := range 1000 {
			event.Time = made.Add(time.Duration(i) * lookAgain / 1000)
			steps = append(steps, event)
		}
		n.play(steps...)
		if have := n.followed(); strings.Count(have, ":") != 1000 || strings.Contains(have, "no-http") {
			t.Errorf("%s: %s", name, have)
		}
		if len(n.calls) > 4 {
			t.Errorf("%s: the node was read %d times", name, len(n.calls))
		}
	}
}

// TestFollowGenerations: a rule has the name that it had in the filter that dropped the packet.
func TestFollowGenerations(t *testing.T) {
	n := newFakeNode(t)
	client := n.at("veth11111111").ID
	n.play(
		ruleDrop(10, 0, 7, 0),
		func() {
			n.policies[client] = &datapath.PolicyState{Generation: 8, Rules: make([]datapath.RuleStats, 1),
				Source: []byte(`{"rules":[{"name":"new","direction":"egress","action":"deny"}]}`)}
		},
		ruleDrop(10, 0, 8, 2*lookAgain),
		ruleDrop(10, 0, 7, 2*lookAgain), // told of late
		ruleDrop(10, 1, 8, 2*lookAgain), // there is no such rule
		ruleDrop(10, 0, 6, 4*lookAgain), // from before it was followed
		ruleDrop(99, 0, 7, 4*lookAgain), // the pods are read again
		ruleDrop(10, 0, 7, 4*lookAgain),
	)
	if have, want := n.followed(), "client/10:dns client/10:new client/10:dns client/10: client/10: /99: client/10:dns"; have != want {
		t.Errorf("%s, want %s", have, want)
	}
}

// TestFollowEnds: however it ends as it should, there is no error.
func TestFollowEnds(t *testing.T) {
	n := newFakeNode(t)
	n.play(ruleDrop(10, 2, 7, 0), ruleDrop(10, 2, 7, 0), ruleDrop(10, 2, 7, 0))
	if have := n.followed("--count", "2"); strings.Count(have, "client") != 2 {
		t.Errorf("after 2: %s", have)
	}

	ctx, cancel := context.WithCancel(t.Context())
	n.follow = func(ctx context.Context, _ func(datapath.DropEvent) error) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}
	if status, stdout, stderr := n.xdpctl(ctx, "drops", "--follow"); status != 0 || stdout != "" || stderr != "" {
		t.Errorf("interrupted: status %d, %q, %q", status, stdout, stderr)
	}

	for _, test := range []struct {
		err  error
		want string
	}{
		{pins.ErrBusy, "another process follows the drops of this node"},
		{errors.New("torn"), "xdpctl: torn\n"},
	} {
		n.follow = func(context.Context, func(datapath.DropEvent) error) error { return test.err }
		if status, _, stderr := n.xdpctl(t.Context(), "drops", "--follow"); status != exitFailure || !strings.Contains(stderr, test.want) {
			t.Errorf("%v: status %d, %q", test.err, status, stderr)
		}
	}
	n.follow = func(context.Context, func(datapath.DropEvent) error) error { return fs.ErrNotExist }
	n.attachments = nil
	if status, _, stderr := n.xdpctl(t.Context(), "drops", "--follow"); status != exitFailure || !strings.Contains(stderr, "there are no attachments under") {
		t.Errorf("nothing there: status %d, %q", status, stderr)
	}
	if status, _, stderr := n.xdpctl(t.Context(), "drops", "--follow", "demo/serve"); status != exitFailure || !strings.Contains(stderr, "no pod is known") {
		t.Errorf("unknown pod: status %d, %q", status, stderr)
	}
}

// TestFollowWaits: when the last pod has gone, it waits for the next one.
func TestFollowWaits(t *testing.T) {
	n := newFakeNode(t)
	calls := 0
	n.follow = func(_ context.Context, with func(datapath.DropEvent) error) error {
		if calls++; calls < 3 {
			return fs.ErrNotExist
		}
		return with(ruleDrop(10, 2, 7, 0))
	}
	status, stdout, stderr := n.xdpctl(t.Context(), "drops", "--follow", "--count", "1")
	if status != 0 || strings.Count(stdout, "no-http") != 1 || stderr != "The last attachment has gone; waiting for others.\n" {
		t.Errorf("status %d, %q, %q", status, stdout, stderr)
	}

	ctx, cancel := context.WithCancel(t.Context())
	n.follow = func(context.Context, func(datapath.DropEvent) error) error {
		cancel()
		return fs.ErrNotExist
	}
	if status, _, stderr := n.xdpctl(ctx, "drops", "--follow"); status != 0 {
		t.Errorf("interrupted while it waits: status %d, %q", status, stderr)
	}
}

// TestFollowUnread: when its reader has gone it ends, without a packet as with one.
func TestFollowUnread(t *testing.T) {
	n := newFakeNode(t)
	for name, source := range map[string]func(context.Context, func(datapath.DropEvent) error) error{
		"no packet": func(ctx context.Context, _ func(datapath.DropEvent) error) error {
			<-ctx.Done()
			return nil
		},
		"packet": func(_ context.Context, with func(datapath.DropEvent) error) error {
			return with(ruleDrop(10, 2, 7, 0))
		},
	} {
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		n.follow = source
		o := newOptions(streams{out: write, err: io.Discard})
		o.filters = func() filters { return n }
		_ = read.Close()
		if err := (&follow{o: o}).run(t.Context(), nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		_ = write.Close()
	}
}
