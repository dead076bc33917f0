package cri

import (
	"fmt"
	"os"
	"strings"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Container says of a container of a Kubernetes manifest what kubelet says to a runtime (pkg/kubelet/kuberuntime,
// kuberuntime_container.go and security_context.go). It fails at what it does not know, so that nothing is passed over.
func Container(spec *core.PodSpec, c *core.Container) (*api.ContainerConfig, error) {
	config := &api.ContainerConfig{
		Metadata: &api.ContainerMetadata{Name: c.Name}, Image: &api.ImageSpec{Image: c.Image}, Command: c.Command, Args: c.Args,
		Linux: &api.LinuxContainerConfig{Resources: resources(&c.Resources)},
	}
	var err error
	if config.Linux.SecurityContext, err = securityContext(c.SecurityContext); err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	for _, m := range c.VolumeMounts {
		mount, err := mountOf(spec, &m)
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", c.Name, err)
		}
		config.Mounts = append(config.Mounts, mount)
	}
	if len(c.Env) > 0 || len(c.EnvFrom) > 0 || len(c.Ports) > 0 || c.WorkingDir != "" || c.Lifecycle != nil || c.RestartPolicy != nil {
		return nil, fmt.Errorf("container %s has what no container here has", c.Name)
	}
	return config, nil
}

func resources(r *core.ResourceRequirements) *api.LinuxContainerResources {
	shares := func(cpu *resource.Quantity) int64 { return max(2, cpu.MilliValue()*1024/1000) }
	return &api.LinuxContainerResources{CpuShares: shares(r.Requests.Cpu()), MemoryLimitInBytes: r.Limits.Memory().Value()}
}

// securityContext is what kubelet makes of a container's. The paths are those of the procMount Default.
func securityContext(s *core.SecurityContext) (*api.LinuxContainerSecurityContext, error) {
	if s == nil || s.RunAsUser == nil || s.RunAsGroup == nil || s.AllowPrivilegeEscalation == nil || s.ReadOnlyRootFilesystem == nil ||
		s.SELinuxOptions != nil || s.AppArmorProfile != nil || s.ProcMount != nil || s.Privileged != nil && *s.Privileged ||
		s.SeccompProfile == nil || s.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault {
		return nil, fmt.Errorf("securityContext %v", s)
	}
	if s.RunAsNonRoot != nil && *s.RunAsNonRoot && *s.RunAsUser == 0 {
		return nil, fmt.Errorf("runAsNonRoot, and runAsUser is 0")
	}
	c := &api.LinuxContainerSecurityContext{
		RunAsUser:      &api.Int64Value{Value: *s.RunAsUser},
		RunAsGroup:     &api.Int64Value{Value: *s.RunAsGroup},
		ReadonlyRootfs: *s.ReadOnlyRootFilesystem,
		NoNewPrivs:     !*s.AllowPrivilegeEscalation,
		Seccomp:        &api.SecurityProfile{ProfileType: api.SecurityProfile_RuntimeDefault},
		MaskedPaths: []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
			"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"},
		ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		Capabilities:  &api.Capability{},
	}
	if s.Capabilities != nil {
		for _, name := range s.Capabilities.Add {
			c.Capabilities.AddCapabilities = append(c.Capabilities.AddCapabilities, string(name))
		}
		for _, name := range s.Capabilities.Drop {
			c.Capabilities.DropCapabilities = append(c.Capabilities.DropCapabilities, string(name))
		}
	}
	return c, nil
}

func mountOf(spec *core.PodSpec, m *core.VolumeMount) (*api.Mount, error) {
	mount := &api.Mount{ContainerPath: m.MountPath, Readonly: m.ReadOnly}
	if m.SubPath != "" || m.SubPathExpr != "" || m.RecursiveReadOnly != nil {
		return nil, fmt.Errorf("mount of %s: %v", m.MountPath, m)
	}
	if m.MountPropagation != nil {
		switch *m.MountPropagation {
		case core.MountPropagationNone:
		case core.MountPropagationHostToContainer:
			mount.Propagation = api.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		default:
			return nil, fmt.Errorf("mount of %s: propagation %s", m.MountPath, *m.MountPropagation)
		}
	}
	for _, v := range spec.Volumes {
		if v.Name != m.Name {
			continue
		}
		if v.HostPath == nil {
			return nil, fmt.Errorf("volume %s is no hostPath", v.Name)
		}
		mount.HostPath = v.HostPath.Path
		if v.HostPath.Type == nil || *v.HostPath.Type == core.HostPathUnset {
			return mount, nil
		}
		if *v.HostPath.Type != core.HostPathDirectoryOrCreate {
			return nil, fmt.Errorf("volume %s: type %s", v.Name, *v.HostPath.Type)
		}
		return mount, os.MkdirAll(v.HostPath.Path, 0o755)
	}
	return nil, fmt.Errorf("mount of %s: there is no volume %s", m.MountPath, strings.TrimSpace(m.Name))
}
