// Package textdiff writes the difference of two short texts in the unified format of diff -u.
package textdiff

import (
	"fmt"
	"strings"
)

// context is how many equal lines stand around a difference.
const context = 3

// line is a line of a difference: ' ', '-' or '+', and its text.
type line struct {
	kind byte
	text string
}

// Unified returns the difference between two texts under their names, "" if there is none. It takes time
// and memory of the product of their lines.
func Unified(fromName, toName, from, to string) string {
	if from == to {
		return ""
	}
	lines := compare(split(from), split(to))
	var b strings.Builder
	fmt.Fprintf(&b, "--- %s\n+++ %s\n", fromName, toName)
	fromLine, toLine := 1, 1
	for i := 0; i < len(lines); {
		begin, end := hunk(lines, i)
		if begin == len(lines) {
			break
		}
		// between hunks all lines are equal
		fromLine, toLine = fromLine+begin-i, toLine+begin-i
		froms, tos := 0, 0
		for _, l := range lines[begin:end] {
			if l.kind != '+' {
				froms++
			}
			if l.kind != '-' {
				tos++
			}
		}
		fmt.Fprintf(&b, "@@ -%s +%s @@\n", extent(fromLine, froms), extent(toLine, tos))
		for _, l := range lines[begin:end] {
			b.WriteByte(l.kind)
			b.WriteString(l.text)
			if !strings.HasSuffix(l.text, "\n") {
				b.WriteString("\n\\ No newline at end of file\n")
			}
		}
		fromLine, toLine = fromLine+froms, toLine+tos
		i = end
	}
	return b.String()
}

// hunk returns the next lines to show: differences with what is around them. Hunks that would touch are
// one.
func hunk(lines []line, from int) (begin, end int) {
	begin = len(lines)
	for i := from; i < len(lines); i++ {
		if lines[i].kind == ' ' {
			continue
		}
		if begin == len(lines) {
			begin = max(from, i-context)
		} else if i-end > context {
			break // its context would not touch this one's
		}
		end = min(len(lines), i+1+context)
	}
	return begin, end
}

// extent writes where lines begin, and how many they are; none begin behind the line before.
func extent(first, count int) string {
	switch count {
	case 0:
		return fmt.Sprintf("%d,0", first-1)
	case 1:
		return fmt.Sprint(first)
	}
	return fmt.Sprintf("%d,%d", first, count)
}

// split returns the lines of a text with their line ends.
func split(text string) []string {
	if text == "" {
		return nil
	}
	lines := strings.SplitAfter(text, "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

// compare returns a shortest way from one text to the other, by the longest common subsequence.
func compare(from, to []string) []line {
	// longest[i][j] is the length of that of from[i:] and to[j:]
	longest := make([][]int, len(from)+1)
	for i := range longest {
		longest[i] = make([]int, len(to)+1)
	}
	for i := len(from) - 1; i >= 0; i-- {
		for j := len(to) - 1; j >= 0; j-- {
			if from[i] == to[j] {
				longest[i][j] = longest[i+1][j+1] + 1
			} else {
				longest[i][j] = max(longest[i+1][j], longest[i][j+1])
			}
		}
	}
	var lines []line
	i, j := 0, 0
	for i < len(from) || j < len(to) {
		switch {
		case i < len(from) && j < len(to) && from[i] == to[j]:
			lines = append(lines, line{' ', from[i]})
			i, j = i+1, j+1
		case j == len(to) || i < len(from) && longest[i+1][j] >= longest[i][j+1]:
			lines = append(lines, line{'-', from[i]})
			i++
		default:
			lines = append(lines, line{'+', to[j]})
			j++
		}
	}
	return lines
}
