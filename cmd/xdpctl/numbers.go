package main

import (
	"fmt"
	"math"
	"strconv"
	"time"
)

// numbers writes numbers for people, or exactly.
type numbers struct {
	exact bool
}

// packets writes a count, as 999, 1.2k, 34.5M.
func (n numbers) packets(v uint64) string {
	if n.exact || v < 1000 {
		return strconv.FormatUint(v, 10)
	}
	return scaled(float64(v), 1000, "", "k", "M", "G", "T", "P", "E")
}

// bytes writes a size, as 999 B, 1.2 KiB, 34.5 MiB.
func (n numbers) bytes(v uint64) string {
	switch {
	case n.exact:
		return strconv.FormatUint(v, 10)
	case v < 1024:
		return fmt.Sprintf("%d B", v)
	}
	return scaled(float64(v), 1024, " B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB")
}

// packetRate writes packets in a second.
func (n numbers) packetRate(v float64) string {
	if n.exact || v < 10 {
		return strconv.FormatFloat(tenths(v), 'f', -1, 64)
	}
	return n.packets(uint64(math.Round(v)))
}

// byteRate writes bytes in a second.
func (n numbers) byteRate(v float64) string {
	if n.exact {
		return strconv.FormatFloat(tenths(v), 'f', -1, 64)
	}
	return n.bytes(uint64(math.Round(v)))
}

// scaled writes v in the largest unit of which there is one, to three digits or so. Each unit is
// base times the one before.
func scaled(v, base float64, units ...string) string {
	i := 0
	// what would be written as base is 1.0 of the next
	for i < len(units)-1 && math.Round(v) >= base {
		v /= base
		i++
	}
	if tenths(v) >= 100 {
		return fmt.Sprintf("%.0f%s", v, units[i])
	}
	return fmt.Sprintf("%.1f%s", v, units[i])
}

// tenths rounds to one decimal.
func tenths(v float64) float64 { return math.Round(v*10) / 10 }

// age writes a duration in its largest unit or two, as 45s, 5m, 3h20m, 12d.
func age(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d/time.Second)))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d/time.Minute))
	case d < day:
		return fmt.Sprintf("%dh%dm", int(d/time.Hour), int(d%time.Hour/time.Minute))
	default:
		return fmt.Sprintf("%dd", int(d/day))
	}
}
