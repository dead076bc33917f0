package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// series is one figure in each of the rounds.
type series []float64

// add appends a time in milliseconds.
func (s *series) add(d time.Duration) { *s = append(*s, milliseconds(d)) }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// quantile returns the value below which that share of the rounds lies.
func (s series) quantile(share float64) float64 {
	sorted := slices.Sorted(slices.Values(s))
	at := share * float64(len(sorted)-1)
	below := int(at)
	above := min(below+1, len(sorted)-1)
	return sorted[below] + (at-float64(below))*(sorted[above]-sorted[below])
}

func (s series) median() float64 { return s.quantile(0.5) }

// quartiles shows how far the middle half of the rounds lies apart.
func (s series) quartiles(format string) string {
	return fmt.Sprintf(format+" – "+format, s.quantile(0.25), s.quantile(0.75))
}

// over returns the ratio to another series, round by round.
func (s series) over(other series) series {
	return s.with(other, func(a, b float64) float64 { return a / b })
}

// minus returns the difference to another series, round by round.
func (s series) minus(other series) series {
	return s.with(other, func(a, b float64) float64 { return a - b })
}

func (s series) with(other series, f func(a, b float64) float64) series {
	both := make(series, len(s))
	for i := range s {
		both[i] = f(s[i], other[i])
	}
	return both
}

// noiseLimit is how far a figure may be off itself before it is said.
const noiseLimit = 0.03

// noise notes it if what is compared with differs from itself: ratios are those of two measurements of the same, round
// by round. What is smaller than that says nothing.
func (b *bench) noise(name string, ratios series) {
	off := max(math.Abs(ratios.quantile(0.25)-1), math.Abs(ratios.quantile(0.75)-1))
	if off > noiseLimit {
		fmt.Fprintf(b.out, "\nNoise: %s against itself has quartiles up to %.0f %% off 1 (%s): differences below that are none.\n",
			name, 100*off, ratios.quartiles("%.3f"))
	}
}
