package conf

import "strings"

// nearest returns the key that an author who wrote given most likely meant:
// the one the fewest edits away, whatever the case, if they are so few that the
// two look alike.
func nearest(given string, keys []string) (string, bool) {
	best, found := "", false
	// A third of the letters may be wrong, and two at most: past that the
	// hint would mislead more often than help. Lengths first, as an unknown
	// key may be of any length.
	least := min(2, len(given)/3) + 1
	for _, k := range keys {
		if len(given)-len(k) >= least || len(k)-len(given) >= least {
			continue
		}
		if d := edits(strings.ToLower(given), strings.ToLower(k)); d < least {
			best, found, least = k, true, d
		}
	}
	return best, found
}

// edits returns the number of bytes to insert, delete, replace or swap with
// their neighbour to get from a to b (the optimal string alignment distance).
func edits(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			replace := last[j]
			if a[i] != b[j] {
				replace++
			}
			row[j+1] = min(replace, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
