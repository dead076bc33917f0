package main

import (
	"errors"
	"io/fs"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/ipam/leases"
)

// The plugin's own error codes (CNI SPEC, section "Error": 100 and up are for plugins), apart from
// those of the chained plugin.
const (
	codePrivileges = 105 // as the chained plugin's
	codeCheck      = 106 // as the chained plugin's
	codeLayout     = 107 // as the chained plugin's
	codeExhausted  = 120
	codeFull       = 121
	codeTaken      = 122
	codeReserved   = 123
	codeAlive      = 124
)

// codes gives the CNI error code of each error that has one. The first that matches counts.
var codes = []struct {
	err  error
	code uint
}{
	{pins.ErrBusy, types.ErrTryAgainLater},
	{leases.ErrRemoved, types.ErrTryAgainLater},
	{leases.ErrExhausted, codeExhausted},
	{leases.ErrFull, codeFull},
	{leases.ErrTaken, codeTaken},
	{leases.ErrReserved, codeReserved},
	{leases.ErrAlive, codeAlive},
	{leases.ErrLayout, codeLayout},
	{errCheck, codeCheck},
	{pins.ErrNoBPFFS, types.ErrIOFailure},
	{fs.ErrPermission, codePrivileges},
}

// cniError returns err as the runtime is told of it.
func cniError(err error) *types.Error {
	var already *types.Error
	if errors.As(err, &already) {
		return already
	}
	for _, known := range codes {
		if errors.Is(err, known.err) {
			return types.NewError(known.code, err.Error(), "")
		}
	}
	return types.NewError(types.ErrInternal, err.Error(), "")
}
