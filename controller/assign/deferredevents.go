package assign

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// How long events about assignments wait.
const (
	// deferredEventsIdleDelay is how long there must be no work before events are recorded.
	// At ten Services a second they are recorded between two Services.
	deferredEventsIdleDelay = 50 * time.Millisecond
	// maxEventDelay is how long an event waits at most while there always is work.
	maxEventDelay = 5 * time.Second
	// minEventsPerBatch to maxEventsPerBatch events are recorded at once, and the next ones after
	// eventBatchInterval: so few that a Service that comes meanwhile hardly waits for them. A batch
	// has one event of queuedEventsPerRecorded that wait: so many events do not take long either.
	// client-go drops what is more than 1,000 ahead of the API server.
	minEventsPerBatch, maxEventsPerBatch = 2, 16
	queuedEventsPerRecorded              = 64
	eventBatchInterval                   = 10 * time.Millisecond
)

// deferredEventQueue keeps the events about assignments until no Service waits for an address. An
// event costs the API server as much as the write of a status, and can wait, because the condition
// in the status says the same. The worker calls it once per turn. All its methods run on the
// worker's goroutine.
type deferredEventQueue struct {
	recordEvent func(about *corev1.Service, kind, reason, text string)
	workQueue   *workQueue

	queuedEvents []deferredEvent
	// lastOtherWorkTime is when there was other work last, lastBatchTime when events were recorded
	// last.
	lastOtherWorkTime, lastBatchTime time.Time
	timer                            wakeTimer
}

type deferredEvent struct {
	about              *corev1.Service
	kind, reason, text string
	queuedAt           time.Time
}

// addEvent adds an event.
func (d *deferredEventQueue) addEvent(now time.Time, about *corev1.Service, kind, reason, text string) {
	d.queuedEvents = append(d.queuedEvents, deferredEvent{about, kind, reason, text, now})
}

// recordDueEvents records the events that are due. hasOtherWork says whether a Service is to be
// decided or written.
func (d *deferredEventQueue) recordDueEvents(now time.Time, hasOtherWork func() bool) {
	if len(d.queuedEvents) == 0 {
		return
	}
	if hasOtherWork() {
		d.lastOtherWorkTime = now
	}
	due := d.queuedEvents[0].queuedAt.Add(maxEventDelay)
	if quiet := d.lastOtherWorkTime.Add(deferredEventsIdleDelay); quiet.Before(due) {
		due = quiet
	}
	if turn := d.lastBatchTime.Add(eventBatchInterval); turn.After(due) {
		due = turn
	}
	if !due.After(now) {
		n := min(len(d.queuedEvents), max(minEventsPerBatch, min(len(d.queuedEvents)/queuedEventsPerRecorded, maxEventsPerBatch)))
		d.recordOldestEvents(n)
		d.lastBatchTime, due = now, now.Add(eventBatchInterval)
	}
	if len(d.queuedEvents) > 0 {
		d.timer.wakeWorkerAt(due, now, d.workQueue)
	}
}

// recordOldestEvents records the first n events.
func (d *deferredEventQueue) recordOldestEvents(n int) {
	for _, e := range d.queuedEvents[:n] {
		d.recordEvent(e.about, e.kind, e.reason, e.text)
	}
	clear(d.queuedEvents[:n])
	if d.queuedEvents = d.queuedEvents[n:]; len(d.queuedEvents) == 0 {
		d.queuedEvents = nil
	}
}

// hasServiceWork says whether a Service is to be decided or written.
func (r *ServiceWorker) hasServiceWork() bool {
	return len(r.ledgerWriter.writesAwaitingLedgerEntry) > 0 || r.apiTaskQueue.countUnfinishedTasks() > 0 || !r.workQueue.hasNoQueuedServices()
}
