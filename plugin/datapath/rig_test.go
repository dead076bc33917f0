package datapath_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/internal/ethtool"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/tests"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

func TestMain(m *testing.M) {
	if step := os.Getenv(envKillStep); step != "" {
		runAndDie(step)
	}
	tests.Main(m)
}

// settle is how long the kernel may take to free what nobody refers to any more.
var settle = tests.Patience(10 * time.Second)

// rig is a node with a pod whose veth no plugin made.
type rig struct {
	t    *testing.T
	node *tests.Node
	pod  *tests.Pod
	veth *tests.Veth
	opts datapath.AttachOptions
	// features of the kernel as the datapath is told; nil: as they are
	features *datapath.Features
	// release whose plugin is run; "": this one
	release string
	// redirect of pods to come, and what makes those fit where it takes a program
	redirect *datapath.Redirect
	passAll  *ebpf.Program
	pods     byte
}

func newRig(t *testing.T, mode datapath.Mode, veth tests.VethOptions, options ...tests.NodeOption) *rig {
	t.Helper()
	priv.Root(t)
	r := &rig{t: t, node: tests.MustNode(t, options...)}
	// before the node is closed, so that what is left is noticed as what it is
	r.pod, r.veth, r.opts = r.newPod("pod", mode, veth)
	return r
}

func (r *rig) newPod(name string, mode datapath.Mode, options tests.VethOptions) (*tests.Pod, *tests.Veth, datapath.AttachOptions) {
	r.t.Helper()
	r.pods++
	pod := tests.MustPod(r.t, r.node, name)
	veth, err := tests.MakeVeth(r.t.Context(), r.node, pod, options)
	if err != nil {
		r.t.Fatal(err)
	}
	if r.redirect != nil {
		r.makeFit(pod, mode)
	}
	return pod, veth, datapath.AttachOptions{
		ContainerID: pod.ContainerID, IfName: pod.IfName, Netns: pod.NetNS(), Network: "net",
		PodNamespace: "default", PodName: name, PodUID: "uid-1",
		HostName: veth.HostName, HostIndex: veth.HostIndex, PodIndex: veth.PodIndex, PodMAC: veth.PodMAC,
		PodTxQueues: max(options.Queues, 1),
		Addresses: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1 + r.pods}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 15: 1 + r.pods}), 64),
		},
		Mode: mode, Peers: 64, PodMTU: 1500, Redirect: r.redirect,
	}
}

// kernel is the features of this kernel.
var kernel = sync.OnceValue(func() datapath.Features {
	f, err := datapath.ProbeFeatures()
	if err != nil {
		panic(err)
	}
	return f
})

// tcx tells whether the datapath hooks tc by tcx links, rather than by clsact filters.
func (r *rig) tcx() bool {
	if r.features != nil {
		return r.features.TCX
	}
	return kernel().TCX
}

// do runs fn with a datapath in the node's network namespace.
func (r *rig) do(fn func(*datapath.Datapath) error, change ...func(*datapath.Options)) error {
	r.t.Helper()
	opts := datapath.Options{
		Root: pins.NewRoot(r.node.BPFFS), Version: "test", Features: r.features, LockTimeout: 5 * time.Second,
	}
	for _, c := range change {
		c(&opts)
	}
	if r.release != "" {
		opts.Version = r.release
	}
	return r.node.Do(func() error { return fn(newDatapath(opts)) })
}

func (r *rig) attach(opts datapath.AttachOptions, change ...func(*datapath.Options)) error {
	r.t.Helper()
	return r.do(func(d *datapath.Datapath) error { return d.Attach(context.Background(), opts) }, change...)
}

func (r *rig) mustAttach(opts datapath.AttachOptions) {
	r.t.Helper()
	if err := r.attach(opts); err != nil {
		r.t.Fatalf("attach: %v", err)
	}
}

func (r *rig) detach(opts datapath.AttachOptions) error {
	r.t.Helper()
	return r.do(func(d *datapath.Datapath) error { return d.Detach(context.Background(), opts.ContainerID, opts.IfName) })
}

