package manifests

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const (
	chartDir     = "../../install/helm/xdp-cni"
	kustomizeDir = "../../install/kubernetes"
)

type object = map[string]any

// TestLint: helm's linter has nothing to say against the chart, whatever is asked of it.
func TestLint(t *testing.T) {
	for name, values := range map[string]object{
		"default":   {},
		"full":      {"mode": "native", "redirect": true, "filter": object{"rules": []any{}}, "image": object{"tag": "v1"}},
		"uninstall": {"uninstall": true, "keepRunning": true},
	} {
		linted := lint.AllWithKubeVersion(chartDir, values, "kube-system", nil)
		for _, message := range linted.Messages {
			// an icon is for shops
			if message.Severity > support.InfoSev || !strings.Contains(message.Error(), "icon") {
				t.Errorf("%s: %s", name, message)
			}
		}
		if len(linted.Messages) == 0 {
			t.Errorf("%s: the linter has not even missed the icon: has it looked?", name)
		}
	}
	for _, values := range []object{{"mode": "fast"}, {"nope": 1}, {"confDir": "net.d"}, {"filter": "x"}} {
		if linted := lint.AllWithKubeVersion(chartDir, values, "kube-system", nil); linted.HighestSeverity < support.ErrorSev {
			t.Errorf("%v passes", values)
		}
	}
}

// rendered returns the objects that the chart makes of values, by kind and name.
func rendered(t *testing.T, values object) map[string]object {
	t.Helper()
	chart, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	all, err := chartutil.ToRenderValues(chart, values, chartutil.ReleaseOptions{Name: "xdp-cni", Namespace: "kube-system"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Render(chart, all)
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]object{}
	for name, text := range files {
		if strings.HasSuffix(name, ".yaml") {
			add(t, objects, text)
		}
	}
	return objects
}

// built returns the objects of a kustomization.
func built(t *testing.T, name string) map[string]object {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(kustomizeDir, name))
	if err != nil {
		t.Fatal(err)
	}
	text, err := resources.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]object{}
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		add(t, objects, document)
	}
	return objects
}

func add(t *testing.T, to map[string]object, text string) {
	t.Helper()
	var o object
	if err := yaml.UnmarshalStrict([]byte(text), &o); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if len(o) > 0 {
		if err := yaml.UnmarshalStrict([]byte(text), typed(t, o), yaml.DisallowUnknownFields); err != nil {
			t.Errorf("%v in\n%s", err, text)
		}
		to[fmt.Sprint(o["kind"], "/", at(t, o, "metadata", "name"))] = o
	}
}

// typed returns an empty object of Kubernetes' type, which knows the fields.
func typed(t *testing.T, o object) any {
	t.Helper()
	switch kind := fmt.Sprint(o["apiVersion"], " ", o["kind"]); kind {
	case "apps/v1 DaemonSet":
		return &apps.DaemonSet{}
	case "v1 ConfigMap":
		return &core.ConfigMap{}
	default:
		t.Fatalf("%s: is there nothing to grant for it?", kind)
		return nil
	}
}

// at returns what is at a path of keys and indices.
func at(t *testing.T, value any, path ...any) any {
	t.Helper()
	for _, step := range path {
		switch step := step.(type) {
		case string:
			o, ok := value.(object)
			if !ok {
				t.Fatalf("no %q in %v", step, value)
			}
			value = o[step]
		case int:
			list, ok := value.([]any)
			if !ok || len(list) <= step {
				t.Fatalf("no %d in %v", step, value)
			}
			value = list[step]
		}
	}
	return value
}

// TestSame: chart and kustomizations make the same pods, whose reasons stand in the latter.
func TestSame(t *testing.T) {
	for _, test := range []struct {
		kustomization, name string
		values              object
	}{
		{"base", "DaemonSet/xdp-cni", nil},
		{"uninstall", "DaemonSet/xdp-cni-uninstall", object{"uninstall": true}},
	} {
		ours, charts := built(t, test.kustomization), rendered(t, test.values)
		if len(ours) != 1 || len(charts) != 1 {
			t.Errorf("%s: %d and %d objects: more than the DaemonSet is needed?", test.name, len(ours), len(charts))
		}
		path := []any{"spec", "template", "spec"}
		a, b := at(t, ours[test.name], path...), at(t, charts[test.name], path...)
		for _, spec := range []any{a, b} {
			for _, kind := range []string{"initContainers", "containers"} {
				list, _ := at(t, spec, kind).([]any)
				for _, container := range list {
					if image := at(t, container, "image"); image != "xdp-cni:latest" {
						t.Errorf("%s: image %v", test.name, image)
					}
					delete(container.(object), "imagePullPolicy")
				}
			}
		}
		if !reflect.DeepEqual(a, b) {
			one, _ := yaml.Marshal(a)
			other, _ := yaml.Marshal(b)
			t.Errorf("%s: kustomize makes\n%s\nhelm makes\n%s", test.name, one, other)
		}
	}
}

// TestPrivileges: what runs all the time has none, and nothing is privileged.
func TestPrivileges(t *testing.T) {
	installer := at(t, built(t, "base")["DaemonSet/xdp-cni"], "spec", "template", "spec", "containers", 0, "securityContext")
	if add := at(t, installer, "capabilities", "add"); add != nil {
		t.Errorf("the installer has %v", add)
	}
	for _, name := range []string{"base", "uninstall"} {
		for _, o := range built(t, name) {
			spec := at(t, o, "spec", "template", "spec")
			if at(t, spec, "automountServiceAccountToken") != false {
				t.Errorf("%s: has a token", name)
			}
			inits, _ := at(t, spec, "initContainers").([]any)
			containers, _ := at(t, spec, "containers").([]any)
			for _, c := range append(inits, containers...) {
				for key, want := range map[string]any{"privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true} {
					if have := at(t, c, "securityContext", key); have != want {
						t.Errorf("%s: %s is %v", name, key, have)
					}
				}
				if drop := at(t, c, "securityContext", "capabilities", "drop", 0); drop != "ALL" {
					t.Errorf("%s: drops %v", name, drop)
				}
			}
		}
	}
}

// TestValues: what is set comes where it belongs.
func TestValues(t *testing.T) {
	objects := rendered(t, object{
		"mode": "tcx", "redirect": true, "confDir": "/k3s/net.d", "filter": object{"default": object{"ingress": "deny"}},
	})
	pod := at(t, objects["DaemonSet/xdp-cni"], "spec", "template", "spec")
	if args := fmt.Sprint(at(t, pod, "containers", 0, "args")); args != "[install --watch --mode=tcx --redirect --filter=/filter/filter.json]" {
		t.Error(args)
	}
	if path := at(t, pod, "volumes", 0, "hostPath", "path"); path != "/k3s/net.d" {
		t.Error(path)
	}
	if filter := at(t, objects["ConfigMap/xdp-cni-filter"], "data", "filter.json"); filter != `{"default":{"ingress":"deny"}}` {
		t.Error(filter)
	}
}

// TestComments: every capability has a reason beside it.
func TestComments(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(kustomizeDir, "uninstall/daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	found := 0
	for i, line := range lines {
		for _, capability := range []string{"- NET_ADMIN", "- SYS_ADMIN", "- SYS_RESOURCE"} {
			if strings.TrimSpace(line) == capability {
				found++
				if !strings.HasPrefix(strings.TrimSpace(lines[i-1]), "#") {
					t.Errorf("%s has no reason", capability)
				}
			}
		}
	}
	if found != 3 {
		t.Errorf("%d capabilities", found)
	}
}
