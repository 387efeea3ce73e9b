package option

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"time"
)

// stallingLogWriter is a reader of a log that stops reading until it is released.
type stallingLogWriter struct {
	releaseSignal chan struct{}
	mu            sync.Mutex
	text          bytes.Buffer
}

func (r *stallingLogWriter) Write(b []byte) (int, error) {
	<-r.releaseSignal
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(b)
}

func TestLogQueueDoesNotBlockOnStalledWriter(t *testing.T) {
	r := &stallingLogWriter{releaseSignal: make(chan struct{})}
	q := NewLogQueue(r)
	log := (&CommonOptions{LogLevel: "info"}).NewLogger(q)
	const lines = queuedLogLineLimit + 100
	for range lines { // blocks for ever if a line waits for the reader
		log.Info("a line")
	}
	dropped := q.DroppedLineCount()
	if dropped < 99 || dropped > 100 {
		t.Errorf("%d lines were dropped of %d, want those above the limit", dropped, lines)
	}
	close(r.releaseSignal)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	q.Flush(ctx)
	log.Info("the last line")
	q.Flush(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if got := strings.Count(r.text.String(), `"a line"`); got != lines-int(dropped) {
		t.Errorf("%d lines were written, want %d", got, lines-int(dropped))
	}
	if !strings.Contains(r.text.String(), "log lines were dropped") || !strings.Contains(r.text.String(), "the last line") {
		t.Error("the log does not say that lines were dropped, or does not go on")
	}
}
