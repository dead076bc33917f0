package wholefile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReplace: a file that is not what it was stays.
func TestReplace(t *testing.T) {
	dir := t.TempDir()
	path, temporary := filepath.Join(dir, "f"), filepath.Join(dir, "t")
	have := func() string {
		t.Helper()
		if _, err := os.Stat(temporary); !errors.Is(err, os.ErrNotExist) {
			t.Error("the temporary file is left", err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if err := Replace(path, temporary, []byte("a"), []byte("b"), Attributes{Mode: 0o600}); !errors.Is(err, ErrChanged) {
		t.Error("a file that is not there:", err)
	}
	if err := Put(path, temporary, []byte("a"), Attributes{Mode: 0o604}); err != nil || have() != "a" {
		t.Error(err)
	}
	if err := Replace(path, temporary, []byte("x"), []byte("b"), Attributes{Mode: 0o600}); !errors.Is(err, ErrChanged) || have() != "a" {
		t.Error(err, have())
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o604 {
		t.Error(err, info.Mode())
	}
	if err := Replace(path, temporary, []byte("a"), []byte("b"), Attributes{Mode: 0o640}); err != nil || have() != "b" {
		t.Error(err, have())
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 {
		t.Error(err, info.Mode())
	}
}

// TestRenameOver: where a filesystem cannot exchange, the same but for a moment.
func TestRenameOver(t *testing.T) {
	dir := t.TempDir()
	path, temporary := filepath.Join(dir, "f"), filepath.Join(dir, "t")
	for _, test := range []struct {
		was  string
		want error
	}{{"x", ErrChanged}, {"a", nil}} {
		if err := errors.Join(os.WriteFile(path, []byte("a"), 0o600), os.WriteFile(temporary, []byte("b"), 0o600)); err != nil {
			t.Fatal(err)
		}
		if err := renameOver(path, temporary, []byte(test.was)); !errors.Is(err, test.want) {
			t.Error(test.was, err)
		}
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "b" {
		t.Error(err, string(text))
	}
}

// TestWriters: beside programs that write by renaming, what was written last stays, and no reader finds the
// file missing or half.
func TestWriters(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, []byte("0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const versions = 2000
	written := make(chan struct{})
	go func() {
		defer close(written)
		other := filepath.Join(dir, "other")
		for i := 1; i <= versions; i++ {
			if err := errors.Join(os.WriteFile(other, fmt.Appendf(nil, "%d\n", i), 0o600), os.Rename(other, path)); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	changed := 0
	for over := false; ; {
		select {
		case <-written:
			over = true
		default:
		}
		was, err := os.ReadFile(path)
		if err != nil || !strings.HasSuffix(string(was), "\n") {
			t.Fatalf("%v, %q", err, was)
		}
		err = nil
		if !strings.HasSuffix(string(was), "ours\n") {
			err = Replace(path, filepath.Join(dir, "t"), was, append(was[:len(was):len(was)], "ours\n"...), Attributes{Mode: 0o600})
		}
		switch {
		case errors.Is(err, ErrChanged):
			changed++
		case err != nil:
			t.Fatal(err)
		case over:
			text, err := os.ReadFile(path)
			if want := fmt.Sprintf("%d\nours\n", versions); err != nil || string(text) != want {
				t.Errorf("%v, %q, want %q", err, text, want)
			}
			t.Logf("%d times another was first", changed)
			return
		}
	}
}