func (r *rig) mustDetach(opts datapath.AttachOptions) {
	r.t.Helper()
	if err := r.detach(opts); err != nil {
		r.t.Errorf("detach: %v", err)
	}
}

func (r *rig) check(opts datapath.AttachOptions) error {
	r.t.Helper()
	return r.do(func(d *datapath.Datapath) error { return d.Check(context.Background(), opts) })
}

// hostState is what a host end shows of attachments.
type hostState struct {
	xdp      bool
	tcx      int // programs at both hooks
	qdiscs   []string
	gro      bool
	rxQueues uint32
}

func (r *rig) hostState(name string) hostState {
	r.t.Helper()
	var s hostState
	err := r.node.Do(func() error {
		host, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		s.xdp = host.Attrs().Xdp != nil && host.Attrs().Xdp.Attached
		for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			s.tcx += len(tcxPrograms(r.t, host.Attrs().Index, hook))
		}
		qdiscs, err := netlink.QdiscList(host)
		if err != nil {
			return err
		}
		for _, q := range qdiscs {
			s.qdiscs = append(s.qdiscs, q.Type())
		}
		slices.Sort(s.qdiscs)
		if s.gro, err = ethtool.GRO(name); err != nil {
			return err
		}
		s.rxQueues, err = rxQueues(name)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// rxQueues returns how many RX queues a veth uses. Below kernel 5.14 that is as many as it has, and
// it does not say (EOPNOTSUPP): 0.
func rxQueues(name string) (uint32, error) {
	channels, err := ethtool.GetChannels(name)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return 0, nil
	}
	return channels.Rx, err
}

func (s hostState) equal(o hostState) bool {
	return s.xdp == o.xdp && s.tcx == o.tcx && slices.Equal(s.qdiscs, o.qdiscs) && s.gro == o.gro && s.rxQueues == o.rxQueues
}

// world is all that an operation that fails must leave as it was.
type world struct {
	tree    []string
	objects tests.Snapshot
	host    hostState
	pod     podState
	direct  []string
}

func (r *rig) world() world {
	r.t.Helper()
	return world{r.node.Tree(), tests.MustObjects(r.t), r.hostState(r.veth.HostName), r.podState(), r.directEntries()}
}

func (r *rig) expectUnchanged(before world) {
	r.t.Helper()
	if after := r.node.Tree(); !slices.Equal(before.tree, after) {
		r.t.Errorf("the bpffs tree was\n  %s\nand is\n  %s", strings.Join(before.tree, "\n  "), strings.Join(after, "\n  "))
	}
	if after := r.hostState(r.veth.HostName); !before.host.equal(after) {
		r.t.Errorf("the host end was %+v and is %+v", before.host, after)
	}
	expectSame(r.t, "the pod's end", before.pod, r.podState())
	expectSame(r.t, "the entries for redirect", before.direct, r.directEntries())
	if err := tests.WaitNoNew(context.Background(), before.objects, settle); err != nil {
		r.t.Error(err)
	}
}

func expectSame[T any](t *testing.T, what string, before, after T) {
	t.Helper()
	if !reflect.DeepEqual(before, after) {
		t.Errorf("%s: was\n  %+v\nand is\n  %+v", what, before, after)
	}
}

// variant is a mode and a kernel that attachments differ by, and whether they have a filter and redirect.
type variant struct {
	name     string
	mode     datapath.Mode
	features *datapath.Features
	filter   bool
	redirect bool
	programs bool
}

var allVariants = []variant{
	{"generic", datapath.ModeGeneric, nil, false, false, false},
	{"native", datapath.ModeNative, nil, false, false, false},
	{"tcx", datapath.ModeTCX, nil, false, false, false},
	{"generic with clsact", datapath.ModeGeneric, &datapath.Features{XDPFrags: true}, false, false, false},
	{"native without frags, with clsact", datapath.ModeNative, &datapath.Features{}, true, false, false},
	{"clsact", datapath.ModeTCX, &datapath.Features{}, false, false, false},
	{"generic with a filter", datapath.ModeGeneric, nil, true, false, false},
	{"native with redirect", datapath.ModeNative, nil, false, true, false},
	{"tcx with redirect", datapath.ModeTCX, nil, true, true, false},
	{"generic with programs", datapath.ModeGeneric, nil, false, false, true},
	{"native with redirect and programs", datapath.ModeNative, nil, true, true, true},
	{"tcx with redirect and programs", datapath.ModeTCX, nil, true, true, true},
}

// variants are all that this kernel has: tc programs take tcx, and are refused without, as TestTCProgramsNeedTCX shows.
func variants(t *testing.T) []variant {
	t.Helper()
	priv.Root(t) // to know what the kernel has takes it too
	if kernel().TCX {
		return allVariants
	}
	return slices.DeleteFunc(slices.Clone(allVariants), func(v variant) bool { return v.programs && v.mode == datapath.ModeTCX })
}

func newVariantRig(t *testing.T, v variant, veth tests.VethOptions, options ...tests.NodeOption) *rig {
	t.Helper()
	r := newRig(t, v.mode, veth, options...)
	r.features = v.features
	if v.filter {
		r.opts.Policy = mustPolicy(t, someFilter)
	}
	if v.redirect {
		r.withRedirect(someRedirect)
	}
	if v.programs {
		r.opts.Programs = somePrograms(t, v.mode)
	}
	return r
}

// eachVariant runs test as a subtest of each; veth ends have two queues, of which the host end
// uses one, so that native mode has something to change.
func eachVariant(t *testing.T, test func(t *testing.T, r *rig)) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			r := newVariantRig(t, v, tests.VethOptions{Queues: 2})
			err := r.node.Do(func() error {
				channels, err := ethtool.GetChannels(r.veth.HostName)
				if errors.Is(err, unix.EOPNOTSUPP) {
					return nil // below kernel 5.14 a veth uses all
				}
				if err != nil {
					return err
				}
				channels.Rx = 1
				return ethtool.SetChannels(r.veth.HostName, channels)
			})
			if err != nil {
				t.Fatal(err)
			}
			test(t, r)
		})
	}
}

