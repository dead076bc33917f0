package conflist

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrUnfit: the xdp plugin cannot be part of the chain.
var ErrUnfit = errors.New("xdp cannot be part of this chain")

// versions are those of CNI that the plugin speaks; before 0.3.1 there were no useful chains.
var versions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// withoutVeth are main plugins whose interfaces have no host end, and what they make instead.
var withoutVeth = map[string]string{
	"dummy":       "a dummy interface, which goes nowhere",
	"host-device": "no interface, but moves a device of the host into the pod",
	"ib-sriov":    "no interface, but moves a virtual function into the pod",
	"ipvlan":      "an ipvlan interface, which has no host end",
	"loopback":    "nothing but the loopback interface",
	"macvlan":     "a macvlan interface, which has no host end",
	"macvtap":     "a macvtap interface, which has no host end",
	"sriov":       "no interface, but moves a virtual function into the pod",
	"tap":         "a tap device, which has no host end",
	"vlan":        "a VLAN interface, which has no host end",
}

// delegating plugins have another make the interface: that in "delegate", or the default.
var delegating = map[string]string{"flannel": "bridge"}

// Fit returns nil if the plugin can be part of the chain, else ErrUnfit with the reason. Main plugins
// that are not known are taken to make a veth: most do, and ADD says so if not.
func (l *List) Fit() error {
	if len(l.Plugins) == 0 {
		return fmt.Errorf("%w: its plugins are not in the list, but in files of their own", ErrUnfit)
	}
	if !slices.Contains(versions, l.CNIVersion) {
		return fmt.Errorf("%w: network %q has cniVersion %q, and xdp speaks %s",
			ErrUnfit, l.Name, l.CNIVersion, strings.Join(versions, ", "))
	}
	main := l.Plugins[0]
	kind, by := main.Type, ""
	if kind == Type {
		return fmt.Errorf("%w: the first plugin of network %q is %s itself, and none makes a veth", ErrUnfit, l.Name, Type)
	}
	if usual, delegates := delegating[kind]; delegates {
		var conf struct {
			Delegate struct {
				Type string `json:"type"`
			} `json:"delegate"`
		}
		if err := json.Unmarshal(main.Raw, &conf); err != nil {
			return fmt.Errorf("%w: reading what %s delegates to: %w", ErrUnfit, kind, err)
		}
		by = ", to which " + kind + " delegates,"
		if kind = conf.Delegate.Type; kind == "" {
			kind = usual
		}
	}
	if instead, known := withoutVeth[kind]; known {
		return fmt.Errorf("%w: the main plugin of network %q makes no veth: %s%s makes %s", ErrUnfit, l.Name, kind, by, instead)
	}
	return nil
}

// UsesIPAM tells whether a plugin of the chain has its addresses from the IPAM plugin of that type.
func (l *List) UsesIPAM(kind string) bool {
	return slices.ContainsFunc(l.Plugins, func(p Plugin) bool {
		var conf struct {
			IPAM struct {
				Type string `json:"type"`
			} `json:"ipam"`
			Delegate struct {
				IPAM struct {
					Type string `json:"type"`
				} `json:"ipam"`
			} `json:"delegate"`
		}
		// what cannot be read has no such IPAM
		return json.Unmarshal(p.Raw, &conf) == nil && (conf.IPAM.Type == kind || conf.Delegate.IPAM.Type == kind)
	})
}
