// Package events has the rules of the API server for events.
package events

import "strings"

// MaxNoteBytes is how many bytes the API server accepts in the note of an event.
const MaxNoteBytes = 1024

// TruncateNote shortens a text that is too long for an event; the condition has all of it.
func TruncateNote(text string) string {
	const more = "…"
	if len(text) <= MaxNoteBytes {
		return text
	}
	return strings.ToValidUTF8(text[:MaxNoteBytes-len(more)], "") + more
}
