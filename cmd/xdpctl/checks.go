package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// status is the outcome of a check.
type status string

const (
	statusOK   status = "ok"
	statusWarn status = "warn"
	statusFail status = "fail"
)

// check is what doctor looked at and found.
type check struct {
	Name   string `json:"name"`
	Status status `json:"status"`
	Detail string `json:"detail"`
	Hint   string `json:"hint"` // what to do; "" if nothing
}

func ok(name, detail string) check         { return check{name, statusOK, detail, ""} }
func warn(name, detail, hint string) check { return check{name, statusWarn, detail, hint} }
func fail(name, detail, hint string) check { return check{name, statusFail, detail, hint} }

// judge turns facts into checks.
func judge(f *facts) []check {
	checks := []check{
		f.checkPrivileges(),
		ok("kernel", f.kernel),
	}
	if f.privileges != nil {
		return checks // all else would fail for this reason
	}
	checks = append(checks, f.checkProgramTypes(), f.checkLinks(), f.checkTCX(), f.checkFrags(),
		f.checkTailCalls(), f.checkJIT(), f.checkLRU(), f.checkBPFFS(), f.checkLayout(), f.checkNode(), f.checkReady())
	checks = append(checks, f.checkAttachments()...)
	checks = append(checks, f.checkFilters())
	checks = append(checks, f.checkPrograms()...)
	checks = append(checks, f.checkRedirect()...)
	return append(checks, f.checkStale(), f.checkLeases())
}

func (f *facts) checkPrivileges() check {
	if f.privileges != nil {
		return fail("privileges", f.privileges.Error(), "run it as root; all other checks need that")
	}
	return ok("privileges", "CAP_NET_ADMIN, CAP_BPF, CAP_SYS_ADMIN")
}

func (f *facts) checkProgramTypes() check {
	if f.programTypes != nil {
		return fail("program types", f.programTypes.Error(), "use a kernel with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF")
	}
	return ok("program types", "XDP and SchedCLS")
}

func (f *facts) checkLinks() check {
	if f.links != nil {
		return fail("BPF links", "the kernel has no XDP links: "+f.links.Error(), "use kernel 5.9 or later; mode tcx does without, by clsact filters")
	}
	return ok("BPF links", "XDP programs attach by links")
}

func (f *facts) checkTCX() check {
	switch {
	case f.featuresErr != nil:
		return fail("tcx", f.featuresErr.Error(), "")
	case !f.features.TCX:
		return warn("tcx", clsactInstead, "use kernel 6.6 or later where chains have the bandwidth plugin")
	}
	return ok("tcx", "programs attach at the tc hooks by links")
}

func (f *facts) checkFrags() check {
	if !f.features.XDPFrags {
		return warn("XDP frags", noJumbo, "use kernel 5.18 or later for native XDP with larger MTUs")
	}
	return ok("XDP frags", "multi-buffer XDP: any MTU in mode native")
}

func (f *facts) checkJIT() check {
	const turnOn = "sysctl -w net.core.bpf_jit_enable=1"
	switch {
	case f.jitErr != nil:
		return warn("JIT", "cannot tell: "+f.jitErr.Error(), "")
	case !f.jitted:
		return warn("JIT", "off: programs are interpreted, several times as slow", turnOn)
	case f.jitSysctl == "2":
		return warn("JIT", "on, and writes every program to the kernel log (bpf_jit_enable is 2)", turnOn)
	}
	return ok("JIT", "on")
}

func (f *facts) checkBPFFS() check {
	switch {
	case f.mountedErr != nil:
		return fail("bpffs", f.mountedErr.Error(), "")
	case f.mounted && f.rootIsThere:
		return ok("bpffs", f.root)
	case f.mounted:
		return ok("bpffs", f.root+" is not there yet: the first ADD makes it")
	case f.rootIsThere:
		return fail("bpffs", f.root+" is a directory, but on no bpffs", "mount one: mount -t bpf bpf "+f.root)
	case f.mountable != nil:
		return fail("bpffs", f.mountable.Error(), "")
	}
	return warn("bpffs", "none is mounted for "+f.root, "nothing: the first ADD mounts one")
}

func (f *facts) checkLayout() check {
	if len(f.otherLayouts) > 0 {
		return warn("layout", "another release has pins here: "+strings.Join(f.otherLayouts, ", "),
			"look at them with that release's xdpctl")
	}
	return ok("layout", "no other release's pins under "+f.root)
}

