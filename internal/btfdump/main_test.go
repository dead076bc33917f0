package btfdump

import (
	"testing"

	"github.com/xdp-cni/xdp-cni/tests"
)

func TestMain(m *testing.M) { tests.Main(m) }
