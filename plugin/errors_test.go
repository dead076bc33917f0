package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

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
		{fmt.Errorf("%w: %w", datapath.ErrProgram, programs.ErrObject), 109},
		{fmt.Errorf("%w: %w", datapath.ErrProgram, datapath.ErrUnsupported), 109},
		{types.NewError(7, "configuration", ""), 7},
		{io.EOF, 999},
	} {
		if got := cniError(fmt.Errorf("doing: %w", test.err)); got.Code != test.code {
			t.Errorf("code of %v is %d, want %d", test.err, got.Code, test.code)
		}
	}
}

// TestLongError: what an error says of files, which others wrote, may be long.
func TestLongError(t *testing.T) {
	long := strings.Repeat("é", 10*maxText)
	got := cniError(fmt.Errorf("first: %s: last", long))
	if len(got.Msg) > maxText || !strings.HasPrefix(got.Msg, "first: é") || !strings.HasSuffix(got.Msg, "é: last") ||
		!utf8.ValidString(got.Msg) {
		t.Errorf("%d bytes: %s", len(got.Msg), got.Msg)
	}
	short := strings.Repeat("e", maxText)
	if got := cniError(errors.New(short)); got.Msg != short {
		t.Errorf("%d of %d bytes", len(got.Msg), len(short))
	}
}

// TestVerifierError loads a program that the verifier refuses after many instructions: the runtime is told the end of
// the log, and standard error more of it.
func TestVerifierError(t *testing.T) {
	priv.Root(t)
	var instructions asm.Instructions
	for range 2 * stderrLines {
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
	printed := make(chan []byte)
	go func() {
		whole, _ := io.ReadAll(read) // a pipe of ours
		printed <- whole
	}()
	got := cniError(fmt.Errorf("loading: %w", loadErr))
	os.Stderr = stderr
	_ = write.Close()
	log := string(<-printed)
	if !strings.Contains(got.Details, "invalid mem access") || strings.Count(got.Details, "\n") > verifierLines {
		t.Errorf("details are %q", got.Details)
	}
	// of the instructions in the middle, one that standard error has, and one that it has not
	if !strings.Contains(log, "\t1500: ") || strings.Contains(log, "\t500: ") ||
		!strings.Contains(log, "invalid mem access") {
		t.Errorf("standard error does not have the end of the log: %s", log)
	}
}
