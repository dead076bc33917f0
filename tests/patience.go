package tests

import (
	"os"
	"strconv"
	"time"
)

// SlownessEnv names the environment variable that says how many times slower than others a machine is, such as one
// whose processor is emulated.
const SlownessEnv = "XDP_CNI_TEST_SLOWNESS"

// slowness is 1 on a machine as fast as others.
func slowness() time.Duration {
	if times, err := strconv.Atoi(os.Getenv(SlownessEnv)); err == nil && times > 1 {
		return time.Duration(times)
	}
	return 1
}

// Patience is how long to wait here for what should come, where elsewhere the usual time is enough. For what should not
// come, waiting longer shows no more.
func Patience(usual time.Duration) time.Duration { return slowness() * usual }

// Breathe pauses what sends as fast as it can, where the processor is slow: it would leave next to nothing of it to what
// is under test meanwhile.
func Breathe() {
	if times := slowness(); times > 1 {
		time.Sleep(times * 100 * time.Microsecond)
	}
}