func (f *facts) checkNode() check {
	const name = "node"
	switch {
	case errors.Is(f.nodeErr, fs.ErrNotExist) && len(f.attachments) == 0:
		return ok(name, "nothing is loaded: there is no attachment")
	case errors.Is(f.nodeErr, fs.ErrNotExist):
		return fail(name, "there are attachments, but the programs' maps are not pinned: "+f.nodeErr.Error(), "start the pods anew")
	case errors.Is(f.nodeErr, datapath.ErrLayout):
		return fail(name, f.nodeErr.Error(), "use the xdpctl of that release")
	case f.nodeErr != nil:
		return fail(name, f.nodeErr.Error(), "")
	case !f.node.Here && errors.Is(f.ready, datapath.ErrOtherNetns):
		return fail(name, fmt.Sprintf("it is of another network namespace, inode %d", f.node.Netns),
			"run xdpctl in that one, or name another --bpffs")
	case !f.node.Here:
		return warn(name, fmt.Sprintf("it is of a network namespace that is gone, inode %d", f.node.Netns),
			"nothing: the next ADD makes it anew")
	}
	detail := fmt.Sprintf("%d programs of %s, %d attachments of %d at most",
		len(f.node.Programs), f.node.Release, f.node.Taken, f.node.Slots)
	switch {
	case f.node.Taken*10 >= f.node.Slots*9:
		return warn(name, detail, "schedule fewer pods here: past that ADD fails")
	case f.node.Release != f.release:
		return warn(name, detail+"; xdpctl is "+f.release, "xdpctl upgrade, if that release is to be in use here: it replaces the programs without losing a packet")
	}
	return ok(name, detail)
}

func (f *facts) checkReady() check {
	if f.ready != nil {
		return fail("ready", "an ADD would fail: "+f.ready.Error(), "")
	}
	return ok("ready", "an ADD can succeed")
}

// checkAttachments returns a check for each attachment that is not intact, and one for the rest.
func (f *facts) checkAttachments() []check {
	const name = "attachments"
	var checks []check
	if f.attachmentErr != nil {
		checks = append(checks, fail(name, f.attachmentErr.Error(), ""))
	}
	intact := 0
	for _, a := range f.attachments {
		switch {
		case a.stale:
		case a.verify != nil:
			checks = append(checks, fail("attachment "+labelOf(a.Attachment),
				fmt.Sprintf("%s (%s): %v", a.Meta.HostName, a.Meta.IfName, a.verify), "start the pod anew"))
		case a.seenTwice:
			intact++
			checks = append(checks, warn("attachment "+labelOf(a.Attachment),
				a.Meta.HostName+" has an ingress qdisc: what it redirects to an ifb, generic XDP sees and counts twice",
				"put xdp behind bandwidth in the chain, or use mode tcx"))
		default:
			intact++
		}
	}
	switch {
	case f.node != nil && !f.node.Here:
		return append(checks, warn(name, fmt.Sprintf("%d, not checked: they are of another network namespace", intact), ""))
	case intact == 0 && len(f.attachments) > 0:
		return checks // the others are told of
	}
	return append(checks, ok(name, fmt.Sprintf("%d intact", intact)))
}

// checkFilters: an odd filter is a warning at ADD, which nobody may have seen.
func (f *facts) checkFilters() check {
	const name = "filters"
	var (
		errs     error
		filtered int
		odd      []string                // in the order they are found
		of       = map[string][]string{} // pods, by what is odd
	)
	for _, a := range f.attachments {
		errs = errors.Join(errs, a.filterErr)
		if a.filter == nil {
			continue
		}
		filtered++
		for _, w := range a.filter.Warnings() {
			text := w.String()
			if of[text] == nil {
				odd = append(odd, text)
			}
			of[text] = append(of[text], labelOf(a.Attachment))
		}
	}
	switch {
	case f.node != nil && !f.node.Here:
		return warn(name, "not checked: the attachments are of another network namespace", "")
	case errs != nil:
		return fail(name, errs.Error(), "")
	}
	detail := fmt.Sprintf("%d of %d attachments have one", filtered, len(f.attachments))
	if len(odd) == 0 {
		return ok(name, detail)
	}
	return warn(name, detail+oddities(odd, of), "see xdpctl filter show")
}

// mostOdd is how much doctor tells of what is odd about filters or programs, and of how many pods.
const mostOdd = 10

func (f *facts) checkStale() check {
	const (
		name = "stale"
		hint = "xdpctl gc"
	)
	var stale []string
	for _, a := range f.attachments {
		if a.stale {
			stale = append(stale, labelOf(a.Attachment)+" ("+a.Meta.HostName+")")
		}
	}
	switch {
	case len(stale) > 0:
		return warn(name, "the interface is gone of "+strings.Join(stale, ", "), hint)
	case len(f.abandoned) > 0:
		return warn(name, fmt.Sprintf("%d operations were killed halfway", len(f.abandoned)), hint)
	}
	return ok(name, "nothing to collect")
}
