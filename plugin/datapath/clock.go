package datapath

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// clock converts what programs read from their clock: nanoseconds since boot, without the time that the
// machine slept (CLOCK_MONOTONIC).
type clock struct {
	monotonic int64
	time      time.Time // at the same moment
}

func readClock() (clock, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return clock{}, fmt.Errorf("reading the clock: %w", err)
	}
	return clock{now.Nano(), time.Now()}, nil
}

// wall returns the time of day at a time of the programs' clock. A machine that slept since then, or
// whose time was set, makes it wrong by as much.
func (c clock) wall(nanoseconds uint64) time.Time {
	return c.time.Add(time.Duration(int64(nanoseconds) - c.monotonic)).Round(0)
}
