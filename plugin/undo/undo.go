// Package undo reverses the steps of an operation that failed half-way.
package undo

import (
	"errors"
	"fmt"
)

// Stack holds what takes back the steps done so far. The zero value is empty and ready.
type Stack struct {
	steps []step
}

type step struct {
	doing string
	run   func() error
}

// Push adds what takes back the step just done. doing says what it does, for its error: "removing
// pin /sys/...".
func (s *Stack) Push(doing string, run func() error) {
	s.steps = append(s.steps, step{doing, run})
}

// Run takes back everything, the last step first, and empties the stack. It goes on past errors
// and returns them joined.
func (s *Stack) Run() error {
	var errs []error
	for i := len(s.steps) - 1; i >= 0; i-- {
		if err := s.steps[i].run(); err != nil {
			errs = append(errs, fmt.Errorf("undo: %s: %w", s.steps[i].doing, err))
		}
	}
	s.steps = nil
	return errors.Join(errs...)
}

// OnFailure is for defer: if *err is set it runs the stack and joins its errors to *err.
func (s *Stack) OnFailure(err *error) {
	if *err != nil {
		*err = errors.Join(*err, s.Run())
	}
}
