package main

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// column is one of a table's. Neighbours of the same group stand under its name.
type column struct {
	group, title string
	right        bool // right-aligned, as numbers are
}

// table is laid out as a whole: text/tabwriter cannot align some columns right and others left.
type table struct {
	columns []column
	rows    [][]string
}

// text and number return columns, left- and right-aligned.
func text(titles ...string) []column { return newColumns("", false, titles) }

func number(group string, titles ...string) []column { return newColumns(group, true, titles) }

func newColumns(group string, right bool, titles []string) []column {
	columns := make([]column, len(titles))
	for i, title := range titles {
		columns[i] = column{group, title, right}
	}
	return columns
}

// add adds a row. What would not print, or would move a terminal's cursor, is replaced: some of
// what tables show was chosen by whoever made the pod.
func (t *table) add(cells ...string) {
	row := make([]string, len(t.columns))
	for i := range row {
		if i < len(cells) {
			row[i] = printable(cells[i])
		}
	}
	t.rows = append(t.rows, row)
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

const columnGap = "  "

// String returns the table with its titles.
func (t *table) String() string {
	widths := make([]int, len(t.columns))
	titles := make([]string, len(t.columns))
	for i, c := range t.columns {
		titles[i] = c.title
		widths[i] = utf8.RuneCountInString(c.title)
		for _, row := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	var b strings.Builder
	if groups := t.groups(widths); groups != "" {
		b.WriteString(groups + "\n")
	}
	for _, row := range append([][]string{titles}, t.rows...) {
		b.WriteString(t.line(row, widths) + "\n")
	}
	return b.String()
}

// body returns the table without titles, each line indented.
func (t *table) body(indent string) string {
	_, rows, _ := strings.Cut(t.String(), "\n")
	return indented(rows, indent)
}

// indented returns a text with each of its lines indented.
func indented(text, indent string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(indent + line)
	}
	return b.String()
}

func (t *table) line(row []string, widths []int) string {
	cells := make([]string, len(row))
	for i, cell := range row {
		padding := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
		if t.columns[i].right {
			cells[i] = padding + cell
		} else {
			cells[i] = cell + padding
		}
	}
	return strings.TrimRight(strings.Join(cells, columnGap), " ")
}

// groups returns the line of the groups' names, "" if there are none, and widens columns that are
// narrower than the name over them.
func (t *table) groups(widths []int) string {
	var cells []string
	for i := 0; i < len(t.columns); {
		group, width := t.columns[i].group, widths[i]
		for i++; i < len(t.columns) && t.columns[i].group == group; i++ {
			width += len(columnGap) + widths[i]
		}
		if group == "" {
			cells = append(cells, strings.Repeat(" ", width))
			continue
		}
		if missing := len(group) + len("-  -") - width; missing > 0 {
			widths[i-1] += missing
			width += missing
		}
		dashes := width - len(group) - len("  ")
		cells = append(cells, strings.Repeat("-", dashes/2)+" "+group+" "+strings.Repeat("-", dashes-dashes/2))
	}
	return strings.TrimRight(strings.Join(cells, columnGap), " ")
}
