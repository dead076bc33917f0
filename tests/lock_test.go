package tests

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestLock: one holds it at a time, and who waits for it stops when its time is over.
func TestLock(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir()) // the tests' own lock is held by this process
	unlock, err := Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Lock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Lock while it is held: %v", err)
	}
	unlock()
	// the waiter that gave up lets go of it when its turn comes
	again, err := Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again()
}
