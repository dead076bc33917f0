package runtimes

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	apps "k8s.io/api/apps/v1"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"github.com/xdp-cni/xdp-cni/tests/image"
	"github.com/xdp-cni/xdp-cni/tests/runtimes/cri"
)

const installDir = "../../install"

// installerImage is the name that the manifests know, as kustomize leaves it.
const installerImage = "xdp-cni:latest"

// importInstaller makes the installer's image and imports it.
func (r *containerd) importInstaller(ctx context.Context) error {
	path := filepath.Join(r.node.Dir, "installer.tar")
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	b := r.node.Binaries
	from := map[string]string{"bin/xdp": b.Plugin(), "bin/xdp-ipam": b.IPAM(), "bin/xdpctl": b.Xdpctl()}
	if err := image.Build(file, "docker.io/library/"+installerImage, filepath.Join(installDir, "image/Dockerfile"), "../..", from); err != nil {
		return err
	}
	return r.ctr(ctx, "images", "import", path)
}

// manifest reads a DaemonSet of the manifests.
func manifest(t *testing.T, name string) *apps.DaemonSet {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(installDir, "kubernetes", name, "daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var d apps.DaemonSet
	if err := yaml.UnmarshalStrict(text, &d); err != nil {
		t.Fatal(err)
	}
	spec := &d.Spec.Template.Spec
	for i := range spec.InitContainers {
		spec.InitContainers[i].Image = installerImage
	}
	for i := range spec.Containers {
		spec.Containers[i].Image = installerImage
	}
	return &d
}

// runManifest runs the pod of a DaemonSet as kubelet does on its node, until its init containers have ended well and its
// container runs.
func (r *containerd) runManifest(t *testing.T, d *apps.DaemonSet) *pod {
	t.Helper()
	spec := &d.Spec.Template.Spec
	k := cri.Pod{Namespace: "kube-system", Name: d.Name, UID: "uid-" + d.Name, HostNetwork: spec.HostNetwork}
	sandbox, err := r.RunPod(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	for i := range spec.InitContainers {
		config, err := cri.Container(spec, &spec.InitContainers[i])
		if err != nil {
			t.Fatal(err)
		}
		if status := r.runToEnd(t, k, sandbox, config); status != 0 {
			t.Fatalf("init container %s: status %d: %s", config.Metadata.Name, status, r.Log(k, config.Metadata.Name))
		}
	}
	config, err := cri.Container(spec, &spec.Containers[0])
	if err != nil {
		t.Fatal(err)
	}
	id, err := r.RunContainer(t.Context(), k, sandbox, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of %s:\n%s", k.Name, r.Log(k, config.Metadata.Name))
		}
	})
	return &pod{sandbox: sandbox, id: id}
}

// fails runs the init container of a DaemonSet's pod, checks that it fails, and returns what it wrote.
func (r *containerd) fails(t *testing.T, d *apps.DaemonSet) string {
	t.Helper()
	spec := &d.Spec.Template.Spec
	k := cri.Pod{Namespace: "kube-system", Name: "fails", UID: "uid-fails", HostNetwork: spec.HostNetwork}
	config, err := cri.Container(spec, &spec.InitContainers[0])
	if err != nil {
		t.Fatal(err)
	}
	sandbox, err := r.RunPod(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	status := r.runToEnd(t, k, sandbox, config)
	said := r.Log(k, config.Metadata.Name)
	if status == 0 {
		t.Errorf("container %s has not failed: %s", config.Metadata.Name, said)
	}
	mustRemove(t, r, &pod{sandbox: sandbox})
	return said
}

// runToEnd runs a container and returns its status.
func (r *containerd) runToEnd(t *testing.T, k cri.Pod, sandbox string, config *api.ContainerConfig) (status int32) {
	t.Helper()
	leaveOut(t, config)
	id, err := r.RunContainer(t.Context(), k, sandbox, config)
	if err != nil {
		t.Fatal(err)
	}
	err = eventually(patience, func() error {
		var exited bool
		exited, status, err = r.Exited(t.Context(), id)
		if err == nil && !exited {
			err = fmt.Errorf("container %s still runs", config.Metadata.Name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// leaveOut takes away the one capability that a machine of tests may not have, and that Linux 5.11 and later do not want.
func leaveOut(t *testing.T, config *api.ContainerConfig) {
	t.Helper()
	has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if has == 0 {
		c := config.Linux.SecurityContext.Capabilities
		c.AddCapabilities = slices.DeleteFunc(c.AddCapabilities, func(name string) bool { return name == "SYS_RESOURCE" })
	}
}
