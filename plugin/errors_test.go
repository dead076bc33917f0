package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/attachment"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
	"github.com/xdp-cni/xdp-cni/plugin/programs"
	"github.com/xdp-cni/xdp-cni/tests/priv"
)

func TestCodes(t *testing.T) {
	for _, test := range []struct {
		err  error
		code uint
	}{
		{pins.ErrBusy, 11},
		{attachment.ErrNetns, 8},
		{attachment.ErrNotVeth, 101},
		{datapath.ErrForeignProgram, 103},
		{errors.Join(datapath.ErrUnsupported, io.EOF), 104},
		{datapath.ErrFull, 108},
		{programs.ErrObject, 109},
		{programs.ErrProgram, 109},
		{programs.ErrRejected, 109},
		{types.NewError(7, "configuration", ""), 7},
		{io.EOF, 999},
	} {
		if got := cniError(fmt.Errorf("doing: %w", test.err)); got.Code != test.code {
			t.Errorf("code of %v is %d, want %d", test.err, got.Code, test.code)
		}
	}
}

// TestVerifierError loads a program that the verifier refuses after many instructions.
func TestVerifierError(t *testing.T) {
	priv.Root(t)
	var instructions asm.Instructions
	for range 200 {
		instructions = append(instructions, asm.Mov.Imm(asm.R1, 7))
	}
	instructions = append(instructions, asm.LoadMem(asm.R0, asm.R1, 0, asm.Word), asm.Return())
	_, loadErr := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: instructions})
	if loadErr == nil {
		t.Fatal("the verifier took it")
	}
	stderr := os.Stderr
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	os.Stderr = write
	got := cniError(fmt.Errorf("loading: %w", loadErr))
	os.Stderr = stderr
	_ = write.Close()
	whole, err := io.ReadAll(read)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(got.Details, "invalid mem access") || strings.Count(got.Details, "\n") > verifierLines {
		t.Errorf("details are %q", got.Details)
	}
	if log := string(whole); !strings.Contains(log, "\t100: ") || !strings.Contains(log, "invalid mem access") {
		t.Errorf("standard error does not have the whole log: %s", log)
	}
}
