// Package cri is a small client of the Container Runtime Interface, with what kubelet does to pods, and no more.
package cri

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Client is a connection to a runtime.
type Client struct {
	// CgroupParent is where pods have their cgroups. Logs is a directory for what containers write.
	CgroupParent, Logs string

	conn    *grpc.ClientConn
	runtime api.RuntimeServiceClient
}

// Dial makes a client of the runtime that serves, or will serve, at a Unix socket.
func Dial(socket string) (*Client, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &Client{conn: conn, runtime: api.NewRuntimeServiceClient(conn)}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Pod says what a pod is to be. The zero values of all but Name are those of an ordinary pod.
type Pod struct {
	Namespace, Name, UID string
	Attempt              uint32 // kubelet counts the sandboxes of a pod; its containers here have the same
	Annotations          map[string]string
	Ports                []Port
	HostNetwork          bool
}

// Port is a port of the node that leads to one of the pod.
type Port struct {
	Host, Container int32
	UDP             bool
}

func (c *Client) sandbox(p Pod) *api.PodSandboxConfig {
	namespaces := &api.NamespaceOption{}
	if p.HostNetwork {
		namespaces.Network = api.NamespaceMode_NODE
	}
	config := &api.PodSandboxConfig{
		Metadata:     &api.PodSandboxMetadata{Name: p.Name, Namespace: p.Namespace, Uid: p.UID, Attempt: p.Attempt},
		Hostname:     p.Name,
		LogDirectory: filepath.Join(c.Logs, p.Namespace+"_"+p.Name),
		Annotations:  p.Annotations,
		Linux: &api.LinuxPodSandboxConfig{
			CgroupParent:    c.CgroupParent,
			SecurityContext: &api.LinuxSandboxSecurityContext{NamespaceOptions: namespaces},
		},
	}
	if p.HostNetwork {
		config.Hostname = ""
	}
	for _, port := range p.Ports {
		protocol := api.Protocol_TCP
		if port.UDP {
			protocol = api.Protocol_UDP
		}
		config.PortMappings = append(config.PortMappings,
			&api.PortMapping{Protocol: protocol, HostPort: port.Host, ContainerPort: port.Container})
	}
	return config
}

// RunPod makes the sandbox of a pod, for which the runtime calls ADD, and returns its ID.
func (c *Client) RunPod(ctx context.Context, p Pod) (id string, err error) {
	config := c.sandbox(p)
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		return "", err
	}
	r, err := c.runtime.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Config: config})
	if err != nil {
		return "", fmt.Errorf("run pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return r.PodSandboxId, nil
}

// Run makes and starts a container of a pod, and returns its ID.
func (c *Client) Run(ctx context.Context, p Pod, sandbox, image string, args ...string) (id string, err error) {
	return c.RunContainer(ctx, p, sandbox, &api.ContainerConfig{
		Metadata: &api.ContainerMetadata{Name: "main"}, Image: &api.ImageSpec{Image: image}, Args: args,
	})
}

// RunContainer makes and starts a container of a pod, and returns its ID. It fills in what all containers of the pod have.
func (c *Client) RunContainer(ctx context.Context, p Pod, sandbox string, config *api.ContainerConfig) (id string, err error) {
	config.Metadata.Attempt, config.LogPath = p.Attempt, config.Metadata.Name+".log"
	if config.Linux == nil {
		config.Linux = &api.LinuxContainerConfig{}
	}
	if config.Linux.SecurityContext == nil {
		config.Linux.SecurityContext = &api.LinuxContainerSecurityContext{}
	}
	config.Linux.SecurityContext.NamespaceOptions = c.sandbox(p).Linux.SecurityContext.NamespaceOptions
	r, err := c.runtime.CreateContainer(ctx, &api.CreateContainerRequest{PodSandboxId: sandbox, SandboxConfig: c.sandbox(p), Config: config})
	if err != nil {
		return "", fmt.Errorf("create container %s of pod %s/%s: %w", config.Metadata.Name, p.Namespace, p.Name, err)
	}
	if _, err := c.runtime.StartContainer(ctx, &api.StartContainerRequest{ContainerId: r.ContainerId}); err != nil {
		return "", fmt.Errorf("start container %s of pod %s/%s: %w", config.Metadata.Name, p.Namespace, p.Name, err)
	}
	return r.ContainerId, nil
}

// Exited tells whether a container has ended, and with what status.
func (c *Client) Exited(ctx context.Context, container string) (exited bool, status int32, err error) {
	r, err := c.runtime.ContainerStatus(ctx, &api.ContainerStatusRequest{ContainerId: container})
	if err != nil {
		return false, 0, err
	}
	return r.Status.State == api.ContainerState_CONTAINER_EXITED, r.Status.ExitCode, nil
}

// Log returns what a container of a pod, by its name, has written, with a time and a stream before each line.
func (c *Client) Log(p Pod, name string) string {
	text, _ := os.ReadFile(filepath.Join(c.sandbox(p).LogDirectory, name+".log")) // none is empty
	return string(text)
}

// Exec runs a command in a container to its end. What it wrote comes with an error too.
func (c *Client) Exec(ctx context.Context, container string, command ...string) (stdout string, err error) {
	r, err := c.runtime.ExecSync(ctx, &api.ExecSyncRequest{ContainerId: container, Cmd: command, Timeout: 900})
	if err != nil {
		return "", fmt.Errorf("exec %q: %w", command, err)
	}
	if r.ExitCode != 0 {
		return string(r.Stdout), fmt.Errorf("exec %q: status %d: %s", command, r.ExitCode, r.Stderr)
	}
	return string(r.Stdout), nil
}

// Addresses are those that the runtime knows of a pod; none with the node's network.
func (c *Client) Addresses(ctx context.Context, sandbox string) ([]netip.Addr, error) {
	r, err := c.runtime.PodSandboxStatus(ctx, &api.PodSandboxStatusRequest{PodSandboxId: sandbox})
	if err != nil {
		return nil, err
	}
	var list []netip.Addr
	texts := []string{r.Status.GetNetwork().GetIp()}
	for _, more := range r.Status.GetNetwork().GetAdditionalIps() {
		texts = append(texts, more.Ip)
	}
	for _, text := range texts {
		if text == "" {
			continue
		}
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, err
		}
		list = append(list, a)
	}
	return list, nil
}

