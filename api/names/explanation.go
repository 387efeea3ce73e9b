package names

import (
	"fmt"
	"strconv"
	"strings"
)

// Explanation is a Reason with one sentence for people, which says what to do. The zero value
// explains nothing, because nothing is wrong.
type Explanation struct {
	Reason Reason
	Text   string
}

// NewExplanation returns an Explanation with a formatted text.
func NewExplanation(r Reason, format string, args ...any) Explanation {
	return Explanation{r, fmt.Sprintf(format, args...)}
}

// maxQuotedBytes bounds what a text quotes of a user's input. An annotation may have 256 KiB, and
// its text ends up in conditions, events and logs.
const maxQuotedBytes = 100

// QuoteShortened returns a user's text in quotes, cut when it is long.
func QuoteShortened(text string) string {
	if len(text) > maxQuotedBytes {
		return strconv.Quote(strings.ToValidUTF8(text[:maxQuotedBytes], "")) + "…"
	}
	return strconv.Quote(text)
}

// IsSet reports whether there is an Explanation.
func (e Explanation) IsSet() bool { return e != Explanation{} }
