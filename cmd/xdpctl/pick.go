package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// pick returns the attachments of the container that POD names: several if it has several
// interfaces. What names one exactly goes before container IDs that only begin so. The error says
// whether there is none or more than one container, and lists what there is.
func pick(all []datapath.Attachment, name string) ([]datapath.Attachment, error) {
	var exact, prefix []datapath.Attachment
	for _, a := range all {
		switch {
		case names(name, a.Meta):
			exact = append(exact, a)
		case name != "" && strings.HasPrefix(a.Meta.ContainerID, name):
			prefix = append(prefix, a)
		}
	}
	picked := exact
	if len(picked) == 0 {
		picked = prefix
	}
	if len(picked) == 0 {
		if len(all) == 0 {
			return nil, fmt.Errorf("no pod is known as %q: there are no attachments", name)
		}
		return nil, fmt.Errorf("no pod is known as %q; there are:\n%s", name, choices(all))
	}
	for _, a := range picked {
		if a.Meta.ContainerID != picked[0].Meta.ContainerID {
			return nil, fmt.Errorf("%q is ambiguous; it may be any of:\n%s", name, choices(picked))
		}
	}
	return picked, nil
}

// pickOne is pick where an attachment alone will do.
func pickOne(all []datapath.Attachment, name string) (*datapath.Attachment, error) {
	picked, err := pick(all, name)
	if err != nil {
		return nil, err
	}
	if len(picked) > 1 {
		return nil, fmt.Errorf("%q has %d interfaces; name the one you mean by its host interface:\n%s",
			name, len(picked), choices(picked))
	}
	return &picked[0], nil
}

// attachmentOf returns the attachment that POD names, which has to be one alone.
func attachmentOf(d lister, name string) (*datapath.Attachment, error) {
	all, listErr := d.List()
	sortAttachments(all)
	a, err := pickOne(all, name)
	if err != nil {
		return nil, errors.Join(err, listErr)
	}
	return a, nil
}

// onePod checks the arguments of a command that takes one POD.
func onePod(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("takes one POD, not %d: namespace/name, container ID, host interface or address", len(args))
	}
	return nil
}

// names tells whether an attachment is known by that name in full.
func names(name string, m *datapath.Meta) bool {
	if name == m.ContainerID || name == m.HostName {
		return true
	}
	if label := (pod{m.PodNamespace, m.PodName, m.PodUID}).label(); label != "" && name == label {
		return true
	}
	if address, err := netip.ParseAddr(name); err == nil {
		for _, own := range m.Addresses {
			if own.Addr() == address.Unmap() {
				return true
			}
		}
	}
	if prefix, err := netip.ParsePrefix(name); err == nil {
		for _, own := range m.Addresses {
			if own == prefix {
				return true
			}
		}
	}
	return false
}

// mostChoices is how many attachments an error lists.
const mostChoices = 20

func choices(attachments []datapath.Attachment) string {
	t := table{columns: text("", "", "", "", "")}
	for _, a := range attachments[:min(len(attachments), mostChoices)] {
		shown := newAttachment(a.Meta)
		t.add(shown.label(), shown.IfName, shown.HostInterface.Name, "container "+shortID(shown.ContainerID),
			strings.Join(shown.Addresses, ", "))
	}
	list := strings.TrimSuffix(t.body("  "), "\n")
	if more := len(attachments) - mostChoices; more > 0 {
		list += fmt.Sprintf("\n  and %d more: see xdpctl pods", more)
	}
	return list
}

// completePod completes POD: by itself the pods, after the first characters any of their names.
func (o *options) completePod(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return o.completePods(cmd, args, typed)
}

// completePods completes each of several.
func (o *options) completePods(_ *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	// in the middle of a command line there is no place for an error
	all, _ := o.filters().List()
	all = slices.DeleteFunc(all, func(a datapath.Attachment) bool {
		return slices.ContainsFunc(args, func(name string) bool { return names(name, a.Meta) })
	})
	sortAttachments(all)
	return podCompletions(all, typed), cobra.ShellCompDirectiveNoFileComp
}

func podCompletions(all []datapath.Attachment, typed string) []cobra.Completion {
	var completions []cobra.Completion
	offered := map[string]bool{}
	for _, a := range all {
		shown := newAttachment(a.Meta)
		known := []string{shown.label()}
		if typed != "" {
			known = append(known, shown.HostInterface.Name, shown.ContainerID)
			for _, address := range a.Meta.Addresses {
				known = append(known, address.Addr().String())
			}
		}
		for _, name := range known {
			if offered[name] || !strings.HasPrefix(name, typed) {
				continue
			}
			offered[name] = true
			completions = append(completions, cobra.CompletionWithDesc(name,
				fmt.Sprintf("%s %s, %s", shown.HostInterface.Name, shown.Mode, strings.Join(shown.Addresses, " "))))
			break // one name of each attachment is enough to choose from
		}
	}
	return completions
}
