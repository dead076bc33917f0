package tests

import (
	"os"
	"strconv"
	"time"
)

// SlownessEnv names the environment variable that says how many times slower than others a machine is, such as one
// whose processor is emulated.
const SlownessEnv = "XDP_CNI_TEST_SLOWNESS"

// Patience is how long to wait here for what should come, where elsewhere the usual time is enough. For what should not
// come, waiting longer shows no more.
func Patience(usual time.Duration) time.Duration {
	if times, err := strconv.Atoi(os.Getenv(SlownessEnv)); err == nil && times > 1 {
		return time.Duration(times) * usual
	}
	return usual
}