var vethDefault tests.VethOptions

var errInjected = errors.New("injected")

// stepsOf returns the names of the steps that an attach of these options goes through.
func (r *rig) stepsOf(opts datapath.AttachOptions) []string {
	r.t.Helper()
	var steps []string
	err := r.attach(opts, func(o *datapath.Options) {
		o.BeforeStep = func(step string) error { steps = append(steps, step); return nil }
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.detach(opts); err != nil {
		r.t.Fatal(err)
	}
	if len(steps) < 5 {
		r.t.Fatalf("only steps %v", steps)
	}
	return steps
}

// Environment of a child process of the test that attaches, or replaces a policy, and kills itself at a step.
const (
	envKillStep = "XDP_CNI_TEST_KILL_STEP"
	envChild    = "XDP_CNI_TEST_CHILD"
)

// attachKilled attaches in a process that is killed before the step.
func (r *rig) attachKilled(opts datapath.AttachOptions, step string) {
	r.t.Helper()
	r.runKilled(child{Options: opts}, step)
}

// replaceKilled replaces the policy of an attachment in a process that is killed before the step.
func (r *rig) replaceKilled(opts datapath.AttachOptions, step string) {
	r.t.Helper()
	r.runKilled(child{Options: opts, Replace: true}, step)
}

func (r *rig) runKilled(c child, step string) {
	r.t.Helper()
	c.BPFFS, c.Features, c.Release = r.node.BPFFS, r.features, r.release
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envKillStep+"="+step, envChild+"="+c.encode(r.t))
	out, err := r.node.Run(cmd)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		r.t.Fatalf("child that should be killed at %q: %v\n%s", step, err, out.Stderr)
	}
}
