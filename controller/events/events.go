// Package events creates events about Services, as the API server accepts them.
package events

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"
)

// Recorder creates events about Services. Use NewRecorder to create it.
type Recorder struct{ recorder events.EventRecorder }

// NewRecorder returns a Recorder.
func NewRecorder(r events.EventRecorder) *Recorder { return &Recorder{r} }

// RecordEvent creates an event; kind is Normal or Warning.
func (r *Recorder) RecordEvent(s *corev1.Service, kind, reason, text string) {
	r.recorder.Eventf(s, nil, kind, reason, distinctActionForText(text), "%s", text)
}

// distinctActionForText returns an action that no other text has. Kubernetes merges events that
// differ only in their text into one, which keeps the text of the first for minutes.
func distinctActionForText(text string) string {
	sum := sha256.Sum256([]byte(text))
	return actionForText(text) + "-" + hex.EncodeToString(sum[:4])
}

// actionForText returns the action of an event: the first word of the text if a colon follows it.
func actionForText(text string) string {
	if word, _, ok := strings.Cut(text, ": "); ok && !strings.Contains(word, " ") {
		return word
	}
	return "Allocate"
}

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
