package router

import (
	"fmt"
	"os"
	"regexp"
)

// ReadDocumentedConfig returns a configuration from a file of the docs: the first code block after
// an HTML comment with that name. So the tests run what readers copy.
func ReadDocumentedConfig(file, name string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("reading the docs: %w", err)
	}
	m := regexp.MustCompile("(?s)<!-- " + regexp.QuoteMeta(name) + " -->\n+```[a-z]*\n(.*?\n)```").FindSubmatch(text)
	if m == nil {
		return "", fmt.Errorf("%s has no configuration named %q", file, name)
	}
	return string(m[1]), nil
}
