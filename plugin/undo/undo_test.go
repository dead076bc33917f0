package undo

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestStack(t *testing.T) {
	var (
		stack   Stack
		done    []int
		failure = errors.New("failure")
	)
	for i := range 4 {
		stack.Push("step", func() error {
			done = append(done, i)
			if i%2 == 1 {
				return failure
			}
			return nil
		})
	}
	var err error
	stack.OnFailure(&err)
	if err != nil || done != nil {
		t.Errorf("without a failure: %v, undone %v", err, done)
	}
	cause := errors.New("cause")
	err = cause
	stack.OnFailure(&err)
	if !slices.Equal(done, []int{3, 2, 1, 0}) {
		t.Errorf("undone in the order %v", done)
	}
	if !errors.Is(err, cause) || !errors.Is(err, failure) || strings.Count(err.Error(), "undo: step") != 2 {
		t.Errorf("error is %v", err)
	}
	if err := stack.Run(); err != nil || len(done) != 4 {
		t.Errorf("a second run: %v, undone %v", err, done)
	}
}
