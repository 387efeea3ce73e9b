package report

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// Listing is a table. Its first line is a title with the same result as a Report.
type Listing struct {
	Title   string
	Result  Result
	Columns []string
	// WideColumnCount is how many of the last columns only -o wide prints.
	WideColumnCount int
	Rows            [][]string
	// MissingRights are rights that the user lacks, so that rows are missing.
	MissingRights []string
}

// rowsByColumnName returns the rows for JSON: the columns are the keys.
func (l *Listing) rowsByColumnName() []map[string]string {
	out := []map[string]string{}
	for _, row := range l.Rows {
		o := map[string]string{}
		for i, column := range l.Columns {
			o[strings.ToLower(strings.ReplaceAll(column, " ", ""))] = row[i]
		}
		out = append(out, o)
	}
	return out
}

// PrintListing prints a table.
func (p *Printer) PrintListing(l *Listing) error {
	if p.Format == FormatJSON || p.Format == FormatYAML {
		return p.PrintObject(map[string]any{"title": l.Title, "result": l.Result, "items": l.rowsByColumnName(), "missingRights": l.MissingRights})
	}
	shown := len(l.Columns)
	if p.Format != FormatWide {
		shown -= l.WideColumnCount
	}
	if l.Title != "" {
		if _, err := fmt.Fprintln(p.Out, p.colorize(ansiBold, escapeUnprintable(l.Title))); err != nil {
			return err
		}
	}
	if len(l.Rows) > 0 {
		w := tabwriter.NewWriter(p.Out, 0, 8, 3, ' ', 0)
		fmt.Fprintln(w, strings.ToUpper(strings.Join(l.Columns[:shown], "\t")))
		for _, row := range l.Rows {
			var cells []string
			for _, cell := range row[:shown] {
				cells = append(cells, escapeUnprintable(cell))
			}
			fmt.Fprintln(w, strings.Join(cells, "\t"))
		}
		if err := w.Flush(); err != nil {
			return fmt.Errorf("writing the table: %w", err)
		}
	}
	if len(l.MissingRights) > 0 {
		fmt.Fprintf(p.Out, "Not seen, because you have no right to: %s\n", strings.Join(l.MissingRights, "; "))
	}
	return nil
}

// usageBarWidth is how many characters a bar has.
const usageBarWidth = 20

// FormatUsageBar draws how much of a whole is used.
func FormatUsageBar(used, whole int64) string {
	if whole <= 0 {
		return strings.Repeat("·", usageBarWidth)
	}
	n := int(float64(used) / float64(whole) * usageBarWidth)
	if used > 0 && n == 0 {
		n = 1
	}
	n = min(n, usageBarWidth)
	return strings.Repeat("█", n) + strings.Repeat("·", usageBarWidth-n)
}