// Sandbox is what the runtime lists of a pod.
type Sandbox struct {
	ID, Namespace, Name string
	Attempt             uint32
	Ready               bool
}

// Sandboxes lists all pods.
func (c *Client) Sandboxes(ctx context.Context) ([]Sandbox, error) {
	r, err := c.runtime.ListPodSandbox(ctx, &api.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	var list []Sandbox
	for _, s := range r.Items {
		list = append(list, Sandbox{
			ID: s.Id, Namespace: s.Metadata.Namespace, Name: s.Metadata.Name, Attempt: s.Metadata.Attempt,
			Ready: s.State == api.PodSandboxState_SANDBOX_READY,
		})
	}
	return list, nil
}

// StopPod stops a pod, for which the runtime calls DEL. RemovePod removes it, and DEL is called again.
func (c *Client) StopPod(ctx context.Context, sandbox string) error {
	_, err := c.runtime.StopPodSandbox(ctx, &api.StopPodSandboxRequest{PodSandboxId: sandbox})
	return err
}

// RemovePod removes a pod that is stopped; see StopPod.
func (c *Client) RemovePod(ctx context.Context, sandbox string) error {
	_, err := c.runtime.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{PodSandboxId: sandbox})
	return err
}

// ErrNotReady is what Ready returns, with the runtime's reason.
var ErrNotReady = errors.New("the runtime is not ready")

// Ready asks whether runtime and network are, as kubelet does every few seconds.
func (c *Client) Ready(ctx context.Context) error {
	r, err := c.runtime.Status(ctx, &api.StatusRequest{})
	if err != nil {
		return err
	}
	for _, condition := range r.Status.Conditions {
		if !condition.Status && (condition.Type == api.RuntimeReady || condition.Type == api.NetworkReady) {
			return fmt.Errorf("%w: %s: %s: %s", ErrNotReady, condition.Type, condition.Reason, condition.Message)
		}
	}
	return nil
}
