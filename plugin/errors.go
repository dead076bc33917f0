package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/attachment"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// The plugin's own error codes (CNI SPEC, section "Error": 100 and up are for plugins).
const (
	codeInterface      = 100 // the container's interface is not there
	codeNotVeth        = 101 // or is no veth with its other end here
	codeMismatch       = 102 // or is not what prevResult says
	codeForeignProgram = 103
	codeUnsupported    = 104
	codePrivileges     = 105
	codeCheck          = 106
	codeInUse          = 107 // bpffs root of another namespace or release, or damaged
	codeFull           = 108
	codeProgram        = 109 // a user program cannot be used
)

// codes gives the CNI error code of each error that has one. The first that matches counts.
var codes = []struct {
	err  error
	code uint
}{
	{pins.ErrBusy, types.ErrTryAgainLater},
	{attachment.ErrNetns, types.ErrInvalidNetNS},
	{attachment.ErrInterface, codeInterface},
	{attachment.ErrNotVeth, codeNotVeth},
	{attachment.ErrPeerElsewhere, codeNotVeth},
	{attachment.ErrMismatch, codeMismatch},
	{datapath.ErrProgram, codeProgram},
	{datapath.ErrForeignProgram, codeForeignProgram},
	{datapath.ErrPrivileges, codePrivileges},
	{datapath.ErrUnsupported, codeUnsupported},
	{datapath.ErrCheck, codeCheck},
	{datapath.ErrNotFound, codeCheck},
	{datapath.ErrOtherNetns, codeInUse},
	{datapath.ErrLayout, codeInUse},
	{datapath.ErrDamaged, codeInUse},
	{datapath.ErrFull, codeFull},
	{pins.ErrNoBPFFS, types.ErrIOFailure},
}

// cniError returns err as the runtime is told of it. Of a verifier error it gets the end of the
// log, and standard error gets more of it.
func cniError(err error) *types.Error {
	var already *types.Error
	if errors.As(err, &already) {
		return already
	}
	var details string
	var verifier *ebpf.VerifierError
	if errors.As(err, &verifier) {
		fmt.Fprintf(os.Stderr, "%-*v\n", stderrLines, verifier)
		details = "the verifier's log ends with: " + strings.Join(lastLines(verifier.Log, verifierLines), "\n")
	}
	code := uint(types.ErrInternal)
	for _, known := range codes {
		if errors.Is(err, known.err) {
			code = known.code
			break
		}
	}
	return types.NewError(code, shorten(err.Error()), shorten(details))
}

// verifierLines is how many lines of a verifier's log an error carries: the last instructions,
// the reason, and the counts that the kernel adds.
const verifierLines = 12

// stderrLines is how many of them standard error gets, which runtimes keep in memory: of a program
// that the verifier gives up at, there are more than a million.
const stderrLines = 1000

// maxText is the most of an error's message, and of its details, in bytes: runtimes put both in
// events and logs of their own.
const maxText = 4096

// shorten leaves the beginning and the end of a text that is too long: they say what was done, and what came of it.
func shorten(text string) string {
	const gap = " ... "
	if len(text) <= maxText {
		return text
	}
	half := (maxText - len(gap)) / 2
	return strings.ToValidUTF8(text[:half], "") + gap + strings.ToValidUTF8(text[len(text)-half:], "")
}

func lastLines(lines []string, n int) []string {
	return lines[max(0, len(lines)-n):]
}
