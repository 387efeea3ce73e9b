// Command reference writes the reference pages of docs from the code: reference-fields.md from the
// CRDs, reference-metrics.md from the declarations of the metrics, and reference-annotations.md
// from the package api/names. It runs in the root of the repository. Its argument is the directory
// for the pages. tools/generate.sh calls it.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// reference is a page, and what writes its text from the repository at a root.
type reference struct {
	fileName  string
	writePage func(root string) (string, error)
}

var references = []reference{
	{"reference-fields.md", writeFieldsPage},
	{"reference-metrics.md", writeMetricsPage},
	{"reference-annotations.md", writeNamesPage},
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: reference DIRECTORY")
		os.Exit(2)
	}
	if err := writeReferences(".", os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "reference:", err)
		os.Exit(1)
	}
}

// writeReferences writes every page into a directory.
func writeReferences(root, directory string) error {
	for _, r := range references {
		text, err := r.writePage(root)
		if err != nil {
			return fmt.Errorf("%s: %w", r.fileName, err)
		}
		if err := os.WriteFile(filepath.Join(directory, r.fileName), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// generatedNote says on each page where to change it.
func generatedNote(source string) string {
	return "<!-- generated from " + source + " by `make generate`: change it there -->\n"
}

// tableCell returns a text as one cell of a table.
func tableCell(text string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(text), " "), "|", "\\|")
}
