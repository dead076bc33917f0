package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/programs"
)

// programFacts are the object files of pods' programs as they are now, by path.
type programFacts map[string]objectFacts

type objectFacts struct {
	digest [sha256.Size]byte
	err    error
}

// probeObjects needs f.attachments.
func (f *facts) probeObjects() {
	f.programs = programFacts{}
	for _, a := range f.attachments {
		for _, p := range a.programs {
			if _, known := f.programs[p.Object]; !known {
				digest, err := programs.Digest(p.Object)
				f.programs[p.Object] = objectFacts{digest, err}
			}
		}
	}
}

func (f *facts) checkTailCalls() check {
	const name = "tail calls"
	if f.tailCalls != nil {
		return warn(name, "pods in mode generic and native cannot run user programs: "+f.tailCalls.Error(),
			"use such a kernel where pods are to run some")
	}
	return ok(name, "functions of a program may make them: pods can run user programs")
}

// checkPrograms says whether pods still run what is in the object files: a pod keeps what it was made with. Of what no
// pod has, there is nothing to say.
func (f *facts) checkPrograms() []check {
	const name = "programs"
	var (
		having, count int
		odd           []string                // in the order they are found
		of            = map[string][]string{} // pods, by what is odd
	)
	for _, a := range f.attachments {
		if len(a.programs) > 0 {
			having++
		}
		for _, p := range a.programs {
			count++
			text := f.programs[p.Object].oddity(p)
			if text == "" {
				continue
			}
			if of[text] == nil {
				odd = append(odd, text)
			}
			of[text] = append(of[text], labelOf(a.Attachment))
		}
	}
	if count == 0 {
		return nil
	}
	detail := fmt.Sprintf("%d user programs, on %d of %d attachments", count, having, len(f.attachments))
	if len(odd) == 0 {
		return []check{ok(name, detail)}
	}
	return []check{warn(name, detail+oddities(odd, of),
		"nothing for pods that run; one that is started anew gets what is in the file then")}
}

// oddity says how an object file differs from what was loaded, "" if it does not.
func (o objectFacts) oddity(p datapath.PodProgram) string {
	switch {
	case errors.Is(o.err, fs.ErrNotExist):
		return fmt.Sprintf("%s, which %s was loaded from, is not there any more", p.Object, p.Name)
	case o.err != nil:
		return fmt.Sprintf("%s, which %s was loaded from: %v", p.Object, p.Name, o.err)
	case o.digest != p.Digest:
		return fmt.Sprintf("%s has changed since %s was loaded (now %x)", p.Object, p.Name, o.digest[:6])
	}
	return ""
}

// oddities lists what is odd, and of which pods, a line each.
func oddities(odd []string, of map[string][]string) string {
	var b strings.Builder
	for _, text := range odd[:min(len(odd), mostOdd)] {
		pods := of[text]
		fmt.Fprintf(&b, "\n%s, of %s", text, strings.Join(pods[:min(len(pods), mostOdd)], ", "))
		if more := len(pods) - mostOdd; more > 0 {
			fmt.Fprintf(&b, " and %d more", more)
		}
	}
	if more := len(odd) - mostOdd; more > 0 {
		fmt.Fprintf(&b, "\nand %d more", more)
	}
	return b.String()
}
