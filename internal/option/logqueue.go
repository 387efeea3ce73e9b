package option

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/gantry-lb/gantry/internal/latest"
)

// queuedLogLineLimit bounds how many lines wait for a slow reader of the log: about 2 MB.
const queuedLogLineLimit = 8192

// LogQueue is a writer that never blocks. It passes lines on to another writer in a goroutine of
// its own. Whoever reads the log of a program may stop reading, for example while the container
// runtime is restarted. The goroutine that answers for addresses must not wait for that. Lines
// without room are dropped and counted. Use NewLogQueue to create it.
type LogQueue struct {
	lineQueue          *latest.BoundedQueue[[]byte]
	unwrittenLineCount atomic.Int64 // lines that are not written yet
}

// NewLogQueue returns a LogQueue that writes to w until the program ends.
func NewLogQueue(w io.Writer) *LogQueue {
	q := &LogQueue{lineQueue: latest.NewBoundedQueue[[]byte](queuedLogLineLimit)}
	go q.writeLines(w)
	return q
}

// Write queues one line. It implements io.Writer and returns no error.
func (q *LogQueue) Write(line []byte) (int, error) {
	q.unwrittenLineCount.Add(1)
	if !q.lineQueue.PutIfRoom(slices.Clone(line)) {
		q.unwrittenLineCount.Add(-1)
	}
	return len(line), nil
}

// DroppedLineCount returns how many lines were dropped so far.
func (q *LogQueue) DroppedLineCount() uint64 { return q.lineQueue.DroppedCount() }

// writeLines writes the lines in order. After a gap it says how many lines are missing.
func (q *LogQueue) writeLines(w io.Writer) {
	reported := uint64(0)
	for line := range q.lineQueue.C() {
		_, _ = w.Write(line)
		q.unwrittenLineCount.Add(-1)
		if dropped := q.lineQueue.DroppedCount(); dropped != reported && len(q.lineQueue.C()) == 0 {
			_, _ = fmt.Fprintf(w, `{"level":"WARN","msg":"%d log lines were dropped, because nobody read the log"}`+"\n", dropped-reported)
			reported = dropped
		}
	}
}

// flushPollInterval is how often Flush looks whether all lines are written.
const flushPollInterval = 5 * time.Millisecond

// Flush waits until all lines are written, but not longer than ctx lasts.
func (q *LogQueue) Flush(ctx context.Context) {
	poll := time.NewTicker(flushPollInterval)
	defer poll.Stop()
	for q.unwrittenLineCount.Load() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
		}
	}
}

// logFlushTimeout bounds how long a program that stops waits for the reader of its log.
const logFlushTimeout = 2 * time.Second

// RunWithLogQueue runs a program whose log goes to w by a LogQueue. In the end it waits a short
// while for the log to be written, although ctx has ended.
func RunWithLogQueue(ctx context.Context, w io.Writer, run func(log io.Writer) error) error {
	q := NewLogQueue(w)
	err := run(q)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), logFlushTimeout)
	defer cancel()
	q.Flush(ctx)
	return err
}
