package conf

import (
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// The longest identity of a pod in bytes. The first two are those of
// Kubernetes (RFC 1123 label and subdomain); a UID there has 36.
const (
	MaxPodNamespace = 63
	MaxPodName      = 253
	MaxPodUID       = 63
)

// PodArgs is the identity of the pod that Kubernetes runtimes pass in
// CNI_ARGS. Each is empty if not given, as outside of Kubernetes.
type PodArgs struct {
	// Namespace is K8S_POD_NAMESPACE, at most [MaxPodNamespace] bytes.
	Namespace string
	// Name is K8S_POD_NAME, at most [MaxPodName] bytes.
	Name string
	// UID is K8S_POD_UID, at most [MaxPodUID] bytes.
	UID string
}

// ParsePodArgs reads CNI_ARGS, "K=V;K=V" (CNI SPEC section 2, "Parameters").
// Keys other than those of [PodArgs] are ignored whatever IgnoreUnknown says,
// as they are meant for other plugins of the chain. Of a key given twice the
// last counts, as in [types.LoadArgs].
//
// Errors are [types.Error] with code 4: a pair that is not K=V, or a value
// that is too long.
func ParsePodArgs(cniArgs string) (PodArgs, error) {
	var args PodArgs
	if cniArgs == "" {
		return args, nil
	}
	known := map[string]struct {
		field *string
		most  int
	}{
		"K8S_POD_NAMESPACE": {&args.Namespace, MaxPodNamespace},
		"K8S_POD_NAME":      {&args.Name, MaxPodName},
		"K8S_POD_UID":       {&args.UID, MaxPodUID},
	}
	for pair := range strings.SplitSeq(cniArgs, ";") {
		key, val, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return PodArgs{}, invalidArgs("pair %q: want KEY=VALUE, with \";\" between pairs", clip(pair))
		}
		arg, ok := known[key]
		if !ok {
			continue
		}
		if len(val) > arg.most {
			return PodArgs{}, invalidArgs("%s: want at most %d bytes, got %d: %q", key, arg.most, len(val), clip(val))
		}
		*arg.field = val
	}
	return args, nil
}

func invalidArgs(format string, args ...any) error {
	return types.NewError(types.ErrInvalidEnvironmentVariables, "invalid CNI_ARGS", fmt.Sprintf(format, args...))
}
