package names

import "fmt"

// Explanation is a Reason with one sentence for people, which says what to do. The zero value
// explains nothing, because nothing is wrong.
type Explanation struct {
	Reason Reason
	Text   string
}

// Explain returns an Explanation with a formatted text.
func Explain(r Reason, format string, args ...any) Explanation {
	return Explanation{r, fmt.Sprintf(format, args...)}
}

// IsSet reports whether there is an Explanation.
func (e Explanation) IsSet() bool { return e != Explanation{} }
