package tests

import (
	"context"
	"fmt"
	"io"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// Network is a CNI network of a node: a chain of plugins, run through libcni as container runtimes do. Plugins run in
// the node's network namespace, and errors are libcni's own, so errors.As finds a *types.Error of a plugin. It may be
// used concurrently, for different pods.
type Network struct {
	List *libcni.NetworkConfigList

	node *Node
	cni  *libcni.CNIConfig
}

// Network makes a network of a conflist; see [Conflist].
func (n *Node) Network(conflist string) (*Network, error) { return n.NetworkStderr(conflist, nil) }

// NetworkStderr is Network with a place for what plugins that succeed write to stderr.
func (n *Node) NetworkStderr(conflist string, stderr io.Writer) (*Network, error) {
	list, err := libcni.NetworkConfFromBytes([]byte(conflist))
	if err != nil {
		return nil, err
	}
	exec := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: stderr}, PluginDecoder: version.PluginDecoder{}}
	cni := libcni.NewCNIConfigWithCacheDir(n.Binaries.CNIPath(), n.CacheDir, exec)
	return &Network{List: list, node: n, cni: cni}, nil
}

// CallOption changes one call of a network.
type CallOption func(*libcni.RuntimeConf)

// Arg adds a key of CNI_ARGS.
func Arg(key, value string) CallOption {
	return func(rt *libcni.RuntimeConf) { rt.Args = append(rt.Args, [2]string{key, value}) }
}

// KubernetesArgs adds the CNI_ARGS that Kubernetes' runtimes give. An empty uid is left out.
func KubernetesArgs(namespace, name, uid string) CallOption {
	return func(rt *libcni.RuntimeConf) {
		rt.Args = append(rt.Args, [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", namespace},
			{"K8S_POD_NAME", name},
			{"K8S_POD_INFRA_CONTAINER_ID", rt.ContainerID},
		}...)
		if uid != "" {
			rt.Args = append(rt.Args, [2]string{"K8S_POD_UID", uid})
		}
	}
}

// Capability adds a capability argument ("portMappings"), which goes to the plugins that declare that capability.
func Capability(name string, value any) CallOption {
	return func(rt *libcni.RuntimeConf) {
		if rt.CapabilityArgs == nil {
			rt.CapabilityArgs = map[string]any{}
		}
		rt.CapabilityArgs[name] = value
	}
}

// WithoutNetNS leaves CNI_NETNS empty, as a runtime does on DEL when the pod's namespace is gone.
func WithoutNetNS() CallOption { return func(rt *libcni.RuntimeConf) { rt.NetNS = "" } }

func runtimeConf(pod *Pod, options []CallOption) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{ContainerID: pod.ContainerID, NetNS: pod.NetNS(), IfName: pod.IfName}
	for _, option := range options {
		option(rt)
	}
	return rt
}

// Add adds the pod to the network, and notes the result in the pod.
func (w *Network) Add(ctx context.Context, pod *Pod, options ...CallOption) (*current.Result, error) {
	var raw types.Result
	err := w.node.Do(func() (err error) {
		raw, err = w.cni.AddNetworkList(ctx, w.List, runtimeConf(pod, options))
		return err
	})
	if err != nil {
		return nil, err
	}
	result, err := current.NewResultFromResult(raw)
	if err != nil {
		return nil, fmt.Errorf("convert the result of ADD: %w", err)
	}
	pod.Result = result
	return result, nil
}

// Del deletes the pod from the network. As with all runtimes, libcni gives plugins the result of Add from its cache.
func (w *Network) Del(ctx context.Context, pod *Pod, options ...CallOption) error {
	return w.node.Do(func() error {
		return w.cni.DelNetworkList(ctx, w.List, runtimeConf(pod, options))
	})
}

// Check has the plugins check that the pod's attachment is as they made it.
func (w *Network) Check(ctx context.Context, pod *Pod, options ...CallOption) error {
	return w.node.Do(func() error {
		return w.cni.CheckNetworkList(ctx, w.List, runtimeConf(pod, options))
	})
}

// GC has all that is not of the given pods collected: libcni itself calls DEL for attachments it has cached, and GC on
// the plugins if the conflist's version is 1.1.0 or later.
func (w *Network) GC(ctx context.Context, valid ...*Pod) error {
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, pod := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: pod.ContainerID, IfName: pod.IfName})
	}
	return w.node.Do(func() error { return w.cni.GCNetworkList(ctx, w.List, args) })
}

// Status asks the plugins whether they are ready for ADD, if the conflist's version is 1.1.0 or later.
func (w *Network) Status(ctx context.Context) error {
	return w.node.Do(func() error { return w.cni.GetStatusNetworkList(ctx, w.List) })
}

// Validate has libcni check the conflist against the plugins: each is there and supports the version.
func (w *Network) Validate(ctx context.Context) error {
	return w.node.Do(func() error {
		_, err := w.cni.ValidateNetworkList(ctx, w.List)
		return err
	})
}
