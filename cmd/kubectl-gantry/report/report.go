// Package report has the answers of kubectl gantry as values, and prints them. It knows no cluster.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"sigs.k8s.io/yaml"

	"github.com/gantry-lb/gantry/api/names"
)

// Result says whether the subject of a Report works.
type Result string

// The results. Each has an exit status of its own.
const (
	ResultWell    Result = "Well"
	ResultNotWell Result = "NotWell"
	ResultUnknown Result = "Unknown"
)

// ExitStatus is 0 if the subject works, 1 if it does not, and 2 if that could not be told.
func (r Result) ExitStatus() int {
	switch r {
	case ResultWell:
		return 0
	case ResultNotWell:
		return 1
	}
	return 2
}

// Check is one of the conditions that have to hold, from the choice of a pool to the wire.
type Check struct {
	Name   string       `json:"name"`
	Result Result       `json:"result"`
	Reason names.Reason `json:"reason,omitempty"`
	Text   string       `json:"text,omitempty"`
	// Breaks says what does not work if the check is not passed, Mend is a command that helps, and
	// Documentation is the page about it. They have lines of their own.
	Breaks        string `json:"breaks,omitempty"`
	Mend          string `json:"mend,omitempty"`
	Documentation string `json:"documentation,omitempty"`
	// IsWideOnly means that the check is only printed by -o wide, unless it is not passed.
	IsWideOnly bool `json:"-"`
}

// Report is the answer to one question.
type Report struct {
	// Subject is what the Report is about, such as "service default/web".
	Subject string       `json:"subject"`
	Result  Result       `json:"result"`
	Reason  names.Reason `json:"reason,omitempty"`
	// Answer is one sentence.
	Answer string  `json:"answer"`
	Checks []Check `json:"gates,omitempty"`
	// Repair has the commands, or the lines of YAML, that mend what is wrong.
	Repair []string `json:"repair,omitempty"`
	// Documentation is the page that explains the Reason.
	Documentation string `json:"documentation,omitempty"`
	// MissingRights are rights that the user lacks, so that some checks are unknown.
	MissingRights []string `json:"missingRights,omitempty"`
}

// AnswerWithReason is the answer with its Reason.
func (r *Report) AnswerWithReason() string {
	if r.Reason == "" {
		return r.Answer
	}
	return fmt.Sprintf("%s [%s]", r.Answer, r.Reason)
}

// Format says how reports are printed.
type Format string

// The formats.
const (
	FormatTable Format = "table"
	FormatWide  Format = "wide"
	FormatJSON  Format = "json"
	FormatYAML  Format = "yaml"
)

// ParseFormat reads the value of the flag -o.
func ParseFormat(text string) (Format, error) {
	switch f := Format(text); f {
	case "":
		return FormatTable, nil
	case FormatTable, FormatWide, FormatJSON, FormatYAML:
		return f, nil
	}
	return "", fmt.Errorf("-o %s: the formats are table, wide, json and yaml", text)
}

// Printer prints to one output.
type Printer struct {
	Out    io.Writer
	Format Format
	// HasColor is set for a terminal.
	HasColor bool
}

// The codes of colours on a terminal.
const (
	ansiGreen, ansiRed, ansiYellow, ansiBold = "32", "31", "33", "1"
)

func (p *Printer) colorize(code, text string) string {
	if !p.HasColor {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// resultSymbol is the sign before a check.
func (p *Printer) resultSymbol(r Result) string {
	switch r {
	case ResultWell:
		return p.colorize(ansiGreen, "✓")
	case ResultNotWell:
		return p.colorize(ansiRed, "✗")
	}
	return p.colorize(ansiYellow, "?")
}

// escapeUnprintable returns the text with an escape for each character that cannot be seen. Texts
// quote what owners of Services and other programs wrote, and a terminal obeys some characters:
// they would change what somebody with more rights sees.
func escapeUnprintable(text string) string {
	if !strings.ContainsFunc(text, isUnprintable) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if isUnprintable(r) {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func isUnprintable(r rune) bool { return !unicode.IsPrint(r) }

// escapeUnprintableInJSON writes the characters beyond ASCII that cannot be seen by the format of
// an escape. The encoder of JSON has escaped those below already.
func escapeUnprintableInJSON(text []byte, escape string) []byte {
	var out []byte
	for _, r := range string(text) {
		if r < unicode.MaxASCII || !isUnprintable(r) {
			out = utf8.AppendRune(out, r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			out = fmt.Appendf(out, escape, unit)
		}
	}
	return out
}

// PrintReport prints one Report.
func (p *Printer) PrintReport(r *Report) error {
	if p.Format == FormatJSON || p.Format == FormatYAML {
		return p.PrintObject(r)
	}
	var b strings.Builder
	b.WriteString(p.colorize(ansiBold, escapeUnprintable(r.AnswerWithReason())) + "\n")
	for _, g := range r.Checks {
		if g.IsWideOnly && p.Format != FormatWide && g.Result == ResultWell {
			continue
		}
		fmt.Fprintf(&b, "  %s %s", p.resultSymbol(g.Result), escapeUnprintable(g.Name))
		if g.Text != "" {
			b.WriteString(": " + escapeUnprintable(g.Text))
		}
		if g.Reason != "" && !strings.Contains(g.Text, "("+string(g.Reason)+")") {
			fmt.Fprintf(&b, " (%s)", g.Reason)
		}
		b.WriteByte('\n')
		for _, line := range []struct{ what, text string }{{"breaks", g.Breaks}, {"to mend it", g.Mend}, {"see", g.Documentation}} {
			if line.text != "" {
				fmt.Fprintf(&b, "      %s: %s\n", line.what, line.text)
			}
		}
	}
	if len(r.Repair) > 0 {
		b.WriteString("To mend it:\n")
		for _, line := range r.Repair {
			b.WriteString("  " + escapeUnprintable(line) + "\n")
		}
	}
	if r.Documentation != "" {
		b.WriteString("See " + r.Documentation + "\n")
	}
	if len(r.MissingRights) > 0 {
		fmt.Fprintf(&b, "Not seen, because you have no right to: %s\n", strings.Join(r.MissingRights, "; "))
	}
	_, err := io.WriteString(p.Out, b.String())
	return err
}

// PrintObject prints a value as JSON or YAML.
func (p *Printer) PrintObject(o any) error {
	text, err := json.MarshalIndent(o, "", "  ")
	escape := `\u%04x`
	if p.Format == FormatYAML {
		escape = `\` + escape // as text: a YAML reader refuses some of these characters
	}
	text = escapeUnprintableInJSON(text, escape)
	if err == nil && p.Format == FormatYAML {
		text, err = yaml.JSONToYAML(text)
	}
	if err != nil {
		return fmt.Errorf("encoding the output: %w", err)
	}
	_, err = fmt.Fprintln(p.Out, strings.TrimSuffix(string(text), "\n"))
	return err
}
