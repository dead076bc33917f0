package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// table is a Markdown table, its first column aligned left and the others right.
type table struct {
	header []string
	rows   [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) write(w io.Writer) error {
	widths := make([]int, len(t.header))
	for _, row := range append([][]string{t.header}, t.rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell), 3)
		}
	}
	var s strings.Builder
	s.WriteByte('\n')
	line := func(row []string) {
		for i, width := range widths {
			cell := ""
			if i < len(row) {
				cell = row[i]
			}
			padding := strings.Repeat(" ", width-utf8.RuneCountInString(cell))
			if i == 0 {
				fmt.Fprintf(&s, "| %s%s |", cell, padding)
			} else {
				fmt.Fprintf(&s, " %s%s |", padding, cell)
			}
		}
		s.WriteByte('\n')
	}
	line(t.header)
	for i, width := range widths {
		if i == 0 {
			s.WriteString("|" + strings.Repeat("-", width+2) + "|")
		} else {
			s.WriteString(strings.Repeat("-", width+1) + ":|")
		}
	}
	s.WriteByte('\n')
	for _, row := range t.rows {
		line(row)
	}
	_, err := io.WriteString(w, s.String())
	return err
}

// expectation is the two last cells of a row: what is expected, and whether it was met.
func expectation(expected string, met bool) []string {
	if met {
		return []string{expected, "yes"}
	}
	return []string{expected, "no"}
}
