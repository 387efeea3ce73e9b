package names

// Explanation is a Reason with one sentence for people, which says what to do. The zero value
// explains nothing, because nothing is wrong.
type Explanation struct {
	Reason Reason
	Text   string
}

// IsSet reports whether there is an Explanation.
func (e Explanation) IsSet() bool { return e != Explanation{} }
